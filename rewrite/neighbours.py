"""Nearest neighbours by cosine: exact in blocks up to `EXACT` rows, inside cells beyond, with the recall of a sample.

Cells are an inverted file: centres learned from a sample, every row in its nearest cell, every row searched in the cells
nearest to it. The three steps are functions of their own (`train_cells`, `assign_cells`, `search_cell`), so that a
distributed job can train once, assign anywhere, group by cell and search each cell alone; `near_cosine` does it here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

EXACT = 50_000
"""Rows up to which search is exact: about 10 s there (512 dimensions, 2 cores), growing with the square."""

PER_CELL = 1_000
"""Rows of a cell: at a million rows a thousand cells, so that finding the cells and searching a dozen of them cost alike per row."""

PROBES = 12
"""Cells a row is searched in, doubled until the sampled recall is `RECALL`."""

RECALL = 0.98
SAMPLE = 1_000
"""Rows whose exact neighbours are looked up: the standard error of a recall of .98 over 10,000 neighbours is .0014."""

ROUNDS = 8
"""Of Lloyd's algorithm: the cells need not be the best, only of one neighbourhood."""

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


@dataclass(frozen=True)
class Near:
    """`indices` int64 (n, k'), -1 where there are fewer; `cosines` float32; `recall` of a sample (1 where exact), `probes` (0 if exact)."""

    indices: np.ndarray
    cosines: np.ndarray
    recall: float
    probes: int


def near_cosine(vectors: np.ndarray, k: int, seed: int = 0, exact: int = EXACT) -> Near:
    """As `top_cosine` up to `exact` rows; beyond, in cells, so many that the recall over a sample is `RECALL` or more."""
    n = len(vectors)
    if n <= exact or k < 1:
        return Near(*top_cosine(vectors, k), 1.0, 0)
    table = np.ascontiguousarray(vectors, dtype=np.float32)
    centres = train_cells(table, max(2, n // PER_CELL), seed)
    sample = np.sort(np.random.default_rng(seed).choice(n, min(SAMPLE, n), replace=False))
    truth = _exact(table, sample, k)
    probes = min(PROBES, len(centres))
    while True:  # the sample alone first: it is cheap, and tells how many cells everyone has to look into
        found, _ = _search(table, sample, centres, probes, k)
        recall = float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(found, truth, strict=True)]))
        if recall >= RECALL or probes == len(centres):
            break
        probes = min(2 * probes, len(centres))
    return Near(*_search(table, np.arange(n), centres, probes, k), recall, probes)


def train_cells(sample: np.ndarray, cells: int, seed: int = 0) -> np.ndarray:
    """float32 (cells, d): unit centres, by spherical k-means over at most 64 rows per cell, drawn by the seed."""
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(sample), min(len(sample), 64 * cells), replace=False))
    data = np.asarray(sample[rows], dtype=np.float32)
    centres = data[np.sort(rng.choice(len(data), min(cells, len(data)), replace=False))].copy()
    for _ in range(ROUNDS):
        cell = assign_cells(data, centres, 1)[:, 0]
        order = np.argsort(cell, kind="stable")
        filled, starts = np.unique(cell[order], return_index=True)
        sums = np.add.reduceat(data[order], starts, axis=0)  # an empty cell keeps its centre
        centres[filled] = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    return centres


def assign_cells(vectors: np.ndarray, centres: np.ndarray, probes: int) -> np.ndarray:
    """int64 (n, probes): each row's nearest cells, nearest first. The first is where it lives, all are where it looks."""
    out = np.empty((len(vectors), probes), np.int64)
    for start in range(0, len(vectors), BLOCK):
        cosine = np.round(np.asarray(vectors[start : start + BLOCK], np.float32) @ centres.T, 5)
        index = _largest(cosine, probes)
        order = np.lexsort((index, -np.take_along_axis(cosine, index, axis=1)))
        out[start : start + BLOCK] = np.take_along_axis(index, order, axis=1)
    return out


def search_cell(
    queries: np.ndarray, query_rows: np.ndarray, members: np.ndarray, member_rows: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """(rows int64 (q, k), cosines float32 (q, k)) of the `k` members of one cell nearest to each query, itself left out; -1 and -2
    where the cell has fewer."""
    rows, cosines = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -2, np.float32)
    width = min(k, len(members))
    for start in range(0, len(queries) if width else 0, BLOCK):
        part = slice(start, start + BLOCK)
        cosine = np.round(queries[part] @ members.T, 5)
        cosine[query_rows[part, None] == member_rows] = -2
        index = _largest(cosine, width)
        value = np.take_along_axis(cosine, index, axis=1)
        rows[part, :width] = np.where(value > -2, member_rows[index], -1)
        cosines[part, :width] = value
    return rows, cosines


def _search(table: np.ndarray, rows: np.ndarray, centres: np.ndarray, probes: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` nearest of each of `rows` over its nearest cells, merged as they come."""
    home = assign_cells(table, centres, 1)[:, 0]
    by_home = np.argsort(home, kind="stable")
    edge = np.searchsorted(home[by_home], np.arange(len(centres) + 1))
    looks = assign_cells(table[rows], centres, probes)
    best = np.full((len(rows), k), -1, np.int64)
    score = np.full((len(rows), k), -2, np.float32)
    at = np.repeat(np.arange(len(rows)), probes)[np.argsort(looks.ravel(), kind="stable")]
    ends = np.searchsorted(np.sort(looks.ravel()), np.arange(len(centres) + 1))
    for cell in range(len(centres)):
        who, members = at[ends[cell] : ends[cell + 1]], by_home[edge[cell] : edge[cell + 1]]
        if not len(who) or not len(members):
            continue
        found, cosine = search_cell(table[rows[who]], rows[who], table[members], members, k)
        index, value = np.hstack([best[who], found]), np.hstack([score[who], cosine])
        order = np.lexsort((index, -value))[:, :k]
        best[who], score[who] = np.take_along_axis(index, order, axis=1), np.take_along_axis(value, order, axis=1)
    return best, np.clip(score, -1, 1)


def _exact(table: np.ndarray, rows: np.ndarray, k: int) -> np.ndarray:
    """int64 (len(rows), k): the true neighbours of a few rows."""
    cosine = np.round(table[rows] @ table.T, 5)
    cosine[np.arange(len(rows)), rows] = -2
    return _largest(cosine, k)


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
