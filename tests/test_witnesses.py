"""The label model of projected labels: planted reliabilities come back, its probabilities come true."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from rewrite.witnesses import FEWEST, USUAL, Reliability, beliefs

INTENTS = 12
SCHEMA = {"id": pl.Int64, "locale": pl.String, "intent": pl.String, "witnesses": pl.Float64, "base": pl.Float64}


def world(texts: int, reach: float, chance: float, seed: int = 0, locale: str = "en-US") -> tuple[pl.DataFrame, dict[int, str]]:
    """Texts of 3 to 12 users who leave for the meant intent, or for a random one; and what each text means."""
    rng = np.random.default_rng(seed)
    base = rng.dirichlet(np.full(INTENTS, 2.0))
    rows, truth = [], {}
    for text in range(texts):
        users, meant = int(rng.integers(3, 13)), int(rng.choice(INTENTS, p=base))
        by_meaning = rng.binomial(users, rng.choice([0.0, 0.5]))
        ends = [meant if rng.random() < reach else int(rng.choice(INTENTS, p=base)) for _ in range(by_meaning)]
        ends += [int(rng.choice(INTENTS, p=base)) for _ in range(rng.binomial(users, chance))]
        truth[text] = f"i{meant}"
        for intent, n in zip(*np.unique(ends, return_counts=True), strict=True):
            rows.append((text, locale, f"i{int(intent)}", float(n), float(base[int(intent)]), users, 0.99))
    return pl.DataFrame(rows, schema=[*SCHEMA, "users", "failed"], orient="row").sort("id", "intent"), truth


@pytest.mark.parametrize(("reach", "chance"), [(0.95, 0.0), (0.7, 0.0), (0.95, 0.1)])
def test_planted_reliability_comes_back(reach: float, chance: float) -> None:
    found = beliefs(world(500, reach, chance)[0])[1]["en-US"]
    assert abs(found.reach - reach) <= 0.1
    assert found.chance <= 0.02 if chance == 0 else found.chance >= 0.03


def test_beliefs_come_true() -> None:
    votes, truth = world(1500, 0.6, 0.1, seed=3)
    said = votes.with_columns(beliefs(votes)[0], right=pl.col("intent") == pl.col("id").replace_strict(truth, return_dtype=pl.String))
    for low, high in ((0.0, 0.3), (0.5, 0.8), (0.8, 0.95), (0.95, 1.01)):
        part = said.filter(pl.col("belief") >= low, pl.col("belief") < high)
        assert part.height > 30 and abs(part["belief"].mean() - part["right"].mean()) < 0.12, (low, part["right"].mean())


def test_two_of_eighty_are_chance_and_two_of_three_are_not() -> None:
    few = [(0, "en-US", "a", 2.0, 0.1, 3, 0.99), (1, "en-US", "a", 2.0, 0.1, 80, 0.99)]
    likely = beliefs(pl.DataFrame(few, schema=[*SCHEMA, "users", "failed"], orient="row"))[0]
    assert likely[0] > 0.95 and likely[1] < 0.8


def test_a_thin_locale_leans_on_all_of_them() -> None:
    thin = world(FEWEST // 3, 0.5, 0.2, locale="sw-KE")[0]
    assert beliefs(thin)[1]["sw-KE"] == Reliability(*USUAL, 0)
    both = pl.concat([world(500, 0.95, 0.0)[0], thin.with_columns(pl.col("id") + 1000)])
    found = beliefs(both)[1]
    assert found["sw-KE"].texts > FEWEST and found["sw-KE"].reach >= 0.9


def test_nothing_to_go_by() -> None:
    votes = world(5, 0.9, 0.0)[0]
    assert beliefs(votes.clear())[0].len() == 0
    none = beliefs(votes.with_columns(witnesses=pl.lit(0.0), base=pl.lit(None, pl.Float64)))[0]
    assert none.is_finite().all() and none.max() < 0.01  # an intent never served, that nobody went to
