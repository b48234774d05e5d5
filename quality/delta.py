"""What changed between two releases, row by row. Pure: frames in, frames and counts out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import polars as pl

from rewrite.contracts import UNIQUE_KEYS

SAYS: Final = {"rewrites": ("target",), "labels": ("intent", "slots", "split"), "goals": ("goal_id",), "pairs": ("goal_id", "split")}
"""What a row says about its key. Users, weights and dates move with every day's log: a row is not changed because they do."""

Tables = Mapping[str, pl.DataFrame]


def delta(old: Tables | None, new: Tables) -> dict[str, dict[str, int]]:
    """Table -> how many rows were added, kept, changed (same key, another content) and retired against `old` (None: no parent)."""
    return {name: {kind: rows.height for kind, rows in changes(name, old, new).items()} for name in UNIQUE_KEYS}


def changes(name: str, old: Tables | None, new: Tables) -> dict[str, pl.DataFrame]:
    """The rows of one table as `added`, `kept`, `changed` (new rows, old values as `was_COLUMN`) and `retired` (old rows).

    Keys are `contracts.UNIQUE_KEYS`; null is a value like any other. Rows keep the order of the release.
    """
    now = new[name]
    before = now.clear() if old is None else old[name].select(now.columns)
    keys = list(UNIQUE_KEYS[name])
    values = SAYS[name]
    was = before.select(*keys, *(pl.col(c).alias(f"was_{c}") for c in values), _was=pl.lit(True))
    both = now.join(was, on=keys, how="left", nulls_equal=True, maintain_order="left")
    there = pl.col("_was").fill_null(False)
    same = pl.all_horizontal(pl.lit(True), *(pl.col(c).eq_missing(pl.col(f"was_{c}")) for c in values))
    return {
        "added": both.filter(~there).select(now.columns),
        "kept": both.filter(there & same).select(now.columns),
        "changed": both.filter(there & ~same).drop("_was"),
        "retired": before.join(now.select(keys), on=keys, how="anti", nulls_equal=True, maintain_order="left"),
    }
