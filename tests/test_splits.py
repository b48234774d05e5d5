"""Splits hold for ever, and nothing is trained on that is tested on."""

from __future__ import annotations

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from quality.splits import LEDGER, split_of, text_splits

GOALS = {split: next(f"g{i}" for i in range(1000) if split_of(f"g{i}") == split) for split in ("train", "dev", "test")}
NONE = {
    "goals": pl.DataFrame(schema={"locale": pl.String, "utterance": pl.String, "goal_id": pl.String}),
    "labels": pl.DataFrame(schema={"locale": pl.String, "utterance": pl.String, "goal_id": pl.String}),
    "pairs": pl.DataFrame(
        schema=dict.fromkeys(("anchor", "positive", "negative", "locale_anchor", "locale_positive", "goal_id"), pl.String)
    ),
}


def splits(rows: list[tuple[str, str, str]], ledger: pl.DataFrame | None = None) -> dict[tuple[str, str], str]:
    goals = pl.DataFrame(rows, schema=["locale", "utterance", "goal_id"], orient="row")
    found, _ = text_splits(goals, NONE["labels"], NONE["pairs"], pl.DataFrame(schema=LEDGER) if ledger is None else ledger)
    return {(lo, t): s for lo, t, s in found.rows()}


def test_one_text_of_two_locales_is_in_one_split() -> None:
    both = splits([("en-US", "stop", GOALS["train"]), ("de-DE", "stop", GOALS["test"]), ("fr-FR", "stop", GOALS["dev"])])
    assert both == {("en-US", "stop"): "none", ("de-DE", "stop"): "test", ("fr-FR", "stop"): "none"}
    assert set(splits([("en-US", "stop", GOALS["train"]), ("de-DE", "stop", GOALS["train"])]).values()) == {"train"}


@given(
    st.lists(
        st.tuples(st.sampled_from(["en", "de", "ja"]), st.sampled_from(list("abcdef")), st.sampled_from([f"g{i}" for i in range(30)])),
        max_size=40,
    )
)
def test_no_text_is_in_two_splits(rows: list[tuple[str, str, str]]) -> None:
    once = list({(lo, t): (lo, t, g) for lo, t, g in rows}.values())
    if once:
        held: dict[str, set[str]] = {}
        for (_, text), split in splits(once).items():
            held.setdefault(text, set()).add(split)
        assert all(len(s - {"none"}) <= 1 for s in held.values())


def test_the_ledger_stays_with_the_goal_of_each_locale() -> None:
    rows = [("en-US", "stop", GOALS["train"]), ("de-DE", "stop", GOALS["test"])]
    goals = pl.DataFrame(rows, schema=["locale", "utterance", "goal_id"], orient="row")
    _, new = text_splits(goals, NONE["labels"], NONE["pairs"], pl.DataFrame(schema=LEDGER))
    assert dict(new.select("locale", "split").rows()) == {"en-US": "train", "de-DE": "test"}
    assert splits(rows[:1], new) == {("en-US", "stop"): "train"}
