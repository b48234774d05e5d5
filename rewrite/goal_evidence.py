"""Evidence that two texts mean one goal: what was served for both, who asked again, and how near they lie.

Texts are integers here: their row in the table sorted by (locale, utterance). Every probability is learned from the log
itself; there is no cosine that holds for two models or two languages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from rewrite.background import background
from rewrite.lexicon import Rows, exchangeable
from rewrite.neighbours import Near, near_cosine

SERVED = 0.5
"""A text counts as served from here on: it is more often right than wrong."""

NEIGHBOURS = 10
"""Nearest texts looked at. A goal with more wordings is still joined, through the wordings in between."""

FEWEST_PAIRS, FEWEST_POSITIVES = 200, 30
"""Below these a curve of probability over cosine is noise, and the next source of reference is used."""

FEWEST_TEXTS = 10
"""Below this the median of random pairs is no unrelated pair: where half of the pairs are of one goal (four goals, say, have a quarter)."""

_DIGITS = re.compile(r"\d+")


@dataclass(frozen=True)
class Interpretations:
    """What was served for each text. `key`: int64 (n,), one number per (locale, intent, slots), -1 when nothing was reliably
    served; `anchor`: bool (n,), the key alone names a goal (it holds a slot value)."""

    key: np.ndarray
    anchor: np.ndarray
    names: tuple[str, ...] = ()  # of each key: (intent, slots) as JSON


def interpretations(texts: pl.DataFrame, served: pl.DataFrame) -> Interpretations:
    """The interpretation that most served users of each text got, where the text is served and one holds the majority.

    `texts`: locale, utterance, served, sorted; `served`: locale, utterance, intent, slots, weight (sum over users of
    P(served)). An intent without slot values does not name a goal ("weather" is asked in many ways about many things): it
    only speaks against texts that were served something else.
    """
    n = texts.height
    key, anchor = np.full(n, -1, np.int64), np.zeros(n, bool)
    known = served.filter(pl.col("intent").is_not_null() & (pl.col("weight") > 0))
    if not known.height:
        return Interpretations(key, anchor)
    rows = texts.with_row_index("i").select("i", "locale", "utterance", "served")
    best = (
        known.with_columns(pl.col("slots").fill_null("{}"))
        .group_by("locale", "utterance", "intent", "slots")
        .agg(pl.col("weight").sort().sum())
        .join(rows, on=["locale", "utterance"])
        .sort("i", "weight", "intent", "slots", descending=[False, True, False, False])
        .group_by("i", maintain_order=True)
        .agg(
            pl.col("locale", "intent", "slots").first(),
            pl.col("served").first(),
            share=pl.col("weight").first() / pl.col("weight").sum(),
        )
        .filter((pl.col("served").fill_null(1.0) >= SERVED) & (pl.col("share") >= 0.5))
    )
    names = best.select("locale", "intent", "slots").unique().sort("locale", "intent", "slots").with_row_index("key")
    best = best.join(names, on=["locale", "intent", "slots"], how="left", maintain_order="left")
    at = best["i"].to_numpy()
    key[at] = best["key"].to_numpy()
    anchor[at] = best["slots"].str.contains(r':"[^"]').to_numpy()
    return Interpretations(key, anchor, tuple(json.dumps(row) for row in names.select("intent", "slots").iter_rows()))


def number_sets(utterances: list[str]) -> np.ndarray:
    """int64 per text: one number per set of numbers in it (digits of any script, in any order)."""
    numbers: dict[tuple[str, ...], int] = {}
    # int() reads the digits of every script; very long runs stay text (int() has a limit).
    return np.fromiter(
        (
            numbers.setdefault(tuple(sorted(str(int(d)) if len(d) < 20 else d for d in _DIGITS.findall(u))), len(numbers))
            for u in utterances
        ),
        dtype=np.int64,
        count=len(utterances),
    )


@dataclass(frozen=True)
class Similar:
    """Mutual nearest neighbours: texts `left` < `right`, their `cosine`, and P(same goal) read off the locale's curve."""

    left: np.ndarray
    right: np.ndarray
    cosine: np.ndarray
    probability: np.ndarray
    curves: pl.DataFrame  # locale, source (interpretations, asked_again, background, none), cosine, probability, pairs, positives
    locale: np.ndarray  # of each text, as a number
    numbers: np.ndarray  # of each text: `number_sets`
    lookups: dict[int, tuple[np.ndarray, np.ndarray]]  # per number of a locale its curve: cosines, probabilities

    def worth(self, rows: np.ndarray, cosine: np.ndarray) -> np.ndarray:
        """P(same goal) at a cosine, by the curves of the locales of texts `rows`; 0 where the locale has none."""
        out = np.zeros(len(rows))
        for here in np.unique(self.locale[rows]):
            if int(here) in self.lookups:
                at = self.locale[rows] == here
                out[at] = np.interp(cosine[at], *self.lookups[int(here)])
        return out


def mutual_neighbours(
    vectors: np.ndarray, rows: np.ndarray, k: int, seed: int = 0, near: Near | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """(left, right, cosine, recall) of pairs of `rows` that are each among the other's `k` nearest, left < right, sorted; and which
    share of the true nearest a sample found (1 where the search is exact). `near`: the neighbours of `rows`, if they are known."""
    near = near or near_cosine(vectors[rows], k, seed)
    if len(near.indices) != len(rows):
        raise ValueError(f"near: neighbours of {len(near.indices)} rows for {len(rows)} texts with a vector; search them anew")
    indices, cosines = near.indices, near.cosines
    n, width = indices.shape
    there = indices.ravel() >= 0  # where cells were searched, a text may have fewer
    left, right, cosines = np.repeat(np.arange(n), width)[there], indices.ravel()[there], cosines.ravel()[there]
    code = np.minimum(left, right) * n + np.maximum(left, right)
    codes, first, count = np.unique(code, return_index=True, return_counts=True)
    both = count == 2
    codes, first = codes[both], first[both]
    return rows[codes // n], rows[codes % n], cosines[first], near.recall


def similar_pairs(
    texts: pl.DataFrame,
    vectors: np.ndarray | None,
    meaning: Interpretations,
    links: pl.DataFrame,
    k: int = NEIGHBOURS,
    seed: int = 0,
    near: Mapping[str, Near] | None = None,
) -> Similar:
    """Nearest neighbours inside each locale and what their cosine is worth there.

    `vectors`: (n, d) unit rows, a row of zeros or NaN for a text without one; None when nothing is embedded. `links`: i, j,
    mean (of P(asked again) over users). Pairs with different numbers, or that were served different things, are no pairs.
    """
    empty = np.zeros(0, np.int64)
    parts, curves = [], []
    numbers = number_sets(texts["utterance"].to_list())
    code = texts["locale"].rank("dense").cast(pl.Int64).to_numpy() if texts.height else empty
    lookups: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    if vectors is not None and len(vectors):
        there = np.isfinite(vectors[:, 0]) & vectors.any(axis=1)
        locale = texts["locale"].to_numpy()
        edges = np.flatnonzero(np.append(True, locale[1:] != locale[:-1])) if len(locale) else empty
        for start, stop in zip(edges, np.append(edges[1:], len(locale)), strict=True):
            rows = np.arange(start, stop)[there[start:stop]]
            if len(rows) < 2:
                continue
            left, right, cosine, recall = mutual_neighbours(vectors, rows, k, seed, (near or {}).get(locale[start]))
            alike = numbers[left] == numbers[right]
            left, right, cosine = left[alike], right[alike], cosine[alike]
            source, curve = _curve(left, right, cosine, vectors[rows], meaning, links, seed)
            lookups[int(code[start])] = curve["cosine"].to_numpy(), curve["probability"].to_numpy()
            probability = np.interp(cosine, *lookups[int(code[start])])
            curves.append(
                curve.select(pl.lit(locale[start]).alias("locale"), pl.lit(source).alias("source"), pl.all(), recall=pl.lit(recall))
            )
            parts.append((left, right, cosine, probability))
    if not parts:
        return Similar(empty, empty, np.zeros(0), np.zeros(0), pl.DataFrame(schema=_CURVES), code, numbers, {})
    left, right, cosine, probability = (np.concatenate(column) for column in zip(*parts, strict=True))
    keep = ~_against(meaning, left, right)
    return Similar(left[keep], right[keep], cosine[keep], probability[keep], pl.concat(curves), code, numbers, lookups)


CLAIMED, CLAIMS = 9, 10
"""What a lexicon is believed before the log is heard: nine of ten pairs."""


def lexicon_pairs(texts: pl.DataFrame, meaning: Interpretations, lexicon: Rows) -> pl.DataFrame:
    """i < j, lexicon (P(same goal)): texts of a locale that are equal once synonyms are exchanged. The probability is learned per
    locale from those of them that were both served."""
    parts = []
    for (locale,), here in texts.with_row_index("i").group_by("locale", maintain_order=True) if lexicon else ():
        pairs = exchangeable(here["utterance"].to_list(), lexicon, str(locale))
        rows = here["i"].to_numpy().astype(np.int64)
        left, right = rows[[i for i, _ in pairs]], rows[[j for _, j in pairs]]
        judged = (meaning.key[left] >= 0) & (meaning.key[right] >= 0)
        same = (meaning.key[left] == meaning.key[right])[judged]
        worth = (CLAIMED + int(same.sum())) / (CLAIMS + len(same))
        possible = ~_against(meaning, left, right)
        parts.append(pl.DataFrame({"i": left[possible], "j": right[possible]}).with_columns(lexicon=pl.lit(worth)))
    return pl.concat(parts) if parts else pl.DataFrame(schema={"i": pl.Int64, "j": pl.Int64, "lexicon": pl.Float64})


_CURVES = {
    "locale": pl.String,
    "source": pl.String,
    "cosine": pl.Float64,
    "probability": pl.Float64,
    "pairs": pl.Int64,
    "positives": pl.Int64,
    "recall": pl.Float64,  # of the search for neighbours, over a sample
}


def _against(meaning: Interpretations, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return (meaning.key[left] >= 0) & (meaning.key[right] >= 0) & (meaning.key[left] != meaning.key[right])


def _curve(
    left: np.ndarray,
    right: np.ndarray,
    cosine: np.ndarray,
    vectors: np.ndarray,
    meaning: Interpretations,
    links: pl.DataFrame,
    seed: int,
) -> tuple[str, pl.DataFrame]:
    """P(same goal | cosine) of mutual neighbours, from the best reference this locale has.

    1. Neighbours that were both served: the same interpretation or another one.
    2. Neighbours whose users asked again: for a text they share, or for texts apart. Few wordings are ever linked, so
       this reads low, and joins less rather than more.
    3. Nothing but the texts: how much more crowded it is at this cosine than among random pairs.
    """
    judged = (meaning.key[left] >= 0) & (meaning.key[right] >= 0) & (meaning.anchor[left] | meaning.anchor[right])
    curve = isotonic_curve(cosine[judged], (meaning.key[left] == meaning.key[right])[judged])
    if curve is not None:
        return "interpretations", curve
    if len(vectors) < FEWEST_TEXTS:
        return "none", pl.DataFrame({"cosine": [0.0], "probability": [0.0], "pairs": [0], "positives": [0]})
    possible = ~_against(meaning, left, right)
    left, right, cosine = left[possible], right[possible], cosine[possible]
    alone = background(vectors, cosine, seed)
    top = float(np.interp(np.quantile(cosine, 0.975), alone["cosine"], alone["probability"])) if len(cosine) else 0.0
    n = len(meaning.key)
    sure = links.filter(pl.col("mean") >= 0.5)
    if sure.height:
        a, b = sure["i"].to_numpy(), sure["j"].to_numpy()
        from scipy import sparse

        graph = sparse.coo_array((np.ones(2 * len(a)), (np.r_[a, b], np.r_[b, a])), shape=(n, n)).tocsr()
        linked = np.diff(graph.indptr) > 0
        judged = linked[left] & linked[right]
        if judged.sum() >= FEWEST_PAIRS:
            i, j = left[judged], right[judged]
            direct = np.asarray(graph[i, j]).ravel() > 0
            shared = np.asarray(graph[i].multiply(graph[j]).sum(axis=1)).ravel() > 0
            curve = isotonic_curve(cosine[judged], direct | shared)
            if curve is not None:
                # Only a part of what is one goal was ever linked: the part seen where nothing but one goal is left, at the
                # nearest neighbours (Elkan & Noto 2008, learning from positive and unlabelled examples).
                seen = float(curve["probability"][-1])
                return "asked_again", curve.with_columns(probability=(pl.col("probability") / seen * top).clip(0, 1))
    return "background", alone


def isotonic_curve(cosine: np.ndarray, same: np.ndarray) -> pl.DataFrame | None:
    """Monotone regression, read at the middles of 20 equally filled bins; None with too few pairs to say."""
    if len(same) < FEWEST_PAIRS or same.sum() < FEWEST_POSITIVES:
        return None
    from scipy.optimize import isotonic_regression

    order = np.lexsort((same, cosine))
    bins = [b for b in np.array_split(order, min(20, len(order) // 25)) if len(b)]
    pairs = np.array([len(b) for b in bins])
    positives = np.array([int(same[b].sum()) for b in bins])
    middle = np.array([float(np.median(cosine[b])) for b in bins])
    # One half of a pair of each kind: a bin of 25 with no failure is not a certainty.
    probability = isotonic_regression((positives + 0.5) / (pairs + 1), weights=pairs).x
    return pl.DataFrame({"cosine": middle, "probability": probability, "pairs": pairs, "positives": positives})
