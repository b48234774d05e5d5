"""Is a text served? One vote per user, pooled into a success rate per text.

Every user's vote is a probability v that this user's turn was served, judged from its own session. A text has an unknown
rate theta; a user's vote multiplies the likelihood of theta by  theta v/p + (1-theta) (1-v)/(1-p),  p being the mean vote
of the locale. Theta lives on a grid whose weights are learned per locale by EM (the nonparametric maximum likelihood of
Kiefer & Wolfowitz 1956, Laird 1978), so texts that always work, never work, or work half the time each find their
place without a threshold; thin locales lean on all locales together. In the same EM the votes are calibrated against
each other: what users agree on says how much a vote of .3 is worth (Dawid & Skene 1979, kept monotone, and anchored at
the value that was given). Averaging outcomes instead is less sharp, because each single vote is weak.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy import sparse

LOGIT_STEP = 0.25
LOGIT_BINS = 20
"""Votes are binned by log odds in steps of 1/4, from -5 to +5 (.7 % to 99.3 %): whole user counts per bin add up exactly,
in any order, and no single vote can say more than e^5 to 1."""

GRID = np.array([0.02, 0.06, 0.12, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.88, 0.94, 0.98])
"""Success rates a text may have. The ends stay off 0 and 1: nothing works, or fails, for everyone."""

PRIOR_TEXTS = 20.0
"""A locale's weights count as much as those of all locales together when it has this many texts."""

ANCHOR_VOTES = 50.0
"""The given value of a vote counts as much as what users agree on when a bin holds this many votes."""


def vote_bin(value: pl.Expr) -> pl.Expr:
    """Bin -20..20 (Int8) of a probability, by its log odds."""
    edge = 1 / (1 + np.exp(LOGIT_STEP * LOGIT_BINS))
    v = value.clip(edge, 1 - edge)
    return ((v / (1 - v)).log() / LOGIT_STEP).round().cast(pl.Int8)


def bin_value(bins: np.ndarray) -> np.ndarray:
    """The probability at the middle of each bin."""
    return 1 / (1 + np.exp(-LOGIT_STEP * bins.astype(np.float64)))


_VALUES = bin_value(np.arange(-LOGIT_BINS, LOGIT_BINS + 1))


@dataclass(frozen=True)
class Curve:
    """What a vote says: P(served | bin), per bin; the mean vote; the weights of the grid of rates."""

    value: np.ndarray
    base: float
    weight: np.ndarray

    def likelihood(self) -> np.ndarray:
        """(bins, grid): how much a vote in this bin multiplies the likelihood of a rate."""
        return np.outer(self.value / self.base, GRID) + np.outer((1 - self.value) / (1 - self.base), 1 - GRID)


@dataclass(frozen=True)
class Pooled:
    """Posterior of each item's success rate: `posterior` is items x grid, rows sum to 1. `curves`: one per group."""

    posterior: np.ndarray
    curves: tuple[Curve, ...]

    @property
    def mean(self) -> np.ndarray:
        return self.posterior @ GRID

    def quantile(self, level: float) -> np.ndarray:
        """The smallest rate of the grid with at least `level` of the posterior at or below it, per item."""
        return GRID[np.minimum((self.posterior.cumsum(axis=1) < level).sum(axis=1), len(GRID) - 1)]

    def below(self, rate: float | np.ndarray) -> np.ndarray:
        """P(theta < rate) per item; one rate, or one per item."""
        return (self.posterior * (np.reshape(rate, (-1, 1)) > GRID)).sum(axis=1)


def pool(
    item: np.ndarray, bins: np.ndarray, users: np.ndarray, group: np.ndarray, curves: tuple[Curve, ...] | None = None, rounds: int = 40
) -> Pooled:
    """Pool binned votes into a posterior per item.

    item, bins, users: parallel arrays, `users` people cast a vote in `bins` for `item`. group: the group (locale, dense
    from 0) of every item, which also says how many items there are; an item nobody voted for gets its group's weights.
    curves: what a vote says per group, learned elsewhere (rewritten turns are read with the curves of untouched ones);
    then only the weights of the rates are learned.
    """
    n = len(group)
    groups = int(group.max()) + 1 if n else 0
    shape = (n, len(_VALUES))
    counts = sparse.csr_matrix((users.astype(np.float64), (item, bins.astype(np.int64) + LOGIT_BINS)), shape=shape)
    posterior = np.full((n, len(GRID)), 1 / len(GRID))
    flat = np.full(len(GRID), 1 / len(GRID))
    _, everywhere = _fit(counts, flat, 1.0, None, rounds)
    found = []
    for g in range(groups):
        mine = np.flatnonzero(group == g)
        posterior[mine], curve = _fit(counts[mine], everywhere.weight, PRIOR_TEXTS, None if curves is None else curves[g], rounds)
        found.append(curve)
    return Pooled(posterior, tuple(found))


def _fit(counts: sparse.csr_matrix, prior: np.ndarray, strength: float, given: Curve | None, rounds: int) -> tuple[np.ndarray, Curve]:
    # most texts have one of few sets of votes: each set is judged once
    sets, of, texts = np.unique(counts.toarray(), axis=0, return_inverse=True, return_counts=True)
    voters = sets.sum(axis=1)
    votes, some, shared = texts @ sets, texts * (voters > 0), texts * (voters >= 2)  # one user alone says nothing about agreement
    if given is None:  # one imaginary user on either side keeps the base off 0 and 1
        curve = Curve(_VALUES, float((votes @ _VALUES + 1) / (votes.sum() + 2)), prior)
    else:
        curve = Curve(given.value, given.base, prior)
    posterior = np.tile(prior, (len(sets), 1))
    for _ in range(rounds):
        each = curve.likelihood()
        log = sets @ np.log(each)
        posterior = np.exp(log - log.max(axis=1, keepdims=True)) * curve.weight if len(log) else posterior
        posterior /= posterior.sum(axis=1, keepdims=True)
        weight = (some @ posterior + strength * prior) / (some.sum() + strength)
        if given is not None:
            curve = Curve(curve.value, curve.base, weight)
            continue
        where = (sets * shared[:, None]).T @ posterior  # (bins, grid): at which rates are the votes of a bin found?
        served = np.outer(curve.value / curve.base, GRID) / each
        total = where.sum(axis=1)
        value = ((where * served).sum(axis=1) + ANCHOR_VOTES * _VALUES) / (total + ANCHOR_VOTES)
        value = np.clip(_monotone(value, total + 1e-6), _VALUES[0], _VALUES[-1])
        curve = Curve(value, float((votes @ value + 1) / (votes.sum() + 2)), weight)
    return posterior[of.ravel()], curve


def _monotone(value: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Least-squares non-decreasing fit (pool adjacent violators)."""
    blocks: list[list[float]] = []
    for v, w in zip(value, weight, strict=True):
        blocks.append([v, w, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            v2, w2, n2 = blocks.pop()
            v1, w1, n1 = blocks.pop()
            blocks.append([(v1 * w1 + v2 * w2) / (w1 + w2), w1 + w2, n1 + n2])
    return np.repeat([b[0] for b in blocks], [int(b[2]) for b in blocks])
