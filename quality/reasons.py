"""What a reason code means, in one sentence a person can act on: for reports, data cards and `explain`."""

from __future__ import annotations

from typing import Final

REASONS: Final = {
    # rewrites
    "goal": "users of the source end on the target's goal, and the target is served",
    "live": "it serves users already, and they are served",
    "ambiguous": "users of the source want several different things",
    "no_lift": "serving the target gains nothing over leaving the source alone",
    "no_outside_users": "nobody but those who went from the source said the target: it may be made up for the pair",
    "no_other_wording": "nobody but new accounts asks for this in any other wording: it may be made up for the pair",
    "no_served_target": "no text of the goal is served often enough to be a target",
    "other_goal": "users of the source end on another goal more often",
    "same_meaning": "the assistant understands the target as it understands the source: it would do again what failed",
    "false_discovery": "more of the less sure ones would be wrong than the configuration allows",
    "number_changed": "the target has another number than the source",
    "value_lost": "the target lacks a value that the source names",
    "meaning_turned": 'its sides differ by a word that turns meanings elsewhere, as "don\'t" does',
    "popular": "too many sources lead to this target already, and surer ones",
    "repeaters": "most of the evidence comes from users who ask the same again and again",
    "source_served": "the source is served well enough when it is left alone",
    "treated_failed": "it was tried on users, and they were not served",
    "weak": "the target is less likely than not what users of the source want",
    "unproven": "the evidence would not hold if one looked at it every night (profile careful)",
    # labels
    "own": "the assistant's own reading, confirmed by what users did next",
    "projected": "what its users were served with in the end",
    "unsure": "no intent is likely enough",
    "no_intent": "the log does not say what the assistant understood",
    # pairs
    "pairs.goal": "two texts of one goal",
    "negative_other_split": "its negative belongs to another split; the pair has others",
    "no_negative": "no alike text of another meaning was found",
    "goal_unknown": "its goal is not among the goals that k users share",
    "other_split": "its two sides belong to different splits",
    # anything
    "vetoed": "somebody vetoed it",
    "protected": "the configuration protects its text or its intent",
    "held_out": "its text is in the held-out test set",
    "below_k": "fewer than k users, or none but new accounts",
    "text_below_k": "a text that fewer than k users said",
    "slots_below_k (label kept)": "a slot value that fewer than k users share; the label stays, without slots",
    "placeholder": "a text with personal data in it, which was scrubbed",
    "same_text": "both sides are the same text",
    "doubled": "another row with the same key is better",
    "chain": "its target is itself rewritten, or its source is a target",
    # retired
    "replaced": "the source has a better target now",
    "expired": "it ended, and no new evidence renewed it",
    "no_evidence": "the window holds no evidence for it any more",
    # rejected log rows
    "bad_json": "a line that is not a JSON object",
    "bad_timestamp": "a time that is none, or is impossible",
    "missing_timestamp": "no time",
    "missing_turn_id": "no turn id",
    "missing_user": "no user",
    "blank_utterance": "nothing was said",
    "too_long": "more than 1,000 characters",
    "duplicate": "the same row came before",
    "turn_id_conflict": "another row has the same turn id",
}
"""Reason code -> sentence. A code that is not here is shown as it is."""


def sentence(code: str, table: str = "") -> str:
    """The sentence of a reason code, which may mean something else in one table; the code, spaced, when it is unknown."""
    return REASONS.get(f"{table}.{code}") or REASONS.get(code, code.replace("_", " "))
