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
    return foresight.cases(rewrites.mine(known, options), evidence["trials"], trials, known, options)


def test_later_users_say_whether_it_came_true() -> None:
    later = Log()
    for i in range(4):
        later.retry(f"new{i}", "lights of", "lights off")
    later.retry("other", "lights of", "play some music", intent="music")
    later.says("silent", "lights of", 0.5, "wrong")  # shows no want: no case
    later.retry("u0", "lights of", "lights off")  # the rewrite was made from this user: no case
    found = cases(later)
    assert found["happened"].to_list().count(True) == 4 and found.height == 5
    assert found["proposed"].all() and found["predicted"].n_unique() == 1


def test_nobody_came() -> None:
    assert cases(Log()).is_empty() and cases(Log()).schema == pl.Schema(foresight.CASES)
    assert foresight.trade_off(cases(Log())) == []


def test_the_curve_falls_in_volume_as_it_rises_in_precision() -> None:
    sure = [(0.5 + i / 100, float(i), i >= 20) for i in range(50)]
    rows = [("en-US", f"s{i}", p, e, True, right) for i, (p, e, right) in enumerate(sure)]
    rows += [("en-US", "t", 0.2, -1.0, False, False)] * 50
    curve = pl.DataFrame(foresight.trade_off(pl.DataFrame(rows, schema=foresight.CASES, orient="row")))
    for profile in ("balanced", "careful"):
        one = curve.filter(profile=profile)
        assert one["served"].to_list() == sorted(one["served"], reverse=True) and one["right"].to_list() == sorted(one["right"])
        assert one["served"][0] == pytest.approx(0.5) and one["right"][-1] == 1
    html = drawn({"trade_off": curve.to_dicts()})
    assert html.count("<tr>") == curve.height + 1 and "careful" in html
    assert drawn({}) == ""
