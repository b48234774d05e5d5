"""Airflow's own scheduler (standalone, SQLite): a month's backfill, a release, its training woken by the asset, housekeeping; two assistants.

Needs 5.5 GB of memory and half an hour. The lake is that of a run day by day, byte for byte, the release included.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from faults import CONFIG
from running import contents, difference, run, simulate
from scheduler import Scheduler, runs

from pipelines.cli import main

pytest.importorskip("airflow.sdk", reason="Airflow is not installed: pip install -c constraints.txt -e '.[airflow]'")
pytestmark = [pytest.mark.soak, pytest.mark.dag]

DAYS = [f"2026-01-{day:02}" for day in range(1, 31)]
TURNS = 15_000


def day_by_day(lake: Path, log: Path, config: Path, days: list[str]) -> None:
    for day in days:
        span = [f"--from={day}", f"--to={day}"]
        for job, more in (("ingest", [f"--logs={log}/{{date}}.parquet", *span]), ("fit", ["--if-missing"]), ("detect", span)):
            assert main([job, f"--lake={lake}", f"--config={config}", "--quiet", *more]) == 0


def test_the_real_scheduler(tmp_path, record, say):
    log, lake, reference, config = (
        simulate(tmp_path / "world", TURNS, len(DAYS)),
        tmp_path / "lake",
        tmp_path / "by_day",
        tmp_path / "c.toml",
    )
    config.write_text(CONFIG)
    for day in DAYS:
        (log / f"{day}._SUCCESS").touch()
    day_by_day(reference, log, config, DAYS[:1])
    shutil.copytree(reference, lake)  # with a model: in a backfill that begins with none, it is fitted on whichever day comes first
    day_by_day(reference, log, config, DAYS[1:])
    for job in ("embed", "link", "aggregate", "release"):
        assert main([job, f"--lake={reference}", f"--config={config}", "--quiet"]) == 0

    say(f"{len(DAYS)} days by hand are done")
    start = time.monotonic()
    logs = {"SAYAGAIN_LOGS": f"{log}/{{date}}.parquet", "SAYAGAIN_READY": f"file://{log}/{{date}}._SUCCESS"}
    with Scheduler(tmp_path, **logs, SAYAGAIN_LAKE=str(lake), SAYAGAIN_CONFIG=str(config)) as scheduler:
        backfill = ["backfill", "create", "--dag-id", "mine_feedback", "--from-date", DAYS[0], "--to-date", DAYS[-1]]
        scheduler.command(["dags", "unpause", "mine_feedback"], backfill)
        scheduler.wait("the backfill", f"{runs('mine_feedback')} AND run_type = 'backfill'", len(DAYS))
        mined = time.monotonic() - start - scheduler.ready
        say(f"the backfill is done, after {mined:.0f} s")
        # unpaused, a DAG makes the run of its last date at once
        scheduler.command(["dags", "unpause", "retrain"], ["dags", "unpause", "release_feedback"])
        scheduler.wait("the release", runs("release_feedback"), 1)
        scheduler.command(["dags", "unpause", "housekeeping"])
        scheduler.wait("its training, woken by the asset", runs("retrain"), 1)
        scheduler.wait("housekeeping", runs("housekeeping"), 1)
        events = scheduler.events()
    told = dict(events)
    assert {"sayagain_turns", "sayagain_votes", "sayagain_candidates", "retraining_queue", "sayagain_model_trained"} <= told.keys()
    assert told["sayagain_turns"]["turns"] > 100 and told["sayagain_turns"]["seconds"] > 0
    assert {extra["date"] for name, extra in events if name == "sayagain_votes"} >= set(DAYS)

    queue = ("events/", "queue/", "registry", "_inputs/")  # who was told what, and when
    ours, theirs = ({n: h for n, h in contents(of).items() if not n.startswith(queue)} for of in (lake, reference))
    assert "releases/LATEST" in theirs and len([n for n in theirs if n.startswith("votes/")]) > 100
    assert not difference(ours, theirs)
    listed = json.loads(run("queue", "list", f"--lake={lake}", "--json").stdout)
    assert [m["state"] for m in listed] == ["acked"]
    record(
        "Airflow's scheduler",
        f"ready in {scheduler.ready:.0f} s; backfill of {len(DAYS)} days {mined:.0f} s, the bytes of a run day by day; release, training by asset, "
        f"housekeeping: {time.monotonic() - start:.0f} s in all",
    )


def test_two_assistants_of_one_configuration(tmp_path, record, say):
    """One has all its days and releases. The other lacks a day, then a gate refuses it: it fails in words and holds nothing up."""
    days, names = DAYS[:2], ("car", "home")
    of = {name: {"lake": str(tmp_path / name), "config": str(tmp_path / f"{name}.toml")} for name in names}
    for seed, name in enumerate(names, 1):
        log = simulate(tmp_path / f"{name}_world", 4_000, len(days), f"--seed={seed}")
        of[name] |= {"logs": f"{log}/{{date}}.parquet", "ready": f"file://{log}/{{date}}._SUCCESS"}
        for day in days:
            (log / f"{day}._SUCCESS").touch()
        (tmp_path / f"{name}.toml").write_text(CONFIG)
    Path(of["home"]["logs"].replace("{date}", days[1])).unlink()
    (tmp_path / "home.toml").write_text(f"{CONFIG}[gates]\ntop_class = [0.001, 0.002]\n")  # some intent has two labels of a thousand
    (tmp_path / "assistants.json").write_text(json.dumps(of))
    told = tmp_path / "told"
    (tmp_path / "notify.sh").write_text(f"#!/bin/sh\ncat >> {told}; echo >> {told}\n")
    settings = {"SAYAGAIN_ASSISTANTS": f"{tmp_path}/assistants.json", "SAYAGAIN_NOTIFY": f"sh {tmp_path}/notify.sh"}

    def words() -> list[tuple[str, str]]:
        """The task and the message of each failure that somebody was told of."""
        return [(said["task"], said["message"]) for said in map(json.loads, told.read_text().splitlines())]

    def latest(name: str) -> str:
        file = tmp_path / name / "releases" / "LATEST"
        return file.read_text().strip() if file.exists() else ""

    start = time.monotonic()
    with Scheduler(tmp_path, **settings) as scheduler:

        def states(dag: str, partition: str = "") -> dict[str, list[str]]:
            """Of the mapped tasks of a run, what became of car's and of home's."""
            of_day = f"partition_key = '{partition}'" if partition else "TRUE"
            rows = scheduler.ask(
                "SELECT t.task_id, t.state FROM task_instance t JOIN dag_run r ON r.dag_id = t.dag_id AND r.run_id = t.run_id "
                f"WHERE r.dag_id = '{dag}' AND {of_day} AND t.map_index >= 0 ORDER BY t.map_index"
            )
            return {task.split(".")[1]: [str(s) for t, s in rows if t == task] for task, _ in rows}

        backfill = ["backfill", "create", "--dag-id", "mine_feedback", "--from-date", days[0], "--to-date", days[1]]
        scheduler.command(["dags", "unpause", "mine_feedback"], backfill)
        scheduler.wait("car's and home's first day", runs("mine_feedback"), 1, fails=True)
        scheduler.wait("the second, home's without a log", runs("mine_feedback", "failed"), 1, fails=True)
        good, bad = ["success", "success"], ["success", "upstream_failed"]
        assert states("mine_feedback", days[0]) == dict.fromkeys(("complete", "ingest", "fit", "detect"), good)
        assert states("mine_feedback", days[1]) == {"complete": good, "ingest": ["success", "failed"], "fit": bad, "detect": bad}
        ((task, message),) = words()
        assert task == "day.ingest" and "ingest of home ended with exit 1" in message and f"no file for {days[1]};" in message
        say("home's second day has failed in words, car's is mined")

        scheduler.command(["dags", "unpause", "retrain"], ["dags", "unpause", "release_feedback"])
        scheduler.wait("a release of car, a refusal of home", runs("release_feedback", "failed"), 1, fails=True)
        scheduler.wait("the training on car's release", runs("retrain"), 1, fails=True)
        refused = dict.fromkeys(("late", "embed", "link", "aggregate"), good) | {"release": ["success", "failed"]}
        assert states("release_feedback") == refused
        assert states("retrain") == {"verify": ["success"], "train": ["success"]}
        assert latest("car") and not latest("home")
        task, message = words()[-1]
        assert len(words()) == 2 and task == "one.release" and "release of home ended with exit 3" in message
        assert "class_balance" in message and "one intent has this share" in message
        say("home's release was refused in words, car's is trained on")
        pages = {"mine": "mine_feedback", "release": "release_feedback", "refused": "release_feedback/tasks/one.release"}
        seen = [page for page, path in pages.items() if scheduler.picture(f"/dags/{path}", tmp_path / f"{page}.png")]
        say(f"pictures of {', '.join(seen) or 'nothing: no Chromium'} are in {tmp_path}")
        events = scheduler.events()
    assert [e["assistant"] for name, e in events if name == "retraining_queue"] == ["car"]
    assert [(e["assistant"], e["release_id"]) for name, e in events if name == "sayagain_model_trained"] == [("car", latest("car"))]
    assert [m["state"] for m in json.loads(run("queue", "list", f"--lake={of['car']['lake']}", "--json").stdout)] == ["acked"]
    record(
        "Airflow's scheduler, two assistants",
        f"ready in {scheduler.ready:.0f} s; one mined, released, trained on while the other lacked a day's log, then was refused by a gate, "
        f"both in words: {time.monotonic() - start:.0f} s in all",
    )
