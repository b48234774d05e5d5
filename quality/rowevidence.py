"""The evidence behind a row of the report: what opens below a rewrite or a label, beyond the columns that its table shows.

Counts are floored as in a release, and only texts that k users share are named.
"""

from __future__ import annotations

from typing import Any, Final

import polars as pl

from quality.checks import floor_counts
from quality.reasons import sentence

OTHERS: Final = 3
"""Other targets of a source that are named; the rest was further away."""

REWRITES: Final = (
    ("why", "why"),
    ("goal", "goal"),
    ("source_served", "P (served), source left alone"),
    ("target_served", "P (served), target"),
    ("goal_users", "users who went on to the goal"),
    ("pair_users", "users who said the target next"),
    ("score", "chain score"),
    ("lift_probability", "P (lift above 0)"),
    ("likeness", "likeness of the two texts"),
    ("log_e", "ln of the evidence at any look"),
    ("treated_users", "users it served live"),
    ("treated_served", "P (served), live"),
    ("seen", "weeks seen"),
    ("expires", "expires"),
    ("others", "weighed, and not taken"),
    ("rewrite_id", "rewrite id"),
)
"""Fields of a rewrite's row that open below it, and what they are called."""
LABELS: Final = (
    ("why", "why"),
    ("goal", "goal"),
    ("served", "P (served), text left alone"),
    ("majority_intent", "most users' reading"),
    ("majority_share", "share of users with it"),
    ("assistant_version", "assistant version"),
)

_BELOW: Final = "fewer than {}"


def of_rewrites(rows: pl.DataFrame, candidates: pl.DataFrame | None, goals: pl.DataFrame, k: int) -> list[dict[str, Any]]:
    """`rows` (released rewrites) as dicts with the fields of `REWRITES`. candidates: what aggregate weighed, with its figures."""
    rows = rows.with_columns(seen=_weeks()).join(_names(goals), on="goal_id", how="left", maintain_order="left")
    if candidates is None:
        return rows.drop("first_seen", "last_seen").to_dicts()
    pair = ["locale", "source", "target"]
    figures = [n for n, _ in REWRITES if n in candidates.columns and n not in rows.columns]
    counts = [n for n in figures if n.endswith("_users")]
    # a count of nobody says nothing
    shown = candidates.select(*pair, "reason", *figures).with_columns(_told(n, k) for n in counts)
    rows = rows.join(shown, on=pair, how="left", maintain_order="left").join(
        _others(candidates, k), on=pair[:2], how="left", maintain_order="left"
    )
    return [_why(r, "rewrites") for r in rows.drop("first_seen", "last_seen").to_dicts()]


def of_labels(rows: pl.DataFrame, candidates: pl.DataFrame | None, goals: pl.DataFrame, k: int) -> list[dict[str, Any]]:
    """`rows` (released labels) as dicts with the fields of `LABELS`; a reading is named where k users share the text."""
    rows = rows.join(_names(goals), on="goal_id", how="left", maintain_order="left")
    if candidates is None:
        return rows.to_dicts()
    key = ["locale", "utterance"]
    shown = candidates.filter(pl.col("users") >= k).select(*key, "reason", "served", "majority_intent", "majority_share")
    return [_why(r, "labels") for r in rows.join(shown, on=key, how="left", maintain_order="left").to_dicts()]


def _names(goals: pl.DataFrame) -> pl.DataFrame:
    """goal_id, goal: the text that names it."""
    order = goals.sort("is_exemplar", "users", "locale", "utterance", descending=[True, True, False, False])
    return order.unique("goal_id", keep="first", maintain_order=True).select("goal_id", goal="utterance")


def _weeks() -> pl.Expr:
    first, last = pl.col("first_seen").cast(pl.String), pl.col("last_seen").cast(pl.String)
    return pl.when(first == last).then(first).otherwise(pl.format("{} to {}", first, last))


def _told(count: str, k: int) -> pl.Expr:
    floored = floor_counts(pl.col(count), k)
    told = pl.when(floored >= k).then(pl.format("{}+", floored)).otherwise(pl.lit(_BELOW.format(k)))
    return pl.when(pl.col(count) > 0).then(told).alias(count)


def _others(candidates: pl.DataFrame, k: int) -> pl.DataFrame:
    """locale, source, others: the likeliest other targets that k users said, with P and the reason."""
    lost = candidates.filter(pl.col("decision") != "proposed", pl.col("target_users") >= k)
    lost = lost.sort("locale", "source", "probability", "target", descending=[False, False, True, False])
    lost = lost.group_by("locale", "source", maintain_order=True).head(OTHERS)
    reasons = lost["reason"].unique()
    why = pl.col("reason").replace_strict(reasons, [sentence(r, "rewrites") for r in reasons], return_dtype=pl.String)
    told = pl.format("{} (P {}: {})", "target", pl.col("probability").round(3), why)
    return lost.group_by("locale", "source", maintain_order=True).agg(others=told.str.join("; "))


def _why(row: dict[str, Any], table: str) -> dict[str, Any]:
    reason = row.pop("reason", None)
    return row | {"why": sentence(reason, table) if reason else None}
