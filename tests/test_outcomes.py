"""Served or failed, and why: what is recovered without labels, and what a vote may not know."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import cache

import numpy as np
import polars as pl
import pytest

from rewrite import asked_again, causes, latent_class, outcomes, pairs, signals
from rewrite.curves import logit
from rewrite.model import Model
from rewrite.trees import fit_trees, log_odds
from tests.detect_world import auc, frame, world


@cache
def judged() -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame, pl.DataFrame, Model]:
    """Ordered turns (every seventh of them heard one letter short, failed, and said again), truth, scored pairs, outcomes, model."""
    rng = np.random.default_rng(5)
    turns, truth = world(3, 700)
    failed = dict(truth.select("turn_id", "failed").iter_rows())
    rows, facts = [], []
    for row in turns.to_dicts():
        facts.append({"turn_id": row["turn_id"], "failed": failed[row["turn_id"]], "misheard": False})
        rows.append(row)
        if rng.random() < 1 / 7:
            at = int(rng.integers(len(row["utterance"])))
            short = row["utterance"][:at] + row["utterance"][at + 1 :]
            before = row["timestamp"] - timedelta(seconds=4.0)
            rows.append(
                row | {"turn_id": row["turn_id"] + "m", "utterance": short, "timestamp": before, "barge_in": True, "status": "completed"}
            )
            facts.append({"turn_id": row["turn_id"] + "m", "failed": True, "misheard": True})
    turns = pairs.ordered(frame(rows))
    model = asked_again.fit(turns, seed=1, max_pairs=1000)
    scored = asked_again.score(turns, pairs.candidate_pairs(turns), model)
    return turns, pl.DataFrame(facts), scored, outcomes.judge(turns, scored, model), model


def test_failures_are_recovered_and_calibrated_from_the_session_alone_and_with_the_text():
    turns, facts, _, found, _ = judged()
    truth = turns.join(facts, on="turn_id", maintain_order="left")["failed"].to_numpy()
    for column, least in (("p_failed_seen", 0.93), ("p_failed", 0.95)):
        p = found[column].to_numpy()
        assert auc(truth, p) > least
        assert abs(p.mean() - truth.mean()) < 0.05


def test_a_vote_knows_nothing_of_its_text():
    turns, _, scored, _, model = judged()
    # Corrective words are of the next turn, and set aside here, as all texts change.
    model = replace(model, outcomes={n: replace(o, corrective=((), ())) for n, o in model.outcomes.items()})
    found = outcomes.judge(turns, scored, model)
    # Other texts, other confidence, a model that knows no text: only what the session shows is left.
    blank = replace(model, stats={n: replace(s, served=s.served * 0, frequency=s.frequency * 0) for n, s in model.stats.items()})
    other = turns.with_columns(key="x" + pl.col("key"), intent_confidence=pl.lit(0.3))
    again = outcomes.judge(other, scored, blank)
    assert again["p_failed_seen"].equals(found["p_failed_seen"])
    assert not again["p_failed"].equals(found["p_failed"])


def test_misheard_is_told_from_other_causes():
    turns, facts, _, found, model = judged()
    assert model.cause("xx").trees
    j = pl.concat([found, turns.select("key").rename({"key": "text"})], how="horizontal").join(facts, on="turn_id").filter("failed")
    p = np.where(j["cause"] == "asr", j["cause_probability"].to_numpy(), 0.0)
    assert auc(j["misheard"].to_numpy(), p) > 0.8


def test_what_nobody_cancels_is_not_the_persons_fault():
    turns, _, scored, _, model = judged()
    status = pl.when(pl.int_range(pl.len()) % 2 == 0).then(pl.lit("cancelled")).otherwise(pl.lit("completed"))
    found = outcomes.judge(turns.with_columns(status=status), scored, model)
    by_user = (found["cause"] == "user").to_numpy()
    assert by_user[::2].mean() > 0.5 and not by_user[1::2].any()


def test_a_turn_cut_off_by_midnight_is_judged_by_what_was_seen():
    turns, _, scored, _, model = judged()
    late = turns.with_columns(timestamp=pl.col("timestamp").dt.truncate("1d") + pl.duration(hours=23, minutes=59))
    none = scored.clear()
    found = outcomes.judge(late, none, model)
    assert found["censored"].all()
    refused = (turns["status"] == "no_match").to_numpy()
    p = found["p_failed_seen"].to_numpy()
    assert p[refused].min() > 0.9 and np.median(p[~refused]) < 0.4


def test_users_of_a_refused_text_are_not_many_witnesses():
    """Two of three texts fail; of these half are refused to everyone. What an answered turn's cell says must not hold that it
    was answered, else ten users of a failing but answered text outvote what they did then."""
    rng = np.random.default_rng(0)
    rows = []
    for text in range(600):
        kind = text % 3  # served, failed and answered, failed and refused
        for user in range(3):
            status, barge = (1 if kind == 2 else 0), rng.random() < (0.05 if kind == 0 else 0.45)
            nxt = int(rng.choice(5, p=[0.5, 0.45, 0.02, 0.01, 0.02] if kind == 0 else [0.2, 0.15, 0.05, 0.1, 0.5]))
            rows.append((f"t{text:04d}", f"u{user}", (status * 2 + barge) * 3 + 1, nxt, kind == 0))
    seen = pl.DataFrame(rows, schema=["key", "user_key", "friction", "next", "served"], orient="row")
    seen = seen.with_columns(locale=pl.lit("xx"), weight=pl.lit(1.0))
    outcome, texts = latent_class.fit_classes(seen)
    served = seen["served"].to_numpy()
    assert auc(served, texts.served) > 0.98
    assert abs(outcome.prior - 1 / 3) < 0.05
    cells = np.asarray(outcome.served).reshape(latent_class.FRICTIONS, latent_class.NEXTS)
    assert cells.sum() == pytest.approx(1.0) and cells[latent_class.is_refused()].sum() < 0.03
    friction, nxt = np.array([1, 1]), np.array([0, 4])  # answered in peace; then the session ended, or was asked again
    llr = latent_class.log_ratio(outcome, friction, nxt, given_refused=True)
    assert llr[0] > 0.5 and llr[1] < -1.5
    assert llr[0] < latent_class.log_ratio(outcome, friction, nxt)[0]


def test_retries_have_the_outcome_of_the_turn_that_stands_for_them_and_signals_are_nan_where_not_logged():
    turns, _, scored, _, _ = judged()
    x = signals.session_signals(turns, scored)
    at = {name: c for c, name in enumerate(signals.SESSION)}
    assert x.shape == (turns.height, len(signals.SESSION))
    assert np.isnan(x[:, at["feedback"]]).all() and np.isnan(x[:, at["same_reply"]]).all()
    ended = x[:, at["ended"]] == 1
    assert np.isnan(x[ended][:, [at["gap"], at["next_refused"]]]).all() and (x[ended, at["again"]] == 0).all()
    assert (x[:, at["position"]] >= 0).all()
    assert signals.session_signals(turns.clear(), scored.clear()).shape == (0, len(signals.SESSION))


def test_trees_are_monotone_and_the_same_for_the_same_rows():
    rng = np.random.default_rng(0)
    x = rng.random((2000, 2))
    y = (x[:, 0] - 0.5 * x[:, 0] * x[:, 1] + rng.normal(0, 0.3, 2000) > 0.5).astype(float)
    trees = fit_trees(x, y, [1, -1])
    assert trees == fit_trees(x, y, [1, -1])
    grid = np.stack([np.linspace(0, 1, 50), np.full(50, 0.5)], axis=1)
    assert (np.diff(log_odds(trees, grid)) >= 0).all() and (np.diff(log_odds(trees, grid[:, ::-1])) <= 0).all()
    assert not len(log_odds(trees, x[:0]))


def test_low_confidence_ranks_within_its_locale():
    turns, *_, model = judged()
    model = replace(model, asr_confidence={"xx": tuple(np.arange(1, 10) / 10)})
    heard = turns.head(3).with_columns(asr_confidence=pl.Series([0.01, 0.99, None]))
    low = causes.low_confidence(heard, [("xx", np.arange(3))], model)
    assert low.tolist() == pytest.approx([0.5, -0.4, 0.0])


def test_a_thin_log_is_judged_by_rule():
    turns = world(1)[0].head(60)
    model = asked_again.fit(turns)
    assert not model.outcomes["*"].session_trees and not model.causes["*"].trees
    t = pairs.ordered(turns)
    found = outcomes.judge(t, asked_again.score(t, pairs.candidate_pairs(t), model), model)
    refused = (t["status"] == "no_match").to_numpy()
    assert (found["p_failed"].to_numpy()[refused] > 0.5).all()
    assert logit(model.served_prior("xx")) > 0
