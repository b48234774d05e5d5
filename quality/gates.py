"""The gates of a release: Great Expectations judges its tables, and the counts of `quality.checks`, before it is published.

Verdicts hold names, counts and messages only: no offending value, no clock, no random id. One critical failure refuses.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import polars as pl
import pyarrow as pa

from quality.checks import COUNT_COLUMNS, TEXT_COLUMNS, table_checks
from quality.measures import NEVER, Limits, Measure
from rewrite.contracts import CAUSES, LABEL_ORIGINS, RELEASED, REWRITE_STATUSES, SPLITS, UNIQUE_KEYS

Severity = Literal["critical", "warning"]

REQUIRED: Final = {
    "rewrites": (
        "rewrite_id",
        "locale",
        "source",
        "target",
        "probability",
        "users",
        "source_users",
        "votes",
        "first_seen",
        "last_seen",
        "expires",
        "status",
    ),
    "retired": ("rewrite_id", "locale", "reason"),
    "labels": ("locale", "utterance", "intent", "confidence", "sample_weight", "users", "votes", "origin", "split"),
    "goals": ("locale", "utterance", "goal_id", "membership", "users", "is_exemplar"),
    "goal_changes": ("change",),
    "pairs": ("anchor", "positive", "weight", "locale_anchor", "locale_positive", "goal_id", "split"),
}
"""Columns without nulls."""
RANGES: Final[Mapping[tuple[str, str], tuple[float, float | None, Severity]]] = {
    ("rewrites", "probability"): (0, 1, "critical"),
    ("rewrites", "score"): (0, 1, "warning"),
    ("rewrites", "lift"): (-1, 1, "critical"),
    ("rewrites", "lift_lower"): (-1, 1, "critical"),
    ("labels", "confidence"): (0, 1, "critical"),
    ("labels", "sample_weight"): (0, 1000, "critical"),
    ("goals", "membership"): (0, 1, "critical"),
    ("pairs", "weight"): (0, 1000, "critical"),
}
VALUE_SETS: Final = {
    ("rewrites", "cause"): CAUSES,
    ("rewrites", "status"): REWRITE_STATUSES,
    ("labels", "origin"): LABEL_ORIGINS,
    ("labels", "split"): SPLITS,
    ("pairs", "split"): tuple(s for s in SPLITS if s != "none"),
    ("goal_changes", "change"): ("kept", "merged", "split", "appeared", "vanished"),
}

CHECKS: Final[Mapping[str, tuple[Severity, str]]] = {
    "columns": ("critical", "a column of the contract is missing; the job that wrote the candidates is older than this code: run it again"),
    "types": ("critical", "a column has another type than the contract says; consumers load by type: cast it where the table is built"),
    "personal_data": ("critical", "a text holds a mail address, a phone number or nine or more digits; scrub its turns again"),
    "personal_data_in_intent": ("warning", "an intent looks like a mail address or a long number; do users name the tools?"),
    "placeholder": ("critical", "a text carries a typed placeholder, so nobody says it literally; such texts are for counting only"),
    "key_form": ("critical", "a text is not in the form of a key (rewrite.text.key), so a server would never find it"),
    "surface_form": ("critical", "a surface form does not have the key beside it; it belongs to another text"),
    "monday": ("critical", "a date is not the Monday of its week; exact dates can single out a user"),
    "coarse_count": ("critical", "a count is not floored to 3, 5, 10, 20, 50, 100 ...; exact counts can be differenced between releases"),
    "rewrite_id": ("critical", "a rewrite id is not the hash of its locale, source and target; the log could not be joined to it"),
    "same_text": ("critical", "two sides that should differ are the same text"),
    "chain": ("critical", "a target is itself rewritten; a server would loop or serve what nobody tested: keep one of the two"),
    "lift_order": ("critical", "the lower bound of a lift is above the lift; the two were not estimated together"),
    "date_order": ("critical", "a rewrite was last seen before it was first seen"),
    "negative_origin": ("critical", "a negative without its origin, or an origin without a negative"),
    "goal_known": ("critical", "a goal id is not in the goals table; goals and candidates come from different runs of link"),
    "goal_has_exemplar": ("warning", "a goal has no exemplar, so nobody can name it; its exemplar may have fallen below k"),
    "retired_is_gone": ("critical", "a rewrite is both released and retired; a server would not know which to believe"),
    "text_in_one_split": ("critical", "a text is in pairs of two splits, or not in that of its label; test data would leak into training"),
    "goal_in_one_split": ("critical", "a goal has texts in two splits; test data would leak into training"),
    "k_users": ("critical", "a released text was said by fewer than k users of its locale, or nobody knows by how many"),
    "k_evidence": ("critical", "a row rests on fewer than k users"),
    "k_slots": ("critical", "a slot value is in no text that k users said"),
    "expired": ("critical", "a rewrite has no expiry after the release's date; it could serve for ever"),
}  # fmt: skip
"""Severity and message of every counted check (of `quality.checks` and of `Release.metrics`)."""
MEASURES: Final[Mapping[str, tuple[str, str]]] = {
    "near_duplicates_across_splits": ("near_duplicates", "texts of dev and test that differ from one of train by marks and spaces alone; a test on them flatters"),
    "class_balance": ("top_class", "one intent has this share of a locale's labels; a model learns to answer it always"),
    "locale_coverage": ("lost_locales", "locales whose users said enough, and that have no label; nobody of them gains from this release"),
    "drift_psi": ("psi", "the intents of labels are spread otherwise than in the parent (population stability index); did the assistant or the log change?"),
    "drift_jensen_shannon": ("jensen_shannon", "the intents of labels are spread otherwise than in the parent (Jensen-Shannon divergence)"),
    "flip_rate": ("", "texts of the parent that say something else now; one of the two releases was wrong about them"),
    "change_budget": ("changes", "labels of the parent's worst domain that are gone or changed; look at that domain before it reaches users"),
    "live_damage": ("live_damage", "rewrites of the parent that served users badly; they are retired, but why were they released?"),
    "numbers_kept": ("numbers", "rewrites that change a number; nobody who says seven wants eight"),
    "entities_kept": ("entities", "rewrites that lose a value which the source names; users would get something else"),
    "meaning_kept": ("turned", "rewrites whose sides differ by a word that turns meanings elsewhere, as \"don't\" does; live users were served by them all the same"),
    "canary": ("canary", "accuracy that a small intent model loses on the window's last days when it learns the candidates of the days before"),
    "calibration": ("calibration", "labels made without the window's last days are more, or less, sure than those days prove right (expected calibration error)"),
}  # fmt: skip
"""Limits (a field of `measures.Limits`; of flip rates the table says which) and message of every measure."""
PRIVATE_CHECKS: Final = ("k_users", "k_evidence", "k_slots", "expired")


@dataclass(frozen=True)
class Verdict:
    """One expectation on one column (or table, column empty): `rows_failed` of `rows` do not meet it."""

    table: str
    expectation: str
    column: str
    severity: Severity
    success: bool
    rows_failed: int
    rows: int
    message: str

    def told(self) -> str:
        """In a line; a measure of a whole table has no rows that fail."""
        rows = f"{self.rows_failed:,} of {self.rows:,} rows. " if self.rows_failed else ""
        return f"{self.table}.{self.column} {self.expectation}: {rows}{self.message}"


@dataclass(frozen=True)
class Verdicts:
    """All verdicts of a release, in a fixed order."""

    verdicts: tuple[Verdict, ...]

    @property
    def failures(self) -> tuple[Verdict, ...]:
        """Critical ones that failed: each refuses the release."""
        return tuple(v for v in self.verdicts if not v.success and v.severity == "critical")

    @property
    def warnings(self) -> tuple[Verdict, ...]:
        return tuple(v for v in self.verdicts if not v.success and v.severity == "warning")

    @property
    def refused(self) -> bool:
        return bool(self.failures)

    def summary(self) -> dict[str, Any]:
        """What a manifest or a terminal tells: counts, and the failed ones."""
        return {
            "refused": self.refused,
            "checked": len(self.verdicts),
            "critical_failures": len(self.failures),
            "warnings": len(self.warnings),
        }

    def to_json(self) -> str:
        """`gates.json`: the summary and every verdict; the same bytes for the same tables."""
        body = {**self.summary(), "verdicts": [asdict(v) for v in self.verdicts]}
        return json.dumps(body, indent=1, sort_keys=True, ensure_ascii=True) + "\n"

    def to_frame(self) -> pl.DataFrame:
        schema = pl.Schema(
            {"table": pl.String, "expectation": pl.String, "column": pl.String, "severity": pl.String}
            | {"success": pl.Boolean, "rows_failed": pl.Int64, "rows": pl.Int64, "message": pl.String}
        )
        return pl.DataFrame([asdict(v) for v in self.verdicts], schema=schema)


def run_gates(
    tables: Mapping[str, pl.DataFrame],
    metrics: pl.DataFrame | None,
    *,
    k: int,
    measured: Iterable[Measure] = (),
    limits: Limits | None = None,
) -> Verdicts:
    """Judge the tables of a release (`contracts.RELEASED`) before it is published.

    `metrics` are `Release.metrics`: the checks that need true user counts; without them k is unproven and the verdict
    is critical. `k` is the least count that may be released. `measured`: of `quality.measures`, held to `limits`. Loading Great Expectations takes some seconds.
    """
    counted = table_checks(tables, k=k)
    if metrics is not None:
        counted = pl.concat([counted, metrics])
    proven = set(counted["check"].to_list())
    absent = [("rewrites", check, "", 1, 1) for check in PRIVATE_CHECKS if check not in proven]
    counted = pl.concat([counted, pl.DataFrame(absent, schema=counted.schema, orient="row")])
    broken = set(counted.filter(pl.col("check").is_in(["columns", "types"]) & (pl.col("failed") > 0))["table"].to_list())
    with _great_expectations() as judge:
        verdicts = judge.counts(counted) + judge.measures(list(measured), limits or Limits())
        for name in RELEASED:
            if name in tables and name not in broken:  # a table of the wrong shape is refused already
                verdicts += judge.table(name, tables[name], k)
    return Verdicts(tuple(sorted(verdicts, key=lambda v: (list(RELEASED).index(v.table), v.column, v.expectation))))


class _Judge:
    """Great Expectations over pandas frames; results are read into our own fields."""

    def __init__(self, gx: Any) -> None:
        self.gx = gx
        self.context = gx.get_context(mode="ephemeral")
        self.context.enable_analytics(False)
        self.context.variables.progress_bars = {"globally": False, "metric_calculations": False}

    def counts(self, counted: pl.DataFrame) -> list[Verdict]:
        """Every counted check must have failed on no row: one column per check, one row."""
        expectations, frame = [], {}
        for n, row in enumerate(counted.iter_rows(named=True)):
            severity, message = CHECKS[row["check"]]
            frame[f"m{n}"] = [row["failed"]]
            about = {**row, "expectation": row["check"], "message": message}
            expectations.append(
                self.gx.expectations.ExpectColumnMaxToBeBetween(column=f"m{n}", min_value=0, max_value=0, severity=severity, meta=about)
            )
        return self._validate(pl.DataFrame(frame), expectations)

    def measures(self, measured: list[Measure], limits: Limits) -> list[Verdict]:
        """Every measure must be at most its limit for refusal; else, as a warning, for showing."""
        expectations, frame = [], {}
        for n, m in enumerate(measured):
            name, message = MEASURES[m.check]
            warn, refuse = getattr(limits, name or f"{m.table.removesuffix('s')}_flips")
            severity, limit = ("critical", refuse) if m.value > refuse else ("warning", warn)
            ends = f"; refuses above {refuse:g}" if refuse < NEVER else ""
            told = f"{message} ({m.value:.3f}; warns above {warn:g}{ends})"
            frame[f"m{n}"] = [m.value]
            about = {"table": m.table, "column": m.column, "expectation": m.check, "message": told, "rows": m.rows, "failed": m.failed}
            expectations.append(
                self.gx.expectations.ExpectColumnMaxToBeBetween(column=f"m{n}", max_value=limit, severity=severity, meta=about)
            )
        return self._validate(pl.DataFrame(frame), expectations) if expectations else []

    def table(self, name: str, table: pl.DataFrame, k: int) -> list[Verdict]:
        return self._validate(table, list(self._expectations(name, k)))

    def _expectations(self, name: str, k: int) -> Iterator[Any]:
        e = self.gx.expectations

        def about(column: str, message: str) -> dict[str, Any]:
            return {"table": name, "column": column, "message": message}

        for column in REQUIRED[name]:
            yield e.ExpectColumnValuesToNotBeNull(
                column=column, severity="critical", meta=about(column, "a value is missing where every row needs one")
            )
        for (table, column), (low, high, severity) in RANGES.items():
            if table == name:
                message = f"a number is outside {low} to {high}; it was not computed as the contract says"
                yield e.ExpectColumnValuesToBeBetween(
                    column=column, min_value=low, max_value=high, severity=severity, meta=about(column, message)
                )
        for (table, column), values in VALUE_SETS.items():
            if table == name:
                message = f"a value is none of {', '.join(values)}"
                yield e.ExpectColumnValuesToBeInSet(column=column, value_set=list(values), severity="critical", meta=about(column, message))
        for column in COUNT_COLUMNS.get(name, ()):
            if column != "votes":
                message = f"a row with fewer than k = {k} users; only what k users share may be released"
                yield e.ExpectColumnValuesToBeBetween(column=column, min_value=k, severity="critical", meta=about(column, message))
        if name in UNIQUE_KEYS:
            columns = list(UNIQUE_KEYS[name])
            message = f"two rows with the same {', '.join(columns)}; a consumer would have to choose"
            yield e.ExpectCompoundColumnsToBeUnique(column_list=columns, severity="critical", meta=about(", ".join(columns), message))
        for column in ("rewrite_id",) if name in ("rewrites", "retired") else ():
            message = "a rewrite id twice, so one of them could never be retired"
            yield e.ExpectColumnValuesToBeUnique(column=column, severity="critical", meta=about(column, message))
        if name == "rewrites":
            message = "a rewrite whose lift may be negative; it is released on a point estimate"
            yield e.ExpectColumnValuesToBeBetween(
                column="lift_lower",
                min_value=0,
                severity="warning",
                meta={**about("lift_lower", message), "expectation": "lift_is_positive"},
            )
        if name == "labels":
            yield e.ExpectColumnValuesToBeJsonParseable(
                column="slots", severity="critical", meta=about("slots", "slots that are not JSON; a trainer could not read them")
            )
        for column in TEXT_COLUMNS.get(name, ()):
            if name != "retired":
                yield e.ExpectColumnValueLengthsToBeBetween(
                    column=column, min_value=1, max_value=1000, severity="critical", meta=about(column, "a text that is empty or too long")
                )

    def _validate(self, table: pl.DataFrame, expectations: list[Any]) -> list[Verdict]:
        frame = _to_pandas(table)
        source = self.context.data_sources.add_or_update_pandas("release").add_dataframe_asset("table")
        batch = source.add_batch_definition_whole_dataframe("whole").get_batch({"dataframe": frame})
        suite = self.gx.ExpectationSuite(name="release", expectations=expectations)
        # BASIC with no examples: GX would print offending values otherwise
        result = batch.validate(suite, result_format={"result_format": "BASIC", "partial_unexpected_count": 0})
        return [self._verdict(r, table.height) for r in result.results]

    @staticmethod
    def _verdict(result: Any, rows: int) -> Verdict:
        config, success = result.expectation_config, bool(result.success)
        about = config.meta
        rows = about.get("rows", rows)
        # an expectation that raised tells no count: all rows are in doubt
        failed = about["failed"] if "failed" in about else result.result.get("unexpected_count", 0 if success else rows)
        return Verdict(
            table=about["table"],
            expectation=about.get("expectation", config.type.removeprefix("expect_")),
            column=about["column"],
            severity="warning" if config.severity == "warning" else "critical",
            success=success,
            rows_failed=int(failed),
            rows=int(rows),
            message=about["message"],
        )


def _to_pandas(table: pl.DataFrame) -> Any:
    """Pandas with plain objects: GX meets neither Arrow strings nor null integers turned into floats."""
    arrow = table.to_arrow().cast(pa.schema([(f.name, _plain(f.type)) for f in table.to_arrow().schema]))
    return arrow.to_pandas(date_as_object=True, integer_object_nulls=True)


def _plain(dtype: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype) else dtype


@contextlib.contextmanager
def _great_expectations() -> Iterator[_Judge]:
    """GX, loaded late, without usage statistics (it would call home) and progress bars; its log stays quiet."""
    import logging

    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    log, silence = logging.getLogger("great_expectations"), logging.NullHandler()
    propagate, log.propagate = log.propagate, False  # its modules set levels of their own
    log.addHandler(silence)
    try:
        import great_expectations as gx

        yield _Judge(gx)
    finally:
        log.propagate = propagate
        log.removeHandler(silence)
