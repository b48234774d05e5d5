"""`retrain`: takes a release off the queue, trains on it, and acknowledges it, or gives it back.

It runs whenever `release_feedback` emits the asset `retraining_queue`. Every file of each release that it was told of is
held to the manifest, and the manifest to the event; then the trainer claims the newest release that nobody has trained
on (a retraction comes first), trains, judges on SAYAGAIN_TEST, acks under an assistant_version, or nacks what is no
better than the most frequent intent. The figures are in the task's log, its result, and the asset `sayagain_model_trained`.

The trainer is `pipelines/examples/trainer.py`; SAYAGAIN_TRAINER names another module with the same flags (`--lake --test
--assistant-version --out --json`). SAYAGAIN_MODELS is a folder for what was trained. The parameter `release_id` names a
release to verify by hand. The rest of the worker's environment is that of `mine_feedback`.
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

from airflow.sdk import Asset, Connection, Param, dag, task, task_group
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
TRAINED = Asset("sayagain_model_trained")


@dag(
    schedule=[RETRAINING_QUEUE],
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=24),
    default_args={**ARGS, "retries": 2, "execution_timeout": timedelta(hours=6), "pool": "sayagain"},
    params={**PARAMS, "release_id": Param(None, type=["null", "string"], description="a release to take without an event")},
    tags=["sayagain"],
    doc_md=__doc__,
)
def retrain():
    @task(inlets=[RETRAINING_QUEUE], pool="default_pool")
    def told(params: dict[str, Any], triggering_asset_events: Any = None, inlet_events: Any = None) -> list[dict[str, Any]]:
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
            announced = extra.get("manifest_sha256", summary["manifest_sha256"])
            if announced != summary["manifest_sha256"]:
                raise AirflowFailException(
                    f"release {release_id}: its manifest has sha256 {summary['manifest_sha256']}, the event said {announced}; "
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
        outlet_events[TRAINED].extra = {"assistant": of["assistant"], **summary}
        return summary

    @task_group
    def one(of: dict[str, Any]) -> None:
        train(of, verify(of))

    one.expand(of=told())


retrain()
