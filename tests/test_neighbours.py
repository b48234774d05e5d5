"""Neighbours in cells: nearly all of the true ones, always the same ones, and the pieces a distributed job is made of."""

from __future__ import annotations

import numpy as np
import pytest

from rewrite import neighbours as nb
from rewrite.neighbours import near_cosine, search, top_cosine


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    out = np.repeat(rng.normal(size=(150, 24)), 10, axis=0) + 0.4 * rng.normal(size=(1500, 24))
    return (out / np.linalg.norm(out, axis=1, keepdims=True)).astype(np.float32)


def merge_nearest(rows: np.ndarray, cosines: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` nearest among several searches for the same queries, side by side: rows and cosines (q, any)."""
    order = np.lexsort((rows, -cosines))[:, :k]
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(cosines, order, axis=1)


def test_small_tables_are_exact(vectors):
    near = near_cosine(vectors[:500], 5)
    assert (near.recall, near.probes) == (1.0, 0)
    np.testing.assert_array_equal(near.indices, top_cosine(vectors[:500], 5)[0])


def test_cells_find_nearly_all_and_say_how_many(vectors):
    near = near_cosine(vectors, 8, exact=500, per_cell=50)
    truth = top_cosine(vectors, 8)[0]
    recall = np.mean([len(set(a) & set(b)) / 8 for a, b in zip(near.indices, truth, strict=True)])
    assert near.recall >= nb.RECALL
    assert recall == pytest.approx(near.recall, abs=0.01)
    assert 2 <= near.probes < 30  # it did not just look everywhere
    assert (np.diff(near.cosines, axis=1) <= 0).all()
    assert not (near.indices == np.arange(len(vectors))[:, None]).any()
    again = near_cosine(vectors, 8, exact=500, per_cell=50)
    np.testing.assert_array_equal(near.indices, again.indices)


def test_looking_into_every_cell_is_the_exact_search(vectors, monkeypatch):
    monkeypatch.setattr(nb, "RECALL", 1.0)
    monkeypatch.setattr(nb, "SAMPLE", len(vectors))  # every row is asked, so that every neighbour is within reach
    near = near_cosine(vectors, 5, exact=10, per_cell=50)
    exact = top_cosine(vectors, 5)
    assert near.recall == 1
    np.testing.assert_array_equal(near.indices, exact[0])
    np.testing.assert_allclose(near.cosines, exact[1], atol=2e-5)


def test_the_recall_told_is_the_recall_of_the_search():
    """Three cells, two rows asked with two neighbours each: within one cell two of four, within two three, then all."""
    looks = np.array([[0, 1, 2], [2, 0, 1]])
    homes = np.array([[0, 1], [2, 1]])
    assert nb.enough_cells(looks, homes) == (3, 1.0)
    assert nb.enough_cells(looks, np.array([[0, 0], [2, -1]])) == (1, 1.0)
    assert nb.enough_cells(looks, np.full((2, 2), -1)) == (1, 1.0)


def test_parts_of_a_table_searched_apart_give_the_same_neighbours(vectors):
    rows = np.arange(len(vectors))
    parts = [search(vectors, rows, vectors[part], rows[part], 5) for part in np.array_split(rows, 7)]
    index, cosine = merge_nearest(np.hstack([i for i, _ in parts]), np.hstack([c for _, c in parts]), 5)
    np.testing.assert_array_equal(index, top_cosine(vectors, 5)[0])
    np.testing.assert_allclose(cosine, top_cosine(vectors, 5)[1], atol=2e-5)


@pytest.mark.parametrize("block", [nb.BLOCK, 1000])
def test_cells_with_many_alike_and_with_few(vectors, block, monkeypatch):
    """Forty rows are one vector, spread over all cells, and one cell has two rows: found as if each cell were searched apart."""
    monkeypatch.setattr(nb, "BLOCK", block)
    table, rows = vectors[:400].copy(), np.arange(400)
    table[::10] = table[0]
    home = rows % 3
    home[[5, 11]] = 3
    cells = [(table[home == c], rows[home == c]) for c in range(4)]
    looks = (home[:, None] + np.arange(3)) % 4
    near, cosines = nb.search_cells(table, rows, looks, lambda c: cells[c], 7)
    apart = [search(table, rows, *cells[c], 7) for c in range(4)]
    seen = (looks[:, :, None] == np.arange(4)).any(axis=1).repeat(7, axis=1)
    expected = merge_nearest(np.where(seen, np.hstack([i for i, _ in apart]), -1), np.where(seen, np.hstack([c for _, c in apart]), -2), 7)
    np.testing.assert_array_equal(near, expected[0])
    np.testing.assert_allclose(cosines, expected[1], atol=2e-5)


def test_fewer_members_than_neighbours_and_none(vectors):
    rows, cosines = search(vectors[:3], np.arange(3), vectors[:3], np.arange(3), 5)
    assert (np.sort(rows[0]) == [-1, -1, -1, 1, 2]).all()
    assert cosines[0, 2:].tolist() == [-2, -2, -2]
    assert (search(vectors[:3], np.arange(3), vectors[:0], np.arange(0), 5)[0] == -1).all()
    assert search(vectors[:0], np.arange(0), vectors[:3], np.arange(3), 5)[0].shape == (0, 5)


def test_one_cell_is_enough_where_clusters_lie_far_apart():
    rng = np.random.default_rng(0)
    apart = np.repeat(np.eye(8, 16), 100, axis=0) + 0.01 * rng.normal(size=(800, 16))
    apart = (apart / np.linalg.norm(apart, axis=1, keepdims=True)).astype(np.float32)
    near = near_cosine(apart, 5, exact=100, per_cell=400)
    assert near.probes == 1
    assert near.recall >= nb.RECALL
    assert (near.indices >= 0).all()
