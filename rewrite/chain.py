"""The absorbing Markov chain of asking again (Ponnusamy et al. 2020, arXiv 1911.02557): exact where up to `FACTORED` texts
lead to each other, a series cut off at a bound (`FAINT`) where more do.

States are texts; whoever says one either asks again with another text or is absorbed, in success or in failure. With
Q the transient block and R the absorbing one, N = (I - Q)^-1, B = N R, and score(s -> t) = N[s, t] R[t, success] is the
probability that someone who starts at s ends served at t. It finds s -> a -> b where nobody went from s to b.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph
from scipy.sparse.linalg import splu

from rewrite.threads import side_by_side

DENSE_STATES = 64
"""Components up to this many states are inverted densely, all of one size in one call; larger ones by sparse LU."""

BLOCK = 256
"""Rows of N solved at once in a large component: bounds memory to states x BLOCK floats."""

FACTORED = 2_000
"""Components above this many states are walked instead: the factors of a busy component are nearly full, so solving it takes the
square of its states in memory and their cube in time (17,000 states: minutes and gigabytes; walked, seconds)."""

FAINT = 1e-3
"""A walk drops what is fainter than this part of the least score looked at. Three components of 17,000 states, 20 M turns: no score
was off by more than 6e-6, where 1e-3 is the least; ten times as much moves 6e-5."""


def normalise(transient: sparse.csr_matrix, absorbing: np.ndarray) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Counts to probabilities: `[Q, R]` with rows that sum to 1.

    transient: (n, n) non-negative counts; absorbing: (n, m). A row without any count is an error: such a state has no
    way out, so give it a count in an absorbing state. Raises ValueError.
    """
    total = np.asarray(transient.sum(axis=1)).ravel() + absorbing.sum(axis=1)
    if (total <= 0).any():
        raise ValueError(f"state {int(np.argmax(total <= 0))} has no counts: give it some mass in an absorbing state")
    return sparse.csr_matrix(sparse.diags(1 / total) @ transient), absorbing / total[:, None]


def absorption(transient: sparse.csr_matrix, absorbing: np.ndarray) -> np.ndarray:
    """B = (I - Q)^-1 R, (n, m): the probability to end in each absorbing state, from each transient state; from counts."""
    q, r = normalise(sparse.csr_matrix(transient, dtype=np.float64), np.asarray(absorbing, dtype=np.float64))
    if q.shape[0] == 0:
        return r
    return splu(sparse.csc_matrix(sparse.identity(q.shape[0]) - q)).solve(r)


def scores(
    transient: sparse.csr_matrix, absorbing: np.ndarray, success: int = 0, at_least: float = 1e-3, sources: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All `score(s -> t) = N[s, t] R[t, success] >= at_least`, s included: arrays (s, t, score), sorted by s then t.

    For every s the scores (with at_least=0) sum to B[s, success]. sources: a mask (n,) of the s wanted, all by default.
    Solved component by component; one of more than `FACTORED` states by its series I + Q + Q^2 + ... (see `FAINT`), unless all
    scores are asked for.
    """
    q, r = normalise(sparse.csr_matrix(transient, dtype=np.float64), np.asarray(absorbing, dtype=np.float64))
    n = q.shape[0]
    wanted = np.ones(n, bool) if sources is None else sources
    if n == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    q.eliminate_zeros()
    _, label = csgraph.connected_components(q, directed=False)
    order = np.argsort(label, kind="stable")  # states of one component side by side, ascending
    size = np.bincount(label)
    start = np.concatenate([[0], np.cumsum(size)[:-1]])
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def kept(rows: np.ndarray, cols: np.ndarray, reach: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        score = reach * r[cols, success]
        big = (score >= at_least) & (score > 0) & wanted[rows]
        return rows[big], cols[big], score[big]

    def walked(sources: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        visits = _walk(q, sources, at_least * FAINT).tocoo()
        return kept(sources[visits.row], visits.col, visits.data)

    coo = q.tocoo()
    place = np.empty(n, np.int64)  # of a state within its component
    place[order] = np.arange(n) - start[label[order]]
    for width in np.unique(size[size <= DENSE_STATES]):
        members = np.flatnonzero(size == width)
        states = order[start[members][:, None] + np.arange(width)]  # (components, width)
        number = np.full(len(size), -1)
        number[members] = np.arange(len(members))
        inside = number[label[coo.row]] >= 0
        block = np.zeros((len(members), width, width))
        block[number[label[coo.row[inside]]], place[coo.row[inside]], place[coo.col[inside]]] = coo.data[inside]
        reach = np.linalg.inv(np.eye(width) - block)
        rows, cols = np.repeat(states, width, axis=1).ravel(), np.tile(states, (1, width)).ravel()
        found.append(kept(rows, cols, reach.reshape(len(members), -1).ravel()))
    for component in np.flatnonzero(size > DENSE_STATES):
        states = order[start[component] : start[component] + size[component]]
        if len(states) > FACTORED and at_least > 0:
            asked = states[wanted[states]]
            found += side_by_side(walked, [asked[first : first + BLOCK] for first in range(0, len(asked), BLOCK)])
            continue
        lu = splu(sparse.csc_matrix(sparse.identity(len(states)) - q[states][:, states]))
        asked = np.flatnonzero(wanted[states])
        for first in range(0, len(asked), BLOCK):
            some = asked[first : first + BLOCK]
            unit = np.zeros((len(states), len(some)))
            unit[some, np.arange(len(some))] = 1
            reach = lu.solve(unit, trans="T").T  # rows of N
            row, col = np.nonzero(reach * r[states, success] >= max(at_least, np.finfo(float).tiny))
            found.append(kept(states[some[row]], states[col], reach[row, col]))
    s, t, score = (np.concatenate(column) for column in zip(*found, strict=True))
    by = np.lexsort((t, s))
    return s[by].astype(np.int64), t[by].astype(np.int64), score[by]


def _walk(q: sparse.csr_matrix, sources: np.ndarray, faint: float) -> sparse.csr_matrix:
    """Rows of N for the sources, (len(sources), n): the expected visits summed step by step, those below `faint` not followed."""
    at = sparse.csr_matrix((np.ones(len(sources)), (np.arange(len(sources)), sources)), shape=(len(sources), q.shape[0]))
    visits = at
    while at.nnz:
        at = at @ q
        at.data[at.data < faint] = 0
        at.eliminate_zeros()
        visits = visits + at
    return visits
