"""Anytime-valid evidence: martingales that may be looked at every night, e-BH, versions, and live rewrites."""

from __future__ import annotations

import datetime as dt

import numpy as np
import polars as pl
import pytest
from test_evidence import DAY, Log, background, failing, mine, row

from rewrite import careful
from rewrite.careful import e_bh, grown, nights
from rewrite.rewrites import capped

SHARE = 0.1


def looks(rate: float, pairs: int, days: int, bound: float = 0.5, seed: int = 0) -> np.ndarray:
    """(nights, pairs): log evidence night by night; each pair gets a user every other day or so, and `rate` of them are won."""
    rng = np.random.default_rng(seed)
    day, item = np.nonzero(rng.random((days, pairs)) < 0.5)
    win = (rng.random(len(day)) < rate).astype(float)
    gain = (win * (1 - bound) - (1 - win) * bound) / bound
    return np.array([night for night, _ in nights(gains(day, item, 0, gain), pairs)])


def gains(day: np.ndarray, item: np.ndarray | int, version: np.ndarray | int, gain: np.ndarray) -> pl.DataFrame:
    users = pl.DataFrame({"day": day}).with_columns(item=pl.lit(item, pl.Int64), version=pl.lit(version, pl.Int64))
    return grown(users, gain)


def wealth(day: np.ndarray, version: np.ndarray | int, gain: np.ndarray, *, restart: bool = False) -> tuple[np.ndarray, np.ndarray]:
    return careful.wealth(gains(day, 0, version, gain), 1, restart=restart)


def test_a_year_of_looks_at_a_null_log_releases_at_most_the_nominal_share() -> None:
    """The share of null pairs that any night would have released, and nights on which e-BH releases anything at all."""
    seen = looks(rate=0.5, pairs=400, days=364)
    assert (seen.max(axis=0) >= np.log(1 / SHARE)).mean() <= SHARE
    released = np.array([e_bh(night, SHARE) for night in seen]).any(axis=0)
    assert released.mean() <= SHARE / 10  # over all pairs at once, even fewer
    won = (np.random.default_rng(1).random((364, 400)) < 0.5).cumsum(axis=0)
    n = np.arange(1, 365)[:, None]
    fixed = (won / n - 0.5) / np.sqrt(0.25 / n) > 1.282  # a fixed-sample test at the same level, looked at as often: peeking
    assert fixed[30:].any(axis=0).mean() > 2 * SHARE


def test_proof_comes_with_users_and_not_without() -> None:
    seen = looks(rate=0.9, pairs=200, days=70)
    assert e_bh(seen[-1], SHARE).mean() > 0.95
    assert e_bh(looks(rate=0.3, pairs=200, days=70)[-1], SHARE).sum() == 0


def test_bets_of_a_day_come_from_the_days_before() -> None:
    """What a day brings changes what was earned on it, never what was bet: swapping users within a day changes nothing."""
    day, gain = np.array([0, 0, 1, 1]), np.array([1.0, -1.0, 1.0, 1.0])
    one, other = (wealth(day, 0, g)[0] for g in (gain, gain[[1, 0, 3, 2]]))
    assert one == pytest.approx(other, abs=1e-12)
    first = wealth(day[:1], 0, np.array([1.0]))[0]
    assert first == pytest.approx(np.log(1 + careful.BETS.mean()))  # nothing known: wealth is spread evenly


def test_a_new_version_starts_at_one_with_the_bets_of_the_old() -> None:
    day = np.repeat(np.arange(20), 3)
    version = (day >= 10).astype(np.int64)
    gain = np.full(60, 0.9)
    after, before = wealth(day, version, gain)
    old = wealth(day[:30], version[:30], gain[:30])[0]
    assert before == pytest.approx(old)
    assert old[0] < after[0] < before[0] + old[0]  # as many users, bolder bets, nothing carried over


def test_a_changed_meaning_is_bet_on_again() -> None:
    """A hundred days of losses, then wins: without a fixed share it would take a hundred days to bet again."""
    day = np.arange(130)
    gain = np.where(day < 100, -1.0, 1.0)
    assert wealth(day, 0, gain)[0][0] > np.log(10)


def test_restart_detects_what_went_wrong_later() -> None:
    day = np.arange(80)
    gain = np.where(day < 60, -1.0, 1.0)
    assert wealth(day, 0, gain, restart=True)[0][0] > np.log(100)


def test_e_bh_is_its_definition() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        e = rng.exponential(30, int(rng.integers(1, 40)))
        k = max([i for i in range(1, len(e) + 1) if np.sort(e)[-i] >= len(e) / (0.1 * i)], default=0)
        assert e_bh(np.log(e), 0.1).sum() == k
    assert e_bh(np.zeros(0), 0.1).sum() == 0


def careful_log(users: int) -> Log:
    log = failing(users=users)
    for i, r in enumerate(log.rows):
        if str(r["user_key"]).startswith("u"):
            log.rows[i] = r | {"date": DAY + dt.timedelta(int(str(r["user_key"])[1:]) % 14)}
    return log


def test_profiles() -> None:
    """Few users are enough for `balanced`, and prove nothing for `careful`; many do."""
    few, many = careful_log(3), careful_log(12)
    assert row(mine(few).rewrites, source="lights of")["decision"] == "proposed"
    said = row(mine(few, careful=True).rewrites, source="lights of")
    assert (said["decision"], said["reason"]) == ("rejected", "unproven") and 0 < said["log_e"] < np.log(10)
    proven = row(mine(many, careful=True).rewrites, source="lights of")
    assert (proven["decision"], proven["reason"]) == ("proposed", "goal") and proven["log_e"] > np.log(10)


def test_a_served_source_proves_nothing() -> None:
    """The bound is the source's own rate: who asks again after a text that works for most is not enough."""
    log = careful_log(12)
    for i in range(60):
        log.says(f"w{i}", "lights of", 0.95, "lights")
    assert row(mine(log, careful=True).rewrites, source="lights of")["log_e"] < np.log(10)


def live(served: float, users: int = 12) -> Log:
    log = background(Log())
    for i in range(3):
        log.says(f"s{i}", "lights of", 0.05, "wrong").says(f"t{i}", "lights off", 0.95, "lights")
    for i in range(users):
        day = DAY + dt.timedelta(i % 14)
        log.says(f"u{i}", "lights of", served, "x", treatment="rewritten", target="lights off", rewrite_id="r", date=day)
    return log


def test_live_rewrites_are_kept_and_retired_by_the_same_evidence() -> None:
    kept = row(mine(live(0.97), careful=True).rewrites, source="lights of")
    assert (kept["decision"], kept["reason"]) == ("proposed", "live") and kept["log_e_against"] == 0
    gone = row(mine(live(0.03), careful=True).rewrites, source="lights of")
    assert (gone["decision"], gone["reason"]) == ("rejected", "treated_failed") and gone["log_e_against"] >= np.log(10)
    doubted = row(mine(live(0.03, users=2), careful=True).rewrites, source="lights of")
    assert doubted["reason"] == "below_k" or doubted["log_e_against"] < np.log(10)


def test_grace_after_a_new_version() -> None:
    """The day a new version comes, what was proven under the old one still stands; a month later it does not."""
    log = careful_log(12)
    for r in log.rows:
        r["assistant_version"] = "1"
    log.retry("x", "lights of", "lights off")
    for r in log.rows[-3:]:
        r |= {"assistant_version": "2", "date": DAY + dt.timedelta(14)}
    assert row(mine(log, careful=True).rewrites, source="lights of")["decision"] == "proposed"
    after = row(mine(log, careful=True, grace=0).rewrites, source="lights of")
    assert after["reason"] == "unproven" and after["log_e"] > 0


def test_history_before_the_window_is_in_the_test_alone() -> None:
    from rewrite.evidence import bucket_evidence, merge_evidence

    log = careful_log(12)
    late = DAY + dt.timedelta(7)
    whole = merge_evidence([bucket_evidence(log.votes(), since=late)])
    window = merge_evidence([bucket_evidence(log.votes().filter(pl.col("date") >= late))])
    (tested,), (fewer,) = whole.pop("trials"), window.pop("trials")
    assert tested.height > fewer.height
    (asks,), (same) = whole.pop("asks"), window.pop("asks")
    assert asks.equals(*same) and all(whole[name].equals(window[name]) for name in whole)


def test_a_popular_target_is_capped() -> None:
    """Sixty sources of a hundred drift into one target: the surest fifth, but never fewer than 50, stay."""
    rows = [("en-US", f"s{i:03}", "popular" if i < 60 else f"t{i}", i / 100, "proposed", "goal") for i in range(100)]
    table = pl.DataFrame(rows, schema=["locale", "source", "target", "probability", "decision", "reason"], orient="row")
    found = capped(table)
    gone = found.filter(pl.col("reason") == "popular")
    assert gone["source"].to_list() == [f"s{i:03}" for i in range(10)] and set(gone["decision"]) == {"rejected"}
    assert found["source"].to_list() == table["source"].to_list()


def test_a_live_rewrite_does_not_hide_its_source() -> None:
    """While it serves everybody, nobody is heard untouched: that is no evidence that the source works by itself."""
    log = live(0.97)
    log.rows = [r for r in log.rows if not (r["source"] == "lights of" and r["treatment"] == "untouched")]
    assert row(mine(log).rewrites, source="lights of")["reason"] == "live"
