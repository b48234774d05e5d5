"""From numbers to columns: texts are Arrow dictionaries, taken by number, so that no text is made per turn but its ids."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.simulate.play import ERROR, NO_MATCH_STATUS, STATUS, Serving, Turns, Users
from pipelines.simulate.world import Language
from rewrite.contracts import LOG

_FIELDS: list[tuple[str, pa.DataType]] = [
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
TRUTH = pa.schema(_FIELDS)
"""The truth beside a log: one row per turn that an honest user said."""


class Columns:
    """Makes the tables of one language under one way of serving."""

    def __init__(self, language: Language, serving: Serving, assistant_version: str):
        self.serving, self.language = serving, language
        self.locale, self.version = _strings([language.locale]), _strings([assistant_version])
        self.texts = _strings(serving.texts)
        self.written = _strings(serving.texts + [t[:1].upper() + t[1:] for t in serving.texts])
        self.rewrite_ids = _strings([i or "" for i in serving.rewrite_ids])
        self.intents = _strings([intent for intent, _ in language.meanings])
        self.slots = _strings([slots for _, slots in language.meanings])
        self.replies = _strings(_replies(language))
        self.status, self.channels, self.goals = _strings(list(STATUS)), _strings(["voice", "text"]), _strings(language.goals)

    def log(self, turns: Turns, who: Users, ids: str, user_ids: str) -> pa.Table:
        """The turns by the log contract. `ids` and `user_ids` are what turn, session and user ids begin with."""
        n, user = len(turns), turns.user
        rewritten, answered, spoken = turns.served != turns.said, turns.meaning >= 0, who.spoken[user]
        no_match, error = len(self.replies) - 2, len(self.replies) - 1
        reply = np.where(turns.status == NO_MATCH_STATUS, no_match, np.where(turns.status == ERROR, error, turns.meaning))
        zero = np.zeros(n, np.int32)
        columns = {
            "turn_id": _ids(f"{ids}-", np.arange(n)),
            "timestamp": pa.array(turns.time).cast(LOG.field("timestamp").type),
            "user_id": _ids(user_ids, user + who.first),
            "utterance": _take(self.written, turns.said + who.capitals[user] * len(self.texts)),
            "locale": _take(self.locale, zero),
            "session_id": _ids(f"{ids}-s", turns.session, turns.has_session),
            "served_utterance": _take(self.texts, turns.served, rewritten),
            "rewrite_id": _take(self.rewrite_ids, turns.said, rewritten),
            "holdout": who.holdout[user],
            "assistant_version": _take(self.version, zero),
            "asr_confidence": pa.array(turns.asr, mask=~spoken),
            "intent_confidence": turns.confidence,
            "intent": _take(self.intents, turns.meaning, answered),
            "slots": _take(self.slots, turns.meaning, answered),
            "response": _take(self.replies, reply),
            "status": _take(self.status, turns.status),
            "barge_in": turns.barge_in,
            "feedback": pa.array(turns.feedback, mask=turns.feedback == 0),
            "channel": _take(self.channels, ~spoken),
        }
        return pa.table(columns).cast(LOG)

    def truth(self, turns: Turns, log: pa.Table) -> pa.Table:
        """What the users wanted, row by row of `log`."""
        turn_id = log["turn_id"].combine_chunks()
        columns = {
            "turn_id": turn_id,
            "goal": _take(self.goals, turns.goal),
            "true_intent": _take(self.intents, turns.goal),
            "true_slots": _take(self.slots, turns.goal),
            "success": turns.success,
            "misheard": turns.misheard,
            "attempt": turns.attempt,
            "again_of": turn_id.take(pa.array(turns.again_of, mask=turns.again_of < 0)),
            "rephrase": turns.rephrase,
        }
        return pa.table(columns).cast(TRUTH)


def _replies(language: Language) -> list[str]:
    """What the assistant answers, by meaning; then that it did not understand, and that something failed."""
    spec, out = language.spec, []
    for _, slots in language.meanings:
        values = ", ".join(json.loads(slots).values())
        out.append(spec["done"].format(values=values) if values else spec["done_bare"])
    return [*out, spec["sorry"], spec["error"]]


def _strings(values: list[str | None] | list[str]) -> pa.Array:
    return pa.array(values, pa.string())


def _take(values: pa.Array, index: np.ndarray, valid: np.ndarray | None = None) -> pa.DictionaryArray:
    codes: pa.Int32Array = pa.array(index.astype(np.int32), pa.int32(), mask=None if valid is None else ~valid)
    return pa.DictionaryArray.from_arrays(codes, values, safe=False)


def _ids(prefix: str, number: np.ndarray, valid: np.ndarray | None = None) -> pa.Array:
    codes = pa.array(number, mask=None if valid is None else ~valid)
    return pc.binary_join_element_wise(prefix, codes.cast(pa.string()), "")
