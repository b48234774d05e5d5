"""From numbers to columns: Arrow dictionaries are taken by index, so no text is made per turn but its ids."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.simulate.play import ERROR, NO_MATCH_STATUS, STATUS, Serving, Turns, Users
from pipelines.simulate.world import Language
from rewrite.contracts import LOG

TRUTH = pa.schema(
    [
        ("turn_id", pa.string()),
        ("goal", pa.string()),
        ("true_intent", pa.string()),
        ("true_slots", pa.string()),
        ("success", pa.bool_()),
        ("misheard", pa.bool_()),
        ("attempt", pa.int64()),
        ("again_of", pa.string()),
        ("rephrase", pa.bool_()),
    ]
)
"""The truth beside a log: one row per turn that an honest user said."""


def log_table(turns: Turns, language: Language, serving: Serving, who: Users, ids: str, user_ids: str, assistant: str) -> pa.Table:
    """The turns in the columns of the log contract; texts as dictionaries. `ids` and `user_ids` are what ids begin with."""
    n, texts = len(turns), serving.texts
    written = texts + [t[:1].upper() + t[1:] for t in texts]
    rewritten = turns.served != turns.said
    answered = turns.meaning >= 0
    reply = np.where(
        turns.status == NO_MATCH_STATUS, len(language.meanings), np.where(turns.status == ERROR, len(language.meanings) + 1, turns.meaning)
    )
    spoken = who.spoken[turns.user]
    columns: dict[str, Any] = {
        "turn_id": _ids(f"{ids}-", np.arange(n)),
        "timestamp": pa.array(turns.time).cast(LOG.field("timestamp").type),
        "user_id": _ids(user_ids, turns.user + who.first),
        "utterance": _take(written, turns.said + who.capitals[turns.user] * len(texts)),
        "locale": _take([language.locale], np.zeros(n, np.int32)),
        "session_id": _ids(f"{ids}-s", turns.session, turns.has_session),
        "served_utterance": _take(texts, turns.served, rewritten),
        "rewrite_id": _take(serving.rewrite_ids, turns.said, rewritten),
        "holdout": who.holdout[turns.user],
        "assistant_version": _take([assistant], np.zeros(n, np.int32)),
        "asr_confidence": pa.array(turns.asr, mask=~spoken),
        "intent_confidence": turns.confidence,
        "intent": _take([m[0] for m in language.meanings], turns.meaning, answered),
        "slots": _take([m[1] for m in language.meanings], turns.meaning, answered),
        "response": _take(replies(language), reply),
        "status": _take(list(STATUS), turns.status),
        "barge_in": turns.barge_in,
        "feedback": pa.array(turns.feedback, mask=turns.feedback == 0),
        "channel": _take(["voice", "text"], np.where(spoken, 0, 1)),
    }
    return pa.table(columns)


def truth_table(turns: Turns, language: Language, log: pa.Table) -> pa.Table:
    """What the users wanted, in the rows of `log_table`."""
    before = pa.array(turns.again_of, mask=turns.again_of < 0)
    return pa.table(
        {
            "turn_id": log["turn_id"],
            "goal": _take(language.goals, turns.goal),
            "true_intent": _take([m[0] for m in language.meanings], turns.goal),
            "true_slots": _take([m[1] for m in language.meanings], turns.goal),
            "success": turns.success,
            "misheard": turns.misheard,
            "attempt": turns.attempt,
            "again_of": log["turn_id"].combine_chunks().take(before),
            "rephrase": turns.rephrase,
        }
    )


def replies(language: Language) -> list[str]:
    """What the assistant answers, by meaning; then "not understood" and "error"."""
    spec, out = language.spec, []
    for intent, slots in language.meanings:
        values = ", ".join(v for v in json.loads(slots).values())
        out.append(spec["done"].format(values=values) if values else spec["done_bare"])
    return [*out, spec["sorry"], spec["error"]]


def _take(values: list[str | None], index: np.ndarray, valid: np.ndarray | None = None) -> pa.DictionaryArray:
    codes = pa.array(np.asarray(index, np.int32), mask=None if valid is None else ~valid)
    return pa.DictionaryArray.from_arrays(codes, pa.array(values, pa.string()))


def _ids(prefix: str, number: np.ndarray, valid: np.ndarray | None = None) -> pa.Array:
    codes = pa.array(number, mask=None if valid is None else ~valid)
    return pc.binary_join_element_wise(prefix, codes.cast(pa.string()), "")
