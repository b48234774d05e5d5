"""What a turn's own session shows of how it went, and what its text looks like: numbers, NaN where not logged or not seen."""

from __future__ import annotations

import numpy as np
import polars as pl

from rewrite import ngrams
from rewrite.contracts import STATUSES
from rewrite.model import TextStats
from rewrite.pairs import edit_similarity
from rewrite.text import coded, numbered

SESSION = {
    # name: sign of the monotone constraint on P(served)
    "refused": -1,
    "cancelled": 0,
    "barge_in": -1,
    "feedback": 1,
    "same_reply": -1,  # the reply to the next turn resembles the reply to this one
    "again": -1,  # greatest P(asked again) of the turns that follow; 0 when none does
    "ended": 0,  # nothing came next
    "gap": 0,  # log seconds to the next turn
    "edit": 0,  # likeness of this turn and the next
    "jaccard": 0,
    "same_topic": 0,
    "kept_intent": 0,  # the next turn was understood the same
    "next_refused": 0,
    "next_barge_in": 0,
    "next_feedback": 0,
    "next_again": 0,  # P(the next turn is itself asked again)
    "was_again": 0,  # P(this turn asks again for the one before), and their likeness
    "was_edit": 0,
    "was_jaccard": 0,
    "was_refused": 0,  # how the turn before went
    "was_barge_in": 0,
    "position": 0,  # turns before this one in its session
    "corrective": -1,  # how much new words of the next turn speak for failed (`corrective`): 0 here, as words are the model's
}
"""Nothing here is the same for all who say a text, status apart: a vote made from it is one user's own."""

LOOKS = {
    # name: sign of the monotone constraint on P(served)
    "intent_confidence": 1,
    "asr_confidence": 1,
    "frequency": 0,  # log share of turns of the text
    "rarest_word": 0,  # idf of the text's rarest word, and the mean over its words
    "mean_word": 0,
    "rarest_ngram": 0,
    "mean_ngram": 0,
    "length": 0,  # log of the number of characters
    "rewritten": 0,  # another text was served in its place
}


def session_signals(turns: pl.DataFrame, scored: pl.DataFrame) -> np.ndarray:
    """SESSION of every turn of `pairs.ordered(...)`, shape (turns, signals), from its scored pairs (`asked_again.score`).

    A retry has the signals of the event itself; `outcomes` reads those of the turn that stands for it.
    """
    n = turns.height
    x = np.full((n, len(SESSION)), np.nan)
    if not n:
        return x
    at = {name: c for c, name in enumerate(SESSION)}
    logged = turns["status"].replace_strict({s: i for i, s in enumerate(STATUSES)}, default=None, return_dtype=pl.Float64)
    status = logged.fill_null(np.nan).to_numpy()
    known = ~np.isnan(status)
    x[:, at["refused"]] = np.where(known, np.isin(status, [1, 2]), np.nan)
    x[:, at["cancelled"]] = np.where(known, status == 3, np.nan)
    for name in ("barge_in", "feedback"):
        x[:, at[name]] = turns[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
    real = scored.filter(~pl.col("is_retry"))
    again = np.zeros(n)
    np.maximum.at(again, real["i"].to_numpy(), real["probability"].to_numpy())
    x[:, at["again"]] = again
    near = real.filter(pl.col("lag") == 1)
    i, j = near["i"].to_numpy(), near["j"].to_numpy()
    x[:, at["ended"]] = 1.0
    x[i, at["ended"]] = 0.0
    x[i, at["gap"]] = np.log(np.maximum(near["gap_s"].to_numpy(), 0.0) + 0.5)
    for name, column in (("edit", "edit"), ("jaccard", "jaccard"), ("same_topic", "p_same_topic")):
        x[i, at[name]] = near[column].to_numpy()
    intent = numbered(turns["intent"])
    x[i, at["kept_intent"]] = np.where(np.isnan(intent[i]) | np.isnan(intent[j]), np.nan, intent[i] == intent[j])
    for name in ("refused", "barge_in", "feedback", "again"):
        x[i, at[f"next_{name}"]] = x[j, at[name]]
    x[j, at["was_again"]] = near["probability"].to_numpy()
    x[j, at["was_edit"]], x[j, at["was_jaccard"]] = near["edit"].to_numpy(), near["jaccard"].to_numpy()
    x[j, at["was_refused"]], x[j, at["was_barge_in"]] = x[i, at["refused"]], x[i, at["barge_in"]]
    reply = turns["response"]
    both = (reply.is_not_null().gather(i) & reply.is_not_null().gather(j)).to_numpy()
    if both.any():
        x[i[both], at["same_reply"]] = edit_similarity(reply.gather(i[both]).to_list(), reply.gather(j[both]).to_list())
    first = np.append(True, np.diff(turns["run"].to_numpy()) != 0)
    start = np.maximum.accumulate(np.where(first, np.arange(n), 0))
    earlier = np.append(0, np.cumsum(~turns["is_retry"].to_numpy()))
    x[:, at["corrective"]] = 0.0
    x[:, at["position"]] = np.minimum(earlier[:n] - earlier[start], 20)
    return x


def looks(turns: pl.DataFrame, rows: np.ndarray, stats: TextStats) -> np.ndarray:
    """LOOKS of the given turns of one locale, shape (rows, looks)."""
    x = np.full((len(rows), len(LOOKS)), np.nan)
    if not len(rows):
        return x
    for c, name in enumerate(("intent_confidence", "asr_confidence")):
        x[:, c] = turns[name].gather(rows).fill_null(np.nan).to_numpy()
    distinct, code = coded(turns["key"].gather(rows))
    x[:, 2:-1] = _text_looks(distinct.to_list(), stats)[code]
    x[:, -1] = (turns["treatment"].gather(rows) == "rewritten").fill_null(False).to_numpy()
    return x


def _text_looks(texts: list[str], stats: TextStats) -> np.ndarray:
    x = np.empty((len(texts), 6))
    x[:, 0] = stats.log_frequency(texts)
    for c, (m, idf) in enumerate(((ngrams.words(texts), stats.word_idf), (ngrams.ngram_counts(texts), stats.ngram_idf))):
        m.data = idf[m.indices]
        x[:, 1 + 2 * c] = m.max(axis=1).toarray().ravel()
        x[:, 2 + 2 * c] = np.asarray(m.sum(axis=1)).ravel() / np.maximum(np.diff(m.indptr), 1)
    x[:, 5] = np.log([len(t) + 1 for t in texts])
    return x
