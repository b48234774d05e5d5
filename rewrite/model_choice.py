"""Which encoder reads a language: measured on the log itself, without labels.

A pair that was confidently asked again is one goal; its first side with the other side of another pair is, nearly always,
two. An encoder is as good as it tells the first kind from the second. The plain AUC is near 1 for anything that reads
letters; what decides about neighbours is the far end, so encoders are chosen by the partial AUC there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FAR_END = 0.01
"""Share of random pairs that may lie above a true one: a text has 10 neighbours among 1,000 and more."""

FEWEST_PAIRS = 30
"""With fewer pairs the difference of two encoders is within chance, and reading decides."""

READS = 0.9
"""Share of known tokens from which a model reads a language. Measured: 1 where it was trained on it, .6 and less elsewhere."""

SURE = 2.0
"""A dearer model must win by so many standard errors (of the paired difference): about one chance in forty of a vain choice."""


@dataclass(frozen=True)
class Separation:
    """How well an encoder tells asked-again pairs from random ones: `auc`, and `far` (each pair's share of the partial AUC)."""

    auc: float
    far: np.ndarray


def separation(left: np.ndarray, right: np.ndarray) -> Separation:
    """`left`, `right`: unit rows (n, d) of the two sides of n asked-again pairs, n > 1; every other combination is a random pair."""
    cosine = np.asarray(left, np.float32) @ np.asarray(right, np.float32).T
    cosine = np.round(cosine.astype(np.float64), 5)  # what BLAS does with the last bits is no difference
    true = np.diag(cosine)
    random = np.sort(cosine[~np.eye(len(cosine), dtype=bool)])
    above = len(random) - (np.searchsorted(random, true, "left") + np.searchsorted(random, true, "right")) / 2
    above = above / len(random)
    return Separation(float(1 - above.mean()), np.clip(1 - above / FAR_END, 0, 1))


def choose(measured: Sequence[tuple[str, Separation | None, float]], last: str) -> tuple[str, str]:
    """(the encoder, why).

    `measured`: (name, separation, share of tokens it reads) per encoder, in the order of their cost. The first one is taken unless a
    later one is surely better than the best before it, so that nobody pays for a tie. With too few pairs to tell: the first one that
    reads the language, `last` (n-grams: they read anything and know nothing) only after all others.
    """
    found = [s for _, s, _ in measured]
    if any(s is None or len(s.far) < FEWEST_PAIRS for s in found):
        ordered = sorted(measured, key=lambda m: m[0] == last)
        name = next(name for name, _, reads in ordered if reads >= READS)
        return name, "too few asked-again pairs; the first model that reads the language"
    best = 0
    for i in range(1, len(measured)):
        a, b = found[i], found[best]
        assert a is not None and b is not None
        gain = a.far - b.far
        if gain.mean() > SURE * max(float(gain.std()), 1e-9) / np.sqrt(len(gain)):
            best = i
    return measured[best][0], "separates asked-again pairs best" if best else "no other one separates asked-again pairs surely better"
