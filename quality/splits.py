"""Splits that hold for ever: a goal's split from a hash of its id, a text's split from the ledger."""

from __future__ import annotations

import hashlib
from typing import Final

import polars as pl

SPLIT_SHARES: Final = (("train", 0.8), ("dev", 0.1), ("test", 0.1))
LEDGER: Final = pl.Schema({"locale": pl.String, "utterance": pl.String, "split": pl.String})
"""The splits ledger: a text's split at its first release, for ever."""


def split_of(name: str) -> str:
    """The split of a goal (or of a text without one) from the hash of its id: .8 train, .1 dev, .1 test."""
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64
    for split, share in SPLIT_SHARES:
        if place < share:
            return split
        place -= share
    return SPLIT_SHARES[-1][0]


def text_splits(goals: pl.DataFrame, labels: pl.DataFrame, pairs: pl.DataFrame, ledger: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(locale, text, split of this release) of every released text, and the rows that are new in the ledger.

    A text without an entry gets its goal's split (its own hash if it has no goal); with another entry than its goal it is `none`.
    One text may have several splits, said in several locales: it stays in test, else in dev, and is `none` in the others, so that
    nothing is trained on that is tested on (the ledger keeps what each of them has).
    """
    no_goal = pl.lit(None, pl.String).alias("goal_id")
    parts = [
        goals.select("locale", "goal_id", text="utterance"),
        labels.select("locale", "goal_id", text="utterance"),
        pairs.select("goal_id", locale="locale_anchor", text="anchor"),
        pairs.select("goal_id", locale="locale_positive", text="positive"),
        pairs.select(no_goal, locale="locale_anchor", text="negative").drop_nulls("text"),
    ]
    texts = pl.concat([p.select("locale", "text", "goal_id") for p in parts]).unique(["locale", "text"], keep="first", maintain_order=True)
    home = pl.coalesce("goal_id", pl.format("{}|{}", "locale", "text"))
    texts = texts.with_columns(home=home)
    homes = texts["home"].unique()
    by_home = pl.DataFrame({"home": homes, "goal_split": pl.Series([split_of(h) for h in homes], dtype=pl.String)})
    first = ledger.unique(["locale", "utterance"], keep="first", maintain_order=True).rename({"utterance": "text", "split": "entry"})
    texts = texts.join(by_home, on="home", how="left").join(first, on=["locale", "text"], how="left")
    agrees = pl.col("entry").is_null() | pl.col("goal_id").is_null() | (pl.col("entry") == pl.col("goal_split"))
    split = pl.when(agrees).then(pl.coalesce("entry", "goal_split")).otherwise(pl.lit("none"))
    texts = texts.with_columns(split=split)
    least = pl.col("split").replace_strict({"test": 2, "dev": 1}, default=0, return_dtype=pl.Int8)
    split = pl.when(least < least.max().over("text")).then(pl.lit("none")).otherwise("split")
    new = texts.filter(pl.col("entry").is_null()).select("locale", utterance="text", split="goal_split").sort("locale", "utterance")
    return texts.select("locale", "text", split=split), new
