"""The four DAGs of sayagain: `mine_feedback`, `release_feedback`, `retrain`, `housekeeping`.

Each task is a process, `python -m pipelines JOB`; this file needs Airflow alone and reads nothing while it is parsed. Several
assistants are mapped: one that fails stops no other.

| environment of the worker | meaning |
| --- | --- |
| `SAYAGAIN_LOGS` | where the logs lie, a pattern with `{date}`, such as `s3://logs/{date}/*.parquet` |
| `SAYAGAIN_LAKE` | the lake: a folder or a URL that every worker reaches |
| `SAYAGAIN_READY` | a pattern with `{date}` of the file that says that a day's log is complete, such as `s3://logs/{date}/_SUCCESS`; optional |
| `SAYAGAIN_LATE` | for how many days after a day was mined its log is looked at again for rows that came late; default: 3 |
| `SAYAGAIN_CONFIG`, `SAYAGAIN_ENGINE` | configuration file; flags such as `--runner spark --job-endpoint HOST:PORT`; optional |
| `SAYAGAIN_ASSISTANTS` | several assistants: a JSON file, name -> any of these settings by their small names, such as `lake`, `logs`, `key_conn` |
| `SAYAGAIN_PYTHON` | the Python that has sayagain; default: Airflow's own |
| `SAYAGAIN_NOTIFY` | a command that is given one JSON object for each task that failed; optional |
| `SAYAGAIN_KEY_CONN` | the Airflow connection whose password is the lake's key; else `SAYAGAIN_USER_KEY` from your secret manager |
| `SAYAGAIN_DATABASE_CONN` | the same for the registry's database, else `SAYAGAIN_DATABASE`; without both it is a file in the lake |
| `SAYAGAIN_TEST`, `SAYAGAIN_MODELS` | for `retrain`: a test set labelled by people; a folder for what was trained, optional |
| `SAYAGAIN_TRAINER` | a module with the flags of `pipelines/examples/trainer.py` (`--lake --test --assistant-version --out --json`); default: that one |
| `SAYAGAIN_FORGET` | a file of user ids, one a line; `housekeeping` forgets them each time (again is no harm: their later rows go too); optional |
| `SAYAGAIN_KEEP` | how long days are kept, such as `400d`; default: for ever |

Parameters override the settings for one run. Tasks wait for slots of the pool `sayagain`
(`airflow pools set sayagain 2 "a job takes a core or two and a few GiB"`).
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections import deque
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import Asset, Connection, CronPartitionTimetable, CronTriggerTimetable, ObjectStoragePath, Param, dag, task, task_group
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from airflow.sdk.lineage import get_hook_lineage_collector


def setting(of: dict[str, Any], name: str, *, required: bool = True) -> str:
    """Of the assistant, else of the worker's environment. Read when a task runs, never when the file is parsed."""
    value = of.get(name) or os.environ.get(f"SAYAGAIN_{name.upper()}") or ""
    if required and not value:
        raise AirflowFailException(f"set SAYAGAIN_{name.upper()} in the worker's environment, or {name!r} of this run or assistant")
    return str(value)


def chosen(params: dict[str, Any]) -> list[dict[str, Any]]:
    """The assistants of this run: those of the file SAYAGAIN_ASSISTANTS (name -> settings), else the one of the environment."""
    given = {k: v for k, v in params.items() if v is not None and k != "assistant"}
    path = os.environ.get("SAYAGAIN_ASSISTANTS")
    if not path or given.get("lake"):
        return [{"assistant": "assistant", **given}]
    found = json.loads(Path(path).read_text(encoding="utf-8"))
    wanted = params.get("assistant")
    if wanted and wanted not in found:
        raise AirflowFailException(f"{path} has no assistant {wanted!r}; it has {', '.join(found)}")
    return [{"assistant": name, **found[name], **given} for name in sorted(found) if wanted in (None, name)]


def secrets(of: dict[str, Any]) -> dict[str, str]:
    """The environment of a job: the worker's, and the passwords of Airflow connections that the assistant names."""
    found = {}
    for name, variable in (("key_conn", "SAYAGAIN_USER_KEY"), ("database_conn", "SAYAGAIN_DATABASE")):
        if conn := setting(of, name, required=False):
            found[variable] = str(Connection.get(conn).password)
    return os.environ | found


def run_job(job: str, of: dict[str, Any], *arguments: str, module: str = "pipelines") -> dict[str, Any]:
    """Run `python -m pipelines JOB` to its end, its output line by line in the task's log, and return its JSON summary.

    Exit 2 (wrong usage) and 3 (refused) would be the same at a second try: they fail the task for good. The process is
    stopped with all its workers when the task times out or is cleared; Airflow's own answer to SIGTERM would leave it running.
    """
    command = [os.environ.get("SAYAGAIN_PYTHON") or sys.executable, "-m", module, *job.split(), *arguments]
    command += [f"--lake={setting(of, 'lake')}", "--json"]
    if module == "pipelines":
        command += [f"--config={config}"] if (config := setting(of, "config", required=False)) else []
        command += shlex.split(setting(of, "engine", required=False)) if job in FLOW else []
    print("running", " ".join(command), flush=True)
    summary, tail = {}, deque(maxlen=20)
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "env": secrets(of)}
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(f"{job or module}: stopped"))
    process = subprocess.Popen(command, **pipes, text=True, encoding="utf-8", errors="replace", start_new_session=True)
    try:
        for raw in process.stdout:
            line = raw.rstrip()
            print(line, flush=True)
            if line.startswith("{"):
                summary = json.loads(line)
            elif line:
                tail.append(line)
        code = process.wait()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # a job may die at any moment: the next try goes on from the last finished table
        signal.signal(signal.SIGTERM, before)
    if code:
        message = f"{job or module} of {of.get('assistant')} ended with exit {code}:\n" + "\n".join(tail or [json.dumps(summary)])
        raise AirflowFailException(message) if code in (2, 3) else RuntimeError(message)
    lineage(job, of)
    return summary


def lineage(job: str, of: dict[str, Any]) -> None:
    """Says which tables of which lake a job read and wrote to whoever collects lineage, such as OpenLineage's provider."""
    lake, (reads, writes) = setting(of, "lake"), FLOW.get(job, ([], []))
    collector, root = get_hook_lineage_collector(), lake if "://" in lake else Path(lake).absolute().as_uri()
    for add, tables in ((collector.add_input_asset, reads), (collector.add_output_asset, writes)):
        for table in tables:
            add(of, uri=f"{root}/{table}")


def told(asset: Asset, outlet_events: Any, of: dict[str, Any], summary: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Puts what a job did on its asset's event: rows in and out, rejects, seconds, memory; no text of a user. Returns the summary."""
    plain = {k: v for k, v in summary.items() if isinstance(v, int | float)}
    whose = {"assistant": of.get("assistant"), "lake": setting(of, "lake"), "skipped": summary.get("skipped") or ""}
    outlet_events[asset].extra = {**whose, **({"date": of["date"]} if "date" in of else {}), **plain, **more}
    return summary


def notify(context: Any) -> None:
    """Tell whoever SAYAGAIN_NOTIFY names (a command that reads one JSON object) of a task that failed, in the job's own words."""
    ti = context["ti"]
    told = {"dag": ti.dag_id, "task": ti.task_id, "run": ti.run_id, "try": ti.try_number, "message": str(context.get("exception"))[:4000]}
    print("failed:", json.dumps(told), flush=True)
    if command := os.environ.get("SAYAGAIN_NOTIFY"):
        subprocess.run(shlex.split(command), input=json.dumps(told), text=True, timeout=60, check=False)


def day_of(params: dict[str, Any], dag_run: Any) -> str:
    """The day of this run: the parameter `date`, else the run's partition."""
    text = params.get("date") or getattr(dag_run, "partition_key", None)
    if not text:
        raise AirflowFailException("this run has no partition: name its day with the parameter 'date', such as 2026-01-31")
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise AirflowFailException(f"{text!r} is not a date; write it as 2026-01-31") from None


def as_of(day: dict[str, Any]) -> list[str]:
    """The day as an argument; none when there is none, as in an empty lake."""
    return [f"--as-of={day['as_of']}"] if day.get("as_of") else []


FLOW = {  # Beam jobs, what each reads and writes
    "ingest": ([], ["turns", "rejects"]),
    "fit": (["turns"], ["models"]),
    "detect": (["turns", "models"], ["rephrases", "outcomes", "votes"]),
    "embed": (["votes"], ["embeddings"]),
    "link": (["votes", "embeddings"], ["goals"]),
    "aggregate": (["votes", "goals"], ["candidates"]),
    "release": (["candidates", "goals"], ["releases"]),
}
RETRAINING_QUEUE, TRAINED = Asset("retraining_queue"), Asset("sayagain_model_trained")
TURNS, MODEL, VOTES = Asset("sayagain_turns"), Asset("sayagain_model"), Asset("sayagain_votes")
EMBEDDINGS, GOALS, CANDIDATES = Asset("sayagain_embeddings"), Asset("sayagain_goals"), Asset("sayagain_candidates")


def param(description: str) -> Param:
    return Param(None, type=["null", "string"], description=description)


PARAMS = {
    "assistant": param("one of SAYAGAIN_ASSISTANTS; default: all"),
    "lake": param("default: SAYAGAIN_LAKE"),
    "config": param("default: SAYAGAIN_CONFIG"),
}
LOGS = param("pattern with {date}; default: SAYAGAIN_LOGS")
TASK = {
    "retries": 2,
    "retry_delay": timedelta(minutes=2),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(minutes=30),
    "execution_timeout": timedelta(hours=6),
    "on_failure_callback": notify,
    "pool": "sayagain",
}
DAG = {"start_date": datetime(2026, 1, 1, tzinfo=UTC), "catchup": False, "dagrun_timeout": timedelta(hours=24), "tags": ["sayagain"]}
assistants = task(pool="default_pool", task_id="assistants")(chosen)


@dag(
    # Midnight, and the day before: a cron later in the day makes two runs of one day in a backfill.
    schedule=CronPartitionTimetable("0 0 * * *", timezone="UTC", run_offset=-1, key_format="%Y-%m-%d"),
    max_active_runs=4,
    default_args=TASK,
    params={**PARAMS, "logs": LOGS, "date": param("the day, for a run without a partition (2026-01-31)")},
    **DAG,
)
def mine_feedback():
    """One day of logs through `ingest`, `fit` (when there is no model yet) and `detect`.

    Runs are partitioned by date, and a day needs no other day: days run in any order, side by side, and again
    (`airflow backfill create`). A run that has no partition is told its day:
    `airflow dags test mine_feedback -c '{"date": "2026-01-31"}'`.
    """

    @task(pool="default_pool", task_id="assistants")
    def of_the_day(params: dict[str, Any], dag_run: Any = None) -> list[dict[str, Any]]:
        day = day_of(params, dag_run)
        return [{**of, "date": day} for of in chosen(params)]

    # Waits without holding a slot; a log that never comes is a failed task, and the day can be run when it is there.
    @task.sensor(poke_interval=300, timeout=12 * 3600, mode="reschedule", pool="default_pool")
    def complete(of: dict[str, Any]) -> bool:
        pattern = setting(of, "ready", required=False)
        return not pattern or ObjectStoragePath(pattern.replace("{date}", of["date"])).exists()

    @task(outlets=[TURNS])
    def ingest(of: dict[str, Any], outlet_events: Any = None) -> dict[str, Any]:
        span = f"--from={of['date']}", f"--to={of['date']}"
        return told(TURNS, outlet_events, of, run_job("ingest", of, f"--logs={setting(of, 'logs')}", *span))

    # One fit at a time: of several first days one makes the model and the others find it.
    @task(outlets=[MODEL], max_active_tis_per_dag=1)
    def fit(of: dict[str, Any], outlet_events: Any = None) -> dict[str, Any]:
        return told(MODEL, outlet_events, of, run_job("fit", of, "--if-missing"))

    @task(outlets=[VOTES])
    def detect(of: dict[str, Any], outlet_events: Any = None) -> dict[str, Any]:
        return told(VOTES, outlet_events, of, run_job("detect", of, f"--from={of['date']}", f"--to={of['date']}"))

    @task_group
    def day(of: dict[str, Any]) -> None:
        complete(of) >> ingest(of) >> fit(of) >> detect(of)

    day.expand(of=of_the_day())


@dag(
    schedule=CronTriggerTimetable("0 3 * * *", timezone="UTC"),  # when the day's `mine_feedback` is done
    max_active_runs=1,
    default_args=TASK,
    params={**PARAMS, "logs": LOGS, "as_of": param("evidence through the end of this day; default: the last in the lake")},
    **DAG,
)
def release_feedback():
    """What came late, then `embed`, `link`, `aggregate` and `release`, as of the newest day in the lake or the parameter `as_of`.

    As-of tables are made in the order of their dates, so one run at a time. A release emits the asset `retraining_queue`
    with its id and manifest hash; where nothing is new the last task is skipped, where a gate refuses it fails with the
    gate's words (and SAYAGAIN_NOTIFY is told), and in both cases nothing is emitted. The DAG is not partitioned: a consumer
    scheduled on the asset would never fire on events of a partitioned one.
    """

    @task(inlets=[TURNS])
    def late(of: dict[str, Any], dag_run: Any = None, inlet_events: Any = None) -> list[dict[str, Any]]:
        """Days mined lately whose log has changed are made again, and this as-of sees them; where the log is gone, the day stays as it is."""
        since = dag_run.run_after - timedelta(days=int(setting(of, "late", required=False) or 3))
        events = inlet_events[TURNS].after(since.isoformat())
        days = sorted({e.extra["date"] for e in events if e.extra.get("lake") == setting(of, "lake")})
        args = f"--logs={setting(of, 'logs')}", "--if-there"
        done = [run_job("ingest", of, *args, f"--from={day}", f"--to={day}") for day in days]
        return done + ([run_job("detect", of, f"--from={days[0]}", f"--to={days[-1]}")] if days else [])

    @task(outlets=[EMBEDDINGS])
    def embed(of: dict[str, Any], outlet_events: Any = None) -> dict[str, Any]:
        return told(EMBEDDINGS, outlet_events, of, run_job("embed", of, *as_of(of)))

    # `embed` has chosen the day; the others keep to it, whatever `mine_feedback` adds meanwhile.
    @task(outlets=[GOALS])
    def link(of: dict[str, Any], day: dict[str, Any], outlet_events: Any = None) -> dict[str, Any]:
        return told(GOALS, outlet_events, of, run_job("link", of, *as_of(day)))

    @task(outlets=[CANDIDATES])
    def aggregate(of: dict[str, Any], day: dict[str, Any], outlet_events: Any = None) -> dict[str, Any]:
        return told(CANDIDATES, outlet_events, of, run_job("aggregate", of, *as_of(day)))

    @task(outlets=[RETRAINING_QUEUE])
    def release(of: dict[str, Any], day: dict[str, Any], ti: Any = None, outlet_events: Any = None) -> dict[str, Any]:
        summary = run_job("release", of, *as_of(day))
        if ti.try_number > 1 and summary.get("skipped") and summary.get("release_id"):
            # The try before this one released and died before it could say so.
            summary |= run_job("verify", of, f"--release={summary['release_id']}")
        elif summary["status"] != "released":
            raise AirflowSkipException(f"no release: {summary['status']} {summary.get('why', '')}")
        return told(RETRAINING_QUEUE, outlet_events, of, summary, **{k: summary[k] for k in ("release_id", "manifest_sha256")})

    @task_group
    def one(of: dict[str, Any]) -> None:
        day = embed(of)
        late(of) >> day
        link(of, day) >> aggregate(of, day) >> release(of, day)

    one.expand(of=assistants())


@dag(
    schedule=[RETRAINING_QUEUE],
    max_active_runs=1,
    default_args=TASK,
    params={**PARAMS, "release_id": param("a release to take without an event")},
    **DAG,
)
def retrain():
    """Takes a release off the queue, trains on it, and acknowledges it, or gives it back; woken by the asset `retraining_queue`.

    Every file of each release that it was told of is held to the manifest, and the manifest to the event; then the trainer
    claims the newest release that nobody has trained on (a retraction comes first), trains, judges on SAYAGAIN_TEST, acks
    under an assistant_version, or nacks what is no better than the most frequent intent. The figures are in the task's log,
    its result, and the asset `sayagain_model_trained`. The parameter `release_id` names a release to verify by hand.
    """

    @task(inlets=[RETRAINING_QUEUE], pool="default_pool")
    def announced(params: dict[str, Any], triggering_asset_events: Any = None, inlet_events: Any = None) -> list[dict[str, Any]]:
        """The assistants with the releases that events named. Several may come to one run; a run by hand takes the newest that there was."""
        extras = [event.extra for events in (triggering_asset_events or {}).values() for event in events]
        if params.get("release_id"):
            extras = [{"release_id": params["release_id"]}]
        elif not extras:
            extras = [event.extra for event in inlet_events[RETRAINING_QUEUE]][-1:]
        if not extras:
            raise AirflowFailException("there was no event of retraining_queue: name a release with the parameter 'release_id'")
        out = [{**of, "events": [e for e in extras if e.get("assistant") in (None, of["assistant"])]} for of in chosen(params)]
        return [of for of in out if of["events"]]

    @task
    def verify(of: dict[str, Any]) -> list[str]:
        """Every file of each release against its manifest, and the manifest against what was announced."""
        for extra in of["events"]:
            release_id = extra["release_id"]
            summary = run_job("verify", of, f"--release={release_id}")
            said = extra.get("manifest_sha256", summary["manifest_sha256"])
            if said != summary["manifest_sha256"]:
                raise AirflowFailException(
                    f"release {release_id}: its manifest has sha256 {summary['manifest_sha256']}, the event said {said}; "
                    "the release was changed after it was announced: do not train on it"
                )
            for table, rows in sorted(summary["rows"].items()):
                print(f"{release_id}  {table:<12} {rows:>10,} rows", flush=True)
        return [extra["release_id"] for extra in of["events"]]

    @task(outlets=[TRAINED])
    def train(of: dict[str, Any], releases: list[str], dag_run: Any = None, outlet_events: Any = None) -> dict[str, Any]:
        """A run of Airflow is one version: the next try of this task goes on with the release that this one has claimed."""
        version = f"{of['assistant']}-{releases[-1]}-{dag_run.run_id.rpartition('__')[2][:19]}"
        arguments = [f"--test={setting(of, 'test')}", f"--assistant-version={version}"]
        if folder := setting(of, "models", required=False):
            arguments.append(f"--out={folder}/{version}")
        summary = run_job("", of, *arguments, module=setting(of, "trainer", required=False) or "pipelines.examples.trainer")
        if summary.get("status") == "nothing":
            raise AirflowSkipException("nothing to train on: every release is trained, held, superseded or retracted")
        return told(TRAINED, outlet_events, of, summary, release_id=summary["release_id"], assistant_version=version)

    @task_group
    def one(of: dict[str, Any]) -> None:
        train(of, verify(of))

    one.expand(of=announced())


@dag(
    schedule=CronTriggerTimetable("0 12 * * *", timezone="UTC"),  # when neither the day nor its release is being made
    max_active_runs=1,
    default_args=TASK,
    params={**PARAMS, "forget": param("file of user ids; default: SAYAGAIN_FORGET"), "keep": param("such as 400d; default: SAYAGAIN_KEEP")},
    **DAG,
)
def housekeeping():
    """Users who asked to be forgotten, what is older than you keep, and whether the lake is what its manifests say.

    A finding of the doctor fails its task with the finding and the fix.
    """

    @task
    def forget(of: dict[str, Any]) -> dict[str, Any]:
        if not (file := setting(of, "forget", required=False)):
            raise AirflowSkipException("nobody asked to be forgotten: SAYAGAIN_FORGET is not set")
        return run_job("forget", of, f"--file={file}")

    @task(trigger_rule="none_failed")
    def retention(of: dict[str, Any]) -> dict[str, Any]:
        age = setting(of, "keep", required=False)
        if not age:
            raise AirflowSkipException("everything is kept: SAYAGAIN_KEEP is not set")
        return run_job("gc", of, f"--older-than={age}")

    @task(trigger_rule="all_done")
    def doctor(of: dict[str, Any]) -> dict[str, Any]:
        return run_job("doctor", of)

    @task_group
    def one(of: dict[str, Any]) -> None:
        forget(of) >> retention(of) >> doctor(of)

    one.expand(of=assistants())


mine_feedback()
release_feedback()
retrain()
housekeeping()
