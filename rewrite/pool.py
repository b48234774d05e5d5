"""What is known about every text, from merged evidence: one dense id per (locale, text), joined once for all miners."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from scipy import sparse

from rewrite import chain, success
from rewrite.blocks import Blocks
from rewrite.contracts import MILLION
from rewrite.text import PLACEHOLDER
from rewrite.trust import believed, shared, shared_once, synchronised, usual_days

if TYPE_CHECKING:
    from rewrite.evidence import Evidence, Options

LEAK = 0.02
"""Nobody asks for ever: at least this share of the visits to a text is absorbed there. Keeps the chain solvable."""
STEP = MILLION // 2
"""Links of the chain are asked-again pairs more likely than not: the many weak ones would tie everything to everything."""
SURE = 0.8
"""A text served this often is followed no further along the chain."""
FAILS = 0.5
"""A text served less often than not fails."""
LOWER = 0.05
"""Lower bounds are 5 % quantiles of the posterior, upper ones 95 %."""
REACH = 1e-3
"""Smallest chain score that is looked at."""
NO_REACH = pl.DataFrame(schema={"s": pl.Int64, "t": pl.Int64, "score": pl.Float64})


@dataclass(frozen=True)
class Pool:
    """texts: row number = id, sorted by (locale, utterance), with
    `locale, utterance, users (that share it: 0 when all are new), known (of them not new), first, last, text, served, votes, untouched, goal, goal_id, membership, intent, slots,
    meaning_users, numbers, placeholder`; served = pooled P(served | left alone), works = P(it serves half of
    them or more), served_high = its upper bound, goal = dense goal number, means = dense number of (locale, intent, slots), null without an intent.
    meanings: id, intent, slots, users, served (millionths), assistant_version; most served first within a text.
    asks: s, t, ask, value (millionths), step, events, first, last; of turns that were left alone.
    pairs: s, t, users, value (sums of `asks`), pair_users (who went on from s to t, more likely than not).
    reach: s, t, score; of the absorbing chain, t other than s and likely served.
    trials: of `careful.trials`, merged: s, t in place of texts.
    treated: locale, source, target (strings), users, success, low, better; causes: id, cause, cause_probability.
    """

    texts: pl.DataFrame
    meanings: pl.DataFrame
    asks: Blocks
    pairs: pl.DataFrame
    reach: pl.DataFrame
    treated: pl.DataFrame
    causes: pl.DataFrame
    trials: Blocks

    def column(self, name: str) -> np.ndarray:
        return self.texts[name].to_numpy()


def build(evidence: Evidence, goals: pl.DataFrame, options: Options, *, chained: bool = True) -> Pool:
    """Join merged evidence and goals into a `Pool`. Works without intents, slots, goals, causes or treatments.

    Not `chained`: `reach` is empty; solving the chain is the dearest part of a long log's pool.
    """
    at = ["locale", "utterance"]
    texts = evidence["texts"].with_row_index("id").with_columns(pl.col("id").cast(pl.Int64), users=shared())
    locales = texts["locale"].unique().sort()
    texts = texts.with_columns(group=pl.col("locale").replace_strict(locales, pl.Series(range(len(locales)), dtype=pl.Int64)))
    ids = texts.select(*at, "id")

    forms = (
        (evidence["forms"].filter(pl.col("users") >= options.k).sort(*at, "users", "text", descending=[False, False, True, False]))
        .unique(at, keep="first", maintain_order=True)
        .select(*at, "text")
    )
    alone = evidence["outcomes"].join(ids, on=at)
    count = alone.group_by("id").agg(
        votes=pl.col("users").sum(), untouched=pl.col("users").filter(pl.col("treatment") == "untouched").sum()
    )
    pooled = success.pool(alone["id"].to_numpy(), alone["bin"].to_numpy(), believed(alone).to_numpy(), texts["group"].to_numpy())
    texts = (
        texts.with_columns(
            served=pl.Series(pooled.mean, dtype=pl.Float64),
            works=pl.Series(1 - pooled.below(0.5), dtype=pl.Float64),
            served_high=pl.Series(pooled.quantile(1 - LOWER)),
        )
        .join(forms, on=at, how="left", maintain_order="left")
        .join(count, on="id", how="left", maintain_order="left")
        .with_columns(pl.col("votes", "untouched").fill_null(0), placeholder=pl.col("utterance").str.contains(PLACEHOLDER))
        .with_columns(numbers=_numbers(texts["utterance"]))
    )

    meanings = evidence["interpretations"].filter(pl.col("intent").is_not_null()).join(ids, on=at)
    order = ["id", "served", "users", "intent", "slots"]
    meanings = (
        meanings.sort("id", "intent", "slots", "users", "assistant_version", descending=[False, False, False, True, True], nulls_last=True)
        .group_by("id", "intent", "slots", maintain_order=True)
        .agg(pl.col("users").sum(), pl.col("served").sum(), pl.col("assistant_version").first())
        .sort(order, descending=[False, True, True, False, False], nulls_last=True)
    )
    best = meanings.unique("id", keep="first", maintain_order=True).select("id", "intent", "slots", meaning_users="users")
    texts = texts.join(best, on="id", how="left", maintain_order="left")
    meaning = pl.struct("locale", "intent", pl.col("slots").fill_null("{}"))
    texts = texts.with_columns(means=pl.when(pl.col("intent").is_not_null()).then(meaning.rank("dense").cast(pl.Int64)))
    texts = _with_goals(texts, goals)

    asks = evidence["asks"].map(lambda a: shared_once(a.filter(pl.col("s") != pl.col("t"))))
    usual = usual_days(asks)
    asks = asks.map(lambda a: a.filter(~synchronised(a, usual, options.burst)))
    causes = (
        evidence["causes"]
        .join(ids, on=at)
        .sort("id", "failed", "cause", descending=[False, True, False])
        .with_columns(cause_probability=pl.col("failed") / pl.col("failed").sum().over("id"))
        .unique("id", keep="first", maintain_order=True)
        .select("id", "cause", "cause_probability")
    )
    return Pool(
        texts,
        meanings,
        asks,
        _pairs(asks),
        reach(texts, asks) if chained else NO_REACH,
        _treated(evidence["treated"], texts, locales, pooled.curves),
        causes,
        evidence["trials"],
    )


def _numbers(utterances: pl.Series) -> pl.Series:
    """The numbers of a text, in digits of any script, as one sorted string: `5 10` and `१० ५` are the same numbers."""

    def numbers(text: str) -> str:
        plain = "".join(str(unicodedata.digit(c)) if c.isdecimal() else c for c in text)
        return " ".join(sorted(re.findall(r"\d+", plain)))

    some = utterances.filter(utterances.str.contains(r"\p{Nd}")).unique()
    found = pl.DataFrame({"text": some, "numbers": pl.Series([numbers(t) for t in some], dtype=pl.String)})
    return utterances.to_frame("text").join(found, on="text", how="left", maintain_order="left")["numbers"].fill_null("")


def _with_goals(texts: pl.DataFrame, goals: pl.DataFrame) -> pl.DataFrame:
    """The goal of a text: the graph's; else what the assistant understood, if that serves; else the text alone.

    A goal may hold wordings of several languages; evidence and rewrites stay within one, so here each locale has its own."""
    graph = goals.sort("locale", "utterance", "membership", "goal_id", descending=[False, False, True, False]).unique(
        ["locale", "utterance"], keep="first", maintain_order=True
    )
    graph = graph.select("locale", "utterance", "goal_id", "membership")
    texts = texts.join(graph, on=["locale", "utterance"], how="left", maintain_order="left")
    understood = pl.when(pl.col("served") >= 0.5, pl.col("intent").is_not_null()).then(
        pl.format("i\x1f{}\x1f{}\x1f{}", "locale", "intent", pl.col("slots").fill_null(""))
    )
    name = pl.coalesce(pl.format("g\x1f{}\x1f{}", "locale", "goal_id"), understood, pl.format("t\x1f{}", "id"))
    return texts.with_columns(goal=name.rank("dense").cast(pl.Int64) - 1, membership=pl.col("membership").fill_null(1.0))


def of_some(pool: Pool, keep: Callable[[pl.DataFrame], pl.DataFrame], *, chained: bool = True) -> Pool:
    """The pool as if it had been asked no more than what `keep` leaves of `asks`; not `chained`: without `reach`."""
    asks = pool.asks.map(keep)
    return replace(pool, asks=asks, pairs=_pairs(asks), reach=reach(pool.texts, asks) if chained else NO_REACH)


def _pairs(asks: Blocks) -> pl.DataFrame:
    went = (pl.col("step") & (pl.col("value") >= MILLION // 2)).sum().cast(pl.Int64)
    sums = {"users": pl.len().cast(pl.Int64), "value": pl.col("value").sum(), "pair_users": went}
    return asks.each(lambda a: a.group_by("s", "t").agg(**sums))


def reach(texts: pl.DataFrame, asks: Blocks) -> pl.DataFrame:
    """Chain scores: one vote per user and transition; who does not go on is served (h) or gives up (1 - h)."""
    moved = (pl.col("value") * MILLION // pl.max_horizontal(pl.col("value").sum().over("s", "ask"), MILLION)).alias("moved")
    step = asks.each(
        lambda a: a.filter("step", pl.col("value") >= STEP).with_columns(moved).group_by("s", "t").agg(pl.col("moved").sum())
    ).sort("s", "t")
    if step.is_empty():
        return NO_REACH
    states = np.unique(np.concatenate([step["s"].to_numpy(), step["t"].to_numpy()]))
    s, t = (np.searchsorted(states, step[c].to_numpy()) for c in ("s", "t"))
    moved = sparse.csr_matrix((step["moved"].to_numpy() / MILLION, (s, t)), shape=(len(states), len(states)))
    gone = np.asarray(moved.sum(axis=1)).ravel()
    visits = np.maximum(texts["users"].to_numpy()[states].astype(np.float64), gone)
    stay = np.maximum(visits - gone, LEAK * visits)
    served = texts["served"].to_numpy()[states]
    s, t, score = chain.scores(moved, np.stack([stay * served, stay * (1 - served)], axis=1), at_least=REACH, sources=served < SURE)
    return pl.DataFrame({"s": states[s], "t": states[t], "score": score}).filter(pl.col("s") != pl.col("t"), pl.Series(served[t] >= 0.5))


def in_vain(pool: Pool) -> pl.DataFrame:
    """The rows of `pool.pairs` that changed nothing: from a text that fails to one that the assistant understands in the same way.

    It will do again what failed already. Who stops there gave up, however much it looks like being served; so it is evidence neither
    for a goal nor for the target.
    """
    return unchanged(pool.pairs, pool)


def unchanged(pairs: pl.DataFrame, pool: Pool) -> pl.DataFrame:
    """The `pairs` (s, t) of one meaning whose s fails."""
    s, t = pairs["s"].to_numpy(), pairs["t"].to_numpy()
    same = pool.texts["means"][s] == pool.texts["means"][t]
    return pairs.filter(same.fill_null(False) & pl.Series(pool.column("served")[s] < FAILS))


def _treated(treated: pl.DataFrame, texts: pl.DataFrame, locales: pl.Series, curves: tuple[success.Curve, ...]) -> pl.DataFrame:
    """Pooled success of every pair that was served live, under that treatment alone; `better` = P(above the source left alone)."""
    treated = treated.filter(pl.col("target").is_not_null())
    pairs = treated.select("locale", "source", "target").unique().sort("locale", "source", "target").with_row_index("pair")
    votes = treated.join(pairs, on=["locale", "source", "target"])
    group = pairs["locale"].replace_strict(locales, pl.Series(range(len(locales)), dtype=pl.Int64)).to_numpy()
    pooled = success.pool(votes["pair"].to_numpy(), votes["bin"].to_numpy(), votes["users"].to_numpy(), group, curves)
    users = votes.group_by("pair").agg(pl.col("users").sum())
    alone = texts.select("locale", "served", source="utterance")
    served = pairs.join(alone, on=["locale", "source"], how="left", maintain_order="left")["served"].to_numpy()
    return (
        pairs.with_columns(
            success=pl.Series(pooled.mean, dtype=pl.Float64),
            low=pl.Series(pooled.quantile(LOWER), dtype=pl.Float64),
            better=pl.Series(1 - pooled.below(served), dtype=pl.Float64),
        )
        .join(users, on="pair", how="left", maintain_order="left")
        .drop("pair")
    )
