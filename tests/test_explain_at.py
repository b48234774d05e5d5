"""`explain --at-threshold`: another setting's decision from the figures that candidates keep, held to judging anew."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from release_world import frame, label, rewrite

from pipelines.errors import UsageError
from pipelines.explain_at import at, parse, summary, told
from rewrite.contracts import CANDIDATES

FIGURES = {"support": 4.0, "lift_probability": 0.97, "source_served": 0.1, "source_users": 13, "target_users": 60}


def rewrites(*rows: dict[str, Any]) -> pl.DataFrame:
    table = frame(
        CANDIDATES["rewrites"],
        [rewrite(f"s{n}", "t", **{k: v for k, v in r.items() if k not in ("support", "lift_probability")}) for n, r in enumerate(rows)],
    )
    return table.with_columns(
        pl.Series(c, [float(FIGURES[c] if c not in r else r[c]) for r in rows]) for c in ("support", "lift_probability")
    )


def decided(row: dict[str, Any], **values: float) -> tuple[str, str, str]:
    return at("rewrites", rewrites(row), values, 3).select("at_decision", "at_reason", "untried").row(0)


NO_LIFT = {"decision": "rejected", "reason": "no_lift", "lift_probability": 0.7}
RARE = {"decision": "rejected", "reason": "below_k", "target_users": 2}


@pytest.mark.parametrize(
    ("row", "values", "expected"),
    [
        ({}, {}, ("proposed", "goal", "")),
        ({}, {"lift": 0.98}, ("rejected", "no_lift", "")),
        ({}, {"k": 20}, ("rejected", "below_k", "")),
        ({"reason": "live", "probability": 0.4}, {"probability": 0.9}, ("proposed", "live", "")),
        ({"reason": "live", "source_served": 0.6}, {}, ("proposed", "live", "")),
        (NO_LIFT, {}, ("rejected", "no_lift", "")),
        (NO_LIFT, {"lift": 0.6}, ("proposed", "passed", "")),
        ({"decision": "rejected", "reason": "weak", "probability": 0.3}, {"probability": 0.2}, ("perhaps", "passed", "repeaters ambiguous")),
        ({"decision": "rejected", "reason": "weak", "probability": 0.3, "lift_probability": 0.1}, {"probability": 0.2}, ("rejected", "no_lift", "")),
        ({"decision": "rejected", "reason": "value_lost"}, {"lift": 0.1}, ("rejected", "value_lost", "")),
        ({"decision": "rejected", "reason": "vetoed"}, {"lift": 0.1}, ("rejected", "vetoed", "")),
        (RARE, {}, ("rejected", "below_k", "")),
        (RARE, {"k": 2}, ("perhaps", "passed", "treated_failed other_goal blocked repeaters ambiguous")),
    ],
)  # fmt: skip
def test_as_far_as_the_figures_tell(row: dict[str, Any], values: dict[str, float], expected: tuple[str, str, str]) -> None:
    assert decided(row, **values) == expected


def test_counts_and_words() -> None:
    table = rewrites({}, {"lift_probability": 0.85}, NO_LIFT, RARE)
    assert summary("rewrites", table, {"lift": 0.9}, 3) == {
        "before": 2,
        "stay": 1,
        "gained": 0,
        "lost": 1,
        "perhaps": 0,
        "lost_to": {"no_lift": 1},
    }
    assert summary("rewrites", table, {"lift": 0.6, "k": 2}, 3) == {
        "before": 2,
        "stay": 2,
        "gained": 1,
        "lost": 0,
        "perhaps": 1,
        "lost_to": {},
    }
    assert told({"at_decision": "perhaps", "untried": "a b"}).endswith("a, b") and "gain" in told(
        {"at_decision": "rejected", "at_reason": "no_lift"}
    )
    labels = frame(
        CANDIDATES["labels"], [label("a"), label("b", confidence=0.75), label("c", confidence=0.5, decision="rejected", reason="unsure")]
    )
    assert summary("labels", labels, {"label": 0.8}, 3)["lost"] == 1 and summary("labels", labels, {"label": 0.4}, 3)["gained"] == 1


@pytest.mark.parametrize("word", ["x=1", "lift", "lift=a", "lift=2", "k=1", "lift=nan"])
def test_wrong_settings_name_what_there_is(word: str) -> None:
    with pytest.raises(UsageError, match=r"--at-threshold .*should be NAME=NUMBER, with one of k \(2 to"):
        parse([word])
    assert parse(["k=5", "lift = 0.9"]) == {"k": 5.0, "lift": 0.9}
