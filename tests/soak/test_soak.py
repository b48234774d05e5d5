"""Long runs: `make soak`. Each adds a dated row to RESULTS.md.

SAYAGAIN_SOAK_TURNS and SAYAGAIN_SOAK_KILLS change their size.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import time

import pytest
from faults import CONFIG
from running import DIED, Nursery, contents, difference, run, simulate

pytestmark = pytest.mark.soak

TURNS = int(os.environ.get("SAYAGAIN_SOAK_TURNS", "5000000"))
KILLS = int(os.environ.get("SAYAGAIN_SOAK_KILLS", "100"))


def test_many_kills(tmp_path, record, say):
    """Deaths at random changes of the lake and SIGKILLs at random moments, half and half; the result is that of a calm run."""
    log, config = simulate(tmp_path / "world", 4_000, 3), tmp_path / "c.toml"
    config.write_text(CONFIG)
    mine = ["mine", f"--logs={log}", f"--config={config}", "--quiet"]
    with Nursery(tmp_path) as calmly:
        calmly.run(*mine, f"--lake={tmp_path}/warm")
        start = time.monotonic()
        _, changes = calmly.run(*mine, f"--lake={tmp_path}/calm")
        seconds = time.monotonic() - start
    calm = contents(tmp_path / "calm")
    assert "releases/LATEST" in calm

    draw, lake, finished, kills = random.Random(KILLS), tmp_path / "killed", 0, 0
    with Nursery(tmp_path) as nursery:
        while kills < KILLS:
            when = {"at": draw.randint(1, changes // 3)} if kills % 2 else {"after": draw.uniform(0.1, 0.9) * seconds}
            code, _ = nursery.run(*mine, f"--lake={lake}", **when)
            kills += code == DIED
            if code == 0:  # it got through: is it right? then again from nothing
                finished += 1
                assert not difference(calm, contents(lake))
                shutil.rmtree(lake)
            elif kills % 10 == 0:
                say(f"{kills} of {KILLS} kills, {finished} runs finished")
    run(*mine, f"--lake={lake}")
    assert not difference(calm, contents(lake))
    record("many kills", f"{kills} kills, {finished + 1} runs finished, every one byte-identical to a calm run")


def test_every_death_while_releasing(tmp_path, record, say):
    """`release` dies before each of its changes of the lake in turn."""
    log, config = simulate(tmp_path / "world", 4_000, 2), tmp_path / "c.toml"
    config.write_text(CONFIG)
    ready, lake, options = tmp_path / "ready", tmp_path / "lake", (f"--config={config}", "--quiet")
    run("mine", f"--logs={log}", f"--lake={tmp_path}/calm", *options)
    calm = contents(tmp_path / "calm")
    with Nursery(tmp_path) as nursery:
        for name in ("ingest", "fit", "detect", "embed", "link", "aggregate"):
            nursery.run(name, f"--lake={ready}", *options, *([f"--logs={log}"] if name == "ingest" else []))
        points, code = 0, DIED
        while code == DIED:
            shutil.copytree(ready, lake)
            code, _ = nursery.run("release", f"--lake={lake}", *options, at=points + 1)
            if code == DIED:
                points += 1
                nursery.run("release", f"--lake={lake}", *options)
            assert not difference(calm, contents(lake)), f"death before change {points}"
            shutil.rmtree(lake)
            if points % 5 == 0:
                say(f"{points} places to die")
    assert points > 5
    record("every death while releasing", f"{points} places to die, every one healed by the same command")


def test_scale(tmp_path, record, say):
    """Millions of turns through `mine` on this machine."""
    world = tmp_path / "world"
    start = time.monotonic()
    run("simulate", f"--out={world}", f"--turns={TURNS}", "--days=14", "--by-day", "--no-truth", "--quiet")
    made = time.monotonic() - start
    say(f"{TURNS:,} turns simulated")
    start = time.monotonic()
    done = run("mine", f"--logs={world}/log", f"--lake={tmp_path}/lake", "--quiet", "--json")
    seconds = time.monotonic() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    summary = json.loads(done.stdout.splitlines()[-1])
    stages = ", ".join(f"{name} {s['seconds']:.0f} s {s['peak_mib']:,.0f} MiB" for name, s in summary["stages"].items())
    figures = f"{TURNS:,} turns simulated in {made:.0f} s, mined in {seconds:.0f} s, peak {peak:,.0f} MiB; {summary['status']} ({stages})"
    record("scale", figures)
    assert summary["status"] == "released"


def test_closed_loop(tmp_path, record, say):
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
        say(f"epoch {epoch}: {rates[-1]:.4f} of turns failed, {controls[-1]:.4f} without")
    shown = ", ".join(f"{a:.4f} ({b:.4f} without)" for a, b in zip(rates, controls, strict=True))
    record("closed loop", f"failed turns by epoch: {shown}")
    assert rates[0] == controls[0]
    assert rates[1] < controls[1] and rates[2] < controls[2]
