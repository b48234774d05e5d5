"""Exact nearest neighbours by cosine, in blocks: no index to train, no recall to wonder about, ties always the same way."""

from __future__ import annotations

import numpy as np

SMALL = 2000
"""Fewer texts are not worth the import of torch."""

BLOCK = 1024
"""Query rows at a time: a block of similarities against 100,000 texts is 400 MB in float32."""


def top_cosine(vectors: np.ndarray, k: int, block: int = BLOCK) -> tuple[np.ndarray, np.ndarray]:
    """The `k` rows nearest to every row, itself left out.

    `vectors`: (n, d) unit rows of any float type. Returns (indices int64 (n, k'), cosines float32 (n, k')) with
    k' = min(k, n - 1), nearest first; equal cosines in the order of the index. Cosines are rounded to 1e-5, so that what
    BLAS does with the last bits on another machine does not decide the order. Quadratic: about 10 s for 50,000 rows of 512.
    """
    n = len(vectors)
    k = max(min(k, n - 1), 0)
    if k == 0:
        return np.zeros((n, 0), np.int64), np.zeros((n, 0), np.float32)
    table = np.ascontiguousarray(vectors, dtype=np.float32)
    spare = min(k + 8, n)  # itself, and room for ties at the end of the list
    indices, cosines = np.empty((n, k), np.int64), np.empty((n, k), np.float32)
    for start in range(0, n, block):
        similarities = table[start : start + block] @ table.T
        rows = np.arange(len(similarities))
        similarities[rows, start + rows] = -2.0
        index = _largest(similarities, spare)
        value = np.round(np.take_along_axis(similarities, index, axis=1), 5)
        order = np.lexsort((index, -value))[:, :k]
        indices[start : start + block] = np.take_along_axis(index, order, axis=1)
        cosines[start : start + block] = np.take_along_axis(value, order, axis=1)
    return indices, np.clip(cosines, -1, 1)


def random_cosines(vectors: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """float32 cosines of `count` random pairs of different rows: what unrelated texts look like to this model. Seeded."""
    n = len(vectors)
    if n < 2:
        return np.zeros(0, np.float32)
    rng = np.random.default_rng(seed)
    left = rng.integers(0, n, count)
    right = (left + rng.integers(1, n, count)) % n
    return np.einsum("ij,ij->i", vectors[left].astype(np.float32), vectors[right].astype(np.float32))


def _largest(block: np.ndarray, k: int) -> np.ndarray:
    """Columns of the `k` largest values of every row, in any order."""
    if block.shape[1] < SMALL:
        return np.argpartition(-block, k - 1, axis=1)[:, :k]
    import torch  # five times faster on long rows

    return torch.topk(torch.from_numpy(block), k, dim=1, sorted=False).indices.numpy()
