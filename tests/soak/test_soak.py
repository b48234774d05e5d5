"""Long runs: `make soak`. Each adds a dated row to RESULTS.md.

SAYAGAIN_SOAK_TURNS and SAYAGAIN_SOAK_KILLS change their size.
"""

from __future__ import annotations

import json
import os
import platform
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from faults import CONFIG
from running import DIED, ROOT, contents, difference, run, run_dying, simulate

pytestmark = pytest.mark.soak

TURNS = int(os.environ.get("SAYAGAIN_SOAK_TURNS", "5000000"))
KILLS = int(os.environ.get("SAYAGAIN_SOAK_KILLS", "100"))
RESULTS = Path(__file__).with_name("RESULTS.md")
HEAD = """# Long runs

`make soak` adds a row per test.

| date | commit | machine | test | result |
| --- | --- | --- | --- | --- |
"""


def record(test: str, result: str) -> None:
    """A row of the table."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}"
    row = f"| {datetime.now(UTC):%Y-%m-%d} | {commit} | {machine} | {test} | {result} |\n"
    RESULTS.write_text((RESULTS.read_text() if RESULTS.exists() else HEAD) + row)


def test_many_kills(tmp_path):
    """Deaths at random changes of the lake and SIGKILLs at random moments, half and half; the result is that of a calm run."""
    log, config = simulate(tmp_path / "world", 4_000, 3), tmp_path / "c.toml"
    config.write_text(CONFIG)
    mine = ["mine", f"--logs={log}", f"--config={config}", "--quiet"]
    start = time.monotonic()
    _, changes = run_dying(0, *mine, f"--lake={tmp_path}/calm")
    calm, seconds = contents(tmp_path / "calm"), time.monotonic() - start
    assert "releases/LATEST" in calm

    draw, lake, finished, kills = random.Random(KILLS), tmp_path / "killed", 0, 0
    while kills < KILLS:
        if kills % 2:
            code, _ = run_dying(draw.randint(1, changes // 3), *mine, f"--lake={lake}")
        else:
            command = [sys.executable, "-m", "pipelines", *mine, f"--lake={lake}"]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **quiet)
            try:
                code = process.wait(draw.uniform(0.1, 0.9) * seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                code = DIED
        assert code in (0, DIED), f"after {kills} kills a run ended with {code}"
        kills += code == DIED
        if code == 0:  # it got through: is it right? then again from nothing
            finished += 1
            assert not difference(calm, contents(lake))
            shutil.rmtree(lake)
    run(*mine, f"--lake={lake}")
    assert not difference(calm, contents(lake))
    record("many kills", f"{kills} kills, {finished + 1} runs finished, every one byte-identical to a calm run")


def test_every_death_while_releasing(tmp_path):
    """`release` dies before each of its changes of the lake in turn."""
    log = simulate(tmp_path / "world", 4_000, 2)
    run("mine", f"--logs={log}", f"--lake={tmp_path}/calm", "--quiet")
    calm, ready = contents(tmp_path / "calm"), tmp_path / "ready"
    for name in ("ingest", "fit", "detect", "embed", "link", "aggregate"):
        run(name, f"--lake={ready}", "--quiet", *([f"--logs={log}"] if name == "ingest" else []))
    points, code = 0, DIED
    while code == DIED:
        lake = tmp_path / "lake"
        shutil.copytree(ready, lake)
        code, _ = run_dying(points + 1, "release", f"--lake={lake}", "--quiet")
        if code == DIED:
            points += 1
            run("release", f"--lake={lake}", "--quiet")
        assert not difference(calm, contents(lake)), f"death before change {points}"
        shutil.rmtree(lake)
    assert points > 5
    record("every death while releasing", f"{points} places to die, every one healed by the same command")


def test_scale(tmp_path):
    """Millions of turns through `mine` on this machine."""
    world = tmp_path / "world"
    start = time.monotonic()
    run("simulate", f"--out={world}", f"--turns={TURNS}", "--days=14", "--by-day", "--no-truth", "--quiet")
    made = time.monotonic() - start
    start = time.monotonic()
    done = run("mine", f"--logs={world}/log", f"--lake={tmp_path}/lake", "--quiet", "--json")
    seconds = time.monotonic() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    summary = json.loads(done.stdout.splitlines()[-1])
    stages = ", ".join(f"{name} {s['seconds']:.0f} s {s['peak_mib']:,.0f} MiB" for name, s in summary["stages"].items())
    figures = f"{TURNS:,} turns simulated in {made:.0f} s, mined in {seconds:.0f} s, peak {peak:,.0f} MiB; {summary['status']} ({stages})"
    record("scale", figures)
    assert summary["status"] == "released"


def test_closed_loop(tmp_path):
    """Three epochs; the release of one is live in the next. The share of failed turns falls below that of the same world without."""
    lake, rates, controls = tmp_path / "lake", [], []
    days, turns = 7, min(60_000, TURNS)
    for epoch in range(3):
        live = []
        if epoch:
            latest = (lake / "releases" / "LATEST").read_text().strip()
            live = [f"--rewrites={lake}/releases/{latest}"]
        for name, more, found in (("live", live, rates), ("control", [], controls)):
            out = tmp_path / f"{name}{epoch}"
            simulate(out, turns, days, f"--first-epoch={epoch}", *more)
            found.append(json.loads((out / "world.json").read_text())["defect_rate"])
        run("mine", f"--logs={tmp_path}/live{epoch}/log", f"--lake={lake}", "--quiet")
    shown = ", ".join(f"{a:.4f} ({b:.4f} without)" for a, b in zip(rates, controls, strict=True))
    record("closed loop", f"failed turns by epoch: {shown}")
    assert rates[0] == controls[0]
    assert rates[1] < controls[1] and rates[2] < controls[2]
