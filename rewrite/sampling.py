"""Samples of whole sessions that depend on nothing but the turns: no user key, no row order, no library's hash."""

from __future__ import annotations

import polars as pl

from rewrite import ngrams

SESSION = ("date", "user_key", "session")


def drawn(turns: pl.DataFrame, share: float, session: tuple[str, ...] = SESSION) -> pl.Series:
    """Which turns are of a session (rows that agree in `session`) drawn with probability `share`, by a hash of its least
    turn id; the sessions of a smaller share are among those of a larger one."""
    first = turns.select(pl.col("turn_id").min().over(session)).to_series()
    distinct = first.unique().sort()
    hashes = pl.Series(ngrams.hash_texts(distinct.str.replace_all("\n", " ", literal=True).to_list()), dtype=pl.UInt64)
    limit = min(int(share * 2.0**64), 2**64 - 1)
    return first.is_in(distinct.filter(hashes <= limit).implode())


def thinned(turns: pl.DataFrame, rows: int) -> pl.DataFrame:
    """About `rows` of the turns, whole sessions; all of them when there are no more."""
    return turns if turns.height <= rows else turns.filter(drawn(turns, rows / turns.height))
