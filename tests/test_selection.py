"""A budget of labels: the informative ones."""

from __future__ import annotations

import polars as pl
import pytest

from rewrite.selection import select


def labels() -> pl.DataFrame:
    rows = [
        ("en-US", f"{origin} {intent} {users}", intent, origin, 0.9, users)
        for origin in ("own", "projected", "goal")
        for intent in "ab"
        for users in (3, 5, 50)
    ]
    return pl.DataFrame(rows, schema=["locale", "utterance", "intent", "origin", "confidence", "users"], orient="row")


def test_disagreements_first_then_the_tail_over_all_intents() -> None:
    chosen = select(labels(), 4)
    assert set(chosen["origin"]) == {"projected", "goal"} and set(chosen["users"]) == {3}
    assert sorted(chosen["intent"]) == ["a", "a", "b", "b"]
    assert "own" not in set(select(labels(), 12)["origin"])


def test_what_is_left_is_filled_up_and_order_does_not_matter() -> None:
    assert select(labels(), 100).height == labels().height
    assert select(labels().sample(fraction=1, shuffle=True, seed=3), 7).equals(select(labels(), 7))


def test_no_budget_is_an_error() -> None:
    with pytest.raises(ValueError, match="budget 0"):
        select(labels(), 0)
