"""A tiny world for the tests of `quality`: candidates, goals and what a release needs besides."""

from __future__ import annotations

from datetime import date
from typing import Any

import polars as pl

from quality.release import Parent, Release, build_release
from rewrite.contracts import CANDIDATES, GOAL_CHANGES, GOALS

AS_OF = date(2026, 3, 19)  # a Thursday
OPTIONS: dict[str, Any] = {"as_of": AS_OF, "k": 3, "config_fingerprint": "c0ffee", "expires_days": 28}


def frame(schema: Any, rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Rows of a contract; columns that a row leaves out are null."""
    empty = pl.from_arrow(schema.empty_table())
    return pl.DataFrame([{n: row.get(n) for n in schema.names} for row in rows], schema=empty.schema, orient="row")


def rewrite(source: str, target: str, **more: Any) -> dict[str, Any]:
    row = {"locale": "en-US", "source": source, "target": target, "source_text": source.title(), "target_text": None}
    row |= {"probability": 0.81234567, "score": 0.5, "lift": 0.4, "lift_lower": 0.2, "users": 7, "source_users": 13, "target_users": 60}
    row |= {"pair_users": 4, "pair_count_rate": 0.1, "votes": 23, "goal_id": "g1", "cause": "asr", "first_seen": date(2026, 2, 26)}
    row |= {"last_seen": date(2026, 3, 18), "source_served": 0.1, "target_served": 0.9, "decision": "proposed", "reason": "goal"}
    return row | more


def label(utterance: str, intent: str = "light_on", **more: Any) -> dict[str, Any]:
    row = {"locale": "en-US", "utterance": utterance, "utterance_text": None, "intent": intent, "slots": None, "confidence": 0.9}
    row |= {"sample_weight": 0.9, "users": 12, "votes": 40, "origin": "own", "assistant_version": "v1", "goal_id": "g1", "served": 0.9}
    return row | {"majority_intent": intent, "majority_share": 1.0, "decision": "proposed", "reason": "own"} | more


def goal(utterance: str, goal_id: str = "g1", **more: Any) -> dict[str, Any]:
    return {"locale": "en-US", "utterance": utterance, "goal_id": goal_id, "membership": 0.9, "users": 12, "is_exemplar": True} | more


def pair(anchor: str, positive: str, negative: str | None = None, goal_id: str = "g1", **more: Any) -> dict[str, Any]:
    row = {"anchor": anchor, "positive": positive, "negative": negative, "negative_origin": "other_intent" if negative else None}
    row |= {"weight": 0.8, "locale_anchor": "en-US", "locale_positive": "en-US", "goal_id": goal_id}
    return row | {"decision": "proposed", "reason": "goal"} | more


def world(**more: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows per table: two goals, three rewrites, labels and pairs; `more` replaces tables."""
    texts = {"turn on the light": "g1", "light on": "g1", "turn on the lite": "g1", "tern on": "g1", "play jazz": "g2", "play jass": "g2"}
    base = {
        "rewrites": [
            rewrite("turn on the lite", "turn on the light"),
            rewrite("tern on", "turn on the light", users=3, source_users=3, votes=4),
            rewrite("play jass", "play jazz", goal_id="g2", decision="rejected", reason="unproven"),
        ],
        "labels": [
            label("turn on the light", slots='{"device":"light"}'),
            label("turn on the lite", origin="projected"),
            label("play jazz", "play", goal_id="g2", users=150, votes=1234),
        ],
        "pairs": [pair("turn on the light", "light on", "play jazz"), pair("light on", "turn on the lite")],
        "goals": [goal(t, g, users=n) for n, (t, g) in enumerate(texts.items(), start=12)],
        "goal_changes": [{"old_goal_id": None, "new_goal_id": "g1", "change": "appeared", "texts": 4}],
    }
    return base | more


def build(
    rows: dict[str, list[dict[str, Any]]] | None = None,
    parent: Release | Parent | None = None,
    ledger: pl.DataFrame | None = None,
    **options: Any,
) -> Release:
    rows = rows or world()
    candidates = {name: frame(schema, rows[name]) for name, schema in CANDIDATES.items()}
    if isinstance(parent, Release):
        parent = Parent(parent.release_id, parent.as_of, parent.tables)
    goals, changes = frame(GOALS, rows["goals"]), frame(GOAL_CHANGES, rows["goal_changes"])
    return build_release(candidates, goals, changes, parent, ledger, **(OPTIONS | options))
