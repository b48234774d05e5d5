"""`release_feedback`: `embed`, `link`, `aggregate` and `release`, as of the newest day in the lake.

As-of tables are made in the order of their dates, so one run at a time. A release emits the asset `retraining_queue`
with its id and manifest hash; where nothing is new the last task is skipped, where a gate refuses it fails with the
gate's words (and SAYAGAIN_NOTIFY is told), and in both cases nothing is emitted. The DAG is not partitioned: a consumer
scheduled on the asset would never fire on events of a partitioned one.

The worker's environment, the assistants and the pool are those of `mine_feedback`. The parameter `as_of` names another
day than the newest.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections import deque
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import Asset, Connection, CronTriggerTimetable, Param, dag, task, task_group
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException


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


RETRAINING_QUEUE = Asset("retraining_queue")
EMBEDDINGS, GOALS, CANDIDATES = Asset("sayagain_embeddings"), Asset("sayagain_goals"), Asset("sayagain_candidates")


def as_of(day: dict[str, Any]) -> list[str]:
    """The day as an argument; none when there is none, as in an empty lake."""
    return [f"--as-of={day['as_of']}"] if day.get("as_of") else []


@dag(
    schedule=CronTriggerTimetable("0 3 * * *", timezone="UTC"),  # when the day's `mine_feedback` is done
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=24),
    default_args={**ARGS, "retries": 2, "execution_timeout": timedelta(hours=6), "pool": "sayagain"},
    params={
        **PARAMS,
        "as_of": Param(None, type=["null", "string"], description="evidence through the end of this day; default: the last in the lake"),
    },
    tags=["sayagain"],
    doc_md=__doc__,
)
def release_feedback():
    @task(pool="default_pool")
    def assistants(params: dict[str, Any]) -> list[dict[str, Any]]:
        return chosen(params)

    @task(outlets=[EMBEDDINGS])
    def embed(of: dict[str, Any], outlet_events: Any = None) -> dict[str, Any]:
        summary = run_job("embed", of, *as_of(of))
        outlet_events[EMBEDDINGS].extra = figures(summary, of)
        return summary

    # `embed` has chosen the day; the others keep to it, whatever `mine_feedback` adds meanwhile.
    @task(outlets=[GOALS])
    def link(of: dict[str, Any], day: dict[str, Any], outlet_events: Any = None) -> dict[str, Any]:
        summary = run_job("link", of, *as_of(day))
        outlet_events[GOALS].extra = figures(summary, of)
        return summary

    @task(outlets=[CANDIDATES])
    def aggregate(of: dict[str, Any], day: dict[str, Any], outlet_events: Any = None) -> dict[str, Any]:
        summary = run_job("aggregate", of, *as_of(day))
        outlet_events[CANDIDATES].extra = figures(summary, of)
        return summary

    @task(outlets=[RETRAINING_QUEUE])
    def release(of: dict[str, Any], day: dict[str, Any], ti: Any = None, outlet_events: Any = None) -> dict[str, Any]:
        summary = run_job("release", of, *as_of(day))
        if ti.try_number > 1 and summary.get("skipped") and summary.get("release_id"):
            # The try before this one released and died before it could say so.
            summary |= run_job("verify", of, f"--release={summary['release_id']}")
        elif summary["status"] != "released":
            raise AirflowSkipException(f"no release: {summary['status']} {summary.get('why', '')}")
        told = {k: summary[k] for k in ("release_id", "manifest_sha256")}
        outlet_events[RETRAINING_QUEUE].extra = {**figures(summary, of), **told}
        return summary

    @task_group
    def one(of: dict[str, Any]) -> None:
        day = embed(of)
        link(of, day) >> aggregate(of, day) >> release(of, day)

    one.expand(of=assistants())


release_feedback()
