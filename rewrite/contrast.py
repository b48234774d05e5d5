"""How much more alike two turns are than what others say in the same place: what tells asking again from dialogue grammar.

The place of a turn is the reply to it; where there is none, the intent, or else its own text.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from rewrite.pairs import Texts, cosines
from rewrite.text import coded

PLACES = 30
"""Pairs of other users, after the most similar replies, that a pair must outdo: one chance in 30. 8 to 100 do as well."""
POOL_PAIRS = 2000
"""Pairs that PLACES are looked for among; measured, more change nothing."""
_BLOCK = 4000  # rows of a dense table at a time


def beyond_places(first: pl.DataFrame, texts: Texts, a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How much more alike the pairs (a, b) of `texts` are than a is to the most alike of the second texts of PLACES other
    users' pairs whose first turn was in the most similar place: shape (n,), 0..1. `first`: the first turn of each pair.

    Places and texts repeat: what depends on them alone is worked out once for each that is distinct.
    """
    n = len(a)
    cosine = cosines(texts.vectors[a], texts.vectors[b])
    pool = np.sort(rng.choice(n, min(POOL_PAIRS, n), replace=False))
    if len(pool) <= PLACES:
        return cosine
    first = first.select("user_key", place=pl.coalesce(pl.col("response").str.to_lowercase(), "intent", "key"))
    user = first["user_key"].rank("dense").to_numpy()
    distinct, place = coded(first["place"].str.replace_all(r"\s+", " "))
    vectors = texts.stats.vectors(distinct.to_list())
    places, seconds = vectors[place[pool]].T.tocsr(), texts.vectors[b[pool]].T.tocsr()
    ties = rng.random(len(pool)) * 1e-3
    # as many more than PLACES as one user may have there: enough of anybody else's are left
    within = min(len(pool), PLACES + int(np.unique(user[pool], return_counts=True)[1].max()))
    nearest = np.empty((len(distinct), within), np.int32)
    for s in range(0, len(distinct), _BLOCK):
        far = -((vectors[s : s + _BLOCK] @ places).toarray() + ties)
        some = np.argpartition(far, within - 1, axis=1)[:, :within]
        nearest[s : s + _BLOCK] = np.take_along_axis(some, np.argsort(np.take_along_axis(far, some, axis=1), axis=1), axis=1)
    most, by_text = np.empty(n), np.argsort(a, kind="stable")
    for s in range(0, n, _BLOCK):
        rows = by_text[s : s + _BLOCK]
        said, at = np.unique(a[rows], return_inverse=True)
        alike = (texts.vectors[said] @ seconds).toarray()
        near = nearest[place[rows]]
        others = np.argsort(user[pool[near]] == user[rows][:, None], axis=1, kind="stable")[:, :PLACES]
        most[rows] = alike[at[:, None], np.take_along_axis(near, others, axis=1)].max(axis=1)
    return np.maximum(cosine - most, 0.0)
