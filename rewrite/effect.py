"""Did a release help? Defects before and after the assistant that was trained on it, on texts that it touched and did not.

The same texts are compared with themselves, each weighing as much as it was said after: so that a better day is not a day
on which people said easier things. What changed on texts that the release did not touch is what would have changed anyway.
"""

from __future__ import annotations

from datetime import date
from typing import Final

import numpy as np
import polars as pl

from rewrite.contracts import MILLION

_KEY: Final = ("locale", "text", "after")
GROUPS: Final = ("corrected", "confirmed", "untouched")
"""What a release says of a text: something else than the assistant did (a rewrite, or a label that is not its own reading),
the same, or nothing."""


def versions(votes: pl.DataFrame) -> pl.DataFrame:
    """version, first: the days on which versions of the assistant are first seen in the votes."""
    said = votes.lazy().filter(pl.col("kind") == "outcome", pl.col("assistant_version").is_not_null())
    return said.group_by(version="assistant_version").agg(first=pl.col("date").min()).sort("first", "version").collect()


def tally(votes: pl.DataFrame, version: str, first: date) -> pl.DataFrame:
    """Per (locale, text, after): users, and the sum and squares (of millionths) of their mean defects.

    Before: every turn of a day before `first`, the version's first. After: turns that the version answered.
    """
    after = pl.col("assistant_version").eq_missing(pl.lit(version))
    mean = (pl.col("value") * pl.col("events")).sum() / pl.col("events").sum()
    per = (
        votes.lazy()
        .filter(pl.col("kind") == "outcome", after | (pl.col("date") < first))
        .with_columns(after=after)
        .sort("user_key", "locale", "source", "date", "value", "events")
        .group_by("user_key", "locale", "after", text="source", maintain_order=True)
        .agg(defect=((1 - mean) * MILLION).round().cast(pl.Int64))
    )
    sums = per.group_by(_KEY).agg(
        users=pl.len().cast(pl.Int64), sum=pl.col("defect").sum(), squares=(pl.col("defect") * pl.col("defect") // MILLION).sum()
    )
    return sums.sort(_KEY).collect()


def compare(counts: pl.DataFrame, rewrites: pl.DataFrame, labels: pl.DataFrame, k: int) -> list[dict[str, float | int | str]]:
    """One row per group of texts that k users said before and k after: how often they failed then and now.

    rewrites, labels: of the release. Keys: group, texts, users_before, users_after, before, after (defects, 0 to 1, both in
    the mix of texts of after), change, error (of the change, one standard error). Empty when nothing can be compared.
    """
    sides = counts.filter(~pl.col("after")).join(counts.filter("after"), on=["locale", "text"], suffix="_after")
    sides = sides.filter(pl.col("users") >= k, pl.col("users_after") >= k)
    if sides.is_empty():
        return []
    taught = labels.select("locale", text="utterance", own=pl.col("origin") == "own")
    served = rewrites.select("locale", text="source", rewritten=pl.lit(True)).unique()
    sides = sides.join(taught, on=["locale", "text"], how="left").join(served, on=["locale", "text"], how="left")
    corrected = pl.col("rewritten").fill_null(False) | ~pl.col("own").fill_null(True)
    group = (
        pl.when(corrected).then(pl.lit(GROUPS[0])).when(pl.col("own").is_not_null()).then(pl.lit(GROUPS[1])).otherwise(pl.lit(GROUPS[2]))
    )
    sides = sides.with_columns(group=group).sort("locale", "text")
    out: list[dict[str, float | int | str]] = []
    for name in GROUPS:
        rows = sides.filter(pl.col("group") == name)
        if rows.is_empty():
            continue
        n, m = rows["users"].to_numpy(), rows["users_after"].to_numpy()
        before, after = rows["sum"].to_numpy() / n / MILLION, rows["sum_after"].to_numpy() / m / MILLION
        share = m / m.sum()
        within = _variance(rows["squares"], n, before) / n + _variance(rows["squares_after"], m, after) / m
        error = float((share**2 * within).sum()) ** 0.5
        was, now = float((share * before).sum()), float((share * after).sum())
        row = {"group": name, "texts": rows.height, "users_before": int(n.sum()), "users_after": int(m.sum())}
        out.append(row | {"before": round(was, 6), "after": round(now, 6), "change": round(now - was, 6), "error": round(error, 6)})
    return out


def _variance(squares: pl.Series, users: np.ndarray, mean: np.ndarray) -> float:
    """Of users within texts, one for all texts of a side: single texts have too few."""
    return max(float(squares.sum()) / MILLION - float((users * mean**2).sum()), 0.0) / max(int(users.sum()) - len(users), 1)
