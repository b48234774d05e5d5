"""Releases: the same rows give the same bytes, nothing below k leaves, splits hold for ever, tampering is found."""

import json
from datetime import date, timedelta
from functools import cache
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from release_world import AS_OF, OPTIONS, build, frame, goal, label, pair, rewrite, world

from quality.checks import count_steps, floor_counts
from quality.gates import Verdict, Verdicts
from quality.manifest import NewerFormat, TamperedRelease, load_tables, package, parquet_bytes, read_manifest, verify
from quality.release import LEDGER, Parent, build_release
from quality.splits import split_of
from rewrite.contracts import CANDIDATES, GOALS, RELEASED
from rewrite.text import rewrite_id

VERDICTS = Verdicts((Verdict("rewrites", "k_users", "source", "critical", True, 0, 2, "why"),))


def dropped(release: Any) -> dict[tuple[str, str], int]:
    assert release.dropped["locale"].null_count() == 0
    return {(t, r): n for t, r, n in release.dropped.group_by("table", "reason").agg(pl.col("rows").sum()).iter_rows()}


def test_rows_are_canonical() -> None:
    release = build()
    rewrites = release.tables["rewrites"]
    assert {n: list(t.columns) for n, t in release.tables.items()} == {n: s.names for n, s in RELEASED.items()}
    assert rewrites["source"].to_list() == ["tern on", "turn on the lite"]
    row = rewrites.row(1, named=True)
    assert row["rewrite_id"] == rewrite_id("en-US", "turn on the lite", "turn on the light")
    assert (row["users"], row["source_users"], row["votes"]) == (5, 10, 20)
    assert row["probability"] == 0.812346
    assert (row["first_seen"], row["last_seen"]) == (date(2026, 2, 23), date(2026, 3, 16))
    assert row["expires"] == AS_OF + timedelta(days=28) and row["status"] == "new"
    assert release.tables["labels"].filter(utterance="play jazz").row(0, named=True)["votes"] == 1000
    assert release.metrics["failed"].sum() == 0 and not release.empty
    assert release.release_id.startswith("r2026-03-19-") and len(release.release_id) == 24


@cache
def in_order() -> tuple[Any, Any]:
    release = build()
    return release, package(release, VERDICTS)


@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False))
def test_row_order_changes_nothing(random: Any) -> None:
    rows = world()
    for table in rows.values():
        random.shuffle(table)
    first, files = in_order()
    second = build(rows)
    assert package(second, VERDICTS) == files
    assert first.release_id == second.release_id and first.ledger_rows.equals(second.ledger_rows)


def test_id_follows_rows_configuration_and_parent() -> None:
    ids = {
        build().release_id,
        build(config_fingerprint="other").release_id,
        build(as_of=AS_OF + timedelta(days=1)).release_id,
        build(parent=build(as_of=AS_OF - timedelta(days=1))).release_id,
        build(world(labels=[label("turn on the light", "other")])).release_id,
    }
    assert len(ids) == 5
    assert build(world(rewrites=[rewrite("tern on", "turn on the light", probability=0.7 + 1e-9)])).release_id == (
        build(world(rewrites=[rewrite("tern on", "turn on the light", probability=0.7)])).release_id
    )


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (rewrite("tern on", "turn on the light", users=2), "below_k"),
        (rewrite("tern on", "turn on the light", target_users=None), "below_k"),
        (rewrite("call <phone>", "turn on the light"), "placeholder"),
        (rewrite("light on", "light on"), "same_text"),
    ],
)
def test_rewrites_that_stay_home(row: dict[str, Any], reason: str) -> None:
    release = build(world(rewrites=[row]))
    assert release.tables["rewrites"].is_empty() and dropped(release)["rewrites", reason] == 1


def test_k_is_per_locale() -> None:
    rows = world(rewrites=[], labels=[label("licht an", locale="de-DE", users=2), label("turn on the light", locale="de-DE", users=2)])
    rows["goals"] += [goal("licht an", users=2), goal("licht an", locale="de-DE", users=2)]
    release = build(rows)
    assert release.tables["labels"].is_empty()
    assert "licht an" not in release.tables["goals"]["utterance"].to_list()
    assert dropped(release)["labels", "below_k"] == 2 and dropped(release)["goals", "below_k"] == 2


def test_k_may_be_raised() -> None:
    release = build(k=20)
    for name in ("rewrites", "labels"):
        assert release.tables[name].height == (1 if name == "labels" else 0)
    assert release.tables["goals"].is_empty() and release.tables["pairs"].is_empty()


def test_pairs_need_every_side_and_a_goal() -> None:
    rows = world(
        pairs=[
            pair("turn on the light", "nobody says this"),
            pair("turn on the light", "light on", "nor this"),
            pair("turn on the light", "light on", goal_id="g9"),
            pair("light on", "light on"),
            pair("turn on the light", "light on"),
        ]
    )
    release = build(rows)
    assert release.tables["pairs"].select("anchor", "positive").rows() == [("turn on the light", "light on")]
    assert dropped(release)["pairs", "text_below_k"] == 2 and dropped(release)["pairs", "goal_unknown"] == 1


def test_slot_values_need_a_cleared_text() -> None:
    rows = world(
        labels=[label("turn on the light", slots='{"device":"light","owner":"ana maria"}'), label("light on", slots='{"d":"lite"}')]
    )
    release = build(rows)
    slots = dict(release.tables["labels"].select("utterance", "slots").rows())
    assert slots == {"turn on the light": None, "light on": '{"d":"lite"}'}, "lite is said in another text of the goal"
    known = pl.DataFrame({"locale": ["en-US", "de-DE"], "value": ["ana maria", "x"], "users": [3, 9]})
    assert build(rows, slot_users=known).tables["labels"]["slots"].null_count() == 0
    assert build(rows, slot_users=known.with_columns(users=2)).tables["labels"]["slots"].null_count() == 1


def test_chains_and_loops_are_cut_at_the_weaker_end() -> None:
    rows = world(
        rewrites=[
            rewrite("tern on", "light on", probability=0.6),
            rewrite("light on", "turn on the light", probability=0.9),
            rewrite("turn on the light", "light on", probability=0.5),
        ]
    )
    release = build(rows)
    assert release.tables["rewrites"].select("source", "target").rows() == [("light on", "turn on the light")]
    assert dropped(release)["rewrites", "chain"] == 2


def test_one_rewrite_per_source() -> None:
    release = build(
        world(rewrites=[rewrite("tern on", "light on", probability=0.6), rewrite("tern on", "turn on the light", probability=0.7)])
    )
    assert release.tables["rewrites"]["target"].to_list() == ["turn on the light"]


def test_splits_hold_for_ever() -> None:
    first = build()
    assert first.ledger_rows.schema == LEDGER
    by_text = dict(first.ledger_rows.select("utterance", "split").rows())
    assert by_text["light on"] == split_of("g1") and by_text["play jazz"] == split_of("g2")
    again = build(ledger=first.ledger_rows)
    assert again.ledger_rows.is_empty() and again.release_id == first.release_id
    other = next(g for g in map(str, range(99)) if split_of(g) not in (split_of("g1"), "train"))
    moved = world(goals=[goal("turn on the light"), goal("light on", other), goal("turn on the lite")], rewrites=[])
    moved["labels"] = [label("light on", goal_id=other), label("turn on the light")]
    moved["pairs"] = [pair("turn on the light", "light on"), pair("light on", "turn on the lite")]
    release = build(moved, ledger=first.ledger_rows)
    splits = dict(release.tables["labels"].select("utterance", "split").rows())
    assert splits == {"light on": "none", "turn on the light": split_of("g1")}
    assert release.tables["pairs"].is_empty() and dropped(release)["pairs", "other_split"] == 2


def test_negatives_of_another_split_go() -> None:
    other = next(g for g in map(str, range(99)) if split_of(g) != split_of("g1"))
    rows = world(goals=[goal("turn on the light"), goal("light on"), goal("play jazz", other)], labels=[], rewrites=[])
    rows["pairs"] = [pair("turn on the light", "light on", "play jazz")]
    row = build(rows).tables["pairs"].row(0, named=True)
    assert row["negative"] is None and row["negative_origin"] is None and row["split"] == split_of("g1")


def test_a_pair_keeps_the_negatives_of_its_own_split() -> None:
    other = next(g for g in map(str, range(99)) if split_of(g) != split_of("g1"))
    goals = [goal("turn on the light"), goal("light on"), goal("play jazz", other), goal("lamp off")]
    pairs = [pair("turn on the light", "light on", "play jazz"), pair("turn on the light", "light on", "lamp off")]
    release = build(world(goals=goals, labels=[], rewrites=[], pairs=pairs))
    assert release.tables["pairs"]["negative"].to_list() == ["lamp off"]
    assert dropped(release) == {("pairs", "negative_other_split"): 1}


def test_a_goal_always_has_an_exemplar() -> None:
    goals = [goal("rare", users=2), goal("light on", is_exemplar=False, membership=0.5), goal("lamp on", is_exemplar=False, membership=0.7)]
    release = build(world(goals=goals, labels=[], rewrites=[], pairs=[]))
    assert release.tables["goals"].filter("is_exemplar")["utterance"].to_list() == ["lamp on"]


def test_split_shares() -> None:
    shares = pl.Series([split_of(f"g{i}") for i in range(20_000)]).value_counts(normalize=True)
    assert {s: round(p, 2) for s, p in shares.iter_rows()} == {"train": 0.8, "dev": 0.1, "test": 0.1}


def test_against_the_parent() -> None:
    parent = build()
    later = world(
        rewrites=[
            rewrite("turn on the lite", "light on"),
            rewrite("play jass", "play jazz", goal_id="g2"),
            rewrite("tern on", "turn on the light", decision="rejected", reason="harmful"),
        ]
    )
    release = build(later, parent=parent, as_of=AS_OF + timedelta(days=1))
    assert dict(release.tables["rewrites"].select("source", "status").rows()) == {"turn on the lite": "changed", "play jass": "new"}
    assert dict(release.tables["retired"].select("source", "reason").rows()) == {"turn on the lite": "replaced", "tern on": "harmful"}
    kept = build(parent=parent, as_of=AS_OF + timedelta(days=1))
    assert set(kept.tables["rewrites"]["status"]) == {"kept"} and kept.tables["retired"].is_empty()
    gone = build(world(rewrites=[], goals=[], labels=[], pairs=[]), parent=parent, as_of=AS_OF + timedelta(days=40))
    assert set(gone.tables["retired"]["reason"]) == {"expired"}
    assert gone.tables["retired"]["source"].null_count() == 2, "nobody knows any more that k users share these texts"
    assert gone.empty and gone.metrics["failed"].sum() == 0


def test_nothing_new() -> None:
    parent = build()
    files = package(parent, VERDICTS)
    before = Parent(parent.release_id, parent.as_of, load_tables(json.loads(files["manifest.json"]), files.__getitem__))
    seen_later = [r | {"last_seen": date(2026, 3, 20)} for r in world()["rewrites"]]
    same = build(world(rewrites=seen_later), parent=before, ledger=parent.ledger_rows, as_of=AS_OF + timedelta(days=1))
    assert same.nothing_new(before, renew_days=7)
    assert not same.nothing_new(None, renew_days=7)
    due = build(parent=before, ledger=parent.ledger_rows, as_of=AS_OF + timedelta(days=22))
    assert not due.nothing_new(before, renew_days=7) and due.nothing_new(before, renew_days=6)
    more = build(world(labels=[label("turn on the light", confidence=0.91)]), parent=before, as_of=AS_OF + timedelta(days=1))
    assert not more.nothing_new(before, renew_days=7)


def test_nothing_at_all() -> None:
    release = build_release({}, None, None, None, None, **OPTIONS)
    assert release.empty and release.dropped.is_empty() and all(t.is_empty() for t in release.tables.values())
    files = package(release, VERDICTS)
    verify(read_manifest(files["manifest.json"]), files.__getitem__)


def test_a_missing_column_is_named() -> None:
    with pytest.raises(ValueError, match=r"rewrites: no column source_users .*run the job"):
        build_release({"rewrites": frame(CANDIDATES["rewrites"], []).drop("source_users")}, None, None, None, None, **OPTIONS)
    with pytest.raises(ValueError, match="goals: no column users"):
        build_release({}, frame(GOALS, []).drop("users"), None, None, None, **OPTIONS)


def test_hostile_texts_pass_unharmed() -> None:
    text = "</script><b>\"',\\n\u202e\u0000{}|{{x}}%s"
    rows = world(rewrites=[rewrite("tern on", text)], labels=[label(text)], pairs=[pair(text, "light on")])
    release = build(rows)
    files = package(release, VERDICTS, more={"report.html": b"<p>", "data_card.md": b"#"})
    manifest = read_manifest(files["manifest.json"])
    verify(manifest, files.__getitem__)
    assert load_tables(manifest, files.__getitem__)["rewrites"]["target"].to_list() == [text]


def test_manifest_tells_everything_and_tampering_is_found() -> None:
    files = package(build(), VERDICTS, more={"report.html": b"<p>"}, inputs={"model": "m1"})
    assert list(files)[-1] == "manifest.json"
    manifest = read_manifest(files["manifest.json"])
    assert manifest["inputs"] == {"model": "m1"} and manifest["tables"]["rewrites"]["rows"] == 2
    schemas = {f"schema/{name}.json" for name in RELEASED}
    assert {e["path"] for e in manifest["files"]} == {"gates.json", "report.html", "README.md", "croissant.json"} | schemas
    verify(manifest, files.__getitem__)
    for path in set(files) - {"manifest.json"}:
        with pytest.raises(TamperedRelease, match=path):
            verify(manifest, (files | {path: files[path] + b" "}).__getitem__)
        with pytest.raises(TamperedRelease, match=path):
            verify(manifest, {p: d for p, d in files.items() if p != path}.__getitem__)
    with pytest.raises(TamperedRelease, match=r"labels\.parquet"):
        load_tables(manifest, (files | {"labels.parquet": files["goals.parquet"]}).__getitem__)
    with pytest.raises(TamperedRelease, match=r"manifest\.json says"):
        verify(manifest | {"config_fingerprint": "other"}, files.__getitem__)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"null", b'{"format": 1}', b'{"format": "1", "files": [], "tables": {}}'])
def test_a_broken_manifest(data: bytes) -> None:
    with pytest.raises((TamperedRelease, NewerFormat)):
        read_manifest(data)


def test_manifests_of_the_future_and_paths_outside() -> None:
    with pytest.raises(NewerFormat, match="update sayagain"):
        read_manifest(b'{"format": 99, "files": [], "tables": {}}')
    for path in ("../x", "/etc/passwd", "a/../../x", "..\\x"):
        body = {"format": 1, "files": [{"path": path, "bytes": 1, "sha256": "0"}], "tables": {}}
        with pytest.raises(TamperedRelease, match="outside"):
            read_manifest(json.dumps(body).encode())


def test_parquet_reads_as_the_contract_says() -> None:
    import io

    import pyarrow.parquet as pq

    for name, schema in RELEASED.items():
        data = parquet_bytes(build().tables[name], schema)
        assert pq.read_schema(io.BytesIO(data)).equals(schema) and data == parquet_bytes(build().tables[name], schema)


@given(st.lists(st.integers(0, 10**9) | st.none(), max_size=20), st.integers(1, 40))
def test_counts_are_floored(counts: list[int | None], k: int) -> None:
    out = pl.DataFrame({"n": pl.Series(counts, dtype=pl.Int64)}).select(floor_counts(pl.col("n"), k))["n"].to_list()
    steps = [0, *count_steps(10**9, k)]
    assert out == [None if n is None else max(s for s in steps if s <= n) for n in counts]
    assert count_steps(500, 3) == [3, 5, 10, 20, 50, 100, 200, 500]
