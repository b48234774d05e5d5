"""What goes wrong in a run leaves the last release untouched and a clear error; the same command heals it, byte for byte.

The short form; `make soak` does it at a hundred random moments (tests/soak/test_faults_soak.py).
"""

from __future__ import annotations

import json
import shutil

import polars as pl
import pytest
from faults import World, full_disk, log_changes, tables, worker_raises
from running import contents, difference

from pipelines.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.e2e]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("faults"))


def test_a_full_disk_and_a_worker_that_raises_are_healed_by_the_same_command(world, capsys):
    lake = world.lake()
    with full_disk(world.changes // 3):
        assert world.mine(lake) == 1
    told = capsys.readouterr().err
    assert "No space left on device" in told and "make room and run again" in told and "Traceback" not in told
    with worker_raises("pipelines.aggregate.Decide", 1), pytest.raises(Exception, match="planted"):
        world.mine(lake)
    assert not (lake / "releases" / "LATEST").exists()
    with full_disk(2):
        assert world.mine(lake) == 1
    world.heals(lake)


def test_a_log_that_changes_while_it_is_read_publishes_nothing(world, tmp_path, capsys):
    log, lake = tmp_path / "log", world.lake()
    shutil.copytree(world.log, log)
    file = sorted(log.iterdir())[0]
    whole = pl.read_parquet(file)
    whole.head(10).write_parquet(file)
    with log_changes(file, whole):
        assert world.mine(lake, log) == 1
    assert f"{file}: changed while it was read" in capsys.readouterr().err
    assert not (lake / "_manifests").exists()
    assert world.mine(lake, log) == 0
    assert tables(lake, "votes") == tables(world.folder / "calm", "votes")


def test_a_day_that_comes_late_and_twice_gives_the_same_daily_tables(world, tmp_path):
    log, lake = tmp_path / "log", world.lake()
    log.mkdir()
    first, second = sorted(world.log.iterdir())
    shutil.copy(second, log)
    config = f"--config={world.folder}/c.toml"
    assert main(["ingest", f"--logs={log}", f"--lake={lake}", config, "--quiet"]) == 0
    shutil.copy(first, log)
    shutil.copy(first, log / "again.parquet")
    assert main(["ingest", f"--logs={log}", f"--lake={lake}", config, "--quiet"]) == 0
    # of duplicates one stays, and says where it came from
    assert tables(lake, "turns", "input") == tables(world.folder / "calm", "turns", "input")


def test_a_lost_partition_of_a_released_day_is_named_and_made_again(world, capsys):
    """By the doctor and by --dry-run; by the doctor's own fix, and by `mine`."""
    lake = world.lake()
    shutil.copytree(world.folder / "calm", lake)
    manifests = [sorted((lake / "_manifests" / lost).rglob("*.json"))[0] for lost in ("goal_edges", "candidates")]
    for manifest in manifests:
        manifest.unlink()
    capsys.readouterr()
    assert main(["doctor", f"--lake={lake}", "--json"]) == 0
    found = {f["about"]: f for f in json.loads(capsys.readouterr().out)["findings"] if f["state"] == "warning"}
    assert found.keys() - {"disk"} == {"goal_edges", "candidates", "leftovers"}
    config = f"--config={world.folder}/c.toml"
    assert main(["link", f"--lake={lake}", config, "--dry-run"]) == 0
    assert "goal_edges as_of=2026-01-02: is gone" in capsys.readouterr().out
    fix = found["goal_edges"]["fix"].split(",")[0].split()
    assert main([*fix[1:], config, "--quiet"]) == 0
    assert manifests[0].exists() and not manifests[1].exists()
    world.heals(lake)
    capsys.readouterr()
    assert main(["doctor", f"--lake={lake}", "--json"]) == 0
    assert "no manifest" not in capsys.readouterr().out


def test_one_undisturbed_run_again_changes_nothing(world):
    lake = world.folder / "calm"
    assert world.mine(lake) == 0
    assert not difference(world.calm, contents(lake))
