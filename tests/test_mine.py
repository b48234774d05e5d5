"""The whole way on the project's own log: released, repeatable, resumable, refused when a gate fails, and explained."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from running import contents, difference

from pipelines import aggregate
from pipelines.cli import main
from pipelines.simulate import judge
from pipelines.store import Manifest, Store
from rewrite import contracts, text

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("world") / "w"
    assert main(["simulate", "--out", str(out), "--turns", "12000", "--days", "5", "--locales", "en-US,sw-KE", "--quiet"]) == 0
    return out


@pytest.fixture(scope="module")
def lake(world, tmp_path_factory):
    where = tmp_path_factory.mktemp("lakes") / "a"
    assert main(["mine", "--logs", str(world / "log.parquet"), "--lake", str(where), "--quiet"]) == 0
    return where


def latest(lake):
    return (lake / "releases" / "LATEST").read_text().strip()


def table(lake, name):
    return pl.read_parquet(lake / "releases" / latest(lake) / f"{name}.parquet")


def tree(folder):
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_release_holds_what_it_promises(lake):
    for name, schema in contracts.RELEASED.items():
        assert table(lake, name).columns == schema.names
    rewrites, labels = table(lake, "rewrites"), table(lake, "labels")
    assert rewrites.height > 20
    assert labels.height > 200
    assert set(rewrites["locale"]) == {"en-US", "sw-KE"}
    assert min(rewrites["users"].min(), labels["users"].min()) >= 3
    assert rewrites["rewrite_id"].to_list() == text.rewrite_ids(rewrites["locale"], rewrites["source"], rewrites["target"])
    assert {"manifest.json", "gates.json", "data_card.md", "report.html"} <= {p.name for p in (lake / "releases" / latest(lake)).iterdir()}


def test_the_rewrites_are_better_than_pair_counting(lake, world):
    """Served to users that the log never saw, by the assistant that made it; pair counting: what k users asked next and got."""
    log = pl.read_parquet(world / "log.parquet").unique("turn_id").with_columns(u=text.key_expr("utterance")).sort("user_id", "timestamp")
    later = [pl.col(c).shift(-1).over("user_id").alias(f"{c}_2") for c in ("u", "timestamp", "status", "barge_in")]
    pairs = log.with_columns(later).filter(
        pl.col("timestamp_2") - pl.col("timestamp") <= pl.duration(seconds=45),
        pl.col("u") != pl.col("u_2"),
        pl.col("status_2") == "completed",
        ~pl.col("barge_in_2").fill_null(False),
    )
    counted = pairs.group_by("locale", source="u", target="u_2").agg(n=pl.col("user_id").n_unique()).filter(pl.col("n") >= 3)
    counted = counted.sort("n", "target", descending=[True, False]).unique(["locale", "source"], keep="first", maintain_order=True)
    ours, baseline = judge.replay(world, table(lake, "rewrites"))["all"], judge.replay(world, counted)["all"]
    assert ours["precision"] > max(0.85, baseline["precision"])
    assert ours["win_loss"] > max(20, baseline["win_loss"])
    assert ours["defect_reduction"] > max(0.1, baseline["defect_reduction"])


def test_no_personal_data_and_no_planted_rewrite_is_released(lake, world):
    planted = json.loads((world / "world.json").read_text())["planted"]
    blob = "\n".join(
        p.read_text(errors="ignore") for p in (lake / "releases" / latest(lake)).iterdir() if p.suffix in {".html", ".json", ".md"}
    )
    blob += "\n".join(table(lake, n).write_ndjson() for n in contracts.RELEASED)
    for found in planted.get("personal_data", []):
        assert found not in blob
    ring = {tuple(map(text.key, pair)) for pair in planted.get("ring", [])}
    assert not ring & set(table(lake, "rewrites").select("source", "target").iter_rows())


def test_running_again_does_nothing(lake, world, capsys):
    before = tree(lake / "releases")
    assert main(["mine", "--logs", str(world / "log.parquet"), "--lake", str(lake), "--quiet", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert all(s["skipped"] for s in told["stages"].values()), told
    assert tree(lake / "releases") == before


def test_aggregate_takes_the_evidence_that_link_gathered_or_gathers_the_same(lake, world, tmp_path, monkeypatch):
    def candidates(where):
        store = Store(str(where))
        return {p: m.content for p, m in store.manifests("candidates").items()}

    work = []
    monkeypatch.setattr(aggregate, "_evidence", lambda *a, found=aggregate._evidence: work.append(found(*a)) or work[-1])
    ways = {"alone": ["aggregate"], "together": ["mine", "--logs", str(world / "log.parquet")]}
    for name, command in ways.items():
        again = tmp_path / name
        shutil.copytree(lake, again)
        shutil.rmtree(again / "releases")
        for table in ("candidates",) if name == "alone" else ("candidates", "goals", "goal_edges", "goal_changes"):
            shutil.rmtree(again / "_manifests" / table)
        assert main([*command, "--lake", str(again), "--quiet"]) == 0
        assert candidates(again) == candidates(lake)
    assert [(len(items), sent) for items, _, sent in work] == [(16, 16), (1, 0)]  # the votes of all buckets; what was kept


def test_prism_gives_the_same_bytes(lake, world, tmp_path, prism, monkeypatch):
    monkeypatch.setenv("SAYAGAIN_PRISM", prism)
    argv = ["mine", "--logs", str(world / "log.parquet"), "--lake", str(tmp_path / "lake"), "--runner", "prism", "--quiet"]
    assert main(argv) == 0
    assert not difference(contents(tmp_path / "lake"), contents(lake))


def test_a_failing_gate_refuses_and_leaves_the_last_release(lake, tmp_path, capsys):
    broken = tmp_path / "lake"
    shutil.copytree(lake, broken)
    store = Store(str(broken))
    old = latest(broken)
    day = next(iter(p.removeprefix("as_of=")[:10] for p in store.manifests("candidates")))
    later = str(pl.Series([day]).str.to_date().dt.offset_by("1d")[0])
    for name in contracts.CANDIDATES:
        data = pl.DataFrame(pl.from_arrow(store.read("candidates", f"as_of={day}/{name}")))
        if name == "rewrites":
            data = data.with_columns(probability=pl.lit(1.5))
        entry = store.attempt("t", "candidates", f"as_of={later}/{name}", data.to_arrow())
        store.publish("t", Manifest("candidates", f"as_of={later}/{name}", "test", "x", (entry,)))
    for name in ("goals", "goal_changes", "goal_edges"):
        data = store.read(name, f"as_of={day}")
        entry = store.attempt("t", name, f"as_of={later}", data)
        store.publish("t", Manifest(name, f"as_of={later}", "test", "x", (entry,)))
    assert main(["release", "--lake", str(broken), "--as-of", later, "--quiet", "--json"]) == 3
    said = capsys.readouterr()
    assert "REFUSED" in said.err and "rewrites.probability" in said.err, "whoever reads the log of a task should see which gate"
    assert json.loads(said.out)["status"] == "refused"
    assert latest(broken) == old
    assert not list((broken / "releases").glob(f"r{later}*"))


def test_a_tampered_release_is_refused_by_name(lake, tmp_path, capsys):
    assert main(["verify", "--lake", str(lake)]) == 0
    broken = tmp_path / "lake"
    shutil.copytree(lake, broken)
    (broken / "releases" / latest(lake) / "labels.parquet").write_bytes(b"PAR1")
    assert main(["verify", "--lake", str(broken)]) == 1
    assert "labels.parquet" in capsys.readouterr().err


def test_a_corrupt_file_is_named_with_the_fix_and_the_fix_works(lake, world, tmp_path, capsys):
    broken = tmp_path / "lake"
    shutil.copytree(lake, broken)
    shutil.rmtree(broken / "_manifests" / "goals")
    shutil.rmtree(broken / "releases")
    (broken / "LATEST").unlink(missing_ok=True)
    victim = sorted((broken / "votes").rglob("*.parquet"))[0]
    victim.write_bytes(bytes(victim.stat().st_size))
    mine = ["mine", "--logs", str(world / "log.parquet"), "--lake", str(broken), "--quiet"]
    assert main(mine) == 1
    told = capsys.readouterr().err
    assert victim.name in told
    assert "Traceback" not in told
    (manifest,) = (broken / "_manifests" / "votes").glob(f"{victim.parts[-3]}*")
    assert str(manifest).removesuffix(".json") in told
    manifest.unlink()
    assert main(mine) == 0
    assert latest(broken) == latest(lake)


def test_explain_tells_why_and_why_not(lake, capsys):
    r = table(lake, "rewrites").sort("users", descending=True).row(0, named=True)
    assert main(["explain", r["source"], "--lake", str(lake)]) == 0
    told = capsys.readouterr().out
    assert r["target"] in told
    assert r["rewrite_id"] in told
    assert main(["explain", "nobody ever said this \x1b[31m", "--lake", str(lake)]) == 0
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert "fewer than k" in told


def test_the_plan_of_a_dry_run_names_columns_and_reasons_and_writes_nothing(world, tmp_path, capsys):
    assert main(["mine", "--logs", str(world / "log.parquet"), "--lake", str(tmp_path / "new"), "--dry-run"]) == 0
    told = capsys.readouterr().out
    for part in ("ingest", "writes  turns", "reads   votes", "Five rows"):
        assert part in told
    assert not (tmp_path / "new").exists()


def test_a_log_with_nothing_to_release_ends_cleanly_and_says_why(tmp_path, capsys):
    rows = pl.DataFrame(
        {"turn_id": ["1", "2"], "timestamp": ["2026-01-01T00:00:00Z"] * 2, "user_id": ["a", "b"], "utterance": ["hi", "hello"]}
    )
    rows.write_parquet(tmp_path / "log.parquet")
    assert main(["mine", "--logs", str(tmp_path / "log.parquet"), "--lake", str(tmp_path / "lake"), "--quiet"]) == 0
    assert "nothing" in capsys.readouterr().out.lower()
    assert list((tmp_path / "lake" / "runs").glob("*/report.html"))
    assert not (tmp_path / "lake" / "releases" / "LATEST").exists()


def test_the_command_line_starts_as_a_process(world):
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "--version"], capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent
    )
    assert done.stdout.startswith("sayagain ")
