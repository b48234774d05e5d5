"""Neighbours in cells: nearly all of the true ones, always the same ones, and the pieces a distributed job is made of."""

from __future__ import annotations

import numpy as np
import pytest

from rewrite import neighbours
from rewrite.neighbours import assign_cells, near_cosine, search_cell, top_cosine, train_cells


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    out = np.repeat(rng.normal(size=(150, 24)), 10, axis=0) + 0.4 * rng.normal(size=(1500, 24))
    return (out / np.linalg.norm(out, axis=1, keepdims=True)).astype(np.float32)


def test_small_tables_are_exact(vectors):
    near = near_cosine(vectors[:500], 5)
    assert (near.recall, near.probes) == (1.0, 0)
    np.testing.assert_array_equal(near.indices, top_cosine(vectors[:500], 5)[0])


def test_cells_find_nearly_all_and_say_how_many(vectors, monkeypatch):
    monkeypatch.setattr(neighbours, "PER_CELL", 50)
    monkeypatch.setattr(neighbours, "PROBES", 2)
    near = near_cosine(vectors, 8, exact=500)
    truth = top_cosine(vectors, 8)[0]
    recall = np.mean([len(set(a) & set(b)) / 8 for a, b in zip(near.indices, truth, strict=True)])
    assert near.recall >= neighbours.RECALL
    assert recall == pytest.approx(near.recall, abs=0.01)
    assert 2 <= near.probes < 30  # it did not just look everywhere
    assert (np.diff(near.cosines, axis=1) <= 0).all()
    assert not (near.indices == np.arange(len(vectors))[:, None]).any()
    again = near_cosine(vectors, 8, exact=500)
    np.testing.assert_array_equal(near.indices, again.indices)


def test_the_pieces_of_a_distributed_job_give_the_same_neighbours(vectors, monkeypatch):
    """Train on all, assign in two shards, group by cell, search each cell alone, merge."""
    monkeypatch.setattr(neighbours, "PER_CELL", 50)
    monkeypatch.setattr(neighbours, "PROBES", 30)
    centres = train_cells(vectors, 30)
    home = np.concatenate([assign_cells(part, centres, 1)[:, 0] for part in np.split(vectors, 2)])
    np.testing.assert_array_equal(home, assign_cells(vectors, centres, 1)[:, 0])
    rows = np.arange(len(vectors))
    parts = [search_cell(vectors, rows, vectors[home == c], rows[home == c], 5) for c in range(30)]
    index, cosine = np.hstack([i for i, _ in parts]), np.hstack([c for _, c in parts])
    order = np.lexsort((index, -cosine))[:, :5]
    np.testing.assert_array_equal(np.take_along_axis(index, order, axis=1), near_cosine(vectors, 5, exact=10).indices)
    np.testing.assert_array_equal(np.take_along_axis(index, order, axis=1), top_cosine(vectors, 5)[0])


def test_a_cell_of_fewer_members_than_neighbours(vectors):
    rows, cosines = search_cell(vectors[:3], np.arange(3), vectors[:3], np.arange(3), 5)
    assert (np.sort(rows[0]) == [-1, -1, -1, 1, 2]).all()
    assert cosines[0, 3:].tolist() == [-2, -2]
