"""The majority vote of users: beside every label, and in its place in a locale where held-out users side with it."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from rewrite.contracts import MILLION
from rewrite.pool import Pool, of_some

FEWEST = 20
"""Texts on which the two disagree, from which a locale can be judged: fewer tell nothing at two standard errors."""
SURE = 2.0
"""Standard errors by which the vote must win: a coin would take it one time in forty."""


def votes(pool: Pool) -> pl.DataFrame:
    """The vote of users: each votes for what the assistant understood, those who asked again for what it understood then."""
    own = pool.meanings.group_by("id", "intent").agg(n=pl.col("served").sum())
    again = _ends(pool).select("id", "intent", n="v")
    votes = pl.concat([own, again]).group_by("id", "intent").agg(pl.col("n").sum())
    return (
        votes.sort("id", "n", "intent", descending=[False, True, False])
        .with_columns(majority_share=pl.col("n") / pl.col("n").sum().over("id").clip(1))
        .unique("id", keep="first", maintain_order=True)
        .select("id", "majority_share", majority_intent="intent")
    )


def _ends(pool: Pool) -> pl.DataFrame:
    """`id, intent, v`: what the users who asked again ended on, each on one, and how surely (millionths)."""
    served = (pl.col("served") * MILLION).round().cast(pl.Int64)
    meaning = pool.texts.filter(pl.col("intent").is_not_null()).select("intent", t="id", th=served)

    def ends(asks: pl.DataFrame) -> pl.DataFrame:
        each = (
            asks.join(meaning, on="t")
            .with_columns(v=pl.col("value") * pl.col("th") // MILLION)
            .sort("s", "ask", "v", "t", descending=[False, False, True, False])
            .unique(["s", "ask"], keep="first", maintain_order=True)
        )
        return each.group_by("intent", id="s").agg(pl.col("v").sum())

    return pool.asks.each(ends)


def contest(pool: Pool, label: Callable[[Pool], pl.DataFrame], k: int) -> pl.DataFrame:
    """The label model against the vote, per locale: `locale, texts, lead, error, vote_wins`, sorted.

    label: of a pool, `id, intent`. Both judge by one half of the users who asked again; where they disagree about a text of
    k users, the other half decides: `lead` is the mean share of it that ends on the label's intent, less that of the vote's;
    `error` its standard error.
    """
    half = pl.col("ask").hash(0) % 2 == 0
    seen, unseen = of_some(pool, lambda a: a.filter(half)), of_some(pool, lambda a: a.filter(~half), chained=False)
    both = label(seen).join(votes(seen), on="id").join(pool.texts.filter(pl.col("users") >= k).select("id", "locale"), on="id")
    both = both.filter(pl.col("intent") != pl.col("majority_intent")).select("id", "locale", "majority_intent", ours="intent")
    ends = _ends(unseen).join(both, on="id")
    sides = [(pl.col("v").filter(pl.col("intent") == pl.col(side)).sum()) for side in ("ours", "majority_intent")]
    text = ends.group_by("locale", "id").agg(lead=(sides[0] - sides[1]) / pl.col("v").sum().clip(1)).sort("locale", "id")
    found = text.group_by("locale", maintain_order=True).agg(
        texts=pl.len(), lead=pl.col("lead").mean(), error=pl.col("lead").std() / pl.len().sqrt()
    )
    return found.with_columns(vote_wins=((pl.col("texts") >= FEWEST) & (pl.col("lead") < -SURE * pl.col("error"))).fill_null(False))
