"""Airflow as a user starts it: `airflow standalone` (SQLite) on the DAGs of this checkout, its state read from its database."""

from __future__ import annotations

import contextlib
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

from test_dags import DRIVER, TRAINER

ROOT = Path(__file__).resolve().parents[2]
AIRFLOW = Path(sys.executable).with_name("airflow")
READY = 1200  # seconds: 30 on an idle machine, 504 on the busiest so far (load 20)
DONE = 3600


def _port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Scheduler:
    """A standalone Airflow with a home of its own in `folder`; its workers get the given settings, and a trainer that only acknowledges."""

    def __init__(self, folder: Path, **settings: str):
        self.home = folder / "home"
        self.home.mkdir()
        (folder / "stand_in_trainer.py").write_text(TRAINER)
        port = _port()
        self.url = f"http://localhost:{port}"
        self.env = os.environ | {
            "PATH": f"{AIRFLOW.parent}:{os.environ['PATH']}",
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
            "AIRFLOW__CORE__PARALLELISM": "2",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__API__PORT": str(port),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__API__BASE_URL": self.url,
            "SAYAGAIN_TEST": "unused",
            "SAYAGAIN_TRAINER": "stand_in_trainer",
            "PYTHONPATH": f"{ROOT}:{folder}",
            **settings,
        }
        self.log = self.home / "standalone.log"

    def __enter__(self) -> Scheduler:
        """Started, its four DAGs known, its pool made; `ready` is how many seconds that took."""
        start = time.monotonic()
        with self.log.open("w") as out:
            command = [AIRFLOW, "standalone"]
            self.process = subprocess.Popen(command, env=self.env, stdout=out, stderr=out, start_new_session=True)
        try:
            known = "SELECT dag_id FROM dag WHERE dag_id IN ('housekeeping', 'mine_feedback', 'release_feedback', 'retrain')"
            self.wait("the four DAGs", known, 4, READY)
            self._answers(READY)
            self.ready = time.monotonic() - start
            self.command(["pools", "set", "sayagain", "2", "jobs of the lake"])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stopped, and what of it is still there after a minute is killed: its API server outlives it on a busy machine."""
        for how in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(60)

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

    def wait(self, what: str, sql: str, wanted: int, seconds: float = DONE, *, fails: bool = False) -> None:
        """Until a question has so many answers; a failed task ends the wait, unless `fails` expects some."""
        deadline = time.monotonic() + seconds
        while len(self.ask(sql)) < wanted:
            failed = self.ask("SELECT dag_id, run_id, task_id, map_index FROM task_instance WHERE state = 'failed'")
            assert fails or not failed, f"{what}: {failed}; logs in {self.home}/logs"
            assert self.process.poll() is None and time.monotonic() < deadline, f"{what}: {self.log.read_text()[-3000:]}"
            time.sleep(3)

    def events(self) -> list[tuple[str, dict]]:
        """Assets and what the tasks said of them, in the order of time."""
        sql = "SELECT a.name, e.extra FROM asset_event e JOIN asset a ON a.id = e.asset_id ORDER BY e.id"
        return [(name, json.loads(extra)) for name, extra in self.ask(sql)]

    def _answers(self, seconds: float) -> None:
        """Wait for the API server: a task that starts before it fails its first try."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/api/v2/monitor/health", timeout=10) as answer:
                    if json.load(answer)["scheduler"]["status"] == "healthy":
                        return
            except OSError:
                pass
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(3)

    def picture(self, path: str, file: Path) -> bool:
        """A page as a browser shows it, for people to look at; False where there is no Chromium."""
        if not (browser := shutil.which("chromium") or shutil.which("google-chrome")):
            return False
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1300,600", "--lang=en-US"]
        flags += [f"--user-data-dir={self.home}/browser", f"--screenshot={file}", "--virtual-time-budget=60000"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run([browser, *flags, self.url + path], capture_output=True, timeout=300, check=False)
        return file.exists()


def runs(dag: str, state: str = "success") -> str:
    return f"SELECT run_id FROM dag_run WHERE dag_id = '{dag}' AND state = '{state}'"
