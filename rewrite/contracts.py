"""The tables that must not drift: names, columns and types of everything sayagain reads and writes.

Only pyarrow is imported here, so that every room can read the contracts cheaply.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa

BUCKETS: Final = 16
"""User-keyed tables are bucketed by a hash of the user key; fixed in `lake.json`, so that `forget` touches few files."""

MAX_TEXT: Final = 1000
"""Characters in an utterance; a longer one is rejected, never cut."""

MILLION: Final = 1_000_000
"""Probabilities are added up as whole millionths: exact, whatever the order of the rows."""

COUNT_STEPS: Final = (3, 5, 10, 20, 50)
"""Released counts are floored to these, then to 100, 200, 500, 1000, ..."""

UTC_US: Final = pa.timestamp("us", tz="UTC")

TREATMENTS: Final = ("untouched", "rewritten", "unknown")
VOTE_KINDS: Final = ("transition", "same_goal", "outcome")
CAUSES: Final = ("asr", "wording", "entity", "unsupported", "user", "unknown")
STATUSES: Final = ("completed", "no_match", "error", "cancelled")
REWRITE_STATUSES: Final = ("new", "kept", "changed")
LABEL_ORIGINS: Final = ("own", "projected", "goal")
SPLITS: Final = ("train", "dev", "test", "none")

LOG_REQUIRED: Final = ("turn_id", "timestamp", "user_id", "utterance")

LOG: Final = pa.schema(
    [
        ("turn_id", pa.string()),
        ("timestamp", UTC_US),
        ("user_id", pa.string()),
        ("utterance", pa.string()),
        ("locale", pa.string()),
        ("session_id", pa.string()),
        ("served_utterance", pa.string()),
        ("rewrite_id", pa.string()),
        ("holdout", pa.bool_()),
        ("assistant_version", pa.string()),
        ("asr_confidence", pa.float64()),
        ("intent_confidence", pa.float64()),
        ("intent", pa.string()),
        ("slots", pa.string()),
        ("response", pa.string()),
        ("status", pa.string()),
        ("barge_in", pa.bool_()),
        ("feedback", pa.int8()),
        ("channel", pa.string()),
    ]
)
"""The log contract: one row per user turn. Only `LOG_REQUIRED` must be there."""

TURNS: Final = pa.schema(
    [
        ("turn_id", pa.string()),
        ("timestamp", UTC_US),
        ("user_key", pa.string()),  # 32 hex digits: HMAC-SHA256 of the user id, first 128 bits
        ("locale", pa.string()),
        ("session", pa.int32()),  # ordinal of the cut session within (user_key, date), from 0
        ("session_id", pa.string()),  # the log's own, replaced by its HMAC
        ("key", pa.string()),  # of the utterance, see rewrite.text
        ("utterance", pa.string()),  # scrubbed
        ("served_utterance", pa.string()),
        ("rewrite_id", pa.string()),
        ("holdout", pa.bool_()),
        ("treatment", pa.string()),
        ("assistant_version", pa.string()),
        ("asr_confidence", pa.float64()),
        ("intent_confidence", pa.float64()),
        ("intent", pa.string()),
        ("slots", pa.string()),  # canonical JSON, see rewrite.text.canonical_slots; null stays null
        ("response", pa.string()),
        ("status", pa.string()),
        ("barge_in", pa.bool_()),
        ("feedback", pa.int8()),
        ("channel", pa.string()),
        ("scrubbed", pa.int16()),  # how many typed placeholders the scrubber put into this row's texts
        ("input", pa.string()),  # the file the row came from: its absolute path or URL
    ]
)

REJECTS: Final = pa.schema(
    [
        ("input", pa.string()),
        ("row", pa.int64()),  # 0-based row number in the file
        ("reason", pa.string()),
        ("user_key", pa.string()),  # null when the user could not be read
        ("excerpt", pa.string()),  # scrubbed, at most 200 characters
    ]
)

REPHRASES: Final = pa.schema(
    [
        ("turn_id", pa.string()),
        ("next_turn_id", pa.string()),
        ("locale", pa.string()),
        ("lag", pa.int8()),  # 1 = neighbours
        ("probability", pa.float64()),  # asked again for the same goal
        ("p_same_topic", pa.float64()),  # same topic, new value or next step
        ("decided_by", pa.string()),
    ]
)

OUTCOMES: Final = pa.schema(
    [
        ("turn_id", pa.string()),
        ("p_failed", pa.float64()),
        ("p_mixed", pa.float64()),
        ("cause", pa.string()),
        ("cause_probability", pa.float64()),
    ]
)

VOTES: Final = pa.schema(
    [
        ("user_key", pa.string()),
        ("locale", pa.string()),
        ("kind", pa.string()),
        ("source", pa.string()),  # key of the text
        ("target", pa.string()),  # links: key of the later text; rewritten outcomes: key of what was served; else null
        ("value", pa.float64()),  # [0, 1]; links: P(same goal), greatest; outcomes: P(served), mean
        ("treatment", pa.string()),
        ("rewrite_id", pa.string()),
        ("assistant_version", pa.string()),
        ("intent", pa.string()),  # outcomes: of the source turn; links: of the target turn
        ("slots", pa.string()),
        ("cause", pa.string()),  # outcomes: likeliest cause if it failed
        ("text", pa.string()),  # outcomes: the surface form that was said
        ("events", pa.int32()),
    ]
)
VOTE_KEY: Final = tuple(n for n in VOTES.names if n not in ("value", "events"))

GOALS: Final = pa.schema(
    [
        ("locale", pa.string()),
        ("utterance", pa.string()),
        ("goal_id", pa.string()),
        ("membership", pa.float64()),
        ("users", pa.int64()),
        ("is_exemplar", pa.bool_()),
    ]
)

GOAL_EDGES: Final = pa.schema(
    [
        ("locale_a", pa.string()),
        ("utterance_a", pa.string()),
        ("locale_b", pa.string()),
        ("utterance_b", pa.string()),
        ("probability", pa.float64()),
        ("similarity", pa.float64()),  # embedding cosine; null when not embedded or not neighbours
        ("asked_again", pa.float64()),  # users' pooled asked-again evidence; null when none
        ("same_interpretation", pa.float64()),  # share of served interpretations in common; null when unknown
        ("lexicon", pa.float64()),  # what the lexicon's word for it is worth; null when it says nothing
    ]
)

GOAL_CHANGES: Final = pa.schema(
    [
        ("old_goal_id", pa.string()),
        ("new_goal_id", pa.string()),
        ("change", pa.string()),  # kept, merged, split, appeared, vanished
        ("texts", pa.int64()),
    ]
)

REWRITES: Final = pa.schema(
    [
        ("rewrite_id", pa.string()),
        ("locale", pa.string()),
        ("source", pa.string()),
        ("target", pa.string()),
        ("source_text", pa.string()),
        ("target_text", pa.string()),
        ("probability", pa.float64()),
        ("score", pa.float64()),
        ("lift", pa.float64()),
        ("lift_lower", pa.float64()),
        ("users", pa.int64()),
        ("source_users", pa.int64()),
        ("votes", pa.int64()),
        ("goal_id", pa.string()),
        ("cause", pa.string()),
        ("first_seen", pa.date32()),
        ("last_seen", pa.date32()),
        ("expires", pa.date32()),
        ("status", pa.string()),
    ]
)

RETIRED: Final = pa.schema(
    [("rewrite_id", pa.string()), ("locale", pa.string()), ("source", pa.string()), ("target", pa.string()), ("reason", pa.string())]
)

LABELS: Final = pa.schema(
    [
        ("locale", pa.string()),
        ("utterance", pa.string()),
        ("utterance_text", pa.string()),
        ("intent", pa.string()),
        ("slots", pa.string()),
        ("confidence", pa.float64()),
        ("sample_weight", pa.float64()),
        ("users", pa.int64()),
        ("votes", pa.int64()),
        ("origin", pa.string()),
        ("assistant_version", pa.string()),
        ("goal_id", pa.string()),
        ("split", pa.string()),
    ]
)

PAIRS: Final = pa.schema(
    [
        ("anchor", pa.string()),
        ("positive", pa.string()),
        ("negative", pa.string()),
        ("negative_origin", pa.string()),
        ("weight", pa.float64()),
        ("locale_anchor", pa.string()),
        ("locale_positive", pa.string()),
        ("goal_id", pa.string()),
        ("split", pa.string()),
    ]
)

RELEASED: Final = {"rewrites": REWRITES, "retired": RETIRED, "labels": LABELS, "goals": GOALS, "goal_changes": GOAL_CHANGES, "pairs": PAIRS}
UNIQUE_KEYS: Final = {
    "rewrites": ("locale", "source"),
    "labels": ("locale", "utterance"),
    "goals": ("locale", "utterance"),
    "pairs": ("locale_anchor", "anchor", "locale_positive", "positive", "negative"),
}

# Candidates: the released columns that are known before a release, and what was decided and why.
_DECISION = [("decision", pa.string()), ("reason", pa.string())]  # decision: proposed | rejected; reason: a short code, never null
_NOT_IN_CANDIDATES = {"rewrite_id", "expires", "status", "split"}


def _candidate(schema: pa.Schema, more: list[tuple[str, pa.DataType]]) -> pa.Schema:
    fields = [(f.name, f.type) for f in schema if f.name not in _NOT_IN_CANDIDATES]
    return pa.schema(fields + more + _DECISION)


CANDIDATE_REWRITES: Final = _candidate(
    REWRITES,
    [
        ("source_served", pa.float64()),  # pooled P(source is served when left alone)
        ("target_served", pa.float64()),
        ("target_users", pa.int64()),
        ("pair_users", pa.int64()),  # users who went from the source itself to this very target
        ("pair_count_rate", pa.float64()),  # the baseline: pair counting
    ],
)
CANDIDATE_LABELS: Final = _candidate(LABELS, [("majority_intent", pa.string()), ("majority_share", pa.float64()), ("served", pa.float64())])
CANDIDATE_PAIRS: Final = _candidate(PAIRS, [])
CANDIDATES: Final = {"rewrites": CANDIDATE_REWRITES, "labels": CANDIDATE_LABELS, "pairs": CANDIDATE_PAIRS}
