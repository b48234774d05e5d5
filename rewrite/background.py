"""P(same goal | cosine) of a list of texts with nothing but the texts: no behaviour, no interpretations.

The scale of likeness is how near the nearest text of the same goal usually is. Nobody says which goal a text has, so it is read off the
nearest one among a sample of the list, and the size of the sample is learned from the list.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from rewrite.neighbours import BLOCK, random_cosines, sample_rows, search

RANDOM_PAIRS = 20_000

THINNED, ASKED = 500, 4_000
"""Texts among which the nearest one is looked for (more where `crowded` says so), and texts for which, when its usual cosine sets the
scale of likeness. Among all texts the nearest is ever nearer the more there are (misheard and misspelt copies), and a list of 50,000
would fall into fifteen thousand goals. Lists in 20 languages (mean, median B-cubed F1) and 50,000 texts of the simulator (adjusted Rand
index; .171 by community_detection): among all .669, .696, .077; 1,000 .675, .696, .152; 700 .677, .699, .166; 500 .677, .695, .175; 250
.665, .674, .191. The three longest lists gain most (ko .728 to .810, de .452 to .501, nl .598 to .620)."""

CUT = 0.8
"""Part of the way from a random pair to the nearest text at which two unknown clusters join, see `background`."""

COUNTED = 1_000
"""Texts whose crowd is counted: over three draws the mean moves by a twentieth."""

FIRST = 1 / 8
"""The smallest sample counted, as a share of `THINNED`: crowds that thin out at the very start are seen to have been there."""

THINNER = 1.1
"""How many times a crowd must shrink to be one that thinned out: by chance it was up to 1.07 times in lists and logs of eight languages, and
where goals are sparse 1.16 to 2."""


def background(vectors: np.ndarray, cosine: np.ndarray, seed: int) -> pl.DataFrame:
    """cosine (a grid), probability, pairs, positives (0): the way from a random pair (0) to a text's nearest one (1), squared.

    `vectors`: float32 (n, d) unit rows; `cosine`: of the pairs that are to be judged. The nearest one is of one goal more often than not
    where most goals have two wordings in the sample. Where they do not, chance alone explains a cosine, and no more is believed than
    1 - (expected chance neighbours at least this near) / (seen), chance being a normal fitted to random pairs. The way has no scale of
    a model or a language left; squared, it puts the least probability of two unknown clusters at four fifths of the way, where average
    linkage agreed best with lists of wordings in 19 languages (of the fast model and the wide one; mean F1 .672, .665 at .75, .664 at
    .85). What would choose the cut anew in each list (the best silhouette; agreement with a tree of character n-grams) chose worse in
    most. Likeness made of more than the cosine did not hold in all lists either: n-grams or words mixed in, profiles against landmarks
    (mean F1 up by .005 in 15 lists of commands, down by .05 in one of paraphrases), CSLS, whitening, two models at once. One word
    exchanged for another is one goal in .08 to .72 of the pairs, by language: nothing to set for all. A ranking made comparable, not a
    frequency.
    """
    from scipy.special import ndtr

    texts = len(vectors)
    random = random_cosines(vectors, RANDOM_PAIRS, seed)
    centre = float(np.median(random))
    spread = 1.4826 * float(np.median(np.abs(random - centre)))  # robust: some random pairs are of one goal
    nearest = nearest_of_sample(vectors, sample_size(vectors, centre, seed), seed)
    grid = np.linspace(-1, 1, 201)
    seen = (cosine[None, :] >= grid[:, None]).sum(axis=1)
    chance = texts * (texts - 1) / 2 * ndtr((centre - grid) / max(spread, 1e-3))
    crowded = np.clip(1 - (chance + 0.5) / (seen + 1), 0, 1)
    way = (grid - centre) / max(float(np.median(nearest)) - centre, 1e-3)
    probability = np.maximum.accumulate(np.minimum(crowded, np.clip(way, 0, 1) ** 2))
    zero = np.zeros(len(grid), np.int64)
    return pl.DataFrame({"cosine": grid, "probability": probability, "pairs": seen.astype(np.int64), "positives": zero})


def nearest_of_sample(vectors: np.ndarray, size: int, seed: int) -> np.ndarray:
    """The cosines of up to `ASKED` texts to the nearest of a sample of `size`."""
    kept, asked = (sample_rows(len(vectors), n, seed) for n in (size, ASKED))
    _, cosines = search(vectors[asked].astype(np.float32), asked, vectors[kept].astype(np.float32), kept, 1)
    return cosines[:, 0]


def sample_size(vectors: np.ndarray, centre: float, seed: int) -> int:
    """How many texts to look for the nearest one among: `THINNED`, or more where that many hold hardly two of one goal.

    In a sample with none of its goal, a text's nearest is one of a crowd about as near: other goals of its subject. While the sample
    grows, the crowd does too, until the sample holds one of its own goal: that one is nearer than the crowd, which falls behind the cut.
    From there on texts of its goal crowd it. So the best size is where the crowd has shrunk most from what it was in a smaller sample,
    and that is about one text of each goal (made-up lists of 3, 10, 14 and 50 texts a goal: 2 to 3, 1 to 2, 1 to 2 and 1). Where it never
    shrinks, nothing in the list says more than `THINNED` does.
    """
    if len(vectors) <= THINNED:
        return len(vectors)
    sizes, crowd = crowds(vectors, centre, seed)
    shrunk = np.where(sizes >= THINNED, np.maximum.accumulate(crowd) / np.maximum(crowd, 1 / COUNTED), 0)
    best = int(shrunk.argmax())
    return int(sizes[best]) if shrunk[best] > THINNER else THINNED


def crowds(vectors: np.ndarray, centre: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(sizes, mean crowd): for samples of doubling size, each within the next, how many of the sample lie nearer to a text than the cut.

    The cut is `CUT` of the way from `centre`, the cosine of a random pair, to the usual nearest of the sample. As that never falls, what
    lies behind one cut need not be kept for the next.
    """
    n = len(vectors)
    sizes = np.append(THINNED * FIRST * 2.0 ** np.arange(np.log2(n / (THINNED * FIRST))), n).astype(int)
    order = np.random.default_rng(seed).permutation(n)
    asked = sample_rows(n, COUNTED, seed + 1)
    queries = vectors[asked].astype(np.float32)
    own = np.full(n, -1)
    own[asked] = np.arange(len(asked))
    nearest, cut = np.full(len(asked), -1.0), -2.0
    near, crowd = np.zeros(0, np.float32), np.zeros(len(sizes))
    block = BLOCK // COUNTED
    for i, (start, stop) in enumerate(zip(np.append(0, sizes[:-1]), sizes, strict=True)):
        for at in range(start, stop, block):
            rows = order[at : min(at + block, stop)]
            cosine = queries @ vectors[rows].astype(np.float32).T
            itself = np.flatnonzero(own[rows] >= 0)
            cosine[own[rows][itself], itself] = -1
            # To 5 digits, so that what this machine does with the last bits decides nothing.
            nearest = np.maximum(nearest, np.round(cosine.max(axis=1), 5))
            cut = max(cut, centre + CUT * (float(np.median(nearest)) - centre))
            near = np.append(near, np.round(cosine[cosine >= cut - 1e-5], 5))
        near = near[near >= cut]
        crowd[i] = len(near) / len(asked)
    return sizes, crowd
