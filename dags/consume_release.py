"""`consume_release`: what a trainer does with a release, as an example to start from.

It runs whenever `release_feedback` emits the asset `retraining_queue`, checks every file of each release it was told of
against the manifest, and prints the rows per table. A trainer goes on from here and reads the release's tables.

The worker's environment is that of `mine_feedback`. The parameter `release_id` names a release by hand.
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

from airflow.sdk import Asset, Param, dag, task
from airflow.sdk.exceptions import AirflowFailException

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


@dag(
    schedule=[RETRAINING_QUEUE],
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=2), "execution_timeout": timedelta(hours=1)},
    params={
        "release_id": Param(None, type=["null", "string"], description="a release to take without an event"),
        "lake": Param(None, type=["null", "string"], description="default: SAYAGAIN_LAKE"),
        "config": Param(None, type=["null", "string"], description="default: SAYAGAIN_CONFIG"),
    },
    tags=["sayagain"],
    doc_md=__doc__,
)
def consume_release():
    @task(inlets=[RETRAINING_QUEUE])
    def verify(params: dict[str, Any], triggering_asset_events: Any = None, inlet_events: Any = None) -> list[dict[str, Any]]:
        """Several events may come to one run. A run by hand has none of its own: it takes the newest that there was."""
        extras = [event.extra for events in (triggering_asset_events or {}).values() for event in events]
        if params.get("release_id"):
            extras = [{"release_id": params["release_id"]}]
        elif not extras:
            extras = [event.extra for event in inlet_events[RETRAINING_QUEUE]][-1:]
        if not extras:
            raise AirflowFailException("there was no event of retraining_queue: name a release with the parameter 'release_id'")
        verified = {}
        for extra in extras:
            release_id = extra["release_id"]
            summary = run_job("verify", params, f"--release={release_id}")
            announced = extra.get("manifest_sha256", summary["manifest_sha256"])
            if announced != summary["manifest_sha256"]:
                raise AirflowFailException(
                    f"release {release_id}: its manifest has sha256 {summary['manifest_sha256']}, the event said {announced}; "
                    "the release was changed after it was announced: do not train on it"
                )
            verified[release_id] = summary
            for table, rows in sorted(summary["rows"].items()):
                print(f"{release_id}  {table:<12} {rows:>10,} rows", flush=True)
        return list(verified.values())

    verify()


consume_release()
