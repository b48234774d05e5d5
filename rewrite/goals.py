"""The goal graph: which texts ask for one and the same thing.

Texts served with one interpretation that holds a slot value are one goal from the start: that is by far the most precise
signal a log has (.97 to 1 on simulated logs). Everything else (texts that fail, logs without intents) is joined by
agglomeration: in every round each cluster names the goal that its evidence favours, and joins it if that is likely enough.

- Asked again: the share of a cluster's users that went to the other, times the chance that at least one of them meant it.
- Similarity: for a cluster around a known interpretation, the nearest member, if most of the newcomer's neighbours
  are there too; between unknown ones the mean cosine over all their pairs, seen or not (average linkage: the product of the
  two mean vectors). One chance link between two big clusters therefore joins nothing, where connected components would chain them.
- A lexicon: texts that are equal once synonyms are exchanged, as far as such texts were served the same.
- Against: two different interpretations never meet; nor do texts with different numbers, by what they look like.

Last, clusters of different locales that mean the same get one goal (`rewrite.across`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from rewrite.across import join_locales, meaning_name
from rewrite.contracts import GOAL_CHANGES, GOAL_EDGES, GOALS
from rewrite.goal_evidence import NEIGHBOURS, SERVED, Interpretations, Similar, interpretations, lexicon_pairs, similar_pairs
from rewrite.lexicon import Rows
from rewrite.neighbours import Near
from rewrite.picture import picture

LEAST = 0.5
"""Probability from which a text joins a goal that is known by what was served."""

LEAST_UNKNOWN = 0.65
"""The same for two clusters of which neither is known: a wrong join there draws in more wrong ones."""

ROUNDS = 100
"""Far above what real graphs need (10 to 30); the loop ends when nothing joins."""

BLOCK = 65_536
"""Pairs of clusters compared at a time: 270 MB of vectors at 512 dimensions."""


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
    cluster = _agglomerate(meaning, pairs, similar, words, vectors, least, least_unknown)

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
        )
        edges = pl.concat([edges, across], how="diagonal")
        goals = _one_exemplar(goals.with_columns(goal=pl.Series(joined)))
    names, changes = _stable_ids(goals, last)
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


def _agglomerate(
    meaning: Interpretations,
    links: pl.DataFrame,
    similar: Similar,
    words: pl.DataFrame,
    vectors: np.ndarray | None,
    least: float,
    least_unknown: float,
) -> np.ndarray:
    """int64 (n,): cluster of each text, numbered by its smallest member. See the head of this file."""
    n = len(meaning.key)
    cluster = np.arange(n)
    rows = np.flatnonzero(meaning.anchor)
    if len(rows):  # texts of one specific interpretation: one cluster from the start
        _, first, inverse = np.unique(meaning.key[rows], return_index=True, return_inverse=True)
        cluster[rows] = rows[first][inverse]
    key = meaning.key.copy()
    anchored = meaning.anchor.copy()

    left = np.concatenate([links["i"].to_numpy(), similar.left, words["i"].to_numpy()])
    right = np.concatenate([links["j"].to_numpy(), similar.right, words["j"].to_numpy()])
    none_l, none_s, none_w = np.zeros(links.height), np.zeros(len(similar.left)), np.zeros(words.height)
    asked = np.concatenate([links["weight"].to_numpy(), none_s, none_w])
    doubt = np.concatenate([links["doubt"].to_numpy(), none_s, none_w])
    near = np.concatenate([none_l, similar.probability, none_w])
    said = np.concatenate([none_l, none_s, words["lexicon"].to_numpy()])
    total = near.copy()
    means = _Means(similar, vectors)

    for _ in range(ROUNDS):
        a, b = np.minimum(cluster[left], cluster[right]), np.maximum(cluster[left], cluster[right])
        outside = a != b
        order = np.flatnonzero(outside)[np.argsort((a * n + b)[outside], kind="stable")]
        if not len(order):
            break
        code = (a * n + b)[order]
        starts = np.flatnonzero(np.append(True, code[1:] != code[:-1]))
        left, right = code[starts] // n, code[starts] % n
        asked, doubt, total = (np.add.reduceat(v[order], starts) for v in (asked, doubt, total))
        near, said = (np.maximum.reduceat(v[order], starts) for v in (near, said))

        probability = 1 - (1 - said) * (1 - _join_probability(left, right, asked, doubt, near, total, means, anchored))
        clash = (key[left] >= 0) & (key[right] >= 0) & (key[left] != key[right])
        probability[clash | (anchored[left] & anchored[right])] = 0.0
        wanted = np.where(anchored[left] | anchored[right], least, least_unknown)
        joined = _joins(left, right, probability, probability >= wanted, anchored)
        if not len(joined):
            break
        into, gone = joined[:, 0], joined[:, 1]
        target = np.arange(n)
        target[gone] = into
        cluster = target[cluster]
        means.join(into, gone, anchored)
        key[into] = np.where(key[into] >= 0, key[into], key[gone])
    _, first, inverse = np.unique(cluster, return_index=True, return_inverse=True)
    return first[inverse]


class _Means:
    """The mean cosine over all pairs of two clusters, and what it is worth: sums of unit vectors, kept while clusters join."""

    def __init__(self, similar: Similar, vectors: np.ndarray | None):
        self._similar = similar
        self._sums = None if vectors is None else vectors.copy()
        self._size = np.zeros(0) if vectors is None else np.abs(vectors).max(axis=1, initial=0).astype(bool).astype(np.float64)

    def alike(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """P(one goal) by the mean cosine of pairs of clusters; 0 where a side has no vector, or where their numbers differ."""
        out = np.zeros(len(left))
        if self._sums is None:
            return out
        numbers = self._similar.numbers
        pairs = self._size[left] * self._size[right]
        at = np.flatnonzero((pairs > 0) & (numbers[left] == numbers[right]))
        for start in range(0, len(at), BLOCK):
            part = at[start : start + BLOCK]
            dot = np.einsum("ij,ij->i", self._sums[left[part]], self._sums[right[part]])
            # To 5 digits, so that what this machine does with the last bits decides nothing.
            out[part] = self._similar.worth(left[part], np.round(dot / pairs[part], 5))
        return out

    def join(self, into: np.ndarray, gone: np.ndarray, anchored: np.ndarray) -> None:
        """Clusters `gone` become part of `into`; around an anchor no mean is ever asked for."""
        if self._sums is None:
            return
        free = ~anchored[into]
        np.add.at(self._sums, into[free], self._sums[gone[free]])
        np.add.at(self._size, into[free], self._size[gone[free]])


def _join_probability(
    left: np.ndarray,
    right: np.ndarray,
    asked: np.ndarray,
    doubt: np.ndarray,
    near: np.ndarray,
    total: np.ndarray,
    means: _Means,
    anchored: np.ndarray,
) -> np.ndarray:
    """P(two clusters are one goal) per pair of clusters with any evidence."""
    n = len(anchored)

    def share(weight: np.ndarray) -> np.ndarray:
        """Of the joining side's evidence, how much points to the other: the side without an anchor, else the one with less."""
        whole = np.bincount(left, weight, n) + np.bincount(right, weight, n)
        a, b = whole[left], whole[right]
        side = np.where(anchored[left], b, np.where(anchored[right], a, np.minimum(a, b)))
        return np.divide(weight, side, out=np.zeros_like(weight), where=side > 0)

    meant = share(asked) * -np.expm1(doubt)
    known = anchored[left] | anchored[right]
    alike = near * share(total)
    unknown = np.flatnonzero(~known & (near > 0))
    alike[unknown] = means.alike(left[unknown], right[unknown])
    return 1 - (1 - meant) * (1 - alike)


def _joins(left: np.ndarray, right: np.ndarray, probability: np.ndarray, likely: np.ndarray, anchored: np.ndarray) -> np.ndarray:
    """(m, 2) of (into, gone): each cluster's best partner among the likely ones, if mutual, or around an anchor."""
    n = len(anchored)
    a = np.concatenate([left[likely], right[likely]])
    b = np.concatenate([right[likely], left[likely]])
    p = np.round(np.concatenate([probability[likely]] * 2), 9)
    order = np.lexsort((b, -p, a))
    a, b = a[order], b[order]
    first = np.append(True, a[1:] != a[:-1]) if len(a) else np.zeros(0, bool)
    best = np.full(n, -1)
    best[a[first]] = b[first]
    who = np.flatnonzero((best >= 0) & ~anchored)
    to = best[who]
    mutual = (best[to] == who) & ~anchored[to] & (to < who)
    accept = anchored[to] | mutual
    return np.column_stack([to[accept], who[accept]])


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


def goal_id(locale: str, utterance: str, salt: int = 0) -> str:
    """The id a goal is born with: `g` and 16 hex digits of its exemplar's sha256. `salt` > 0 when that id is taken."""
    name = f"{locale}|{utterance}" + (f"|{salt}" if salt else "")
    return "g" + hashlib.sha256(name.encode()).hexdigest()[:16]


def _stable_ids(goals: pl.DataFrame, last: pl.DataFrame | None) -> tuple[list[str], pl.DataFrame]:
    """An id per row of `goals`, and what became of the last ids (GOAL_CHANGES, sorted)."""
    old = pl.DataFrame(schema={"locale": pl.String, "utterance": pl.String, "old": pl.String})
    if last is not None and last.height:
        old = last.select("locale", "utterance", old="goal_id").unique(["locale", "utterance"]).sort("locale", "utterance")
    shared = (
        goals.join(old, on=["locale", "utterance"])
        .group_by("goal", "old")
        .agg(users=pl.col("users").clip(lower_bound=1).sum(), texts=pl.len().cast(pl.Int64))
        .sort("users", "texts", "old", "goal", descending=[True, True, False, False])
    )
    name: dict[int, str] = {}
    kept: set[str] = set()
    for number, before in shared.select("goal", "old").iter_rows():
        if number not in name and before not in kept:
            name[number] = before
            kept.add(before)
    taken = set(old["old"].to_list())
    for number, locale, utterance in goals.filter("is_exemplar").select("goal", "locale", "utterance").sort("goal").iter_rows():
        if number not in name:
            salt = 0
            while (new := goal_id(locale, utterance, salt)) in taken:
                salt += 1
            name[number] = new
            taken.add(new)
    sizes = dict(goals.group_by("goal").len().iter_rows())
    rows = [(before, name[number], "kept" if name[number] == before else "", texts) for number, before, _, texts in shared.iter_rows()]
    mainly: dict[str, str] = {}
    for before, new, _, _ in rows:  # the largest share comes first
        mainly.setdefault(before, new)
    changes: list[tuple[str | None, str | None, str, int]] = []
    seen = set()
    for before, new, change, texts in rows:
        if not change:
            # The id went on in a goal of its own: this part was split off. Else the goal went into another one.
            change = "split" if before in kept else "merged"  # noqa: PLW2901
            if change == "merged" and mainly[before] != new:
                change = "split"  # noqa: PLW2901
        changes.append((before, new, change, texts))
        seen.add(new)
    changes += [(None, name[number], "appeared", size) for number, size in sizes.items() if name[number] not in seen]
    gone = old.filter(~pl.col("old").is_in(shared["old"].unique().implode())).group_by("old").len()
    changes += [(before, None, "vanished", texts) for before, texts in gone.iter_rows()]
    schema = {"old_goal_id": pl.String, "new_goal_id": pl.String, "change": pl.String, "texts": pl.Int64}
    table = pl.DataFrame(changes, schema=schema, orient="row").select(GOAL_CHANGES.names)
    ids = pl.DataFrame({"goal": list(name), "id": list(name.values())}, schema={"goal": pl.Int64, "id": pl.String})
    ordered = goals.select("goal").join(ids, on="goal", how="left", maintain_order="left")["id"].to_list()
    return ordered, table.sort("change", "old_goal_id", "new_goal_id", nulls_last=True)


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
