"""`release_feedback`: `embed`, `link`, `aggregate` and `release`, as of the newest day in the lake.

As-of tables are made in the order of their dates, so one run at a time. A release emits the asset `retraining_queue`
with its id and manifest hash; where nothing is new the last task is skipped, where a gate refuses it fails with the
gate's words, and in both cases nothing is emitted. The DAG is not partitioned: a consumer scheduled on the asset would
never fire on events of a partitioned one.

The worker's environment is that of `mine_feedback`. The parameter `as_of` names another day than the newest.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import Asset, CronTriggerTimetable, Param, dag, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

RETRAINING_QUEUE = Asset("retraining_queue")


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


def as_of(chosen: dict[str, Any]) -> list[str]:
    """The day as an argument; none when there is none, as in an empty lake."""
    return [f"--as-of={chosen['as_of']}"] if chosen.get("as_of") else []


@dag(
    schedule=CronTriggerTimetable("0 3 * * *", timezone="UTC"),  # when the day's `mine_feedback` is done
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=12),
    default_args={
        "retries": 2,
        "retry_delay": timedelta(minutes=5),
        "execution_timeout": timedelta(hours=6),
    },
    params={
        "as_of": Param(None, type=["null", "string"], description="evidence through the end of this day; default: the last in the lake"),
        "lake": Param(None, type=["null", "string"], description="default: SAYAGAIN_LAKE"),
        "config": Param(None, type=["null", "string"], description="default: SAYAGAIN_CONFIG"),
    },
    tags=["sayagain"],
    doc_md=__doc__,
)
def release_feedback():
    @task
    def embed(params: dict[str, Any]) -> dict[str, Any]:
        return run_job("embed", params, *as_of(params))

    # `embed` has chosen the day; the others keep to it, whatever `mine_feedback` adds meanwhile.
    @task
    def link(chosen: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        return run_job("link", params, *as_of(chosen))

    @task
    def aggregate(chosen: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        return run_job("aggregate", params, *as_of(chosen))

    @task(outlets=[RETRAINING_QUEUE])
    def release(chosen: dict[str, Any], params: dict[str, Any], ti: Any = None, outlet_events: Any = None) -> dict[str, Any]:
        summary = run_job("release", params, *as_of(chosen))
        if ti.try_number > 1 and summary.get("skipped") and summary.get("release_id"):
            # The try before this one released and died before it could say so.
            summary |= run_job("verify", params, f"--release={summary['release_id']}")
        elif summary["status"] != "released":
            raise AirflowSkipException(f"no release: {summary['status']} {summary.get('why', '')}")
        outlet_events[RETRAINING_QUEUE].extra = {k: summary[k] for k in ("release_id", "manifest_sha256")}
        return summary

    chosen = embed()
    link(chosen) >> aggregate(chosen) >> release(chosen)


release_feedback()
