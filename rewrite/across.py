"""Goals across languages: which cluster of one locale means what a cluster of another one means.

Two clusters meet when each is the other's nearest in the space of one model, after the mean of its locale is taken away
(languages lie apart in every multilingual model), and when those as near as that were mostly served the same: one intent, with
slots of the same names and the same numbers in them. Who was served something else never meets, and where a log cannot tell
(too few clusters that were served, or no intents at all), no locales meet: the nearest of unrelated texts is too often as near as
a translation (measured: right in .47 to .66 of the cases), and a random pair does not tell the two apart. Where one of two locales
has no intents, a language just launched, the wordings of its clusters must agree with each other on what they are near to; and the model
must have been taught both languages: where it reads names and letters alone, wordings agree on what is wrong (Swahili without intents
beside English: .58 of 80 labels right, stated as .85). A goal holds at most one cluster of every locale: whatever is wrong here, the goals inside a locale stay as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from rewrite.goal_evidence import isotonic_curve
from rewrite.lexicon import Rows, lexical, translations

SURE = 0.7
"""Probability from which two clusters of two locales are one goal. Measured on simulated logs, en-de-ja: pairs just below it are
right half of the time, pairs at .70 to .75 four times in five, above that more."""

BLOCK = 2048
"""Clusters compared at a time: similarities against 100,000 others are 800 MB."""

LEXICON_SHARES = (0.1, 0.2, 0.4)
"""How much of the likeness of two clusters the lexicon may be. The share that joins most of what was served the same is taken,
none if it joins no more: measured on the log, per pair of locales."""

LINKS = {"i": pl.Int64, "j": pl.Int64, "similarity": pl.Float64, "probability": pl.Float64, "same_interpretation": pl.Float64}


def meaning_name(intent: str | None, slots: str | None) -> str | None:
    """What a served interpretation says in every language: its intent, the names of its slots, the numbers in them."""
    if intent is None:
        return None
    values = json.loads(slots or "{}")
    numbers = sorted(str(int(d)) for v in values.values() for d in re.findall(r"\d{1,18}", str(v)))
    return json.dumps([intent, sorted(k for k, v in values.items() if str(v)), numbers], ensure_ascii=False)


def join_locales(
    locale: np.ndarray,
    cluster: np.ndarray,
    weight: np.ndarray,
    vectors: np.ndarray,
    model: Sequence[str | None],
    meaning: Sequence[str | None],
    utterances: Sequence[str] = (),
    lexicon: Rows = (),
    untaught: Collection[str] = (),
) -> tuple[np.ndarray, pl.DataFrame]:
    """(cluster of each text, clusters of several locales joined; the links that joined them, i < j rows of texts, sorted).

    Per text, sorted by locale: `cluster`, named by its first row; `weight` (users); `vectors`, unit rows (n, d), zeros where
    there is none; `model` that made the row; `meaning` (`meaning_name`) of what is reliably served for it, None if unknown.
    `lexicon`: what words of two locales say the same, looked for in `utterances` (one per row when there is a lexicon).
    `untaught`: locales whose language their model was not taught.
    """
    there = vectors.any(axis=1)
    names = np.array([m or "" for m in model], dtype=object)
    found = []
    for name in sorted(set(names[there])):
        sides = {
            str(lo): _clusters(np.flatnonzero(there & (names == name) & (locale == lo)), cluster, weight, vectors, meaning)
            for lo in sorted(set(locale[there & (names == name)]))
        }
        halves = {lo: _halves(np.flatnonzero(there & (names == name) & (locale == lo)), cluster, vectors) for lo in sides}
        order = list(sides)
        for n, one in enumerate(order):
            for two in order[n + 1 :]:
                words = _words(sides[one], sides[two], utterances, translations(lexicon, one, two)) if lexicon else None
                found += _meet(sides[one], sides[two], halves[one], halves[two], words, not {one, two} & set(untaught))
    found.sort(key=lambda f: (-f[2], f[0], f[1]))
    into: dict[int, int] = {}
    held: dict[int, set[str]] = {}

    def root(c: int) -> int:
        while (up := into.get(c, c)) != c:
            c = up
        return c

    kept = []
    for a, b, probability, cosine, same in found:
        x, y = root(a), root(b)
        in_x, in_y = held.setdefault(x, {str(locale[x])}), held.setdefault(y, {str(locale[y])})
        if x == y or not in_x & in_y:
            kept.append((min(a, b), max(a, b), cosine, probability, same))
        if x != y and not in_x & in_y:
            into[max(x, y)] = min(x, y)
            held[min(x, y)] = in_x | in_y
    distinct, inverse = np.unique(cluster, return_inverse=True)
    joined = np.array([root(int(c)) for c in distinct], dtype=np.int64)[inverse] if len(cluster) else cluster
    return joined, pl.DataFrame(kept, schema=LINKS, orient="row").sort("i", "j")


@dataclass(frozen=True)
class Side:
    """The clusters of one locale that one model read."""

    numbers: np.ndarray  # of the clusters
    means: np.ndarray  # (m, d) unit rows
    meanings: np.ndarray
    rows: np.ndarray  # of texts
    at: np.ndarray  # per text its cluster, as an index of `numbers`
    weights: np.ndarray  # per text

    def mean(self, vectors: np.ndarray) -> np.ndarray:
        """(m, d): the mean of a vector per text, by weight."""
        means = np.zeros((len(self.numbers), vectors.shape[1]))
        np.add.at(means, self.at, vectors * self.weights[:, None])
        return means / np.bincount(self.at, self.weights)[:, None]


def _unit(means: np.ndarray) -> np.ndarray:
    return (means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def _clusters(rows: np.ndarray, cluster: np.ndarray, weight: np.ndarray, vectors: np.ndarray, meaning: Sequence[str | None]) -> Side:
    """One point per cluster of a locale: the mean of its texts, without the mean of the locale; what most of its users were served."""
    numbers, at = np.unique(cluster[rows], return_inverse=True)
    weights = np.maximum(weight[rows], 1).astype(np.float64)
    votes: list[dict[str, float]] = [{} for _ in numbers]
    for c, w, row in zip(at, weights, rows, strict=True):
        if (name := meaning[row]) is not None:
            votes[c][name] = votes[c].get(name, 0.0) + w
    most = [max(sorted(v), key=v.__getitem__) if v else "" for v in votes]
    side = Side(numbers, np.zeros(0), np.array(most, dtype=object), rows, at, weights)
    means = side.mean(vectors[rows])
    return replace(side, means=_unit(means - means.mean(axis=0)))


def _halves(rows: np.ndarray, cluster: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """(clusters of two texts or more, 2, d): the unit means of every other text of a cluster, without the mean of the locale."""
    if not len(rows):
        return np.zeros((0, 2, vectors.shape[1]), np.float32)
    order = rows[np.argsort(cluster[rows], kind="stable")]
    _, first, at, count = np.unique(cluster[order], return_index=True, return_inverse=True, return_counts=True)
    half = 2 * at + (np.arange(len(order)) - first[at]) % 2
    sums = np.zeros((2 * len(count), vectors.shape[1]))
    np.add.at(sums, half, vectors[order])
    means = (sums / np.maximum(np.bincount(half, minlength=len(sums)), 1)[:, None]).reshape(len(count), 2, -1)
    means = means[count > 1] - vectors[order].mean(axis=0, dtype=np.float64)
    return (means / np.maximum(np.linalg.norm(means, axis=2, keepdims=True), 1e-12)).astype(np.float32)


def _by_wordings(halves: np.ndarray, known: Side, ids: np.ndarray) -> pl.DataFrame | None:
    """Probability over cosine for a locale that was served nothing known: how often two halves of a cluster's wordings, each
    by itself, are nearest to one meaning of the other locale. Both must be right for that (or wrong alike), so the share
    says less than one wording's probability, never more by chance. None where too few can be asked."""
    there = np.flatnonzero(ids >= 0)
    if not len(halves) or not len(there):
        return None
    none = np.full(len(halves), -1)
    (to_a, cosine_a), (to_b, cosine_b) = (_nearest(halves[:, n], known.means[there], none, np.full(len(there), -1)) for n in (0, 1))
    return isotonic_curve(np.minimum(cosine_a, cosine_b), ids[there][to_a] == ids[there][to_b])


def _words(left: Side, right: Side, utterances: Sequence[str], known: dict[str, tuple[str, ...]]) -> tuple[np.ndarray, np.ndarray] | None:
    """Both sides by the words that the lexicon translates, in words of the right one; None where it has none of these locales."""
    if not known:
        return None
    own: dict[str, tuple[str, ...]] = {phrase: (phrase,) for phrases in known.values() for phrase in phrases}
    sides = ((left, known), (right, own))
    a, b = (_unit(side.mean(lexical([utterances[r] for r in side.rows.tolist()], phrases))) for side, phrases in sides)
    return a, b


def _meet(
    left: Side,
    right: Side,
    left_halves: np.ndarray,
    right_halves: np.ndarray,
    words: tuple[np.ndarray, np.ndarray] | None = None,
    taught: bool = True,
) -> list[tuple[int, int, float, float, float | None]]:
    """(cluster, cluster, probability, cosine, same interpretation) of clusters of two locales that are each other's nearest."""
    ids = {name: n for n, name in enumerate(sorted({*left.meanings, *right.meanings} - {""}))}
    of_a, of_b = (np.array([ids.get(name, -1) for name in side.meanings]) for side in (left, right))
    points, most, curve = (left.means, right.means), -1, None
    for share in (0.0, *(LEXICON_SHARES if words else ())):
        here = (left.means, right.means)
        if words and share:
            here = _blend(left.means, words[0], share), _blend(right.means, words[1], share)
        a, b, cosine = _mutual(*here, np.full(len(of_a), -1), np.full(len(of_b), -1))
        judged = (of_a[a] >= 0) & (of_b[b] >= 0)
        same = of_a[a[judged]] == of_b[b[judged]]
        found = isotonic_curve(cosine[judged], same)
        sure = np.interp(cosine[judged], found["cosine"], found["probability"]) >= SURE if found is not None else np.zeros(len(same), bool)
        right_ones = 2 * int(same[sure].sum()) - int(sure.sum())  # of those that would be joined, the right less the wrong
        if right_ones > most or curve is None:
            points, most, curve = here, right_ones, found
    if curve is None and taught and (of_a < 0).all() != (of_b < 0).all():  # one of them, a language just launched, has no intents
        points = left.means, right.means
        curve = _by_wordings(left_halves, right, of_b) if (of_a < 0).all() else _by_wordings(right_halves, left, of_a)
    if curve is None:
        return []
    a, b, cosine = _mutual(*points, of_a, of_b)
    # How often those who are nearest by their texts alone were served the same.
    probability = np.round(np.interp(cosine, curve["cosine"], curve["probability"]), 6)
    keep = np.flatnonzero(probability >= SURE)
    known = (of_a[a] >= 0) & (of_b[b] >= 0)
    return [
        (int(left.numbers[a[k]]), int(right.numbers[b[k]]), float(probability[k]), float(cosine[k]), 1.0 if known[k] else None)
        for k in keep.tolist()
    ]


def _blend(means: np.ndarray, words: np.ndarray, share: float) -> np.ndarray:
    """Points whose cosine is (1 - share) of that of the means and `share` of that of the words."""
    return np.hstack([means * np.float32(np.sqrt(1 - share)), words * np.float32(np.sqrt(share))])


def _mutual(a: np.ndarray, b: np.ndarray, of_a: np.ndarray, of_b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows of a, rows of b, cosine) that are each other's nearest."""
    to, cosine = _nearest(a, b, of_a, of_b)
    back, _ = _nearest(b, a, of_b, of_a)
    at = np.flatnonzero(to >= 0)
    at = at[back[to[at]] == at]
    return at, to[at], cosine[at]


def _nearest(a: np.ndarray, b: np.ndarray, of_a: np.ndarray, of_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row of b nearest to each row of a, -1 if none may be; the cosine, to 5 digits). Known meanings meet their like alone."""
    to, best = np.full(len(a), -1), np.full(len(a), -1.0)
    for start in range(0, len(a), BLOCK):
        cosine = np.round(a[start : start + BLOCK] @ b.T, 5)
        mine = of_a[start : start + BLOCK, None]
        cosine[(mine != of_b) & (mine >= 0) & (of_b >= 0)] = -2
        at = cosine.argmax(axis=1)
        value = cosine[np.arange(len(at)), at]
        to[start : start + BLOCK] = np.where(value > -2, at, -1)
        best[start : start + BLOCK] = value
    return to, best
