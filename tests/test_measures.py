"""Measures of a release: each is zero on a good one, sees what it is there for, and is held to two limits."""

from __future__ import annotations

import dataclasses

import polars as pl
import pytest
from release_world import build, label, rewrite

from pipelines import config
from quality.gates import MEASURES, run_gates
from quality.measures import Limits, Measure, measures, skeleton


def labels(n: int = 40, intent: str = "light", change: int = 0, **more: object) -> pl.DataFrame:
    rows = [label(f"text {i}", f"{'other' if i < change else intent}_{i % 4}") | {"split": "train"} | more for i in range(n)]
    return pl.DataFrame(rows).select("locale", "utterance", "intent", "slots", "split", "origin")


def tables(**more: pl.DataFrame) -> dict[str, pl.DataFrame]:
    return dict(build().tables) | more


def value(found: list[Measure], check: str, table: str = "") -> Measure:
    return next(m for m in found if m.check == check and m.table.startswith(table))


def test_a_release_like_its_parent_has_nothing_to_say() -> None:
    same = tables(labels=labels())
    found = measures(same, same, {})
    assert {m.check for m in found} >= {"drift_psi", "drift_jensen_shannon", "flip_rate", "change_budget", "live_damage"}
    assert all(m.value == 0 for m in found if m.check != "class_balance")
    assert len(measures(tables(), None, {})) == 5


def test_drift_flips_and_changes_against_the_parent() -> None:
    found = measures(tables(labels=labels(change=20)), tables(labels=labels()), {})
    assert value(found, "drift_psi").value > 1 and 0.3 < value(found, "drift_jensen_shannon").value <= 1
    assert value(found, "flip_rate", "labels").value == 0.5 and value(found, "change_budget").value == 0.5
    turned_down = pl.DataFrame([label(f"text {i}", reason="unsure", decision="rejected") for i in range(10, 40)])
    gone = measures(tables(labels=labels().head(10)), tables(labels=labels()), {"labels": turned_down})
    assert value(gone, "change_budget").value == 0.75 and value(gone, "flip_rate", "labels").value == 0
    quiet = measures(tables(labels=labels().head(10)), tables(labels=labels()), {})
    assert value(quiet, "change_budget").value == 0, "what nobody says any more is no change"


def test_live_damage_and_lost_locales() -> None:
    parent = tables(rewrites=pl.DataFrame([rewrite(f"s {i}", "t") for i in range(20)]))
    tried = pl.DataFrame([rewrite(f"s {i}", "t", reason="treated_failed", decision="rejected") for i in range(5)])
    heard = pl.DataFrame([label(f"t {i}", locale="sw-KE") for i in range(30)])
    found = measures(tables(), parent, {"rewrites": tried, "labels": heard})
    assert value(found, "live_damage").value == 0.25
    assert value(found, "locale_coverage").value == 1 and value(measures(tables(), None, {}), "locale_coverage").value == 0


@pytest.mark.parametrize(("a", "b"), [("don't stop", "dont  stop"), ("Café", "cafe"), ("ｌｉｇｈｔ", "light"), ("??", "??")])
def test_near_duplicates(a: str, b: str) -> None:
    assert skeleton(a) == skeleton(b)


def test_near_duplicates_across_splits_and_one_class() -> None:
    held = labels(20, split="test").with_columns(utterance=pl.col("utterance") + "!")
    found = measures(tables(labels=pl.concat([labels(40), held])), None, {})
    assert value(found, "near_duplicates_across_splits").value > 0.9
    lone = labels().with_columns(intent=pl.when(pl.col("utterance") == "text 1").then(pl.lit("rare")).otherwise(pl.lit("top")))
    assert value(measures(tables(labels=lone), None, {}), "class_balance").value == 0.975


def test_guards_of_numbers_and_entities() -> None:
    rows = [rewrite(f"alarm {i}", f"set an alarm at {i if i else 99}") for i in range(30)] + [rewrite("अलार्म ७", "alarm 7")]
    found = measures(tables(rewrites=pl.DataFrame(rows), labels=labels(1)), None, {})
    assert value(found, "numbers_kept").failed == 1
    rows = [rewrite(f"play band{i} loud", "play band1 now") for i in range(25)]
    named = pl.DataFrame([label(f"play band{i} loud", "play", slots=f'{{"artist":"band{i}"}}', split="train") for i in range(25)])
    found = measures(tables(rewrites=pl.DataFrame(rows), labels=named), None, {})
    assert value(found, "entities_kept").failed == 24  # all but band1
    assert value(measures(tables(), None, {}), "entities_kept").value == 0
    heard = named.with_columns(origin=pl.lit("projected"))
    assert value(measures(tables(rewrites=pl.DataFrame(rows), labels=heard), None, {}), "entities_kept").failed == 0, (
        "misheard, all of them"
    )


def test_measures_are_held_to_two_limits() -> None:
    release = build()
    measured = [Measure("labels", "flip_rate", "intent", 0.5, 100, 7), Measure("rewrites", "flip_rate", "target", 0.3, 100, 30)]
    found = run_gates({}, release.metrics, k=3, measured=[*measured, Measure("labels", "change_budget", "intent", 0.5, 100, 50)])
    verdicts = {v.expectation + v.table: v for v in found.verdicts if v.expectation in ("flip_rate", "change_budget")}
    assert [(v.success, v.severity) for v in verdicts.values()] == [(False, "warning"), (True, "warning"), (False, "critical")]
    refused = verdicts["flip_ratelabels"]
    assert "0.500; warns above 0.05; refuses above 0.3" in refused.message and (refused.rows, refused.rows_failed) == (100, 7)


def test_each_measure_passes_warns_and_refuses_at_the_limits_of_its_own_name() -> None:
    """Limits come from the configuration, field by field: a gate whose limit is another's, or nobody's, is found here."""
    defaults = {n: tuple(v) for n, v in dataclasses.asdict(config.Gates()).items() if isinstance(v, list)}
    assert defaults == dataclasses.asdict(Limits()), "the two places that say the defaults agree"
    flips = {"labels": "label_flips", "rewrites": "rewrite_flips"}
    cases = [
        (check, table, field or flips[table]) for check, (field, _) in MEASURES.items() for table in (flips if not field else ["labels"])
    ]
    assert {field for _, _, field in cases} == set(defaults), "a limit that no measure is held to"
    own = Limits(**{field: (10.0 * n, 10.0 * n + 5) for n, field in enumerate(defaults)})  # every limit is another one
    for step, success, severity in ((0, True, "warning"), (1, False, "warning"), (6, False, "critical")):
        measured = [Measure(table, check, "c", getattr(own, field)[0] + step, 100, 1) for check, table, field in cases]
        found = [v for v in run_gates({}, build().metrics, k=3, measured=measured, limits=own).verdicts if v.expectation in MEASURES]
        assert len(found) == len(cases)
        assert {(v.success, v.severity) for v in found} == {(success, severity)}, step
