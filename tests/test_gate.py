"""Whole jobs on candidates that are made here: `gate` shows, `release --shadow` tells nobody, `veto` holds from the next release on."""

from __future__ import annotations

import hashlib
import json
import os
from datetime import timedelta
from pathlib import Path

import pytest
from release_lake import fixtures, mined
from release_world import AS_OF, label, rewrite, world

from pipelines import registry
from pipelines.cli import main
from pipelines.queue import Queue
from rewrite.text import rewrite_id

pytestmark = pytest.mark.slow

made, lake = fixtures(1)
NEXT = AS_OF + timedelta(weeks=1)
ID = rewrite_id("en-US", "tern on", "turn on the light")


def kept(store):
    """Everything but runs, leases and attempts."""
    files = [p for p in sorted(Path(store.root).rglob("*")) if p.is_file()]
    names = {str(p.relative_to(store.root)): p for p in files}
    return {
        n: hashlib.sha256(p.read_bytes()).hexdigest() for n, p in names.items() if not n.startswith(("runs/", "_leases/", "_attempts/"))
    }


def rewrites(store, release_id):
    return registry.Opened(store, release_id).tables("rewrites", "retired")


def test_a_verdict_without_a_release(lake, capsys):
    mined(lake, NEXT)
    before = kept(lake)
    assert main(["gate", "--candidates", f"as_of={NEXT}", "--lake", lake.root]) == 0
    said = capsys.readouterr().out
    assert f"As of {NEXT}" in said and "Passed: " in said and "2 rewrites" in said
    bad = world(rewrites=[rewrite(f"put on {n} lights", "put on the lights") for n in range(30)])
    mined(lake, NEXT, bad)
    assert main(["gate", "--candidates", str(NEXT), "--lake", lake.root, "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert any(v["expectation"] == "numbers_kept" and v["severity"] == "critical" for v in found["failed"])
    mined(lake, NEXT)
    assert kept(lake) == before, "a gate writes nothing"
    assert main(["gate", "--candidates", "2020-01-01", "--lake", lake.root]) == 1 and str(NEXT) in capsys.readouterr().err


def test_a_live_rewrite_that_turns_a_meaning_is_shown(lake, capsys):
    rows = world()
    things = ("lamp", "fan", "plug", "heater")
    rows["labels"] += [label(f"the {t} {w}", i, goal_id="g1") for t in things for w, i in (("on", "start"), ("off", "stop"))]
    rows["rewrites"] += [rewrite(f"{n} lamp on", f"{n} lamp off", reason="live") for n in "abcdefghijklmnopqrstuvwxyz"]
    mined(lake, NEXT, rows)
    assert main(["gate", "--candidates", str(NEXT), "--lake", lake.root, "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert [v["rows_failed"] for v in found["failed"] if v["expectation"] == "meaning_kept"] == [26]


def test_a_shadow_is_released_to_nobody(lake, made, capsys):
    rows = world()
    rows["rewrites"].append(rewrite("light on", "turn on the light"))
    mined(lake, NEXT, rows)
    before = kept(lake)
    assert main(["release", "--shadow", "--as-of", str(NEXT), "--lake", lake.root, "--json", "--quiet"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["status"] == "shadow" and kept(lake) == before
    folder = Path(said["release"])
    assert {"manifest.json", "rewrites.parquet", "report.html"} <= {p.name for p in folder.iterdir()}
    assert registry.newest_id(lake) == made[1][-1] and len(Queue(lake, "shadow").messages()) == 1
    assert main(["release", "--as-of", str(NEXT), "--lake", lake.root, "--quiet"]) == 0, "the real one comes after it as if there were none"
    assert registry.newest_id(lake) == said["release_id"]


def test_a_veto_holds_from_the_next_release_on(lake, made, capsys):
    mined(lake, NEXT)
    assert main(["veto", ID, "--reason", "a town", "--lake", lake.root]) == 0
    assert main(["veto", "Play  Jazz", "--reason", "a brand", "--lake", lake.root]) == 0
    assert main(["release", "--as-of", str(NEXT), "--lake", lake.root, "--quiet"]) == 0
    new = registry.newest_id(lake)
    tables = registry.Opened(lake, new).tables()
    assert ID not in tables["rewrites"]["rewrite_id"] and (ID, "vetoed") in tables["retired"].select("rewrite_id", "reason").rows()
    assert not any(
        "play jazz" in t[c].to_list() for n, t in tables.items() for c in ("utterance", "anchor", "positive", "negative") if c in t.columns
    )
    mined(lake, NEXT + timedelta(weeks=1), world())
    assert main(["release", "--as-of", str(NEXT + timedelta(weeks=1)), "--lake", lake.root, "--quiet"]) == 0
    assert ID not in rewrites(lake, registry.newest_id(lake))["rewrites"]["rewrite_id"], "for ever"
    assert "somebody vetoed it" in (Path(lake.root) / "releases" / new / "report.html").read_text()


def test_a_tampered_parent_is_refused_by_name(lake, made, capsys):
    mined(lake, NEXT)
    path = Path(lake.root, "releases", made[1][-1], "labels.parquet")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    for command in (["gate"], ["release", "--quiet"], ["explain", "play jazz"], ["verify"]):
        assert main([*command, *(["--as-of", str(NEXT)] if command != ["verify"] else []), "--lake", lake.root]) == 1
        assert "labels.parquet" in capsys.readouterr().err, command
    assert registry.newest_id(lake) == made[1][-1]


def test_a_held_lease_names_its_holder(lake, made, capsys):
    mined(lake, NEXT)
    with lake.lease("as_of"):
        assert main(["release", "--as-of", str(NEXT), "--lake", lake.root, "--quiet"]) == 1
        assert f"process {os.getpid()}" in capsys.readouterr().err
    assert registry.newest_id(lake) == made[1][-1]


@pytest.mark.parametrize("command", [["gate"], ["explain", "x"], ["queue", "list"], ["releases", "list"], ["forget", "--user", "x"]])
def test_a_lake_of_a_newer_format_says_which_version_is_needed(lake, capsys, command):
    info = json.loads(lake.get("lake.json")) | {"format": 99, "needs": "7.3"}
    lake.put("lake.json", json.dumps(info).encode())
    assert main([*command, "--lake", lake.root]) == 1
    assert "install sayagain 7.3 or later" in capsys.readouterr().err
