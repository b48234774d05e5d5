"""Who is believed: accounts made for a purpose, and copies of other accounts, teach the assistant nothing.

Counting users instead of events stops a loud user, not a ring of accounts. What a ring cannot have cheaply is a history:

- A *new* account has said fewer texts than users of this log usually have, or nothing but a few pairs of asking again.
- A *copy* has the history of another account: signatures by MinHash (Broder 1997), banded so that two accounts meet when
  their texts outside links agree by nine tenths. Whoever copies a real user to look real is found with the user copied: what
  both went through counts once, what one of them has alone counts for nothing.

Two stages, as users live in buckets: `sketch` a bucket, `learn` from all sketches, then `judge` each bucket's users.
Sketches hold counts and hashes, no user key and no text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from scipy import special

BANDS: Final = 8
ROWS: Final = 8
MEET: Final = 2
"""An account is a copy when 2 of its 8 bands of 8 hashes are others' too: at a Jaccard of .9 (a tenth left out or made up)
92 % are found, and of two busy users who share a tenth of their texts one pair in 10^15 meets: a million users find no twin."""
LEAST_HISTORY: Final = 5
"""Histories of fewer texts outside links are alike by chance."""
SKETCHED: Final = ("user_key", "locale", "kind", "source", "target")
"""The columns of votes that `sketch` looks at."""
_SEED: Final = 0x5EED


@dataclass(frozen=True)
class Rules:
    """What an account must show; the configuration sets them. 0 texts, 0 pairs, False: nobody is doubted."""

    least_texts: int = 4  # distinct texts of a user; never more than the median user of the log has
    few_texts: int = 6  # three pairs: a user of at most so many texts, all of them asked again, is there for the pairs
    copies: bool = True
    links_per_day: int = 100  # of one user; five times what the busiest honest user of six simulated logs has
    links_per_window: int = 500


@dataclass(frozen=True)
class Trust:
    """What was learned from the sketches of all buckets. copied: `band` that two accounts or more have, `least` texts of one."""

    rules: Rules
    least_texts: int
    copied: pl.DataFrame


def _said(votes: pl.DataFrame) -> pl.LazyFrame:
    """Who said which text in any role, and whether it is on a side of one of the user's links: user_key, locale, text, linked."""
    link = pl.col("kind") != "outcome"
    said = votes.lazy().select("user_key", "locale", text="source", linked=link)
    to = votes.lazy().filter(link).select("user_key", "locale", text="target", linked=pl.lit(True))
    return pl.concat([said, to]).group_by("user_key", "locale", "text").agg(pl.col("linked").any())


def histories(votes: pl.DataFrame) -> pl.DataFrame:
    """One row per user: `user_key`, `texts` (distinct texts in any role), `free` (those that are on no side of a link)."""
    counts = _said(votes).group_by("user_key").agg(texts=pl.len().cast(pl.Int64), free=(~pl.col("linked")).sum().cast(pl.Int64))
    return counts.collect()


def bands(votes: pl.DataFrame) -> pl.DataFrame:
    """`user_key`, `band` (UInt64): the banded MinHash signature of each user with `LEAST_HISTORY` free texts or more.

    Free texts alone: what a copy adds to a history is the pair that it was made for, and that is linked.
    """
    said = _said(votes).filter(~pl.col("linked")).filter(pl.len().over("user_key") >= LEAST_HISTORY)
    said = said.select("user_key", text=pl.struct(pl.col("locale", "text").cast(pl.String)).hash(_SEED))
    lowest = said.group_by("user_key").agg(pl.col("text").hash(n).min().alias(f"h{n}") for n in range(BANDS * ROWS))
    rows = [pl.struct(pl.lit(b), *(f"h{b * ROWS + r}" for r in range(ROWS))).hash(_SEED).alias(f"b{b}") for b in range(BANDS)]
    return lowest.select("user_key", *rows).unpivot(index="user_key", value_name="band").select("user_key", "band").collect()


def sketch(votes: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """What one bucket of whole users says about the log: `texts` (texts, users) and `bands` (band, users, least texts)."""
    users = histories(votes)
    texts = users.group_by("texts").agg(users=pl.len().cast(pl.Int64))
    each = bands(votes).join(users, on="user_key")
    return {"texts": texts, "bands": each.group_by("band").agg(users=pl.len().cast(pl.Int64), least=pl.col("texts").min())}


def learn(sketches: Iterable[dict[str, pl.DataFrame]], rules: Rules | None = None) -> Trust:
    """What to ask of a user of this log. The order of the sketches does not matter; none at all is fine."""
    rules, parts = rules or Rules(), list(sketches)
    if not parts:
        return Trust(rules, 0, pl.DataFrame(schema={"band": pl.UInt64, "least": pl.Int64}))
    texts = pl.concat([p["texts"] for p in parts]).group_by("texts").agg(pl.col("users").sum()).sort("texts")
    # the median seen from a text, not from an account: many accounts with little to say do not move it
    below = (texts["texts"] * texts["users"]).cum_sum()
    median = int(texts["texts"].gather(below.search_sorted(-(-int(below[-1]) // 2)))[0]) if texts.height else 0
    shared = pl.concat([p["bands"] for p in parts]).group_by("band").agg(pl.col("users").sum(), pl.col("least").min())
    return Trust(rules, min(rules.least_texts, median), shared.filter(pl.col("users") > 1).select("band", "least").sort("band"))


def judge(votes: pl.DataFrame, trust: Trust | None) -> pl.DataFrame:
    """The users of a bucket: `user_key`, `known` (not new), `copy` (UInt64, of which group of copies; null: of none), `spare`.

    A spare is a copy with more texts than another of its group: the shortest history is what they share. Without trust
    everybody is known and nobody a copy.
    """
    users = histories(votes)
    alone = [pl.lit(None, pl.UInt64).alias("copy"), pl.lit(False).alias("spare")]
    if trust is None:
        return users.select("user_key", pl.lit(True).alias("known"), *alone)
    for_pairs = (pl.col("free") == 0) & (pl.col("texts") > 1) & (pl.col("texts") <= trust.rules.few_texts)
    users = users.with_columns(known=(pl.col("texts") >= trust.least_texts) & ~for_pairs)
    if not trust.rules.copies:
        return users.select("user_key", "known", *alone)
    met = (
        bands(votes)
        .join(trust.copied, on="band")
        .group_by("user_key")
        .agg(pl.len(), copy=pl.col("band").min(), least=pl.col("least").min())
    )
    users = users.join(met.filter(pl.col("len") >= MEET), on="user_key", how="left")
    return users.select("user_key", "known", "copy", spare=(pl.col("texts") > pl.col("least")).fill_null(False))


def shared_once(asks: pl.DataFrame) -> pl.DataFrame:
    """`asks` (s, t, ask, copy) in which a group of copies asked what two of them or more asked, once, and nothing else."""
    group = ["s", "t", "copy"]
    twice = asks.filter(pl.col("copy").is_not_null()).group_by(group).agg(pl.col("ask").n_unique().alias("n"), pl.col("ask").min())
    kept = twice.filter(pl.col("n") > 1).select(*group, "ask")
    return pl.concat([asks.filter(pl.col("copy").is_null()), asks.join(kept, on=[*group, "ask"], how="semi")]).drop("copy")


def believed(outcomes: pl.DataFrame, by: str = "id") -> pl.Series:
    """How many users each row of binned outcome votes (`users`, `known` of them not new) counts for, Float64.

    New accounts add up to a quarter of what known ones say about a text, and one user: enough where honest newcomers speak
    (3 to 8 % of the turns of six simulated logs), too little to bury a text that works.
    """
    new = pl.col("users") - pl.col("known")
    room = (pl.col("known").sum().over(by) / 4 + 1) / new.sum().over(by).clip(1)
    return outcomes.select((pl.col("known") + new * room.clip(0, 1)).cast(pl.Float64)).to_series()


def shared() -> pl.Expr:
    """How many users share a text, of `users` and `known` of them: nobody when all are new, however many.

    What nobody but new accounts says is made up, or soon said by others: 2 of 7,704 honest labels in the largest of seven
    simulated logs, none or one in the others.
    """
    return pl.when(pl.col("known") > 0).then("users").otherwise(pl.lit(0, pl.Int64))


def usual_days(asks: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """`day`, `share` of all users of all sources that come on it. asks: s, ask, first; blocks of whole sources."""
    days = pl.concat([_came(a).group_by("day").agg(users=pl.len().cast(pl.Int64)) for a in asks])
    return days.group_by("day").agg(pl.col("users").sum()).select("day", share=pl.col("users") / pl.col("users").sum())


def synchronised(asks: pl.DataFrame, usual: pl.DataFrame, chance: float) -> pl.Series:
    """Boolean per row of `asks` (s, ask, first; of whole sources): its source's users came together on one day, against chance.

    A source with n users has as many on a day as is usual (`usual_days`), give or take: the binomial tail of the day's count
    below `chance` is no coincidence, and the whole day is left out for that source. A log of one day has no bursts.
    """
    each = _came(asks)
    days = each.group_by("s", "day").agg(m=pl.len()).with_columns(n=pl.col("m").sum().over("s")).join(usual, on="day")
    m, n, p = (days[c].to_numpy().astype(np.float64) for c in ("m", "n", "share"))
    days = days.filter(pl.Series(special.betainc(m, n - m + 1, p) < chance, dtype=pl.Boolean)).select("s", "day", burst=pl.lit(True))
    flagged = each.join(days, on=["s", "day"], how="left").select("s", "ask", pl.col("burst").fill_null(False))
    return asks.join(flagged, on=["s", "ask"], how="left", maintain_order="left")["burst"]


def _came(asks: pl.DataFrame) -> pl.DataFrame:
    """The first day of every user of a source."""
    return asks.group_by("s", "ask").agg(day=pl.col("first").min())
