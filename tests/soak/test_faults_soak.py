"""Faults at many random moments: `make soak`. SAYAGAIN_SOAK_KILLS is how many."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from faults import World, full_disk, worker_raises
from running import ROOT, contents, difference
from test_soak import KILLS

from pipelines.cli import main
from pipelines.store import Store

pytestmark = pytest.mark.soak
STEPS = (
    "pipelines.ingest._Read",
    "pipelines.ingest._Merge",
    "pipelines.fit.FitModel",
    "pipelines.detect.Score",
    "pipelines.encode.Keep",
    "pipelines.window.Reduce",
    "pipelines.link.BuildGoals",
    "pipelines.aggregate.Decide",
    "pipelines.release.BuildRelease",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("faults"))


def test_full_disks_and_raising_workers_at_random_moments(world, record, say):
    draw, lake, hit, healed = random.Random(0), world.lake(), 0, 0
    for n in range(KILLS):
        fault = full_disk(draw.randint(1, world.changes // 2)) if n % 2 else worker_raises(draw.choice(STEPS), draw.randint(1, 2))
        try:
            with fault:
                code = world.mine(lake)
        except RuntimeError:  # of the engine, around the planted one
            code = 1
        hit += code == 1
        assert code in (0, 1)
        if code == 0 or n % 5 == 4:
            world.heals(lake)
            shutil.rmtree(lake)
            healed += 1
        if n % 10 == 9:
            say(f"{n + 1} of {KILLS} runs, {hit} faults, {healed} lakes healed")
    world.heals(lake)
    assert hit > KILLS / 4
    record("full disks and raising workers", f"{hit} faults in {KILLS} runs; {healed + 1} lakes healed, byte-identical to a calm run")


def test_a_disk_that_is_really_full(world, tmp_path, record):
    """A tmpfs in a namespace of its own: `mine` stops with its words, and goes on when there is room."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no user namespaces here: `unshare -rm` is refused")
    size = sum(p.stat().st_size for p in (world.folder / "calm").rglob("*") if p.is_file())
    where, out = tmp_path / "disk", tmp_path / "out"
    where.mkdir()
    mine = f"{sys.executable} -m pipelines mine --logs={world.log} --lake={where}/lake --config={world.folder}/c.toml --quiet"
    script = f"""
        mount -t tmpfs -o size={size // 3 // 1024}k x {where}
        {mine}; echo "code $?"
        mount -o remount,size=1g {where}
        {mine} || exit 9
        cp -a {where}/lake {out}
    """
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "code 1" in done.stdout and "No space left on device" in done.stderr and "make room" in done.stderr
    assert not difference(world.calm, contents(out))
    record("a full disk", f"a tmpfs of a third of the lake's {size / 2**20:.1f} MiB: stopped, went on with room, byte-identical")


def test_every_table_corrupted_in_turn_is_found_and_mended(world, record, say):
    mended = 0
    for table in ("candidates", "turns", "rephrases", "outcomes", "votes", "goals"):
        lake = world.lake()
        shutil.copytree(world.folder / "calm", lake)
        victim = sorted((lake / table).rglob("*.parquet"))[0]
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 0xFF
        victim.write_bytes(data)
        assert main(["doctor", f"--lake={lake}", "--json"]) == 0  # sizes are right
        assert main(["doctor", f"--lake={lake}", "--json", "--deep"]) == 1
        store = Store(str(lake))
        for path in store.list(f"_manifests/{table}"):  # the doctor's fix
            if Path(victim).relative_to(lake).as_posix().startswith(path.removeprefix("_manifests/").removesuffix(".json")):
                store.delete([path])
                mended += 1
        world.heals(lake)
        say(f"{table} mended")
    assert mended >= 6
    record("corrupted files", f"{mended} tables, one flipped byte each: found by `doctor --deep`, made anew, byte-identical")
