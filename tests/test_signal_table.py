"""Seeing the model: signal tables that add, reliability, borderline pairs, samples, and how far a refit moves."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import cache

import numpy as np
import polars as pl
import pytest

from rewrite import asked_again, drift, reliability, sampling, signal_table
from rewrite.model import Model
from rewrite.votes import Detected, detect
from tests.detect_world import world

GAP = 600.0


@cache
def seen() -> tuple[pl.DataFrame, Model, Detected]:
    turns = world(3, 450)[0].with_columns(date=pl.col("timestamp").dt.date())
    model = asked_again.fit(turns, seed=1)
    return turns, model, detect(turns, model)


def counts(turns: pl.DataFrame, model: Model, found: Detected) -> tuple[signal_table.Counts, signal_table.Counts]:
    cuts = signal_table.confidence_cuts(model, turns["locale"])
    patterns = signal_table.patterns(turns, found.rephrases, found.outcomes, cuts, GAP)
    return signal_table.pattern_counts(patterns), signal_table.view_counts(
        found.rephrases, signal_table.base_rates(turns, found.rephrases, model)
    )


def by_name(rows: list[dict], what: str = "signal", locale: str = "xx") -> dict[str, dict]:
    return {r[what]: r for r in rows if r["locale"] == locale}


def test_signals_speak_as_they_were_planted():
    turns, model, found = seen()
    patterns, views = counts(turns, model, found)
    rows = by_name(signal_table.signal_table(patterns))
    assert {"refused", "interrupted", "asked again"} <= {n for n, r in rows.items() if (r["weight"] or 0) > 1}
    assert rows["nothing came next"]["weight"] < 0 and rows["refused"]["logged"] == 1.0
    assert "thumbs up" not in rows and "unsure of sound" not in rows, "what no turn logs has no row"
    refused = turns["status"].eq("no_match").mean()
    assert rows["refused"]["fires"] == pytest.approx(refused, abs=0.01)
    for r in rows.values():
        assert all(0 <= r[n] <= 1 for n in ("logged", "fires", "overlap", "conflict", "failed", "accuracy") if r[n] is not None)
    view = by_name(signal_table.view_table(views), "view")
    assert view["text"]["weight"] == max(v["weight"] for v in view.values()) and view["text"]["accuracy"] > 0.8
    assert sum(n for name, n in views["xx"].items() if name.startswith("decided")) == views["xx"]["pairs"]


def test_counts_of_shards_add_up_to_the_whole():
    turns, model, found = seen()
    half = pl.col("user_key").str.slice(-1).is_in(list("01234567"))
    parts = [counts(t, model, detect(t, model)) for t in (turns.filter(half), turns.filter(~half).reverse())]
    for whole, shards in zip(counts(turns, model, found), zip(*parts, strict=True), strict=True):
        assert signal_table.add(shards) == signal_table.add([whole]) == signal_table.add(shards[::-1])
    assert signal_table.add([]) == {} and signal_table.signal_table({}) == [] and signal_table.view_table({}) == []


def test_planted_weights_and_what_the_rest_says_come_back():
    """Two independent signals, fired by 80 % and 10 %, and by 60 % and 20 %, of the failed and of the served turns."""
    unit = [3 ** list(signal_table.SIGNALS).index(n) for n in ("refused", "interrupted")]
    rates = {True: (0.8, 0.6), False: (0.1, 0.2)}
    given, joint = {}, {}
    for fires in [(a, b) for a in (0, 1) for b in (0, 1)]:
        p = {c: 0.5 * np.prod([r if f else 1 - r for r, f in zip(rates[c], fires, strict=True)]) for c in rates}
        joint[fires] = p
        pattern = sum(u * (1 + f) for u, f in zip(unit, fires, strict=True))
        given[str(pattern)] = [round(10**6 * (p[True] + p[False])), round(10**6 * p[True] * signal_table.MICRO)]
    rows = by_name(signal_table.signal_table({"xx": given}))
    assert rows["refused"]["weight"] == pytest.approx(np.log(8), abs=1e-3)
    assert rows["interrupted"]["weight"] == pytest.approx(np.log(3), abs=1e-3)
    assert rows["refused"]["failed"] == pytest.approx(8 / 9, abs=1e-6) and rows["refused"]["fires"] == pytest.approx(0.45)
    n = {b: joint[1, b][True] + joint[1, b][False] for b in (0, 1)}
    assert rows["refused"]["overlap"] == pytest.approx(n[1] / sum(n.values()), abs=1e-6)
    assert rows["refused"]["conflict"] == pytest.approx(n[0] / sum(n.values()), abs=1e-6), "a silent signal speaks for served"
    by_other = {1: 0.6 / 0.8, 0: 0.4 / 1.2}  # P(failed) by the other signal alone
    expected = sum(n[b] * by_other[b] for b in n) / sum(n.values())
    assert rows["refused"]["accuracy"] == pytest.approx(expected, abs=1e-3)
    assert by_name(signal_table.signal_table({"xx": given, "yy": given}), locale="")["refused"]["turns"] == 2 * 10**6


def test_a_diagram_knows_the_calibrated_from_the_sure():
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    y = rng.random(20_000) < p
    good, sure = reliability.diagram(p, y), reliability.diagram(np.where(p > 0.5, 0.99, 0.01), y)
    assert good["ece"] < 0.02 and sure["ece"] > 0.2 and good["n"] == sum(n for _, _, n in good["bins"]) == 20_000
    order = rng.permutation(20_000)
    assert reliability.diagram(p[order], y[order]) == good
    assert reliability.diagram(p[:0], y[:0])["bins"] == []
    cases = pl.DataFrame({"locale": ["a"] * 150 + ["b"] * 20, "predicted": p[:170], "happened": y[:170]})
    assert list(reliability.by_locale(cases)) == ["", "a"] and list(reliability.by_locale(cases.head(150))) == ["a"]


def test_later_days_are_foretold_by_earlier_users():
    """Half of the texts fail; the later users of a text are others, and what happens to them comes as foretold."""
    rng = np.random.default_rng(1)
    rows = []
    for n in range(6000):
        text = int(rng.integers(200))
        happened = bool(rng.random() < (0.7 if text % 2 else 0.1))
        day = date(2026, 1, 1) + timedelta(days=int(rng.integers(10)))
        at = datetime(day.year, day.month, day.day, tzinfo=UTC)
        p = 0.85 if happened else 0.3
        rows.append(("xx", f"text {text}", f"u{n % 900}", at, f"t{n}", day, p, happened))
    names = ["locale", "key", "user_key", "timestamp", "turn_id", "date", "p_failed", "event"]
    said = pl.DataFrame(rows, schema=names, orient="row")
    split = reliability.split_day(said["date"].unique().to_list())
    assert split == date(2026, 1, 9) and reliability.split_day([split]) is None
    cases = reliability.later_cases(said, split)
    assert cases.height > 800 and reliability.diagram(cases["predicted"].to_numpy(), cases["happened"].to_numpy())["ece"] < 0.06
    assert cases["predicted"].max() > 0.55 and cases["predicted"].min() < 0.2
    shuffled = reliability.later_cases(said.sample(fraction=1.0, shuffle=True, seed=2), split)
    assert shuffled.sort(shuffled.columns).equals(cases.sort(cases.columns))


@pytest.mark.slow
def test_feedback_is_left_out_of_what_foretells_it():
    turns, model, _ = seen()
    told = turns.with_columns(feedback=pl.when(pl.col("barge_in")).then(-1).otherwise(pl.lit(1)).cast(pl.Int8))
    days = told["date"].unique().sort()
    late = told.filter(pl.col("date") >= days[len(days) // 2])
    cases = reliability.feedback_cases(told, model, GAP)
    assert len(days) > 1 and cases.height == late.height
    assert cases["happened"].mean() == pytest.approx(late["barge_in"].mean())
    other = reliability.feedback_cases(told.with_columns(feedback=-pl.col("feedback")), model, GAP)
    assert sorted(cases["predicted"]) == sorted(other["predicted"]), "what the feedback says changed nothing"
    day = told.filter(pl.col("date") == days[0])
    assert reliability.feedback_cases(day, model, GAP).height == day.height, "of one day the model in use judges"


def test_borderline_pairs_hold_shared_texts_only():
    rows = [("xx", "a", "b", 0.52), ("xx", "a", "b", 0.49), ("xx", "secret", "b", 0.5), ("xx", "b", "a", 0.9), ("yy", "a", "b", 0.5)]
    pairs = pl.DataFrame(rows, schema=["locale", "text", "next_text", "probability"], orient="row")
    shared = pl.DataFrame({"locale": ["xx", "xx"], "text": ["a", "b"]})
    found = reliability.borderline(pairs, shared)
    assert found.rows() == [("xx", "a", "b", 0.49), ("xx", "b", "a", 0.9)]
    assert reliability.borderline(pairs.reverse(), shared).equals(found)
    assert reliability.borderline(pairs, shared, most=1).height == 1


def test_a_sample_is_of_whole_sessions_and_knows_no_user_key():
    turns = seen()[0]
    half = turns.filter(sampling.drawn(turns, 0.5))
    assert 0.3 < half.height / turns.height < 0.7
    assert (
        half.select(sampling.SESSION).unique().join(turns.join(half, on="turn_id", how="anti"), on=sampling.SESSION, how="semi").height == 0
    )
    other = turns.with_columns(user_key=pl.col("user_key").str.reverse()).reverse()
    assert set(other.filter(sampling.drawn(other, 0.5))["turn_id"]) == set(half["turn_id"])
    assert set(turns.filter(sampling.drawn(turns, 0.2))["turn_id"]) < set(half["turn_id"])
    assert turns.filter(sampling.drawn(turns, 1.0)).height == turns.height and sampling.thinned(turns, 10**9).height == turns.height
    assert turns.filter(sampling.drawn(turns, 0.0)).height == 0
    odd = turns.head(3).with_columns(turn_id=pl.Series(["a\nb", "\n", ""]))
    assert odd.filter(sampling.drawn(odd, 1.0)).height == 3
    ids = [f"t{n}" for n in range(8)]
    named = pl.DataFrame({"date": [1] * 8, "user_key": ids, "session": [0] * 8, "turn_id": ids})
    assert sampling.drawn(named, 0.5).cast(int).to_list() == [1, 1, 1, 0, 1, 0, 1, 1], "the same in every version of every library"


def test_a_refit_says_how_far_it_moves():
    turns, model, _ = seen()
    same = drift.compare(turns, model, model)
    assert (same["flipped"], same["moved"], same["psi"], same["outcomes_flipped"], same["worth"]) == (0, 0, 0, 0, False)
    assert "not worth it" in same["verdict"] and same["bases"]["*/*"][0] == same["bases"]["*/*"][1]
    detectors = {
        n: replace(d, text_trees="", friction_trees="", close_trees="", pairs=0) for n, d in model.detectors.items()
    }  # rules by hand
    far = drift.compare(turns, model, replace(model, detectors=detectors))
    assert far["worth"] and far["flipped"] > drift.FLIPS and far["moved"] > 0 and far["psi"] > 0 and "A refit is worth it" in far["verdict"]
    assert drift.compare(turns.reverse(), model, replace(model, detectors=detectors)) == far
    nothing = drift.compare(turns.clear(), model, model)
    assert nothing["worth"] and nothing["pairs"] == 0


def test_psi_is_near_nothing_for_the_same_and_large_for_another_distribution():
    rng = np.random.default_rng(0)
    a, b, c = rng.beta(2, 5, 5000), rng.beta(2, 5, 5000), rng.beta(5, 2, 5000)
    assert drift.psi(a, b) < 0.02 and drift.psi(a, c) > 1 and drift.psi(a[:0], b) == 0
