"""What the long runs share: a row of RESULTS.md for each, and progress while they work."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

RESULTS = Path(__file__).with_name("RESULTS.md")


@pytest.fixture
def say(pytestconfig: pytest.Config, request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Prints a line at once, though pytest holds back what tests print."""
    held = pytestconfig.pluginmanager.getplugin("capturemanager")
    start = time.monotonic()

    def line(text: str) -> None:
        with held.global_and_fixture_disabled():
            print(f"  {datetime.now(UTC):%H:%M:%S} {request.node.name}, {time.monotonic() - start:,.0f} s: {text}", flush=True)

    line("begins")
    return line


@pytest.fixture
def record(say: Callable[[str], None]) -> Callable[[str, str], None]:
    """Adds a row to the table of RESULTS.md: record(test, result)."""
    start = time.monotonic()

    def row(test: str, result: str) -> None:
        command = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True, check=False).stdout.strip()
        machine = f"{os.cpu_count()} cores, Python {platform.python_version()}"
        minutes = (time.monotonic() - start) / 60
        with RESULTS.open("a") as table:
            table.write(f"| {datetime.now(UTC):%Y-%m-%d} | {commit} | {machine} | {test} | {result} ({minutes:.1f} min) |\n")
        say(f"{test}: {result}")

    return row
