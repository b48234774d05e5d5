"""A budget of labels: those that speak for the others."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import polars as pl
import pytest

from rewrite import selection
from rewrite.selection import greedy, select

SAID = {
    "light": ["turn on the light", "turn the light on", "switch the light on", "light on please"],
    "music": ["play some music", "play music", "put some music on"],
    "rain": ["will it rain"],
}


def labels() -> pl.DataFrame:
    rows = [("en-US", text, intent) for intent, texts in SAID.items() for text in texts]
    return pl.DataFrame(rows, schema=["locale", "utterance", "intent"], orient="row")


def test_each_of_a_small_budget_speaks_for_others_and_what_is_taught_needs_nobody() -> None:
    assert sorted(select(labels(), 3)["intent"]) == ["light", "music", "rain"]
    assert select(labels(), 1)["intent"].to_list() == ["light"]
    assert select(labels(), 1, known=SAID["light"])["intent"].to_list() == ["music"]


def test_the_greedy_set_is_nearly_the_best_and_what_was_skipped_brings_no_more() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        points = rng.normal(size=(9, 3))
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        alike, none = np.maximum(points @ points.T, 0), np.zeros(9)

        def worth(rows: tuple[int, ...] | list[int], alike: np.ndarray = alike) -> float:
            return float(alike[list(rows)].max(axis=0).sum())

        found = greedy(alike, none, 3)
        assert worth(found) >= (1 - 1 / np.e) * max(worth(c) for c in combinations(range(9), 3))
        for n in range(3):  # each step is the best one there was, though most were not looked at again
            assert worth(found[: n + 1]) == pytest.approx(max(worth([*found[:n], i]) for i in range(9)))


def test_order_does_not_matter_and_what_is_left_is_filled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    every = select(labels(), 100)
    assert every.height == labels().height and every["utterance"].n_unique() == every.height
    assert select(labels().sample(fraction=1, shuffle=True, seed=3), 4).equals(select(labels(), 4)) and every.head(4).equals(
        select(labels(), 4)
    )
    monkeypatch.setattr(selection, "MOST", 3)
    more = select(labels(), 6)
    assert more.height == more["utterance"].n_unique() == 6


def test_no_budget_is_an_error_and_no_labels_are_none() -> None:
    with pytest.raises(ValueError, match="budget 0"):
        select(labels(), 0)
    assert select(labels().clear(), 5).is_empty()
