"""Contrastive training pairs: positives mean the same goal in other words, negatives look alike and mean another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from rewrite.contracts import CANDIDATE_PAIRS
from rewrite.likeness import Likeness
from rewrite.pool import Pool

if TYPE_CHECKING:
    from rewrite.evidence import Options

LOOK_ALIKES = 20
"""So many of the most alike texts are searched for a negative."""
BLOCK = 1024


def mine(pool: Pool, options: Options) -> pl.DataFrame:
    """contracts.CANDIDATE_PAIRS, sorted by its key; every string was said by k users or more, in its locale.

    The anchors of a goal are paired with its other texts, best members first, across wordings and locales, at most
    `options.pairs_per_goal`; each pair gets up to `options.negatives` negatives: served texts of the anchor's locale that
    look most like the anchor and mean another goal: `other_intent`, `other_value` (same intent, other slots) or
    `other_goal` (no intents in the log). A pair without any is rejected (`no_negative`).
    """
    texts = pool.texts.filter(
        pl.col("users") >= options.k, ~pl.col("placeholder"), pl.col("goal_id").is_not_null() | (pl.col("served") >= options.served)
    )
    positives = _positives(texts, options)
    negatives = _negatives(pool, texts, positives["a"].unique().sort(), options)
    rows = positives.join(negatives, on="a", how="left")
    name = pool.texts.select("id", "locale", "utterance")
    rows = (
        rows.join(name.rename({"id": "a", "locale": "locale_anchor", "utterance": "anchor"}), on="a")
        .join(name.rename({"id": "p", "locale": "locale_positive", "utterance": "positive"}), on="p")
        .join(name.select(n="id", negative="utterance"), on="n", how="left")
        .filter(pl.col("negative").is_null() | (pl.col("negative") != pl.col("positive")))
        .with_columns(
            decision=pl.when(pl.col("n").is_null()).then(pl.lit("rejected")).otherwise(pl.lit("proposed")),
            reason=pl.when(pl.col("n").is_null()).then(pl.lit("no_negative")).otherwise(pl.lit("goal")),
        )
        .sort("locale_anchor", "anchor", "locale_positive", "positive", "negative", nulls_last=True)
    )
    schema = pl.DataFrame(CANDIDATE_PAIRS.empty_table()).schema
    return rows.select(pl.col(n).cast(d) for n, d in schema.items()).with_columns(pl.col(pl.Float64).round(6) + 0.0)


def _positives(texts: pl.DataFrame, options: Options) -> pl.DataFrame:
    """(a, p): the n-th and m-th best texts of one goal, n < m, as many as the goal may give; its locales take turns."""
    most = int(np.ceil((1 + np.sqrt(1 + 8 * options.pairs_per_goal)) / 2))
    # of a goal that holds several languages each has a part of its own in the pool
    across = pl.coalesce(pl.format("g\x1f{}", "goal_id"), pl.format("t\x1f{}", "goal"))
    texts = texts.with_columns(goal=across.rank("dense").cast(pl.Int64))
    order = ["membership", "users", "locale", "utterance"]
    best = texts.sort("goal", *order, descending=[False, True, True, False, False])
    best = best.with_columns(turn=pl.int_range(pl.len()).over("goal", "locale"))
    best = best.sort("goal", "turn", *order, descending=[False, False, True, True, False, False])
    best = best.with_columns(nth=pl.int_range(pl.len()).over("goal")).filter(pl.col("nth") < 2 * most)
    side = best.select("goal", "goal_id", "id", "nth", "membership", "utterance")
    pairs = side.join(side.select("goal", p="id", m="nth", pm="membership", pu="utterance"), on="goal").filter(
        pl.col("nth") < pl.col("m"), pl.col("utterance") != pl.col("pu")
    )  # one text said in two languages teaches nothing
    return (
        pairs.sort("goal", pl.col("nth") + pl.col("m"), "nth")
        .group_by("goal", maintain_order=True)
        .head(options.pairs_per_goal)
        .select("goal_id", "goal", "p", a="id", weight=pl.col("membership") * pl.col("pm"))
    )


def _negatives(pool: Pool, texts: pl.DataFrame, anchors: pl.Series, options: Options) -> pl.DataFrame:
    """(a, n, negative_origin): the most alike texts that were served something else."""
    served = texts.filter(pl.col("served") >= options.target_served)
    shape = {"a": pl.Int64, "n": pl.Int64, "negative_origin": pl.String}
    found = []
    for (locale,), mine in sorted(served.partition_by("locale", as_dict=True).items()):
        ask = texts.filter(pl.col("locale") == locale, pl.col("id").is_in(anchors.implode()))
        if ask.is_empty():
            continue
        vectors = Likeness(pl.concat([ask["utterance"], mine["utterance"]])).vectors
        left, right = vectors[: ask.height], vectors[ask.height :].T.tocsc()
        a_ids, n_ids = ask["id"].to_numpy(), mine["id"].to_numpy()
        a_goal, n_goal = ask["goal"].to_numpy(), mine["goal"].to_numpy()
        for first in range(0, ask.height, BLOCK):
            alike = (left[first : first + BLOCK] @ right).toarray().round(6)
            alike[a_goal[first : first + BLOCK, None] == n_goal] = 0
            top = np.argsort(-alike, axis=1, kind="stable")[:, :LOOK_ALIKES]  # ties by id: texts are sorted
            rows = np.repeat(np.arange(len(alike)), top.shape[1])
            near = pl.DataFrame({"a": a_ids[first + rows], "n": n_ids[top.ravel()], "alike": alike[rows, top.ravel()]})
            found.append(near.filter(pl.col("alike") > 0))
    if not found:
        return pl.DataFrame(schema=shape)
    meaning = pool.texts.select("id", "intent", "slots", "served")
    near = pl.concat(found).join(meaning.rename({"id": "a"}), on="a").join(meaning.rename({"id": "n"}), on="n", suffix="_n")
    own = pl.col("served") >= options.served  # what a failing anchor was understood as says nothing
    same = (pl.col("intent") == pl.col("intent_n")) & pl.col("slots").eq_missing(pl.col("slots_n"))
    origin = (
        pl.when(pl.col("intent").is_null() | pl.col("intent_n").is_null() | ~own)
        .then(pl.lit("other_goal"))
        .when(pl.col("intent") != pl.col("intent_n"))
        .then(pl.lit("other_intent"))
        .otherwise(pl.lit("other_value"))
    )
    return (
        near.filter(~(own & same.fill_null(False)))
        .with_columns(negative_origin=origin)
        .sort("a", "alike", "n", descending=[False, True, False])
        .group_by("a", maintain_order=True)
        .head(options.negatives)
        .select("a", "n", "negative_origin")
    )
