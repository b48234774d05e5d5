"""The absorbing chain against its oracle, its invariants, a dense solve and a power iteration."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from rewrite import chain


def random_chain(seed: int, n: int, density: float) -> tuple[sparse.csr_matrix, np.ndarray]:
    rng = np.random.default_rng(seed)
    moves = sparse.random(n, n, density, format="csr", random_state=rng, data_rvs=lambda k: rng.integers(1, 9, k).astype(float))
    return moves, rng.integers(0, 9, (n, 2)) + 0.25


def test_oracle() -> None:
    counts = np.array([[0, 1, 0, 0, 0, 1], [4, 0, 0, 3, 2, 0]], dtype=float)
    ends = chain.absorption(sparse.csr_matrix(counts[:, :2]), counts[:, 2:])
    assert ends[0] == pytest.approx([0, 3 / 14, 1 / 7, 9 / 14], abs=1e-12)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 90), density=st.sampled_from([0.005, 0.02, 0.2]))
def test_invariants(seed: int, n: int, density: float) -> None:
    moves, ends = random_chain(seed, n, density)
    q, r = chain.normalise(moves, ends)
    assert np.asarray(q.sum(axis=1)).ravel() + r.sum(axis=1) == pytest.approx(np.ones(n))
    b = chain.absorption(moves, ends)
    assert b.sum(axis=1) == pytest.approx(np.ones(n))
    s, t, score = chain.scores(moves, ends, at_least=0)
    assert np.bincount(s, weights=score, minlength=n) == pytest.approx(b[:, 0], abs=1e-9)
    dense = np.linalg.inv(np.eye(n) - q.toarray()) * r[:, 0]
    assert score == pytest.approx(dense[s, t], abs=1e-9)
    assert (np.lexsort((t, s)) == np.arange(len(s))).all()


def test_power_iteration_agrees() -> None:
    moves, ends = random_chain(1, 300, 0.01)
    q, r = chain.normalise(moves, ends)
    power, total = np.eye(300), np.eye(300)
    while power.max() > 1e-14:
        power = power @ q.toarray()
        total += power
    s, t, score = chain.scores(moves, ends, at_least=0)
    full = np.zeros((300, 300))
    full[s, t] = score
    assert np.abs(full - total * r[:, 0]).max() < 1e-9


def test_reaches_what_nobody_went_to_directly() -> None:
    moves = sparse.csr_matrix(([8.0, 8.0], ([0, 1], [1, 2])), shape=(3, 3))  # s -> a -> b
    ends = np.array([[0.0, 2.0], [0.0, 2.0], [10.0, 0.0]])  # only b serves
    s, t, score = chain.scores(moves, ends)
    assert [(int(a), int(b)) for a, b in zip(s, t, strict=True)] == [(0, 2), (1, 2), (2, 2)]
    assert score == pytest.approx([0.64, 0.8, 1.0])


def test_large_and_small_components_agree_and_sources_select() -> None:
    moves, ends = random_chain(3, chain.DENSE_STATES + 40, 0.05)
    both = sparse.block_diag([moves, sparse.csr_matrix(([1.0], ([0], [1])), shape=(2, 2))], format="csr")
    ends = np.concatenate([ends, [[1.0, 1.0], [3.0, 1.0]]])
    s, t, score = chain.scores(both, ends, at_least=0)
    q, r = chain.normalise(both, ends)
    dense = np.linalg.inv(np.eye(q.shape[0]) - q.toarray()) * r[:, 0]
    assert score == pytest.approx(dense[s, t], abs=1e-9)
    only = np.zeros(q.shape[0], bool)
    only[[0, q.shape[0] - 2]] = True
    s1, t1, score1 = chain.scores(both, ends, at_least=0, sources=only)
    mine = only[s]
    assert (s1 == s[mine]).all() and (t1 == t[mine]).all() and score1 == pytest.approx(score[mine])


def test_a_component_too_large_to_factor_is_walked_to_the_same_scores(monkeypatch) -> None:
    moves, ends = random_chain(5, 400, 0.02)
    solved = chain.scores(moves, ends)
    monkeypatch.setattr(chain, "FACTORED", 100)
    walked = chain.scores(moves, ends)
    found, again = ({(int(a), int(b)): c for a, b, c in zip(*way, strict=True)} for way in (solved, walked))
    assert max(abs(found.get(pair, 1e-3) - again.get(pair, 1e-3)) for pair in found | again) < 1e-4  # a tenth of the least
    whole = chain.scores(moves, ends, at_least=0)  # solved, as no score is too faint
    assert np.bincount(whole[0], whole[2]) == pytest.approx(chain.absorption(moves, ends)[:, 0])


def test_a_state_with_no_way_out_is_named() -> None:
    with pytest.raises(ValueError, match="state 1 has no counts"):
        chain.absorption(sparse.csr_matrix((2, 2)), np.array([[1.0, 0.0], [0.0, 0.0]]))


def test_empty() -> None:
    s, t, score = chain.scores(sparse.csr_matrix((0, 0)), np.zeros((0, 2)))
    assert len(s) == len(t) == len(score) == 0
