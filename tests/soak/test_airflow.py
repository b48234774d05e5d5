"""Airflow's own scheduler (standalone, SQLite): a month's backfill, a release, its training woken by the asset, housekeeping.

Needs 5.5 GB of memory and a quarter of an hour. The lake is that of a run day by day, byte for byte, the release included.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from faults import CONFIG
from running import contents, difference, run, simulate
from test_dags import DRIVER, TRAINER

from pipelines.cli import main

pytest.importorskip("airflow.sdk", reason="Airflow is not installed: pip install -c constraints.txt -e '.[airflow]'")
pytestmark = [pytest.mark.soak, pytest.mark.dag]

ROOT = Path(__file__).resolve().parents[2]
AIRFLOW = Path(sys.executable).with_name("airflow")
READY = 300  # seconds: 30 on an idle machine
DONE = 3600
DAYS = [f"2026-01-{day:02}" for day in range(1, 31)]
TURNS = 15_000


class Scheduler:
    """A standalone Airflow, its state read from its database."""

    def __init__(self, home: Path, env: dict[str, str]):
        self.home, self.env = home, env
        self.log = home / "standalone.log"
        with self.log.open("w") as out:
            command = [AIRFLOW, "standalone"]
            self.process = subprocess.Popen(command, env=env, stdout=out, stderr=out, start_new_session=True)

    def command(self, *commands: list[str]) -> None:
        """Several in one process: importing Airflow takes longer than most of them."""
        driver = [sys.executable, "-c", DRIVER, json.dumps(commands)]
        done = subprocess.run(driver, env=self.env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{commands}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"

    def ask(self, sql: str) -> list[tuple]:
        try:
            with sqlite3.connect(f"file:{self.home}/airflow.db?mode=ro", uri=True, timeout=30) as db:
                return db.execute(sql).fetchall()
        except sqlite3.OperationalError:
            return []

    def wait(self, what: str, sql: str, wanted: int, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while len(self.ask(sql)) < wanted:
            failed = self.ask("SELECT dag_id, run_id, task_id, map_index FROM task_instance WHERE state = 'failed'")
            assert not failed, f"{what}: {failed}; logs in {self.home}/logs"
            assert self.process.poll() is None and time.monotonic() < deadline, f"{what}: {self.log.read_text()[-3000:]}"
            time.sleep(3)

    def answers(self, seconds: float) -> None:
        """Wait for the API server: a task that starts before it fails its first try."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                with urllib.request.urlopen(f"{self.env['AIRFLOW__API__BASE_URL']}/api/v2/monitor/health", timeout=10) as answer:
                    if json.load(answer)["scheduler"]["status"] == "healthy":
                        return
            except OSError:
                pass
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(3)

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)


def _port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def succeeded(dag: str) -> str:
    return f"SELECT run_id FROM dag_run WHERE dag_id = '{dag}' AND state = 'success'"


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
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "stand_in_trainer.py").write_text(TRAINER)
    port = _port()
    env = os.environ | {
        "PATH": f"{AIRFLOW.parent}:{os.environ['PATH']}",
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__PARALLELISM": "2",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://localhost:{port}/execution/",
        "AIRFLOW__API__BASE_URL": f"http://localhost:{port}",
        "SAYAGAIN_LOGS": f"{log}/{{date}}.parquet",
        "SAYAGAIN_READY": f"file://{log}/{{date}}._SUCCESS",
        "SAYAGAIN_LAKE": str(lake),
        "SAYAGAIN_CONFIG": str(config),
        "SAYAGAIN_TEST": "unused",
        "SAYAGAIN_TRAINER": "stand_in_trainer",
        "PYTHONPATH": f"{ROOT}:{tmp_path}",
    }
    start = time.monotonic()
    scheduler = Scheduler(home, env)
    try:
        scheduler.wait(
            "the four DAGs",
            "SELECT dag_id FROM dag WHERE dag_id IN ('housekeeping', 'mine_feedback', 'release_feedback', 'retrain')",
            4,
            READY,
        )
        scheduler.answers(READY)
        ready = time.monotonic() - start
        backfill = ["backfill", "create", "--dag-id", "mine_feedback", "--from-date", DAYS[0], "--to-date", DAYS[-1]]
        scheduler.command(["pools", "set", "sayagain", "2", "jobs of the lake"], ["dags", "unpause", "mine_feedback"], backfill)
        scheduler.wait("the backfill", f"{succeeded('mine_feedback')} AND run_type = 'backfill'", len(DAYS), DONE)
        mined = time.monotonic() - start - ready
        say(f"the backfill is done, after {mined:.0f} s")
        # unpaused, a DAG makes the run of its last date at once
        scheduler.command(["dags", "unpause", "retrain"], ["dags", "unpause", "release_feedback"])
        scheduler.wait("the release", succeeded("release_feedback"), 1, DONE)
        scheduler.command(["dags", "unpause", "housekeeping"])
        scheduler.wait("its training, woken by the asset", succeeded("retrain"), 1, DONE)
        scheduler.wait("housekeeping", succeeded("housekeeping"), 1, DONE)
        events = scheduler.ask("SELECT a.name, e.extra FROM asset_event e JOIN asset a ON a.id = e.asset_id")
    finally:
        scheduler.stop()
    told = {name: json.loads(extra) for name, extra in events}
    assert {"sayagain_turns", "sayagain_votes", "sayagain_candidates", "retraining_queue", "sayagain_model_trained"} <= told.keys()
    assert told["sayagain_turns"]["turns"] > 100 and told["sayagain_turns"]["seconds"] > 0
    assert {json.loads(extra)["date"] for name, extra in events if name == "sayagain_votes"} >= set(DAYS)

    queue = ("events/", "queue/", "registry", "_inputs/")  # who was told what, and when
    ours, theirs = ({n: h for n, h in contents(of).items() if not n.startswith(queue)} for of in (lake, reference))
    assert "releases/LATEST" in theirs and len([n for n in theirs if n.startswith("votes/")]) > 100
    assert not difference(ours, theirs)
    listed = json.loads(run("queue", "list", f"--lake={lake}", "--json").stdout)
    assert [m["state"] for m in listed] == ["acked"]
    record(
        "Airflow's scheduler",
        f"ready in {ready:.0f} s; backfill of {len(DAYS)} days {mined:.0f} s, the bytes of a run day by day; release, training by asset, "
        f"housekeeping: {time.monotonic() - start:.0f} s in all",
    )
