"""Monotone step functions learned in bins, and log odds: the small parts that the detectors share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LIMIT = 6.0
"""No single curve says more than e^6 : 1."""
_BINS = 25


@dataclass(frozen=True)
class Curve:
    """value[i] holds below edges[i], the last value above all edges; a missing x has value 0 (no evidence)."""

    edges: tuple[float, ...] = ()
    values: tuple[float, ...] = (0.0,)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        at = np.searchsorted(np.asarray(self.edges), x, side="right")
        return np.where(np.isnan(x), 0.0, np.asarray(self.values)[at])


def fit_curve(x: np.ndarray, q: np.ndarray, rising: bool, weight: np.ndarray | None = None) -> Curve:
    """Log likelihood ratio of x from E[q | x], in bins of equal mass, made monotone (pool adjacent violators)."""
    weight = np.ones(len(x)) if weight is None else weight
    edges = np.unique(np.quantile(x, np.linspace(0, 1, _BINS + 1)[1:-1]))
    at = np.searchsorted(edges, x, side="right")
    mass = np.bincount(at, weight, len(edges) + 1)
    mean = float((q * weight).sum() / weight.sum())
    value = (np.bincount(at, q * weight, len(edges) + 1) + mean) / (mass + 1.0)
    value = monotone(value, mass) if rising else -monotone(-value, mass)
    llr = np.clip(logit(value) - logit(mean), -LIMIT, LIMIT)
    return Curve(tuple(edges.tolist()), tuple(llr.tolist()))


def monotone(value: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Pool adjacent violators: the nearest non-decreasing sequence in weighted squares."""
    blocks: list[list[float]] = []
    for v, w in zip(value, np.maximum(weight, 1e-9), strict=True):
        blocks.append([v, w, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            b = blocks.pop()
            a = blocks[-1]
            blocks[-1] = [(a[0] * a[1] + b[0] * b[1]) / (a[1] + b[1]), a[1] + b[1], a[2] + b[2]]
    return np.concatenate([np.full(int(n), v) for v, _, n in blocks])


def logit(p):
    """Log odds, of numbers or arrays; 0 and 1 are taken as a millionth from the edge."""
    p = np.clip(p, 1e-6, 1 - 1e-6)
    return np.log(p) - np.log1p(-p)


def sigmoid(z):
    return 1.0 / (1.0 + np.exp(-np.clip(z, -30, 30)))
