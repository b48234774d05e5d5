"""Cross-row and cross-table checks of a release: what must be counted before Great Expectations can judge it.

Each function returns rows of `METRICS`: how many of `rows` fail a check. Pure Polars, no texts in the result.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

import polars as pl
import pyarrow as pa

from quality.scrub import has_placeholder, holds_personal_data
from rewrite.contracts import COUNT_STEPS, RELEASED
from rewrite.text import key_expr, rewrite_ids, slots_object

METRICS: Final = pl.Schema({"table": pl.String, "check": pl.String, "column": pl.String, "rows": pl.Int64, "failed": pl.Int64})

Tables = Mapping[str, pl.DataFrame]

TEXT_COLUMNS: Final = {
    "rewrites": ("source", "target"),
    "labels": ("utterance",),
    "goals": ("utterance",),
    "pairs": ("anchor", "positive", "negative"),
    "retired": ("source", "target"),
}
"""The columns that hold keys of texts, per table."""
SURFACE_COLUMNS: Final = {"rewrites": {"source_text": "source", "target_text": "target"}, "labels": {"utterance_text": "utterance"}}
PERSONAL_COLUMNS: Final = {
    **TEXT_COLUMNS,
    "rewrites": ("source", "target", "source_text", "target_text"),
    "labels": ("utterance", "utterance_text", "intent", "slots"),
}
"""What users or assistants wrote. Ids are not in here: a hash may well have nine digits in a row, and so may a build's name."""
DATE_COLUMNS: Final = {"rewrites": ("first_seen", "last_seen")}
COUNT_COLUMNS: Final = {
    "rewrites": ("users", "source_users", "votes"), "labels": ("users", "votes"), "goals": ("users",)
}  # fmt: skip


def metrics(rows: list[tuple[str, str, str, int, int]]) -> pl.DataFrame:
    """A frame of `METRICS` from (table, check, column, rows, failed)."""
    return pl.DataFrame(rows, schema=METRICS, orient="row")


def empty(schema: pa.Schema) -> pl.DataFrame:
    """A table of the contracts without rows, as Polars sees it."""
    frame = pl.from_arrow(schema.empty_table())
    assert isinstance(frame, pl.DataFrame)
    return frame


def count_steps(greatest: int, k: int) -> list[int]:
    """The values that a released count may have: k if it is below the first step, 3, 5, 10, 20, 50, 100, 200, 500, ..."""
    steps = [*([k] if k < COUNT_STEPS[0] else []), *COUNT_STEPS]
    unit = 100
    while steps[-1] < greatest:
        steps += [unit, 2 * unit, 5 * unit]
        unit *= 10
    return steps


def floor_counts(counts: pl.Expr, k: int) -> pl.Expr:
    """Counts floored to the steps that may be released; 0 below the first one. Int64, nulls stay."""

    def floor(series: pl.Series) -> pl.Series:
        steps = [0, *count_steps(_greatest(series), k)]
        place = pl.Series(steps, dtype=pl.Int64).search_sorted(series.fill_null(0), side="right") - 1
        floored = pl.Series(steps, dtype=pl.Int64).gather(place)
        return pl.DataFrame({"n": floored, "was": series}).select(pl.when(pl.col("was").is_not_null()).then("n")).to_series()

    return counts.cast(pl.Int64).map_batches(floor, return_dtype=pl.Int64)


def _greatest(counts: pl.Series) -> int:
    greatest = counts.max()
    return greatest if isinstance(greatest, int) else 0


def slot_values(rows: pl.DataFrame) -> pl.DataFrame:
    """One row per slot (columns `name`, `value`) of the canonical JSON in `slots`; JSON that is not canonical is one value of no name."""
    distinct = rows.select("slots").unique().drop_nulls()
    pair = pl.Struct({"name": pl.String, "value": pl.String})
    table = distinct.with_columns(one=pl.Series([_values(s) for s in distinct["slots"]], dtype=pl.List(pair))).explode("one")
    table = table.drop_nulls("one").unnest("one").filter(pl.col("value") != "")
    return rows.join(table, on="slots", how="inner")


def _values(slots: str) -> list[dict[str, str]]:
    parsed = slots_object(slots)
    if parsed is None:
        return [{"name": "", "value": slots}]
    return [{"name": n, "value": v if isinstance(v, str) else json.dumps(v)} for n, v in parsed.items()]


def table_checks(tables: Tables, *, k: int) -> pl.DataFrame:
    """Everything that can be judged from the released tables alone.

    A table or column that is missing is counted by `columns`; the checks that need it are left out.
    """
    out: list[tuple[str, str, str, int, int]] = []
    for name, schema in RELEASED.items():
        table = tables.get(name)
        missing = len(schema) if table is None else len(set(schema.names) - set(table.columns))
        out.append((name, "columns", "", len(schema), missing))
        if table is not None:
            out.append((name, "types", "", len(schema), _wrong_types(table, schema)))
    broken = {name for name, _, _, _, failed in out if failed}
    whole = {name: table for name, table in tables.items() if name in RELEASED and name not in broken}
    for name, table in whole.items():
        out += _one_table(name, table, k)
    if "rewrites" in whole:
        out += _rewrites(whole["rewrites"])
    if "pairs" in whole:
        out += _pairs(whole["pairs"])
    if "goals" in whole:
        goals = whole["goals"].select("goal_id").unique()
        for name in ("rewrites", "labels", "pairs"):
            if name in whole:
                used = whole[name].filter(pl.col("goal_id").is_not_null())
                out.append((name, "goal_known", "goal_id", used.height, used.join(goals, on="goal_id", how="anti").height))
        exemplars = whole["goals"].group_by("goal_id").agg(pl.col("is_exemplar").any())
        out.append(("goals", "goal_has_exemplar", "is_exemplar", exemplars.height, exemplars.filter(~pl.col("is_exemplar")).height))
    if "rewrites" in whole and "retired" in whole:
        both = whole["retired"].join(whole["rewrites"], on="rewrite_id", how="semi").height
        out.append(("retired", "retired_is_gone", "rewrite_id", whole["retired"].height, both))
    if "labels" in whole and "pairs" in whole:
        out += _splits(whole["labels"], whole["pairs"])
    return metrics(out)


def _wrong_types(table: pl.DataFrame, schema: pa.Schema) -> int:
    return sum(table.schema[n] != t for n, t in empty(schema).schema.items() if n in table.columns)


def _one_table(name: str, table: pl.DataFrame, k: int) -> list[tuple[str, str, str, int, int]]:
    out: list[tuple[str, str, str, int, int]] = []
    rows = table.height

    def add(check: str, column: str, failing: pl.Expr) -> None:
        out.append((name, check, column, rows, table.filter(failing).height))

    for column in PERSONAL_COLUMNS.get(name, ()):
        check = "personal_data_in_intent" if column == "intent" else "personal_data"
        out.append((name, check, column, rows, int(holds_personal_data(table[column]).sum())))
    for column in TEXT_COLUMNS.get(name, ()):
        add("placeholder", column, has_placeholder(column))
        add("key_form", column, key_expr(column) != pl.col(column))
    for surface, column in SURFACE_COLUMNS.get(name, {}).items():
        add("surface_form", surface, key_expr(surface) != pl.col(column))
    for column in DATE_COLUMNS.get(name, ()):
        add("monday", column, pl.col(column).dt.weekday() != 1)
    for column in COUNT_COLUMNS.get(name, ()):
        steps = count_steps(_greatest(table[column]), k)
        add("coarse_count", column, ~pl.col(column).is_in([0, *steps]))
    return out


def _rewrites(table: pl.DataFrame) -> list[tuple[str, str, str, int, int]]:
    rows = table.height
    ids = pl.Series(rewrite_ids(*(table[c].fill_null("") for c in ("locale", "source", "target"))), dtype=pl.String)
    sources = table.select("locale", target="source")
    chained = table.join(sources, on=["locale", "target"], how="semi")
    return [
        ("rewrites", "rewrite_id", "rewrite_id", rows, int((ids != table["rewrite_id"]).sum())),
        ("rewrites", "same_text", "target", rows, table.filter(pl.col("source") == pl.col("target")).height),
        ("rewrites", "chain", "target", rows, chained.height),
        ("rewrites", "lift_order", "lift_lower", rows, table.filter(pl.col("lift_lower") > pl.col("lift")).height),
        ("rewrites", "date_order", "last_seen", rows, table.filter(pl.col("first_seen") > pl.col("last_seen")).height),
    ]


def _pairs(table: pl.DataFrame) -> list[tuple[str, str, str, int, int]]:
    rows = table.height
    same_sides = (pl.col("anchor") == pl.col("positive")) & (pl.col("locale_anchor") == pl.col("locale_positive"))
    same_negative = (pl.col("negative") == pl.col("anchor")) | (
        (pl.col("negative") == pl.col("positive")) & (pl.col("locale_anchor") == pl.col("locale_positive"))
    )
    origin = pl.col("negative").is_null() != pl.col("negative_origin").is_null()
    return [
        ("pairs", "same_text", "positive", rows, table.filter(same_sides).height),
        ("pairs", "same_text", "negative", rows, table.filter(same_negative).height),
        ("pairs", "negative_origin", "negative_origin", rows, table.filter(origin).height),
    ]


def _splits(labels: pl.DataFrame, pairs: pl.DataFrame) -> list[tuple[str, str, str, int, int]]:
    """Within a release no text and no goal may be in two splits, and a text of `none` is in no pair."""
    sides = pl.concat(
        [
            pairs.select(locale="locale_anchor", text="anchor", split="split"),
            pairs.select(locale="locale_positive", text="positive", split="split"),
            pairs.select(locale="locale_anchor", text="negative", split="split").drop_nulls("text"),
        ]
    ).unique()
    known = labels.select("locale", text="utterance", label_split="split")
    joined = sides.join(known, on=["locale", "text"], how="left")
    across = joined.filter((pl.col("label_split") != pl.col("split")) | (pl.col("split") == "none"))
    texts = sides.select("locale", "text").n_unique() if sides.height else 0
    goals = (
        pl.concat([labels.select("goal_id", "split"), pairs.select("goal_id", "split")])
        .drop_nulls("goal_id")
        .filter(pl.col("split") != "none")
    )
    per_goal = goals.group_by("goal_id").agg(pl.col("split").n_unique())
    return [
        ("pairs", "text_in_one_split", "split", texts, (sides.height - texts) + across.height),
        ("labels", "goal_in_one_split", "split", per_goal.height, per_goal.filter(pl.col("split") > 1).height),
    ]
