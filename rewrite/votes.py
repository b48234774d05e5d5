"""Turns of a shard -> the private turn-level tables: `rephrases`, `outcomes`, `votes`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from rewrite import asked_again, contracts, outcomes, pairs
from rewrite.model import Model
from rewrite.text import as_enums, as_strings, key_expr

LINK = 0.5
"""A turn belongs to the chain of its nearest earlier turn with at least this probability; less is no evidence for a link."""
MAX_STEPS = 5
"""`same_goal` votes reach this many steps along a chain, so that a bot's chain of thousands stays linear."""
_EXTRA = ("gap_s", "same_text", "p_text", "p_gap", "p_friction")
_SCALE = 10**9  # means are taken over integers: exact, whatever the order and the number of threads


class Detected(NamedTuple):
    rephrases: pl.DataFrame
    """REPHRASES and `gap_s, same_text, p_text, p_gap, p_friction, date, user_key`, sorted by (locale, turn_id, next_turn_id)"""
    outcomes: pl.DataFrame
    """OUTCOMES and `p_failed_seen, date, user_key`, sorted by (turn_id, user_key)"""
    votes: pl.DataFrame
    """VOTES and `date`, sorted; one row per date and VOTE_KEY"""


def detect(turns: pl.DataFrame, model: Model, gap_s: float = outcomes.SESSION_GAP_S) -> Detected:
    """Judge every turn of a shard by its own session and the model. A pure function: any shards that keep a user's date
    together give the same rows.

    `turns` follows contracts.TURNS (columns beyond the required ones may be absent); `gap_s` is the session gap in
    seconds that cut the sessions. Retries are flagged in `rephrases` (`decided_by` "retry", probability 0) and vote
    nowhere; censored turns cast no outcome vote.
    """
    t = pairs.ordered(turns)
    scored = asked_again.score(t, pairs.candidate_pairs(t), model)
    judged = outcomes.judge(t, scored, model, gap_s)
    whose = t.select("date", "user_key")[scored["i"].cast(pl.Int64)]
    rephrases = _as(pl.concat([scored, whose], how="horizontal"), contracts.REPHRASES, (*_EXTRA, "date", "user_key"))
    rephrases = rephrases.sort("locale", "turn_id", "next_turn_id", "lag", "gap_s", "probability")
    owner = pl.concat([judged, t.select("date", "user_key")], how="horizontal")
    kept = _as(owner, contracts.OUTCOMES, ("p_failed_seen", "date", "user_key")).sort("turn_id", "user_key", "date")
    return Detected(rephrases, kept, votes(t, scored, judged))


def votes(turns: pl.DataFrame, scored: pl.DataFrame, judged: pl.DataFrame) -> pl.DataFrame:
    """VOTES and `date`, one row per (date, VOTE_KEY), from the outputs of `pairs.ordered`, `score` and `judge`."""
    # a guess that the assistant did not act on is no interpretation: the same words in another form may pass, understood alike
    acted = pl.when(pl.col("status").ne_missing("no_match"))
    turns = turns.with_columns(acted.then("intent").alias("intent"), acted.then("slots").alias("slots"))
    both = as_enums(pl.concat([_outcome_votes(turns, judged), _link_votes(turns, scored)]))
    key = ["date", *contracts.VOTE_KEY]
    mean = (pl.col("value") * _SCALE).round().cast(pl.Int64).sum() / pl.len().cast(pl.Float64) / float(_SCALE)
    out = both.group_by(key).agg(
        value=pl.when(pl.col("kind").first() == "outcome").then(mean).otherwise(pl.col("value").max()),
        events=pl.len().cast(pl.Int32),
    )
    order = ["date", *(c for c in contracts.VOTE_KEY if c != "user_key"), "user_key"]
    return _as(as_strings(out.sort(order, nulls_last=False)), contracts.VOTES, ("date",))


def _outcome_votes(turns: pl.DataFrame, judged: pl.DataFrame) -> pl.DataFrame:
    t = turns.with_columns(judged["p_failed_seen"], judged["cause"], judged["censored"]).filter(~pl.col("is_retry") & ~pl.col("censored"))
    rewritten = pl.col("treatment") == "rewritten"
    return t.select(
        "date",
        "user_key",
        "locale",
        kind=pl.lit("outcome"),
        source="key",
        target=pl.when(rewritten).then(key_expr("served_utterance")),
        value=1.0 - pl.col("p_failed_seen"),
        treatment=pl.col("treatment").fill_null("unknown"),
        rewrite_id=pl.when(rewritten).then("rewrite_id"),
        assistant_version="assistant_version",
        intent="intent",
        slots="slots",
        cause="cause",
        text="utterance",
    )


def _link_votes(turns: pl.DataFrame, scored: pl.DataFrame) -> pl.DataFrame:
    source, target, value, step = _links(scored, turns.height)
    a = turns.select("date", "user_key", "locale", "key", "treatment", "rewrite_id", "assistant_version")[source]
    b = turns.select("key", "treatment", "rewrite_id", "intent", "slots").rename(lambda c: f"{c}_2")[target]
    both = pl.concat([a, b], how="horizontal").with_columns(value=pl.Series(value, dtype=pl.Float64), step=pl.Series(step))
    first, second = (pl.col(c) == "rewritten" for c in ("treatment", "treatment_2"))
    return both.filter(pl.col("key") != pl.col("key_2")).select(
        "date",
        "user_key",
        "locale",
        kind=pl.when(pl.col("step") == 1).then(pl.lit("transition")).otherwise(pl.lit("same_goal")),
        source="key",
        target="key_2",
        value="value",
        treatment=pl.when(first | second).then(pl.lit("rewritten")).otherwise(pl.col("treatment").fill_null("unknown")),
        rewrite_id=pl.when(first).then("rewrite_id").when(second).then("rewrite_id_2"),
        assistant_version="assistant_version",
        intent="intent_2",
        slots="slots_2",
        cause=pl.lit(None, pl.String),
        text=pl.lit(None, pl.String),
    )


def _links(scored: pl.DataFrame, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Chains: (earlier turn, later turn, product of probabilities, steps apart) of every two turns at most MAX_STEPS apart.

    Each turn links to its nearest earlier turn with probability >= LINK, and has one successor: the nearest.
    """
    near = scored.filter((pl.col("probability") >= LINK) & ~pl.col("is_retry")).sort("lag", "i")
    near = near.unique("j", keep="first", maintain_order=True).unique("i", keep="first", maintain_order=True).sort("j")
    before, p = np.full(n, -1), np.ones(n)
    j = near["j"].to_numpy()
    before[j], p[j] = near["i"].to_numpy(), near["probability"].to_numpy()
    sources, targets, values, steps = [], [], [], []
    last, at, value = j, before[j], p[j]
    for step in range(1, MAX_STEPS + 1):
        sources.append(at)
        targets.append(last)
        values.append(value)
        steps.append(np.full(len(at), step, np.int8))
        more = before[at] >= 0
        last, value, at = last[more], (value * p[at])[more], before[at][more]
    return np.concatenate(sources), np.concatenate(targets), np.concatenate(values), np.concatenate(steps)


def _as(frame: pl.DataFrame, schema: pa.Schema, extra: tuple[str, ...]) -> pl.DataFrame:
    types = pl.from_arrow(schema.empty_table()).schema  # type: ignore[union-attr]
    return frame.select(*(pl.col(c).cast(t) for c, t in types.items()), *extra)
