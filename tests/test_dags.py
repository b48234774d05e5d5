"""The DAGs parse with Airflow alone, treat the jobs' exit codes rightly, and run in process, offline, on a sample log."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import polars as pl
import pytest
from release_lake import fixtures, mined
from release_world import AS_OF, rewrite, world

pytest.importorskip("airflow.sdk", reason="Airflow is not installed: pip install -c constraints.txt -e '.[airflow]'")
pytestmark = pytest.mark.dag

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "dags" / "sayagain.py"
made, lake = fixtures(1)
NAMES = ["housekeeping", "mine_feedback", "release_feedback", "retrain"]


@pytest.fixture(scope="module")
def airflow_home(tmp_path_factory):
    """A fresh Airflow home, so that no test reads or writes the developer's own."""
    patch = pytest.MonkeyPatch()
    home = tmp_path_factory.mktemp("airflow")
    patch.setenv("AIRFLOW_HOME", str(home))
    patch.setenv("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
    patch.setenv("AIRFLOW__CORE__DAGS_FOLDER", str(ROOT / "dags"))
    patch.setenv("NO_COLOR", "1")
    patch.setenv("COLUMNS", "300")
    yield home
    patch.undo()


@pytest.fixture(scope="module")
def module(airflow_home) -> ModuleType:
    spec = importlib.util.spec_from_file_location("dags_sayagain", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def dags(module) -> dict[str, Any]:
    return {name: getattr(module, name)() for name in NAMES}


# wiring


def test_imports_airflow_sdk_and_the_standard_library_alone():
    assert list((ROOT / "dags").glob("*.py")) == [FILE]
    tree = ast.parse(FILE.read_text())
    found = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    found |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    foreign = {m for m in found if m.split(".")[0] not in sys.stdlib_module_names and not (m + ".").startswith("airflow.sdk.")}
    assert not foreign


def test_parses_in_a_second_where_only_airflow_is_installed(airflow_home):
    """As in Airflow's dag processor, with everything else that we use made impossible to import; beyond Airflow's own import."""
    code = (
        "import runpy, sys, time\n"
        "from airflow.sdk import Asset, Connection, CronPartitionTimetable, ObjectStoragePath, dag, task\n"  # loaded where they are named
        "for name in ('pipelines', 'rewrite', 'quality', 'apache_beam', 'polars', 'torch', 'great_expectations', 'obstore'):\n"
        "    sys.modules[name] = None\n"
        "start = time.process_time()\n"
        "runpy.run_path(sys.argv[1])\n"
        "print(time.process_time() - start)\n"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("SAYAGAIN_")}  # nothing is read while parsing
    done = subprocess.run([sys.executable, "-c", code, FILE], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 1.0


def test_structure(dags):
    edges = {name: {(t.task_id, down) for t in d.tasks for down in t.downstream_task_ids} for name, d in dags.items()}
    assert edges["mine_feedback"] >= {
        ("day.complete", "day.ingest"),
        ("day.ingest", "day.fit"),
        ("day.fit", "day.detect"),
    }
    chain = {
        ("one.late", "one.embed"),
        ("one.embed", "one.link"),
        ("one.link", "one.aggregate"),
        ("one.aggregate", "one.release"),
        ("one.embed", "one.release"),
    }
    assert edges["release_feedback"] >= chain
    assert ("one.verify", "one.train") in edges["retrain"]
    assert edges["housekeeping"] >= {("one.forget", "one.retention"), ("one.retention", "one.doctor")}
    for name in ("release_feedback", "retrain", "housekeeping"):
        assert dags[name].max_active_runs == 1
    for d in dags.values():
        assert not d.catchup and d.dagrun_timeout
        for t in d.tasks:
            assert t.retries >= 2 and t.execution_timeout and t.on_failure_callback, t.task_id
            assert t.pool == ("default_pool" if t.task_id in ("assistants", "announced", "day.complete") else "sayagain"), t.task_id


def test_schedules(dags):
    daily = dags["mine_feedback"].timetable
    assert type(daily).__name__ == "CronPartitionTimetable"
    assert (daily.expression, daily.run_offset, daily.key_format) == ("0 0 * * *", -1, "%Y-%m-%d")
    # An asset of a partitioned DAG would never wake the consumer.
    assert "Partition" not in type(dags["release_feedback"].timetable).__name__
    assert [o.name for o in dags["release_feedback"].get_task("one.release").outlets] == ["retraining_queue"]
    assert [a.name for a in dags["retrain"].timetable.asset_condition.objects] == ["retraining_queue"]


# tasks, with a stand-in for `python -m pipelines`


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Makes SAYAGAIN_PYTHON a script that does as told; returns what it was called with."""
    calls = tmp_path / "calls"

    def stand_in(body: str) -> Path:
        script = tmp_path / "python"
        script.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {calls}\n{body}\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("SAYAGAIN_PYTHON", str(script))
        return calls

    monkeypatch.setenv("SAYAGAIN_LAKE", str(tmp_path / "lake"))
    for name in ("CONFIG", "ASSISTANTS", "NOTIFY", "READY", "ENGINE", "KEY_CONN", "TRAINER", "MODELS", "LATE"):
        monkeypatch.delenv(f"SAYAGAIN_{name}", raising=False)
    monkeypatch.setenv("SAYAGAIN_TEST", "/test.parquet")
    monkeypatch.setenv("SAYAGAIN_LOGS", "/logs/{date}.parquet")
    return stand_in


class Events(dict):
    """Stands in for Airflow's accessor of outlet events."""

    def __missing__(self, asset):
        self[asset] = SimpleNamespace(extra=None)
        return self[asset]


def call(dag: Any, task: str, *arguments: Any, **context: Any) -> Any:
    wanted = dag.get_task(task)
    if wanted.outlets:
        context.setdefault("outlet_events", Events())
    return wanted.python_callable(*arguments, **context)


def test_the_day_is_the_partition_and_a_parameter_overrides_it(dags, job, tmp_path):
    calls = job("""echo working >&2; echo '{"turns": 3}'""")
    mine = dags["mine_feedback"]
    (of,) = call(mine, "assistants", {"lake": None}, SimpleNamespace(partition_key="2026-01-31"))
    assert of["date"] == "2026-01-31"
    assert call(mine, "day.ingest", of) == {"turns": 3}
    (other,) = call(mine, "assistants", {"date": "2026-02-01", "lake": "s3://b/l", "config": "c.toml"}, None)
    call(mine, "day.detect", other | {"engine": "--runner prism"})
    call(mine, "day.fit", of)
    assert calls.read_text().splitlines() == [
        f"-m pipelines ingest --logs=/logs/{{date}}.parquet --from=2026-01-31 --to=2026-01-31 --lake={tmp_path}/lake --json",
        "-m pipelines detect --from=2026-02-01 --to=2026-02-01 --lake=s3://b/l --json --config=c.toml --runner prism",
        f"-m pipelines fit --if-missing --lake={tmp_path}/lake --json",
    ]


def test_several_assistants_come_from_one_file(module, dags, job, tmp_path, monkeypatch):
    calls = job("echo '{}'")
    (tmp_path / "all.json").write_text(json.dumps({"car": {"lake": "/car", "logs": "/c/{date}"}, "home": {"lake": "/home"}}))
    monkeypatch.setenv("SAYAGAIN_ASSISTANTS", str(tmp_path / "all.json"))
    found = call(dags["release_feedback"], "assistants", {"lake": None, "assistant": None})
    assert [(of["assistant"], of["lake"]) for of in found] == [("car", "/car"), ("home", "/home")]
    for of in found:
        call(dags["mine_feedback"], "day.ingest", of | {"date": "2026-01-31"})
    assert [line.split()[3] for line in calls.read_text().splitlines()] == ["--logs=/c/{date}", "--logs=/logs/{date}.parquet"]
    assert [of["lake"] for of in module.chosen({"assistant": "home"})] == ["/home"]
    with pytest.raises(module.AirflowFailException, match="no assistant 'boat'; it has car, home"):
        module.chosen({"assistant": "boat"})


def test_a_day_is_complete_when_its_marker_is_there(dags, job, tmp_path):
    job("exit 0")
    of = {"date": "2026-01-31", "ready": f"file://{tmp_path}/{{date}}/_SUCCESS"}
    assert call(dags["mine_feedback"], "day.complete", {"date": "2026-01-31"})  # no marker was agreed on
    assert not call(dags["mine_feedback"], "day.complete", of)
    (tmp_path / "2026-01-31").mkdir()
    (tmp_path / "2026-01-31" / "_SUCCESS").touch()
    assert call(dags["mine_feedback"], "day.complete", of)


def test_events_of_assets_say_what_a_job_did(dags, job, module):
    job("""echo '{"rows": 9, "turns": 7, "rejects": 2, "seconds": 1.5, "peak_mib": 300, "reasons": {"no_user": 2}, "notes": ["x"]}'""")
    events = Events()
    call(dags["mine_feedback"], "day.ingest", {"date": "2026-01-31", "assistant": "car"}, outlet_events=events)
    assert events[module.TURNS].extra == {
        "date": "2026-01-31",
        "assistant": "car",
        "lake": os.environ["SAYAGAIN_LAKE"],
        "skipped": "",
        **{"rows": 9, "turns": 7, "rejects": 2, "seconds": 1.5, "peak_mib": 300},
    }


def test_secrets_come_from_connections_and_are_never_arguments(dags, job, module, monkeypatch, tmp_path):
    calls = job(f'echo "$SAYAGAIN_USER_KEY" > {tmp_path}/key')
    asked = []
    connection = SimpleNamespace(get=lambda name: asked.append(name) or SimpleNamespace(password="abcd"))
    monkeypatch.setattr(module, "Connection", connection)
    module.run_job("fit", {"key_conn": "lake_key"})
    assert asked == ["lake_key"] and (tmp_path / "key").read_text().strip() == "abcd" and "abcd" not in calls.read_text()


def test_a_failed_task_is_told_to_whoever_should_know(module, tmp_path, monkeypatch, capsys):
    told = tmp_path / "told.sh"
    told.write_text(f"#!/bin/sh\ncat > {tmp_path}/told\n")
    told.chmod(0o755)
    monkeypatch.setenv("SAYAGAIN_NOTIFY", str(told))
    ti = SimpleNamespace(dag_id="release_feedback", task_id="release", run_id="r", try_number=1)
    module.notify({"ti": ti, "exception": RuntimeError("labels.users expect >= 3: 2 of 9 rows")})
    assert json.loads((tmp_path / "told").read_text())["message"] == "labels.users expect >= 3: 2 of 9 rows"


@pytest.mark.parametrize(("params", "key", "word"), [({}, None, "no partition"), ({"date": "31.1.2026"}, None, "is not a date")])
def test_a_run_without_a_day_fails_for_good(dags, job, module, params, key, word):
    job("exit 0")
    with pytest.raises(module.AirflowFailException, match=word):
        call(dags["mine_feedback"], "assistants", params, SimpleNamespace(partition_key=key))


def test_a_missing_setting_is_named(dags, job, module, monkeypatch):
    job("exit 0")
    monkeypatch.delenv("SAYAGAIN_LAKE")
    with pytest.raises(module.AirflowFailException, match="set SAYAGAIN_LAKE"):
        call(dags["mine_feedback"], "day.fit", {})


@pytest.mark.parametrize(("code", "for_good"), [(1, False), (2, True), (3, True), (137, False)])
def test_only_what_may_get_better_is_tried_again(module, job, code, for_good):
    job(f"echo 'gate k_users failed on 3 rows' >&2; exit {code}")
    with pytest.raises(Exception, match="gate k_users failed on 3 rows") as raised:
        module.run_job("release", {})
    assert isinstance(raised.value, module.AirflowFailException) is for_good


def test_output_arrives_line_by_line(module, job, capfd):
    job("echo one; echo two >&2; printf 'bad \\377 byte\\n'; echo '{\"a\": 1}'")
    assert module.run_job("fit", {}) == {"a": 1}
    assert capfd.readouterr().out.splitlines()[1:] == ["one", "two", "bad � byte", '{"a": 1}']


@pytest.mark.parametrize("by", [TimeoutError, SystemExit])
def test_a_stopped_task_stops_its_job(module, job, tmp_path, monkeypatch, by):
    """A time-out is an exception while the task waits for a line, a clearing is SIGTERM: the job and its children must go too."""
    job(f"sleep 300 & echo $! > {tmp_path}/child; echo started; wait")
    heard = []

    def stop(*words: str, **_: Any) -> None:
        if words == ("started",) and by is TimeoutError:
            raise TimeoutError
        if words == ("started",):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(module, "print", stop, raising=False)
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("Airflow's own"))
    try:
        with pytest.raises(by):
            module.run_job("fit", {})
        assert not heard
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard, "Airflow's handler should be back"
    finally:
        signal.signal(signal.SIGTERM, before)
    status = Path("/proc", (tmp_path / "child").read_text().strip(), "status")
    deadline = time.monotonic() + 10
    while status.exists() and "(zombie)" not in status.read_text():
        assert time.monotonic() < deadline, "the job's child still runs"
        time.sleep(0.05)


class Mined(list):
    """Stands in for Airflow's accessor of the events of an inlet."""

    def after(self, when: str):
        return Mined(e for e in self if e.at >= when)


def test_a_log_that_changed_after_its_day_was_mined_is_read_again(dags, module, job, tmp_path, monkeypatch):
    """Days of this lake whose events are of the last three days; other lakes are none of our business."""
    calls = job("echo '{}'")
    event = lambda at, day, lake="lake": SimpleNamespace(at=at, extra={"date": day, "lake": f"{tmp_path}/{lake}"})  # noqa: E731
    mined = [event("2026-02-01", day) for day in ("2026-01-31", "2026-01-28", "2026-01-30", "2026-01-30")]
    mined += [event("2026-01-26", "2026-01-25"), event("2026-02-01", "2026-01-29", "other")]
    run = SimpleNamespace(run_after=datetime(2026, 2, 1, 3, tzinfo=UTC))
    late = lambda: call(dags["release_feedback"], "one.late", {}, dag_run=run, inlet_events={module.TURNS: Mined(mined)})  # noqa: E731
    assert len(late()) == 4
    made = [line.split(" --lake=")[0].removeprefix("-m pipelines ") for line in calls.read_text().splitlines()]
    days = ("2026-01-28", "2026-01-30", "2026-01-31")
    ingested = [
        f"ingest --logs=/logs/{{date}}.parquet --if-there --from={day} --to={day}" for day in days
    ]  # as `mine_feedback` did: else all is read anew
    assert made == [*ingested, "detect --from=2026-01-28 --to=2026-01-31"]
    monkeypatch.setenv("SAYAGAIN_LATE", "7")
    assert len(late()) == 5
    mined.clear()
    assert late() == []


def release(dags, module, try_number=1) -> dict[str, str]:
    """What the release task says to the queue."""
    events, ti = Events(), SimpleNamespace(try_number=try_number)
    call(dags["release_feedback"], "one.release", {"assistant": "car"}, {"as_of": "2026-01-31"}, ti=ti, outlet_events=events)
    extra = events[module.RETRAINING_QUEUE].extra
    return {k: extra[k] for k in ("assistant", "release_id", "manifest_sha256")}


def test_a_release_is_announced(dags, module, job):
    calls = job("""echo '{"status": "released", "release_id": "r1", "manifest_sha256": "ab", "rows": {}}'""")
    assert release(dags, module) == {"assistant": "car", "release_id": "r1", "manifest_sha256": "ab"}
    assert "--as-of=2026-01-31" in calls.read_text()


def test_a_release_is_announced_though_the_first_try_died_after_it(dags, module, job):
    job("""
        if [ "$3" = verify ]; then echo '{"release_id": "r1", "manifest_sha256": "ab", "rows": {}}'
        else echo '{"status": "nothing_new", "skipped": "r1 was released", "release_id": "r1"}'; fi
    """)
    assert release(dags, module, try_number=2) == {"assistant": "car", "release_id": "r1", "manifest_sha256": "ab"}
    with pytest.raises(module.AirflowSkipException):
        release(dags, module)


def test_nothing_new_is_not_announced(dags, module, job):
    job("""echo '{"status": "nothing_new", "skipped": "", "release_id": "r1"}'""")
    for try_number in (1, 2):
        with pytest.raises(module.AirflowSkipException, match="nothing_new"):
            release(dags, module, try_number)


@pytest.mark.slow
def test_a_refusal_is_a_failed_task_in_the_words_of_the_gate(dags, module, job, lake, tmp_path, monkeypatch):
    """The real `release` on candidates that a gate refuses; nothing is announced, and whoever should know is told."""
    job("exit 9")
    monkeypatch.delenv("SAYAGAIN_PYTHON")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("SAYAGAIN_NOTIFY", f"tee {tmp_path}/told")
    day = AS_OF + timedelta(weeks=1)
    mined(lake, day, world(rewrites=[rewrite(f"put on {n} lights", "put on the lights") for n in range(30)]))
    latest, events = lake.get("releases/LATEST"), Events()
    of, ti = {"assistant": "car", "lake": lake.root}, SimpleNamespace(dag_id="d", task_id="release", run_id="r", try_number=1)
    with pytest.raises(module.AirflowFailException) as failed:
        call(dags["release_feedback"], "one.release", of, {"as_of": str(day)}, ti=ti, outlet_events=events)
    module.notify({"ti": ti, "exception": failed.value})
    message = json.loads((tmp_path / "told").read_text())["message"]
    assert "release of car ended with exit 3" in message and re.search(r"REFUSED as of.*numbers_kept: \d+ of \d+ rows", message, re.S), (
        message
    )
    assert not events and lake.get("releases/LATEST") == latest


def told(dags, module, *events, params=None):
    asset = module.RETRAINING_QUEUE
    return call(dags["retrain"], "announced", params or {}, triggering_asset_events={asset: list(events)}, inlet_events={asset: []})


def test_retrain_takes_every_event_and_trusts_none(dags, job, module):
    calls = job("""echo '{"release_id": "r1", "manifest_sha256": "ab", "rows": {"labels": 1234}}'""")
    event = lambda sha: SimpleNamespace(extra={"release_id": "r1", "manifest_sha256": sha})  # noqa: E731
    (of,) = told(dags, module, event("ab"), event("ab"))
    assert call(dags["retrain"], "one.verify", of) == ["r1", "r1"]
    assert len(calls.read_text().splitlines()) == 2
    (of,) = told(dags, module, event("cd"))
    with pytest.raises(module.AirflowFailException, match="do not train on it"):
        call(dags["retrain"], "one.verify", of)
    with pytest.raises(module.AirflowFailException, match="no event"):
        told(dags, module)


def test_retrain_trains_under_a_version_of_its_run_and_reports_the_figure(dags, job, module):
    calls = job("""echo '{"status": "trained", "release_id": "r1", "accuracy": 0.75}'""")
    run = SimpleNamespace(run_id="asset_triggered__2026-02-01T03:10:00+00:00_x")
    events = Events()
    summary = call(dags["retrain"], "one.train", {"assistant": "car", "models": "/m"}, ["r1"], dag_run=run, outlet_events=events)
    assert summary["accuracy"] == events[module.TRAINED].extra["accuracy"] == 0.75
    version = "car-r1-2026-02-01T03:10:00"
    assert f"-m pipelines.examples.trainer --test=/test.parquet --assistant-version={version} --out=/m/{version}" in calls.read_text()


def test_what_is_given_back_fails_for_good_and_nothing_to_do_is_skipped(dags, job, module):
    run = SimpleNamespace(run_id="manual__1")
    job("""echo 'no better than the most frequent intent: given back'; echo '{"status": "given back"}'; exit 3""")
    with pytest.raises(module.AirflowFailException, match="given back"):
        call(dags["retrain"], "one.train", {"assistant": "car"}, ["r1"], dag_run=run)
    job("""echo '{"status": "nothing"}'""")
    with pytest.raises(module.AirflowSkipException, match="nothing to train on"):
        call(dags["retrain"], "one.train", {"assistant": "car"}, ["r1"], dag_run=run)


def test_housekeeping_forgets_collects_and_asks_the_doctor(dags, job, module):
    calls = job("echo '{}'")
    house = dags["housekeeping"]
    call(house, "one.forget", {"forget": "/asked.txt"})
    call(house, "one.retention", {"keep": "400d"})
    call(house, "one.doctor", {})
    made = [" ".join(line.split()[2:]) for line in calls.read_text().splitlines()]
    assert [m.split(" --lake=")[0] for m in made] == ["forget --file=/asked.txt", "gc --older-than=400d", "doctor"]
    for task in ("one.forget", "one.retention"):
        with pytest.raises(module.AirflowSkipException):
            call(house, task, {})


# the whole, in process and offline


# Training itself takes a minute, and has tests of its own: this claims and acknowledges.
TRAINER = """
import argparse, json
from pipelines.client import Client
p = argparse.ArgumentParser()
for name in ("lake", "test", "assistant-version"):
    p.add_argument("--" + name, required=True)
p.add_argument("--json", action="store_true")
o = p.parse_args()
with Client(o.lake) as client, client.claim(lease="1h", key=o.assistant_version) as job:
    job.ack(o.assistant_version)
    print(json.dumps({"status": "trained", "release_id": job.release_id, "accuracy": 0.5}))
"""

DRIVER = """
import json, sys
from airflow.__main__ import main
for command in json.loads(sys.argv[1]):
    sys.argv = ["airflow", *command]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""


@pytest.mark.slow
@pytest.mark.e2e
def test_runs_on_a_sample_log(airflow_home, tmp_path, monkeypatch):
    """Two days, the later first; rows that come late; a release; its training; housekeeping."""

    def run(*command: str) -> str:
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def airflow(*commands: list[str]) -> str:
        """Several commands in one process: importing Airflow takes longer than most of them."""
        return run("-c", DRIVER, json.dumps(commands))

    test = ["dags", "test"]
    day = lambda date: [*test, "mine_feedback", "-c", json.dumps({"date": date})]  # noqa: E731
    monkeypatch.setenv("SAYAGAIN_LOGS", f"{tmp_path}/world/log/{{date}}.parquet")
    monkeypatch.setenv("SAYAGAIN_LAKE", f"{tmp_path}/lake")
    lineage = {"type": "file", "log_file_path": str(tmp_path / "lineage.jsonl"), "append": True}
    monkeypatch.setenv("AIRFLOW__OPENLINEAGE__TRANSPORT", json.dumps(lineage))
    config = tmp_path / "c.toml"
    config.write_text('[embedding]\nmodel = "ngrams"\n')
    monkeypatch.setenv("SAYAGAIN_CONFIG", str(config))
    size = ["--locales=en-US", "--turns=4000", "--days=2"]
    run("-m", "pipelines", "simulate", f"--out={tmp_path}/world", "--by-day", "--no-truth", "--quiet", *size)

    first = tmp_path / "world" / "log" / "2026-01-01.parquet"
    whole = pl.read_parquet(first)
    whole.head(whole.height // 2).write_parquet(first)
    airflow(["db", "migrate"], ["dags", "reserialize"], day("2026-01-02"), day("2026-01-01"))
    whole.write_parquet(first)
    pl.DataFrame({"utterance": ["a"], "intent": ["b"]}).write_parquet(tmp_path / "t.parquet")
    monkeypatch.setenv("SAYAGAIN_TEST", str(tmp_path / "t.parquet"))
    monkeypatch.setenv("SAYAGAIN_TRAINER", "stand_in_trainer")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    (tmp_path / "stand_in_trainer.py").write_text(TRAINER)
    out = airflow([*test, "release_feedback"], [*test, "retrain"], [*test, "housekeeping"])
    release_id = (tmp_path / "lake" / "releases" / "LATEST").read_text().strip()
    assert re.search(rf"{release_id}\s+labels\s+[\d,]+ rows", out), out[-8000:]
    assert pl.read_parquet(f"{tmp_path}/lake/turns/date=2026-01-01/**/*.parquet").height > whole.height * 0.9, "what came late was not read"
    assert f'"release_id": "{release_id}", "accuracy": 0.5' in out and '"healthy": true' in out
    if importlib.util.find_spec("airflow.providers.openlineage"):
        events = [json.loads(line) for line in (tmp_path / "lineage.jsonl").read_text().splitlines()]
        done = {e["job"]["name"]: e for e in events if e["eventType"] == "COMPLETE"}
        of = lambda job, side: {d["name"] for d in done[job][side]}  # noqa: E731
        assert of("mine_feedback.day.detect", "outputs") >= {f"{tmp_path}/lake/votes"}
        assert of("release_feedback.one.release", "inputs") >= {f"{tmp_path}/lake/candidates"}
    listed = json.loads(run("-m", "pipelines", "queue", "list", f"--lake={tmp_path}/lake", "--json"))
    assert [(m["release_id"], m["state"]) for m in listed] == [(release_id, "acked")]
