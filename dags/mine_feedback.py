"""`mine_feedback`: one day of logs through `ingest`, `fit` (when there is no model yet) and `detect`.

Airflow partitions the runs by date, and a day needs no other day: days run in any order, side by side, and again
(`airflow backfill create`). Each task is a process, `python -m pipelines JOB`; this file needs Airflow alone. Several
assistants are mapped: one that fails stops no other.

| environment of the worker | meaning |
| --- | --- |
| `SAYAGAIN_LOGS` | where the logs lie, a pattern with `{date}`, such as `s3://logs/{date}/*.parquet` |
| `SAYAGAIN_LAKE` | the lake: a folder or a URL that every worker reaches |
| `SAYAGAIN_READY` | a pattern with `{date}` of the file that says that a day's log is complete, such as `s3://logs/{date}/_SUCCESS`; optional |
| `SAYAGAIN_CONFIG`, `SAYAGAIN_ENGINE` | configuration file; flags such as `--runner spark --job-endpoint HOST:PORT`; optional |
| `SAYAGAIN_ASSISTANTS` | several assistants: a JSON file, name -> `logs`, `lake`, `ready`, `config`, `engine`, `key_conn`, `database_conn` |
| `SAYAGAIN_PYTHON` | the Python that has sayagain; default: Airflow's own |
| `SAYAGAIN_NOTIFY` | a command that is given one JSON object for each task that failed; optional |
| `SAYAGAIN_KEY_CONN` | the Airflow connection whose password is the lake's key; else `SAYAGAIN_USER_KEY` from your secret manager |

Parameters override the settings for one run, and `date` names the day of a run that has no partition:
`airflow dags test mine_feedback -c '{"date": "2026-01-31"}'`. Tasks wait for slots of the pool `sayagain`
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

from airflow.sdk import Asset, Connection, CronPartitionTimetable, ObjectStoragePath, Param, dag, task, task_group
from airflow.sdk.exceptions import AirflowFailException


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

    Exit 2 (wrong usage) and 3 (refused) would be the same at a second try: they fail the task for good. The process
    is stopped with all its workers when the task times out or is cleared.
    """
    command = [os.environ.get("SAYAGAIN_PYTHON") or sys.executable, "-m", module, *job.split(), *arguments]
    command += [f"--lake={setting(of, 'lake')}", "--json"]
    if module == "pipelines":
        command += [f"--config={config}"] if (config := setting(of, "config", required=False)) else []
        command += shlex.split(setting(of, "engine", required=False)) if job in ENGINE_JOBS else []
    print("running", " ".join(command), flush=True)
    summary: dict[str, Any] = {}
    tail: deque[str] = deque(maxlen=20)
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "env": secrets(of)}
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
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
    if code:
        message = f"{job or module} of {of.get('assistant')} ended with exit {code}:\n" + "\n".join(tail or [json.dumps(summary)])
        raise AirflowFailException(message) if code in (2, 3) else RuntimeError(message)
    return summary


def figures(summary: dict[str, Any], of: dict[str, Any]) -> dict[str, Any]:
    """What an asset's event says of a job: rows in and out, rejects, seconds, memory; no text of a user."""
    plain = {k: v for k, v in summary.items() if isinstance(v, int | float)}
    return {"assistant": of.get("assistant"), "skipped": summary.get("skipped") or "", **plain}


def notify(context: Any) -> None:
    """Tell whoever SAYAGAIN_NOTIFY names (a command that reads one JSON object) of a task that failed, in the job's own words."""
    command = os.environ.get("SAYAGAIN_NOTIFY")
    ti = context["ti"]
    told = {"dag": ti.dag_id, "task": ti.task_id, "run": ti.run_id, "try": ti.try_number, "message": str(context.get("exception"))[:4000]}
    print("failed:", json.dumps(told), flush=True)
    if command:
        subprocess.run(shlex.split(command), input=json.dumps(told), text=True, timeout=60, check=False)


ENGINE_JOBS = ("ingest", "fit", "detect", "embed", "link", "aggregate", "release")
PARAMS = {
    "assistant": Param(None, type=["null", "string"], description="one of SAYAGAIN_ASSISTANTS; default: all"),
    "lake": Param(None, type=["null", "string"], description="default: SAYAGAIN_LAKE"),
    "config": Param(None, type=["null", "string"], description="default: SAYAGAIN_CONFIG"),
}
ARGS = {
    "retry_delay": timedelta(minutes=2),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(minutes=30),
    "on_failure_callback": notify,
}


TURNS, MODEL, VOTES = Asset("sayagain_turns"), Asset("sayagain_model"), Asset("sayagain_votes")


def day_of(params: dict[str, Any], dag_run: Any) -> str:
    """The day of this run: the parameter `date`, else the run's partition."""
    text = params.get("date") or getattr(dag_run, "partition_key", None)
    if not text:
        raise AirflowFailException("this run has no partition: name its day with the parameter 'date', such as 2026-01-31")
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise AirflowFailException(f"{text!r} is not a date; write it as 2026-01-31") from None


@dag(
    # Midnight, and the day before: a cron later in the day makes two runs of one day in a backfill.
    schedule=CronPartitionTimetable("0 0 * * *", timezone="UTC", run_offset=-1, key_format="%Y-%m-%d"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=4,
    dagrun_timeout=timedelta(hours=24),
    default_args={**ARGS, "retries": 3, "execution_timeout": timedelta(hours=3), "pool": "sayagain"},
    params={
        **PARAMS,
        "date": Param(None, type=["null", "string"], description="the day, for a run without a partition (2026-01-31)"),
        "logs": Param(None, type=["null", "string"], description="pattern with {date}; default: SAYAGAIN_LOGS"),
    },
    tags=["sayagain"],
    doc_md=__doc__,
)
def mine_feedback():
    @task(pool="default_pool")
    def assistants(params: dict[str, Any], dag_run: Any = None) -> list[dict[str, Any]]:
        day = day_of(params, dag_run)
        return [{**of, "date": day} for of in chosen(params)]

    # Waits without holding a slot; a log that never comes is a failed task, and the day can be run when it is there.
    @task.sensor(poke_interval=300, timeout=12 * 3600, mode="reschedule", pool="default_pool")
    def complete(of: dict[str, Any]) -> bool:
        pattern = setting(of, "ready", required=False)
        return not pattern or ObjectStoragePath(pattern.replace("{date}", of["date"])).exists()

    @task(outlets=[TURNS])
    def ingest(of: dict[str, Any], outlet_events: Any = None) -> dict[str, Any]:
        summary = run_job("ingest", of, f"--logs={setting(of, 'logs')}", f"--from={of['date']}", f"--to={of['date']}")
        outlet_events[TURNS].extra = {"date": of["date"], **figures(summary, of)}
        return summary

    # One fit at a time: of several first days one makes the model and the others find it.
    @task(outlets=[MODEL], max_active_tis_per_dag=1)
    def fit(of: dict[str, Any], outlet_events: Any = None) -> dict[str, Any]:
        summary = run_job("fit", of, "--if-missing")
        outlet_events[MODEL].extra = figures(summary, of)
        return summary

    @task(outlets=[VOTES])
    def detect(of: dict[str, Any], outlet_events: Any = None) -> dict[str, Any]:
        summary = run_job("detect", of, f"--from={of['date']}", f"--to={of['date']}")
        outlet_events[VOTES].extra = {"date": of["date"], **figures(summary, of)}
        return summary

    @task_group
    def day(of: dict[str, Any]) -> None:
        complete(of) >> ingest(of) >> fit(of) >> detect(of)

    day.expand(of=assistants())


mine_feedback()
