"""What rewrites foretell against what later users did."""

from __future__ import annotations

import datetime as dt

import polars as pl
import pytest
from test_evidence import DAY, NO_GOALS, Log, failing

from quality.seeing import trade_off as drawn
from rewrite import foresight, pool, rewrites
from rewrite.evidence import Options, bucket_evidence, later_trials, merge_evidence


def cases(later: Log) -> pl.DataFrame:
    options, evidence = Options(), merge_evidence([bucket_evidence(failing().votes())])
    known = pool.build(evidence, NO_GOALS, options)
    trials = later_trials([later.votes().with_columns(date=DAY + dt.timedelta(20))])
    return foresight.cases(rewrites.mine(known, options), evidence["trials"], trials, known)


def test_later_users_say_whether_it_came_true() -> None:
    later = Log()
    for i in range(4):
        later.retry(f"new{i}", "lights of", "lights off")
    later.retry("other", "lights of", "play some music", intent="music")
    later.says("silent", "lights of", 0.5, "wrong")  # went nowhere
    later.retry("u0", "lights of", "lights off")  # the rewrite was made from this user
    found = cases(later)
    assert found.height == 1 and found["proposed"].all()
    assert found["users"][0] == pytest.approx(5 * 0.95**2, rel=0.02) and found["evidence"][0] > 5
    others = Log()
    for i in range(4):
        others.retry(f"new{i}", "lights of", "play some music", intent="music")
    assert cases(others)["evidence"][0] < -1


def test_a_new_wording_of_the_targets_meaning_counts_for_it() -> None:
    def went(text: str, intent: str) -> pl.DataFrame:
        log = Log()
        for i in range(3):
            log.says(f"new{i}", "lights of", 0.05, "wrong").says(f"new{i}", f"{text} {i}", 0.95, intent)
            log.asks(f"new{i}", "lights of", f"{text} {i}", intent=intent, slots="{}")
        return cases(log)

    understood_as_what_failed = went("switch off", "wrong")
    assert went("switch them off", "lights")["evidence"][0] > 5 and understood_as_what_failed.is_empty()


def test_live_turns_speak_for_themselves() -> None:
    def served(value: float) -> float:
        log = Log()
        for i in range(3):
            log.says(f"new{i}", "lights of", value, "lights", treatment="rewritten", target="lights off", rewrite_id="0" * 16)
        return float(cases(log)["evidence"][0])

    assert served(0.9) > 3 > -3 > served(0.1)


def test_nobody_came() -> None:
    assert cases(Log()).is_empty() and cases(Log()).schema == pl.Schema(foresight.CASES)
    assert foresight.trade_off(cases(Log())) == [] and foresight.reliability(cases(Log())) == {}


def test_the_curve_falls_in_volume_as_it_rises_in_precision() -> None:
    sure = [(0.5 + i / 100, float(i), 20.0 if i >= 20 or i % 4 == 0 else -20.0) for i in range(50)]
    rows = [("en-US", f"s{i}", p, e, True, 1.0, right) for i, (p, e, right) in enumerate(sure)]
    rows += [("en-US", f"t{i}", 0.2, -1.0, False, 1.0, -20.0) for i in range(50)]
    found = pl.DataFrame(rows, schema=foresight.CASES, orient="row")
    curve = pl.DataFrame(foresight.trade_off(found))
    for profile in ("balanced", "careful"):
        one = curve.filter(profile=profile)
        assert one["served"].to_list() == sorted(one["served"], reverse=True) and one["right"].to_list() == sorted(one["right"])
        assert one["served"][0] == pytest.approx(0.5) and one["right"][-1] == pytest.approx(1, abs=1e-3)
    twice = pl.concat([found, found.with_columns(source=pl.lit("b") + pl.col("source"))])
    (diagram,) = foresight.reliability(twice.with_columns(proposed=pl.lit(True))).values()
    assert diagram["n"] == 200 and diagram["bins"][0][:2] == [0.2, pytest.approx(0, abs=1e-3)] and 0 < diagram["ece"] < 0.5
    html = drawn({"trade_off": curve.to_dicts()})
    assert html.count("<tr>") == curve.height + 1 and "careful" in html
    assert drawn({}) == ""
