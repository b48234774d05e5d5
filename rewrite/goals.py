"""The goal graph: which texts ask for one and the same thing.

Texts served with one interpretation that holds a slot value are one goal from the start: that is by far the most precise
signal a log has (.97 to 1 on simulated logs). Everything else (texts that fail, logs without intents) is joined by
agglomeration (`rewrite.agglomeration`), by who asked again, by likeness and what was served (`rewrite.goal_evidence`), and by a lexicon.

Last, clusters of different locales that mean the same get one goal (`rewrite.across`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from rewrite.across import join_locales, meaning_name
from rewrite.agglomeration import LEAST, LEAST_UNKNOWN, agglomerate
from rewrite.contracts import GOAL_EDGES, GOALS
from rewrite.goal_evidence import NEIGHBOURS, SERVED, Interpretations, Similar, interpretations, lexicon_pairs, similar_pairs
from rewrite.goal_ids import stable_ids
from rewrite.lexicon import Rows
from rewrite.neighbours import Near
from rewrite.picture import picture


@dataclass(frozen=True)
class GoalGraph:
    """`goals` (contract GOALS, and `x`, `y` for a picture), `edges` (GOAL_EDGES), `changes` (GOAL_CHANGES), all sorted, and
    `curves`: per locale what a cosine is worth and where that was learned."""

    goals: pl.DataFrame
    edges: pl.DataFrame
    changes: pl.DataFrame
    curves: pl.DataFrame


def build_goals(
    texts: pl.DataFrame,
    vectors: np.ndarray | None,
    links: pl.DataFrame,
    served: pl.DataFrame,
    last: pl.DataFrame | None = None,
    *,
    least: float = LEAST,
    least_unknown: float = LEAST_UNKNOWN,
    neighbours: int = NEIGHBOURS,
    seed: int = 0,
    models: pl.Series | None = None,
    lexicon: Rows = (),
    near: Mapping[str, Near] | None = None,
    untaught: Collection[str] = (),
) -> GoalGraph:
    """Every text gets exactly one goal; the result does not depend on the order of any rows.

    - `texts`: locale, utterance (key, unique with its locale), users, served (pooled P(served), null when unknown).
    - `vectors`: float16 or float32 (texts.height, d), row i for row i of `texts`, unit rows; zeros or NaN where there is
      none. None: no embedding at all.
    - `links`: locale, source, target, users, weight (sum over users of P(asked again)).
    - `served`: locale, utterance, intent, slots (canonical JSON), users, weight (sum over users of P(served)).
    - `last`: the previous `goals`; a goal keeps the id of the one it shares most users with, one to one.
    - `least`, `least_unknown`: probability in [0.5, 1) from which a text joins a goal that is known by what was served, and
      two clusters of which neither is known join each other; `neighbours`: per text, from the embedding.
    - `models`: the model that made each row of `vectors`, null where there is none; by default one model made all. Locales meet
      (`rewrite.across`) only where one model reads both.
    - `lexicon`: (locale, phrase, locale, phrase) that say the same (`rewrite.lexicon`).
    - `near`: per locale the neighbours of its texts that have a vector, in the order of their keys, where they were searched before
      (`pipelines.cells`); the others are searched here.
    - `untaught`: locales whose language their model was not taught (`rewrite.across`).

    Raises ValueError for misaligned vectors, repeated texts, or a probability out of range.
    """
    for name, value in (("least", least), ("least_unknown", least_unknown)):
        if not 0.5 <= value < 1:
            raise ValueError(f"{name} must be in [0.5, 1), got {value}")
    if vectors is not None and len(vectors) != texts.height:
        raise ValueError(f"vectors: {len(vectors)} rows for {texts.height} texts; give one row per text, zeros where there is none")
    texts = texts.select("locale", "utterance", "users", "served").with_row_index("row").sort("locale", "utterance")
    if texts.select(repeated=pl.struct("locale", "utterance").is_duplicated().any()).item():
        repeated = texts.filter(pl.struct("locale", "utterance").is_duplicated()).row(0, named=True)
        raise ValueError(f"texts: {repeated['locale']} {repeated['utterance']!r} comes more than once; one row per (locale, utterance)")
    if vectors is not None:
        vectors = np.nan_to_num(np.asarray(vectors)[texts["row"].to_numpy()]).astype(np.float32)

    meaning = interpretations(texts, served)
    pairs = _indexed_links(texts, links)
    similar = similar_pairs(texts, vectors, meaning, pairs, neighbours, seed, near)
    words = lexicon_pairs(texts, meaning, lexicon)
    cluster = agglomerate(meaning, pairs, similar, words, vectors, least, least_unknown)

    edges = _edges(texts, meaning, pairs, similar, words)
    goals = _describe(texts, cluster, edges)
    if vectors is not None and texts["locale"].n_unique() > 1:
        says = [meaning_name(*json.loads(name)) for name in meaning.names]
        joined, across = join_locales(
            texts["locale"].to_numpy(),
            cluster,
            goals["users"].to_numpy(),
            vectors,
            [""] * texts.height if models is None else models.gather(texts["row"]).to_list(),
            [says[k] if k >= 0 else None for k in meaning.key.tolist()],
            texts["utterance"].to_list(),
            lexicon,
            untaught,
        )
        edges = pl.concat([edges, across], how="diagonal")
        goals = _one_exemplar(goals.with_columns(goal=pl.Series(joined)))
    names, changes = stable_ids(goals, last)
    goals = goals.with_columns(goal_id=pl.Series(names, dtype=pl.String)).select(GOALS.names)
    goals = picture(goals, vectors)
    return GoalGraph(goals, _edge_table(texts, edges), changes, similar.curves)


def _indexed_links(texts: pl.DataFrame, links: pl.DataFrame) -> pl.DataFrame:
    """i < j, users, weight, mean, doubt (log P(no user asked again); 0 where that is no evidence), both directions together, sorted.

    A link counts where it is likely, and where its source is not a text that is served anyhow: who leaves a request that
    works went on to something else, or belongs to a ring that wants it taken over.
    """
    rows = texts.select("locale", "utterance", "served", i=pl.int_range(pl.len(), dtype=pl.Int64))
    counts = (pl.col("mean") >= 0.5) & (pl.col("served").fill_null(0.0) < SERVED)
    return (
        links.filter(pl.col("source") != pl.col("target"), pl.col("users") > 0)
        .select("locale", "source", "target", "users", "weight")
        .join(rows, left_on=["locale", "source"], right_on=["locale", "utterance"])
        .join(rows.select("locale", "utterance", j="i"), left_on=["locale", "target"], right_on=["locale", "utterance"])
        .with_columns(mean=(pl.col("weight") / pl.col("users")).clip(0.0, 1.0))
        .with_columns(doubt=pl.when(counts).then(pl.col("users") * (1 - pl.col("mean").clip(0, 0.99)).log()).otherwise(0.0))
        .with_columns(i=pl.min_horizontal("i", "j"), j=pl.max_horizontal("i", "j"))
        .group_by("i", "j")
        .agg(pl.col("users").sum(), pl.col("weight").sort().sum(), pl.col("doubt").sort().sum())
        .with_columns(mean=(pl.col("weight") / pl.col("users")).clip(0.0, 1.0))
        .sort("i", "j")
    )


def _edges(texts: pl.DataFrame, meaning: Interpretations, links: pl.DataFrame, similar: Similar, words: pl.DataFrame) -> pl.DataFrame:
    """i < j, similarity, asked_again, same_interpretation, lexicon, probability; one row per pair of texts with any evidence, sorted."""
    asked = links.select("i", "j", asked_again=pl.col("mean"), p_asked=(1 - pl.col("doubt").exp()))
    near = pl.DataFrame(
        {"i": similar.left, "j": similar.right, "similarity": similar.cosine.astype(np.float64), "p_near": similar.probability}
    )
    anchors = pl.DataFrame({"i": np.flatnonzero(meaning.anchor), "key": meaning.key[meaning.anchor]})
    hub = (
        anchors.join(texts.select("users", i=pl.int_range(pl.len(), dtype=pl.Int64)), on="i", maintain_order="left")
        .sort("key", "users", "i", descending=[False, True, False])
        .with_columns(hub=pl.col("i").first().over("key"))
        .filter(pl.col("i") != pl.col("hub"))
        .select(i=pl.min_horizontal("i", "hub"), j=pl.max_horizontal("i", "hub"))
    )
    edges = pl.concat([asked, near.cast({"i": pl.Int64, "j": pl.Int64}), hub, words], how="diagonal")
    edges = edges.group_by("i", "j").agg(pl.exclude("i", "j").max()).sort("i", "j")
    key = pl.Series(meaning.key)
    a, b = key.gather(edges["i"]), key.gather(edges["j"])
    same = pl.DataFrame({"a": a, "b": b}).select(
        pl.when((pl.col("a") >= 0) & (pl.col("b") >= 0)).then((pl.col("a") == pl.col("b")).cast(pl.Float64)).alias("same_interpretation")
    )
    anchored = pl.Series(meaning.anchor)
    specific = anchored.gather(edges["i"]) & anchored.gather(edges["j"])
    trust = texts["served"].fill_null(1.0)
    p_same = (trust.gather(edges["i"]) * trust.gather(edges["j"])).clip(0, 1)
    return edges.with_columns(same["same_interpretation"], p_same=p_same, specific=specific).with_columns(
        probability=pl.when(pl.col("same_interpretation") == 0)
        .then(0.0)
        .otherwise(
            1
            - (1 - pl.col("p_asked").fill_null(0.0))
            * (1 - pl.col("p_near").fill_null(0.0))
            * (1 - pl.col("lexicon").fill_null(0.0))
            * (1 - pl.when(pl.col("specific") & (pl.col("same_interpretation") == 1)).then(pl.col("p_same")).otherwise(0.0))
        )
    )


def _describe(texts: pl.DataFrame, cluster: np.ndarray, edges: pl.DataFrame) -> pl.DataFrame:
    """locale, utterance, users, served, goal (number), membership, is_exemplar; sorted by locale and utterance."""
    n = texts.height
    i, j, p = edges["i"].to_numpy(), edges["j"].to_numpy(), edges["probability"].to_numpy()
    own = np.where(cluster[i] == cluster[j], p, 0.0)
    inside = np.bincount(i, own, n) + np.bincount(j, own, n)
    whole = np.bincount(i, p, n) + np.bincount(j, p, n)
    alone = np.bincount(cluster, minlength=n)[cluster] == 1
    membership = np.where(alone | (whole <= 0), 1.0, inside / np.where(whole > 0, whole, 1.0))
    out = texts.select("locale", "utterance", users=pl.col("users").fill_null(0).cast(pl.Int64), served="served").with_columns(
        goal=pl.Series(cluster), membership=pl.Series(membership).round(6)
    )
    return _one_exemplar(out)


def _one_exemplar(goals: pl.DataFrame) -> pl.DataFrame:
    """`is_exemplar`: the text of each goal that is served and that most users say."""
    goals = goals.drop("is_exemplar", strict=False)
    first = goals.sort(
        "goal",
        pl.col("served").fill_null(0.0) >= SERVED,
        "users",
        "served",
        "locale",
        "utterance",
        descending=[False, True, True, True, False, False],
        nulls_last=True,
    ).unique("goal", keep="first", maintain_order=True)
    return goals.join(
        first.select("locale", "utterance", is_exemplar=pl.lit(True)), on=["locale", "utterance"], how="left", maintain_order="left"
    ).with_columns(pl.col("is_exemplar").fill_null(False))


def _edge_table(texts: pl.DataFrame, edges: pl.DataFrame) -> pl.DataFrame:
    """GOAL_EDGES, sorted."""
    names = {}
    for side, column in (("a", "i"), ("b", "j")):
        names[f"locale_{side}"] = texts["locale"].gather(edges[column])
        names[f"utterance_{side}"] = texts["utterance"].gather(edges[column])
    return (
        edges.with_columns(**names)
        .with_columns(pl.col("probability", "similarity", "asked_again", "same_interpretation", "lexicon").cast(pl.Float64).round(6))
        .select(GOAL_EDGES.names)
        .sort("locale_a", "utterance_a", "locale_b", "utterance_b")
    )
