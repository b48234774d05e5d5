"""`mine_feedback`: one day of logs through `ingest`, `fit` (when there is no model yet) and `detect`.

Airflow partitions the runs by date, and a day needs no other day: days run in any order, side by side, and again
(`airflow backfill create`). Each task is a process, `python -m pipelines JOB`; this file needs Airflow alone.

| environment of the worker | meaning |
| --- | --- |
| `SAYAGAIN_LOGS` | where the logs lie, a pattern with `{date}`, such as `s3://logs/{date}/*.parquet` |
| `SAYAGAIN_LAKE` | the lake: a folder or a URL that every worker reaches |
| `SAYAGAIN_CONFIG` | configuration file; optional |
| `SAYAGAIN_PYTHON` | the Python that has sayagain; default: Airflow's own |
| `SAYAGAIN_USER_KEY` | the lake's key, from your secret manager |

The parameters `logs`, `lake` and `config` override the first three for one run, and `date` names the day of a run that
has no partition: `airflow dags test mine_feedback -c '{"date": "2026-01-31"}'`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import deque
from datetime import UTC, date, datetime, timedelta
from typing import Any

from airflow.sdk import CronPartitionTimetable, Param, dag, task
from airflow.sdk.exceptions import AirflowFailException


def setting(params: dict[str, Any], name: str, *, required: bool = True) -> str:
    """A parameter of the run, else the worker's environment. Read when the task runs, never when the file is parsed."""
    value = params.get(name) or os.environ.get(f"SAYAGAIN_{name.upper()}") or ""
    if required and not value:
        raise AirflowFailException(f"set SAYAGAIN_{name.upper()} in the worker's environment, or the parameter {name!r} of this run")
    return value


def run_job(job: str, params: dict[str, Any], *arguments: str) -> dict[str, Any]:
    """Run `python -m pipelines JOB` to its end, its output line by line in the task's log, and return its JSON summary.

    Exit 2 (wrong usage) and 3 (refused) would be the same at a second try: they fail the task for good. The process
    is stopped with all its workers when the task times out or is cleared.
    """
    command = [os.environ.get("SAYAGAIN_PYTHON") or sys.executable, "-m", "pipelines", job, *arguments]
    command += [f"--lake={setting(params, 'lake')}", "--json"]
    if config := setting(params, "config", required=False):
        command.append(f"--config={config}")
    print("running", " ".join(command), flush=True)
    summary: dict[str, Any] = {}
    tail: deque[str] = deque(maxlen=20)
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
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
        message = f"{job} ended with exit {code}:\n" + "\n".join(tail)
        raise AirflowFailException(message) if code in (2, 3) else RuntimeError(message)
    return summary


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
    max_active_tasks=2,  # a job takes a core or two and a few GiB
    dagrun_timeout=timedelta(hours=12),
    default_args={
        "retries": 3,
        "retry_delay": timedelta(minutes=2),
        "retry_exponential_backoff": True,
        "max_retry_delay": timedelta(minutes=30),
        "execution_timeout": timedelta(hours=3),
    },
    params={
        "date": Param(None, type=["null", "string"], description="the day, for a run without a partition (2026-01-31)"),
        "logs": Param(None, type=["null", "string"], description="pattern with {date}; default: SAYAGAIN_LOGS"),
        "lake": Param(None, type=["null", "string"], description="default: SAYAGAIN_LAKE"),
        "config": Param(None, type=["null", "string"], description="default: SAYAGAIN_CONFIG"),
    },
    tags=["sayagain"],
    doc_md=__doc__,
)
def mine_feedback():
    @task
    def ingest(params: dict[str, Any], dag_run: Any = None) -> dict[str, Any]:
        day = day_of(params, dag_run)
        return run_job("ingest", params, f"--logs={setting(params, 'logs')}", f"--from={day}", f"--to={day}")

    # One fit at a time: of several first days one makes the model and the others find it.
    @task(max_active_tis_per_dag=1)
    def fit(params: dict[str, Any]) -> dict[str, Any]:
        return run_job("fit", params, "--if-missing")

    @task
    def detect(params: dict[str, Any], dag_run: Any = None) -> dict[str, Any]:
        day = day_of(params, dag_run)
        return run_job("detect", params, f"--from={day}", f"--to={day}")

    ingest() >> fit() >> detect()


mine_feedback()
