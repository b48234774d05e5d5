"""From shares to probabilities: what later users did is evidence, and the curve under which it is likeliest is found again."""

from __future__ import annotations

import datetime as dt

import numpy as np
import polars as pl
import pytest
from scipy import special
from test_evidence import DAY, NO_GOALS, Log, background, failing, mine, row

from rewrite import calibration, pool
from rewrite.evidence import Options, bucket_evidence, merge_evidence
from rewrite.rewrites import controlled

GOALS = 200


def world(shift: float, sharpen: float, sources: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares, evidence of later users, and which goals are right; users of a wrong one want another, and three of ten wander off."""
    rng = np.random.default_rng(seed)
    share = rng.uniform(0.05, 0.95, sources)
    right = rng.random(sources) < special.expit(shift + sharpen * special.logit(share))
    wants = np.where(right, 0, rng.integers(1, GOALS, sources))
    users = rng.integers(1, 4, sources)
    s = np.repeat(np.arange(sources), users)
    goal = np.where(rng.random(len(s)) < 0.7, wants[s], rng.integers(0, GOALS, len(s)))
    went = pl.DataFrame({"s": s, "goal": goal}).group_by("s", "goal").agg(n=pl.len().cast(pl.Float64))
    chance = pl.DataFrame({"goal": np.arange(GOALS), "base": np.full(GOALS, 1 / GOALS)})
    found = calibration.evidence(pl.DataFrame({"s": np.arange(sources), "goal": np.zeros(sources, np.int64)}), went, chance)
    assert found["s"].to_list() == list(range(sources))
    return share, found["llr"].to_numpy(), right


@pytest.mark.parametrize(("shift", "sharpen"), [(1.5, 1.0), (-1.0, 2.0), (0.0, 0.6)])
def test_the_curve_is_found_again_without_labels(shift: float, sharpen: float) -> None:
    share, llr, right = world(shift, sharpen, 3000)
    curve = calibration.learn(share, llr, np.full(3000, "en-US"))
    assert set(curve) == {""}
    said = special.expit(curve[""][0] + curve[""][1] * special.logit(share))
    for low in np.arange(0, 1, 0.2):
        here = (said >= low) & (said < low + 0.2)
        if here.sum() > 100:
            assert said[here].mean() == pytest.approx(right[here].mean(), abs=0.07)


def test_locales_have_curves_of_their_own_and_thin_ones_lean_on_all() -> None:
    parts = [world(2.0, 1.0, 1500, 1), world(-1.0, 1.0, 1500, 2), world(-1.0, 1.0, 3, 3)]
    share, llr = (np.concatenate([p[i] for p in parts]) for i in (0, 1))
    curves = calibration.learn(share, llr, np.repeat(["de-DE", "en-US", "sw-KE"], [1500, 1500, 3]))
    assert curves["de-DE"][0] > 1.4 and curves["en-US"][0] < -0.4
    assert abs(curves["sw-KE"][0] - curves[""][0]) < abs(curves["en-US"][0] - curves[""][0])


def test_without_later_users_the_prior_curve_stands() -> None:
    nothing = np.zeros(0)
    assert calibration.learn(nothing, nothing, nothing)[""] == (calibration.SHIFT, calibration.SHARPEN)
    share, _, _ = world(1.0, 1.0, 50)
    assert calibration.learn(share, np.zeros(50), np.full(50, "en-US"))[""] == pytest.approx((calibration.SHIFT, calibration.SHARPEN))


def test_the_share_that_came_true() -> None:
    _, llr, right = world(0.5, 1.0, 2000)
    assert calibration.share_right(llr) == pytest.approx(right.mean(), abs=0.05)
    assert calibration.share_right(np.zeros(0)) == 0.5


def test_later_days_are_told_from_earlier_ones_and_a_day_is_split_by_user() -> None:
    def known(days: int) -> pool.Pool:
        log = failing(40)
        votes = log.votes().with_columns(date=pl.lit(DAY) + pl.duration(days=pl.int_range(pl.len()) % days))
        return pool.build(merge_evidence([bucket_evidence(votes)]), NO_GOALS, Options())

    (before,), (after,) = (half.asks for half in calibration.halves(known(10)))
    assert before["first"].max() < after["first"].min() == DAY + dt.timedelta(8)
    (before,), (after,) = (half.asks for half in calibration.halves(known(1)))
    assert 0 < after.height < before.height and not set(before["ask"]) & set(after["ask"])


def again(log: Log, users: int, source: str, target: str, **means: str) -> Log:
    for i in range(users):
        log.says(f"{source}{i}", source, 0.05, **means).says(f"{source}{i}", target, 0.9, **means).asks(f"{source}{i}", source, target)
    return log


def test_a_target_understood_as_the_source_is_changes_nothing() -> None:
    """Users gave up after the second text, which looks like being served; the few who went on to another meaning were served."""
    log = background(Log())
    again(log, 12, "vacuum the room", "let the robot do the room", intent="calendar_set")
    for i in range(3):
        log.says(f"x{i}", "let the robot do the room", 0.9, "calendar_set")
    for i in range(4):
        log.retry(f"y{i}", "vacuum the room", "start the vacuum cleaner", "cleaning").says(
            f"z{i}", "start the vacuum cleaner", 0.95, "cleaning"
        )
    found = mine(log, scarce=0.0).rewrites.filter(source="vacuum the room")
    assert row(found, target="start the vacuum cleaner")["decision"] == "proposed"
    assert found.filter(pl.col("decision") == "proposed").height == 1
    assert "let the robot do the room" not in found.filter(pl.col("support") > 0.5)["target"].to_list()


def test_a_text_reached_in_vain_is_no_target_for_others_either() -> None:
    log = background(Log())
    again(log, 6, "vacuum the room", "let the robot do the room", intent="calendar_set")
    for i in range(5):
        log.retry(f"y{i}", "robot room", "let the robot do the room", "calendar_set").says(f"u{i}", "robot room", 0.1)
    log.says("w", "please do", 0.95, "calendar_set")
    reasons = mine(log, scarce=0.0).rewrites.filter(source="robot room")
    assert "let the robot do the room" not in reasons.filter(pl.col("decision") == "proposed")["target"].to_list()


def test_a_meaning_that_fails_its_goal_in_other_words_is_no_target() -> None:
    """A few gave up after one wording, which looks like being served; it is understood as a busy one is, which fails."""
    failing_text, looks_served = "take the robot for the room", "switch the robot on for the room"
    goals = pl.DataFrame(
        {
            "locale": "en-US",
            "utterance": ["robot room", failing_text, looks_served],
            "goal_id": "g",
            "membership": 1.0,
            "users": 5,
            "is_exemplar": False,
        },
        schema=NO_GOALS.schema,
    )

    def target(means: str) -> object:
        log = background(Log())
        for i in range(5):
            log.retry(f"y{i}", "robot room", looks_served, "calendar_set").says(f"z{i}", looks_served, 0.95, "calendar_set")
        for i in range(20):
            log.says(f"f{i}", failing_text, 0.05, means)
        log.says("w", "please do", 0.95, "calendar_set")
        return row(mine(log, goals, scarce=0.0).rewrites, source="robot room")["reason"]

    assert target("alarm_set") == "goal", "another meaning that fails says nothing about this one"
    assert target("calendar_set") == "no_served_target"


def test_one_user_who_repeats_is_no_ring() -> None:
    log = failing(users=5)
    log.rows = [r | ({"events": 5} if r["kind"] == "transition" and r["user_key"] == "u0" else {}) for r in log.rows]
    for i in range(1, 5):  # only the repeater is sure to ask for the same
        log.rows = [r | ({"value": 0.3} if r["kind"] == "transition" and r["user_key"] == f"u{i}" else {}) for r in log.rows]
    assert row(mine(log).rewrites, source="lights of")["reason"] == "goal"


def test_false_discoveries_are_controlled_over_a_locale() -> None:
    sure, unsure = [0.99] * 50, [0.5] * 50
    table = pl.DataFrame(
        {
            "locale": ["en-US"] * 100 + ["de-DE"] * 2,
            "source": [f"s{i:03}" for i in range(102)],
            "target": "t",
            "probability": [*unsure, *sure, 0.95, 0.6],
            "decision": "proposed",
            "reason": "goal",
        }
    )
    found = controlled(table, 0.1)
    kept = found.filter(pl.col("decision") == "proposed")
    assert kept.filter(locale="en-US")["probability"].to_list() == [0.5] * 11 + [0.99] * 50
    assert (1 - kept.filter(locale="en-US")["probability"]).mean() <= 0.1
    assert found.filter(locale="de-DE")["reason"].to_list() == ["goal", "false_discovery"]
    assert controlled(table, 1.0).equals(table)
