"""Nearest neighbours by cosine: exact in blocks up to `EXACT` rows, inside cells beyond, with the recall of a sample.

Cells are an inverted file: centres learned from a sample, every row at home in the nearest one, every row searched in the cells
nearest to it. How many cells that takes is counted, not tried: of a sample of rows the true neighbours are found once, and
the share of them that live within the first `p` cells is the recall of looking into `p`.

The steps are functions of their own, of which `near_cosine` is the way on one machine, and `pipelines.cells` the way on Beam.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

EXACT = 30_000
"""Rows up to which search is exact, and finds all: about 15 CPU seconds there (512 dimensions), growing with the square. At 50,000 it takes
36, and 5 in cells."""

PER_CELL = 500
"""Rows of a cell: at a million rows 2,000 cells, so that finding a row's cells costs less than searching 40 of them, and more than a tenth."""

RECALL = 0.98
SAMPLE = 1_000
"""Rows whose exact neighbours are looked up: the standard error of a recall of .98 over 10,000 neighbours is .0014."""

TRAIN = 64
"""Rows per cell that centres are learned from: more move them less than the next round does."""

ROUNDS = 8
"""Of Lloyd's algorithm: the cells need not be the best, only of one neighbourhood."""

SMALL = 2000
"""Fewer texts are not worth the import of torch."""

TOGETHER = 32_768
"""Rows that look into cells together, in the order of their homes: few cells then meet many rows each, in one product of matrices."""

BLOCK = 1 << 26
"""Similarities at a time: 268 MB in float32."""

ROWS = 1024
"""Rows compared with all centres at a time."""


def top_cosine(vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
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
    rows = np.arange(n)
    return search(table, rows, table, rows, k)


def search(
    queries: np.ndarray, query_rows: np.ndarray, members: np.ndarray, member_rows: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """(rows int64 (q, k), cosines float32 (q, k)) of the `k` members nearest to each query, itself left out, nearest first; -1 and -2
    where there are fewer. `queries`, `members`: float32 unit rows; `member_rows` ascending. Equal cosines in the order of the row."""
    rows, cosines = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -2, np.float32)
    width = min(k + 8, len(members))  # itself, and room for ties at the end of the list
    if not width or not len(queries):
        return rows, cosines
    own = np.minimum(np.searchsorted(member_rows, query_rows), len(members) - 1)
    found = np.flatnonzero(member_rows[own] == query_rows)
    block = max(1, BLOCK // len(members))
    for start in range(0, len(queries), block):
        part = slice(start, start + block)
        cosine = queries[part] @ members.T
        here = found[np.searchsorted(found, start) : np.searchsorted(found, start + block)]
        cosine[here - start, own[here]] = -2.0
        index = _largest(cosine, width)
        value = np.round(np.take_along_axis(cosine, index, axis=1), 5)
        order = np.lexsort((index, -value))[:, :k]
        value = np.take_along_axis(value, order, axis=1)
        there = value > -1.5
        rows[part, : order.shape[1]] = np.where(there, member_rows[np.take_along_axis(index, order, axis=1)], -1)
        cosines[part, : order.shape[1]] = np.where(there, np.clip(value, -1, 1), -2)
    return rows, cosines


@dataclass(frozen=True)
class Near:
    """`indices` int64 (n, k'), -1 where there are fewer; `cosines` float32; `recall` of a sample (1 where exact), `probes`: cells
    that each row was searched in (0 if exact)."""

    indices: np.ndarray
    cosines: np.ndarray
    recall: float
    probes: int


def near_cosine(vectors: np.ndarray, k: int, seed: int = 0, exact: int = EXACT, per_cell: int = PER_CELL) -> Near:
    """As `top_cosine` up to `exact` rows; beyond, in cells, so many that the recall over a sample is `RECALL` or more."""
    n = len(vectors)
    if n <= exact or k < 1:
        return Near(*top_cosine(vectors, k), 1.0, 0)
    table = np.ascontiguousarray(vectors, dtype=np.float32)
    cells = cells_of(n, per_cell)
    centres = train_cells(table[sample_rows(n, TRAIN * cells, seed)], cells, seed)
    home = home_cells(table, centres)
    by_home = np.argsort(home, kind="stable")
    edge = np.searchsorted(home[by_home], np.arange(cells + 1))
    asked = sample_rows(n, SAMPLE, seed + 1)
    truth, _ = search(table[asked], asked, table, np.arange(n), k)
    probes, recall = enough_cells(look_cells(table[asked], centres, cells), np.where(truth >= 0, home[truth], -1))

    def cell(c: int) -> tuple[np.ndarray, np.ndarray]:
        rows = by_home[edge[c] : edge[c + 1]]
        return table[rows], rows

    indices, cosines = np.full((n, k), -1, np.int64), np.full((n, k), -2, np.float32)
    for start in range(0, n, TOGETHER):
        rows = by_home[start : start + TOGETHER]
        queries = table[rows]
        indices[rows], cosines[rows] = search_cells(queries, rows, look_cells(queries, centres, probes), cell, k)
    return Near(indices, cosines, recall, probes)


def cells_of(n: int, per_cell: int = PER_CELL) -> int:
    """How many cells `n` rows get."""
    return max(2, n // per_cell)


def sample_rows(n: int, size: int, seed: int) -> np.ndarray:
    """At most `size` of `n` rows, ascending, drawn by the seed."""
    return np.sort(np.random.default_rng(seed).choice(n, min(n, size), replace=False))


def train_cells(sample: np.ndarray, cells: int, seed: int = 0) -> np.ndarray:
    """float32 (min(cells, len(sample)), d): unit centres, by spherical k-means over the sample (unit rows); first centres by the seed."""
    data = np.asarray(sample, dtype=np.float32)
    centres = data[sample_rows(len(data), cells, seed)].copy()
    for _ in range(ROUNDS):
        cell = home_cells(data, centres)
        order = np.argsort(cell, kind="stable")
        filled, starts = np.unique(cell[order], return_index=True)
        sums = np.add.reduceat(data[order], starts, axis=0)  # an empty cell keeps its centre
        centres[filled] = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    return centres


def home_cells(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """int64 (n,): the cell whose centre is nearest to each row; of equally near ones (to 1e-5) the first."""
    out = np.empty(len(vectors), np.int64)
    for start in range(0, len(vectors), ROWS):
        out[start : start + ROWS] = np.round(np.asarray(vectors[start : start + ROWS], np.float32) @ centres.T, 5).argmax(axis=1)
    return out


def look_cells(vectors: np.ndarray, centres: np.ndarray, probes: int) -> np.ndarray:
    """int64 (n, probes'): the cells nearest to each row, nearest first; probes' = min(probes, cells)."""
    probes = min(probes, len(centres))
    out = np.empty((len(vectors), probes), np.int64)
    for start in range(0, len(vectors), ROWS):
        cosine = np.round(np.asarray(vectors[start : start + ROWS], np.float32) @ centres.T, 5)
        index = _largest(cosine, probes)
        order = np.lexsort((index, -np.take_along_axis(cosine, index, axis=1)))
        out[start : start + ROWS] = np.take_along_axis(index, order, axis=1)
    return out


def enough_cells(looks: np.ndarray, homes: np.ndarray) -> tuple[int, float]:
    """(the fewest cells to look into for a recall of `RECALL`, the recall). `looks` (s, cells): all cells in the order in which sampled
    rows would look; `homes` (s, k): the cells of their true neighbours, -1 where there are fewer."""
    at = np.take_along_axis(np.argsort(looks, axis=1), np.maximum(homes, 0), axis=1)[homes >= 0]
    if not len(at):
        return 1, 1.0
    within = np.cumsum(np.bincount(at, minlength=looks.shape[1])) / len(at)
    probes = int(np.argmax(within >= RECALL)) + 1
    return probes, float(within[probes - 1])


def search_cells(
    queries: np.ndarray, query_rows: np.ndarray, looks: np.ndarray, cell: Callable[[int], tuple[np.ndarray, np.ndarray]], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """As `search`, each query in the cells that it `looks` into (q, probes), nearest first. `cell` gives a cell's unit rows and their
    numbers, ascending.

    The nearest cell has most of what is found. In the others only what is at least as near as the last found there can matter: few
    enough to compare every cosine with one number, and to sort what is left.
    """
    rows, cosines = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -2, np.float32)
    for c, who in _by_cell(looks[:, :1]):
        rows[who], cosines[who] = search(queries[who], query_rows[who], *cell(c), k)
    least = cosines[:, -1] - 1e-5  # cosines are compared after they are rounded
    found = [(np.repeat(np.arange(len(queries)), k), rows.ravel(), cosines.ravel())]
    for c, who in _by_cell(looks[:, 1:]):
        members, member_rows = cell(c)
        block = max(1, BLOCK // max(1, len(members)))
        for start in range(0, len(who), block):
            part = who[start : start + block]
            cosine = queries[part] @ members.T
            at, which = np.divmod(np.flatnonzero(cosine >= least[part, None]), max(1, len(members)))
            many = np.bincount(at, minlength=len(part)) > k
            if many.any():  # nothing near at home, or many alike: no more than `k` of a cell are kept
                near, value = search(queries[part[many]], query_rows[part[many]], members, member_rows, k)
                found.append((np.repeat(part[many], k), near.ravel(), value.ravel()))
                at, which = at[~many[at]], which[~many[at]]
            apart = member_rows[which] != query_rows[part[at]]
            at, which = at[apart], which[apart]
            found.append((part[at], member_rows[which], np.clip(np.round(cosine[at, which], 5), -1, 1)))
    who, near, value = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((near, -value, who))
    who, near, value = who[order], near[order], value[order]
    place = np.arange(len(who)) - np.searchsorted(who, np.arange(len(queries)))[who]
    kept = place < k
    rows[who[kept], place[kept]], cosines[who[kept], place[kept]] = near[kept], value[kept]
    return rows, cosines


def _by_cell(looks: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(cell, the rows that look into it), of a table of looks (q, any)."""
    if not looks.size:
        return
    flat = np.argsort(looks, axis=None, kind="stable")
    cells, starts = np.unique(looks.ravel()[flat], return_index=True)
    for c, at in zip(cells.tolist(), np.split(flat, starts[1:]), strict=True):
        yield c, at // looks.shape[1]


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
    if k >= block.shape[1]:
        return np.broadcast_to(np.arange(block.shape[1]), block.shape)
    if block.shape[1] < SMALL:
        return np.argpartition(-block, k - 1, axis=1)[:, :k]
    import torch  # five times faster on long rows

    return torch.topk(torch.from_numpy(block), k, dim=1, sorted=False).indices.numpy()
