"""Every gate lets a good release pass and fails on the row that it is there for; verdicts show counts, never values."""

import json
from datetime import date, timedelta
from typing import Any

import polars as pl
import pytest
from release_world import AS_OF, build

from quality.checks import metrics
from quality.gates import CHECKS, PRIVATE_CHECKS, Verdict, Verdicts, run_gates
from rewrite.contracts import RELEASED

SECRET = "ana.maria7@example.com"

# (table, the column that is broken, its bad value, the expectation that must fail). Each one is a row of its own.
BAD_ROWS: list[tuple[str, str, Any, str]] = [
    *[("rewrites", c, None, "column_values_to_not_be_null") for c in ("locale", "source", "target", "probability", "users")],
    *[("rewrites", c, None, "column_values_to_not_be_null") for c in ("expires", "status", "rewrite_id", "first_seen")],
    ("rewrites", "probability", 1.5, "column_values_to_be_between"),
    ("rewrites", "probability", -0.1, "column_values_to_be_between"),
    ("rewrites", "score", 2.0, "column_values_to_be_between"),
    ("rewrites", "lift", float("inf"), "column_values_to_be_between"),
    ("rewrites", "lift_lower", -1.5, "column_values_to_be_between"),
    ("rewrites", "lift_lower", -0.2, "lift_is_positive"),
    ("rewrites", "lift_lower", 0.9, "lift_order"),
    ("rewrites", "users", 2, "column_values_to_be_between"),
    ("rewrites", "users", 7, "coarse_count"),
    ("rewrites", "source_users", 0, "column_values_to_be_between"),
    ("rewrites", "votes", 999, "coarse_count"),
    ("rewrites", "cause", "boredom", "column_values_to_be_in_set"),
    ("rewrites", "status", "maybe", "column_values_to_be_in_set"),
    ("rewrites", "rewrite_id", "0" * 16, "rewrite_id"),
    ("rewrites", "source", SECRET, "personal_data"),
    ("rewrites", "source_text", f"Mail {SECRET}", "personal_data"),
    ("rewrites", "source", "call <phone>", "placeholder"),
    ("rewrites", "source", "  UPPER", "key_form"),
    ("rewrites", "source", "", "column_value_lengths_to_be_between"),
    ("rewrites", "source_text", "Another text", "surface_form"),
    ("rewrites", "target", "turn on the lite", "chain"),
    ("rewrites", "first_seen", date(2026, 3, 19), "monday"),
    ("rewrites", "first_seen", date(2026, 3, 30), "date_order"),
    ("rewrites", "goal_id", "g99", "goal_known"),
    ("labels", "intent", None, "column_values_to_not_be_null"),
    ("labels", "confidence", 7.0, "column_values_to_be_between"),
    ("labels", "sample_weight", -1.0, "column_values_to_be_between"),
    ("labels", "users", 1, "column_values_to_be_between"),
    ("labels", "origin", "guessed", "column_values_to_be_in_set"),
    ("labels", "split", "holdout", "column_values_to_be_in_set"),
    ("labels", "slots", "{not json", "column_values_to_be_json_parseable"),
    ("labels", "slots", json.dumps({"to": SECRET}), "personal_data"),
    ("labels", "goal_id", "g99", "goal_known"),
    ("goals", "goal_id", None, "column_values_to_not_be_null"),
    ("goals", "membership", 1.01, "column_values_to_be_between"),
    ("goals", "users", 2, "column_values_to_be_between"),
    ("pairs", "positive", None, "column_values_to_not_be_null"),
    ("pairs", "weight", -1.0, "column_values_to_be_between"),
    ("pairs", "split", "none", "column_values_to_be_in_set"),
    ("pairs", "negative", "order 123 456 789", "personal_data"),
    ("pairs", "negative_origin", None, "negative_origin"),
    ("pairs", "goal_id", "g99", "goal_known"),
    ("pairs", "split", "test", "text_in_one_split"),
    ("retired", "reason", None, "column_values_to_not_be_null"),
    ("goal_changes", "change", "exploded", "column_values_to_be_in_set"),
]


def fails(verdicts: Verdicts, table: str, expectation: str, column: str = "") -> Verdict:
    found = [v for v in verdicts.verdicts if (v.table, v.expectation) == (table, expectation) and (not column or v.column == column)]
    failed = [v for v in found if not v.success]
    assert failed, f"{expectation} of {table}.{column} passed; there are {sorted({(v.table, v.expectation) for v in verdicts.verdicts})}"
    return failed[0]


def with_bad_rows() -> dict[str, pl.DataFrame]:
    tables = dict(build().tables)
    retired = {"rewrite_id": "ab", "locale": "en-US", "source": None, "target": None, "reason": "harmful"}
    first = {name: table.row(0, named=True) for name, table in tables.items() if table.height} | {"retired": retired}
    for n, (name, column, value, _) in enumerate(BAD_ROWS):
        unique = {"rewrites": {"source": f"bad {n}", "source_text": None}, "labels": {"utterance": f"bad {n}"}}.get(name, {})
        bad = pl.DataFrame([first[name] | unique | {column: value}], schema=tables[name].schema, orient="row")
        tables[name] = pl.concat([tables[name], bad])
    return tables


@pytest.fixture(scope="module")
def good() -> Verdicts:
    release = build()
    return run_gates(release.tables, release.metrics, k=3)


@pytest.fixture(scope="module")
def bad() -> Verdicts:
    return run_gates(with_bad_rows(), build().metrics, k=3)


def test_a_good_release_passes(good: Verdicts) -> None:
    assert not good.refused and not good.warnings, [v for v in good.verdicts if not v.success]
    assert {v.table for v in good.verdicts} == set(RELEASED)
    assert set(PRIVATE_CHECKS) <= {v.expectation for v in good.verdicts}
    assert all(v.message and 0 <= v.rows_failed <= max(v.rows, 1) for v in good.verdicts)


def test_the_same_release_gives_the_same_bytes(good: Verdicts) -> None:
    release = build()
    assert run_gates(release.tables, release.metrics, k=3).to_json() == good.to_json()
    body = json.loads(good.to_json())
    assert body["refused"] is False and body["checked"] == len(body["verdicts"])
    assert set(body["verdicts"][0]) == {"table", "expectation", "column", "severity", "success", "rows_failed", "rows", "message"}


@pytest.mark.parametrize(("table", "column", "value", "expectation"), BAD_ROWS)
def test_a_bad_row_fails(bad: Verdicts, good: Verdicts, table: str, column: str, value: Any, expectation: str) -> None:
    del value
    where = "" if expectation in ("text_in_one_split", "rewrite_id", "date_order") else column
    verdict = fails(bad, table, expectation, where)
    assert verdict.rows_failed >= 1
    assert verdict.severity == ("warning" if (column, expectation) in WARNINGS else "critical")
    same = (verdict.table, verdict.expectation, verdict.column)
    assert all(v.success for v in good.verdicts if (v.table, v.expectation, v.column) == same)


WARNINGS = {("score", "column_values_to_be_between"), ("lift_lower", "lift_is_positive")}


def test_doubled_keys_and_splits_of_one_goal(bad: Verdicts) -> None:
    for table in ("goals", "pairs"):
        assert fails(bad, table, "compound_columns_to_be_unique").rows_failed >= 2
    tables = dict(build().tables)
    tables["labels"] = pl.concat([tables["labels"], tables["labels"].with_columns(split=pl.lit("test"))])
    tables["rewrites"] = pl.concat([tables["rewrites"]] * 2)
    tables["retired"] = tables["rewrites"].head(1).with_columns(reason=pl.lit("harmful")).select(RELEASED["retired"].names)
    tables["goals"] = tables["goals"].with_columns(is_exemplar=False)
    tables["pairs"] = tables["pairs"].with_columns(positive="anchor", negative="anchor")
    verdicts = run_gates(tables, build().metrics, k=3)
    for table, expectation in [
        ("labels", "compound_columns_to_be_unique"),
        ("rewrites", "compound_columns_to_be_unique"),
        ("rewrites", "column_values_to_be_unique"),
        ("labels", "goal_in_one_split"),
        ("retired", "retired_is_gone"),
        ("pairs", "same_text"),
    ]:
        assert fails(verdicts, table, expectation).severity == "critical"
    assert fails(verdicts, "goals", "goal_has_exemplar").severity == "warning"


def test_verdicts_never_show_values(bad: Verdicts) -> None:
    text = bad.to_json()
    for value in ("ana", "example", "bad 1", "123 456", "boredom", "g99"):
        assert value not in text


def test_a_missing_table_column_or_type_is_critical_and_the_rest_is_still_judged() -> None:
    release = build()
    tables = dict(release.tables)
    del tables["pairs"]
    tables["labels"] = tables["labels"].drop("intent")
    tables["goals"] = tables["goals"].with_columns(pl.col("users").cast(pl.Float64))
    tables["rewrites"] = tables["rewrites"].with_columns(probability=2.0, more=pl.lit("columns are welcome"))
    verdicts = run_gates(tables, release.metrics, k=3)
    assert fails(verdicts, "pairs", "columns").rows_failed == len(RELEASED["pairs"])
    assert fails(verdicts, "labels", "columns").rows_failed == 1
    assert fails(verdicts, "goals", "types").rows_failed == 1
    assert fails(verdicts, "rewrites", "column_values_to_be_between", "probability").rows_failed == 2
    assert next(v for v in verdicts.verdicts if (v.table, v.expectation) == ("rewrites", "columns")).success


def test_k_is_unproven_without_private_figures() -> None:
    verdicts = run_gates(build().tables, None, k=3)
    assert {v.expectation for v in verdicts.failures} == set(PRIVATE_CHECKS)


@pytest.mark.parametrize("check", PRIVATE_CHECKS)
def test_broken_private_promises_refuse(check: str) -> None:
    release = build()
    broken = pl.concat([release.metrics, metrics([("labels", check, "utterance", 9, 4)])])
    failures = run_gates({}, broken, k=3).failures
    assert any((v.expectation, v.rows_failed, v.rows) == (check, 4, 9) for v in failures)


def test_k_users_counts_true_users() -> None:
    """The metrics are counted from the finished tables: a text that slipped in is seen."""
    release = build(text_users=pl.DataFrame({"locale": ["en-US"], "utterance": ["light on"], "users": [2]}))
    assert release.metrics.filter(check="k_users")["failed"].sum() == 0, "the greater of two counts holds"
    assert release.metrics.filter(check="expired")["rows"].sum() == 2
    assert build(expires_days=0).metrics.filter(check="expired")["failed"].sum() == 2
    assert build(as_of=AS_OF + timedelta(days=1)).metrics["failed"].sum() == 0


def test_every_counted_check_has_a_message_and_severity(good: Verdicts) -> None:
    counted = {v.expectation for v in good.verdicts} & set(CHECKS)
    assert counted == set(CHECKS)


def test_empty_tables_pass() -> None:
    empty = {name: table.clear() for name, table in build().tables.items()}
    verdicts = run_gates(empty, build(rows=None).metrics.with_columns(rows=pl.lit(0, pl.Int64)), k=3)
    assert not verdicts.refused and not verdicts.warnings


def test_it_stays_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    run_gates(build().tables, build().metrics, k=3)
    out, err = capfd.readouterr()
    assert out == "" and err == ""
