"""Goals day by day: the goals of all days at once, under ids that stay; what changed is told."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from pipelines.simulate.job import run
from pipelines.simulate.options import SimulateOptions
from rewrite.encoders.ngrams import NgramEncoder
from rewrite.goals import build_goals
from rewrite.text import canonical_slots, key_expr

pytestmark = pytest.mark.slow
DAYS = 14


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """A made-up log with the truth of who asked again: what `detect` would find, without its errors."""
    out = tmp_path_factory.mktemp("world")
    run(SimulateOptions(out=str(out / "w"), turns=2_500, days=DAYS, locales="en-US"))
    log = pl.read_parquet(out / "w" / "log.parquet").join(pl.read_parquet(out / "w" / "truth.parquet"), on="turn_id")
    slots = pl.col("slots").map_elements(canonical_slots, return_dtype=pl.String)
    return log.with_columns(key_expr("utterance").alias("utterance"), slots, day=pl.col("timestamp").dt.date())


def inputs(log):
    """texts, vectors, links, served of `build_goals`, from the turns so far."""
    done = pl.col("status") == "completed"
    texts = log.group_by("locale", "utterance").agg(users=pl.col("user_id").n_unique().cast(pl.Int64), served=done.mean())
    before = log.select(again_of="turn_id", source="utterance")
    links = log.join(before, on="again_of").filter(pl.col("source") != pl.col("utterance"))
    links = links.group_by("locale", "source", target="utterance").agg(users=pl.col("user_id").n_unique().cast(pl.Int64))
    texts = texts.sort("locale", "utterance")
    served = log.filter(done, pl.col("intent").is_not_null()).group_by("locale", "utterance", "intent", "slots")
    served = served.agg(users=pl.col("user_id").n_unique().cast(pl.Int64)).with_columns(weight=pl.col("users") * 0.9)
    vectors = NgramEncoder().encode(texts["utterance"].to_list())[:, :256]  # a fourth of the buckets: enough here, and faster
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    return texts, vectors, links.with_columns(weight=pl.col("users") * 0.9), served


@pytest.fixture(scope="module")
def daily(log):
    """The goal graph of every day, each made with the one before."""
    first, graphs, last = log["day"].min(), [], None
    for day in range(DAYS):
        graphs.append(build_goals(*inputs(log.filter(pl.col("day") <= first + timedelta(days=day))), last))
        last = graphs[-1].goals
    return graphs


def test_day_by_day_is_all_at_once(log, daily):
    from sklearn.metrics import adjusted_rand_score

    once = build_goals(*inputs(log))
    at = daily[-1].goals.join(once.goals, on=["locale", "utterance"], suffix="_once")
    assert at.height == once.goals.height == daily[-1].goals.height
    assert at["goal_id"].n_unique() > 100
    assert adjusted_rand_score(at["goal_id"].to_list(), at["goal_id_once"].to_list()) >= 0.95


def test_ids_stay_while_most_of_the_evidence_stays(daily):
    """Of the users of yesterday's texts, most find their text under the id of yesterday, and a text never loses its id to a smaller part."""
    for before, after in pairwise(daily[3:]):
        both = before.goals.join(after.goals, on=["locale", "utterance"], suffix="_new")
        assert both.height == before.goals.height  # no text is ever lost
        kept = both.filter(pl.col("goal_id") == pl.col("goal_id_new"))
        assert kept["users_new"].sum() > 0.9 * both["users_new"].sum()
        parts = both.group_by("goal_id", "goal_id_new").agg(pl.col("users_new").clip(1).sum())
        # an id went to another goal than the one with most of its users only if that one had more from elsewhere
        parts = parts.sort("users_new", pl.col("goal_id") == pl.col("goal_id_new"), descending=True)  # of equal parts either may keep it
        most = parts.group_by("goal_id", maintain_order=True).first()
        moved = most.filter(pl.col("goal_id") != pl.col("goal_id_new"))
        gained = parts.filter(pl.col("goal_id") == pl.col("goal_id_new")).select("goal_id_new", own="users_new")
        moved = moved.join(gained, on="goal_id_new", how="left")
        assert (moved["own"].fill_null(0) >= moved["users_new"]).all()


def test_changes_say_what_became_of_every_goal(daily):
    for before, after in pairwise(daily):
        changes = after.changes
        old, new = set(before.goals["goal_id"]), set(after.goals["goal_id"])
        assert set(changes["old_goal_id"].drop_nulls()) == old
        assert set(changes["new_goal_id"].drop_nulls()) == new
        both = before.goals.join(after.goals, on=["locale", "utterance"], suffix="_new")
        overlaps = both.group_by(old_goal_id="goal_id", new_goal_id="goal_id_new").agg(texts=pl.len().cast(pl.Int64))
        told = changes.filter(pl.col("old_goal_id").is_not_null(), pl.col("new_goal_id").is_not_null())
        key = ["old_goal_id", "new_goal_id", "texts"]
        assert told.select(key).sort(key).equals(overlaps.select(key).sort(key))
        kept = told.filter(pl.col("old_goal_id") == pl.col("new_goal_id"))
        assert set(kept["change"]) == {"kept"}
        assert not set(told.filter(pl.col("old_goal_id") != pl.col("new_goal_id"))["change"]) - {"merged", "split"}
        appeared = changes.filter(pl.col("change") == "appeared")
        assert not set(appeared["new_goal_id"]) & old  # a new goal never takes the id of an old one
        merged = changes.filter(pl.col("change") == "merged")
        assert not set(merged["old_goal_id"]) & new  # what went into another goal is no goal of its own any more


def test_new_texts_join_old_goals(daily):
    joined = 0
    for before, after in pairwise(daily):
        new = after.goals.join(before.goals, on=["locale", "utterance"], how="anti")
        joined += new.filter(pl.col("goal_id").is_in(before.goals["goal_id"].unique().implode())).height
    assert joined > 100
