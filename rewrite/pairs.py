"""Pairs of turns that may be two tries at one goal, and what can be measured about each."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
import scipy.sparse as sp

from rewrite import ngrams
from rewrite.contracts import TURNS
from rewrite.model import TextStats
from rewrite.text import coded, numbered

MAX_LAG = 3
RETRY_S = 2.0
"""The same text again within two seconds is a client sending twice, not a person speaking twice."""

TEXT_FEATURES = {
    # name: sign of the monotone constraint on P(asked again); the text view
    "edit": 1,  # Levenshtein similarity
    "cosine": 1,  # tf-idf of character n-grams
    "rarest": 1,  # inverse document frequency of the rarest word shared
    "shared": 1,  # of all words shared, summed
    "jaccard": 1,  # of words shared, over that of all words
    "chance": 1,  # -log of the share of random turns at least as close to one side as the other side is
}
FREQUENCIES = {
    "frequency_1": -1,  # log share of turns of the first text: what many say is what works, what was misheard is rare
    "frequency_2": -1,
}
INTERPRETATION = {
    "kept_intent": 0,  # both turns were understood as the same intent
    "kept_slots": 0,  # with the same arguments: a new value after a success is another goal
}
FRICTION_FEATURES = {  # of the first turn; the friction view is these, FREQUENCIES and INTERPRETATION
    "status": 0,
    "refused": 1,
    "barge_in": 1,
    "feedback": -1,
    "intent_confidence": -1,
    "asr_confidence": -1,
    "same_reply": 1,  # the reply before this turn resembles the reply to it
    "echo": -1,  # the reply holds the words of the turn, the rare ones above all
}
_STATUS = {"completed": 0, "no_match": 1, "error": 2, "cancelled": 3}
_CHUNK = 20_000


def ordered(turns: pl.DataFrame) -> pl.DataFrame:
    """Turns in canonical order with every column of TURNS (absent ones null), `date` (UTC), `run` (one user, locale, date
    and session; dense from 0) and `is_retry`.

    A retry is a turn that a later one of its run repeats within RETRY_S seconds: the client asked twice for one act of
    the person. The last of such a row of events stands for it, with the answer that the person got in the end.
    """
    missing = [n for n in ("turn_id", "timestamp", "user_key", "locale", "session", "key") if n not in turns.columns]
    if missing:
        raise ValueError(f"turns lack the columns {missing}; they come from `sayagain ingest`")
    empty = pl.from_arrow(TURNS.empty_table())
    assert isinstance(empty, pl.DataFrame)
    absent = [pl.lit(None, t).alias(n) for n, t in empty.schema.items() if n not in turns.columns]
    keep = [*empty.columns, "date"]
    out = turns.with_columns(*absent, date=pl.col("timestamp").dt.date()).select(keep)
    out = out.sort("locale", "user_key", "date", "session", "timestamp", "turn_id")
    if not out.height:
        return out.with_columns(run=pl.lit(0, pl.Int64), is_retry=pl.lit(False))
    same = pl.all_horizontal(pl.col(c).eq_missing(pl.col(c).shift()) for c in ("locale", "user_key", "date", "session"))
    out = out.with_columns(run=(~same.fill_null(False)).cast(pl.Int64).cum_sum() - 1)
    again = (pl.col("key") == pl.col("key").shift(-1)) & (pl.col("run") == pl.col("run").shift(-1))
    soon = (pl.col("timestamp").shift(-1) - pl.col("timestamp")).dt.total_microseconds() <= RETRY_S * 1e6
    return out.with_columns(is_retry=(again & soon).fill_null(False))


def candidate_pairs(turns: pl.DataFrame, max_lag: int = MAX_LAG) -> pl.DataFrame:
    """All pairs of one user, date, session and locale up to `max_lag` turns apart; retries do not count as turns.

    `turns` is any turns frame or the result of `ordered`. One row per pair, sorted by (i, j): `i`, `j` (row numbers in
    `ordered(turns)`), `turn_id`, `next_turn_id`, `locale`, `lag` (0 for a retry and what it was repeated by), `gap_s`,
    `same_text`, `is_retry`.
    """
    t = turns if "is_retry" in turns.columns else ordered(turns)
    run, retry = t["run"].to_numpy(), t["is_retry"].to_numpy()
    real = np.flatnonzero(~retry)
    firsts, seconds, lags = [np.flatnonzero(retry)], [np.flatnonzero(retry) + 1], [np.zeros(int(retry.sum()), np.int8)]
    for back in range(1, max_lag + 1):
        ok = run[real[:-back]] == run[real[back:]]
        firsts.append(real[:-back][ok])
        seconds.append(real[back:][ok])
        lags.append(np.full(int(ok.sum()), back, np.int8))
    order = np.lexsort((np.concatenate(seconds), np.concatenate(firsts)))
    i, j, lag = (np.concatenate(x)[order] for x in (firsts, seconds, lags))
    at = t["timestamp"].to_physical().to_numpy()
    code = numbered(t["key"])
    return pl.DataFrame(
        {
            "i": i,
            "j": j,
            "turn_id": t["turn_id"].gather(i),
            "next_turn_id": t["turn_id"].gather(j),
            "locale": t["locale"].gather(i),
            "lag": pl.Series(lag, dtype=pl.Int8),
            "gap_s": (at[j] - at[i]) / 1e6,
            "same_text": code[i] == code[j],
            "is_retry": lag == 0,
        }
    )


class Texts:
    """Distinct texts of one locale, measured once: what the features of any pair of them are made from."""

    def __init__(self, keys: list[str], stats: TextStats):
        self.keys, self.stats = keys, stats
        self.vectors = stats.vectors(keys)
        self.words = ngrams.words(keys)
        self.words.data = stats.word_idf[self.words.indices]
        self.mass = np.asarray(self.words.sum(axis=1)).ravel()
        self.frequency = stats.log_frequency(keys)
        self.near = _nearness(self.vectors, stats.vectors(list(stats.reference))) if stats.reference else None

    def features(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """TEXT_FEATURES, then FREQUENCIES, of the pairs (keys[a], keys[b]): shape (n, features), float64.

        `chance` is NaN without a reference.
        """
        if not len(a):
            return np.zeros((0, len(TEXT_FEATURES) + len(FREQUENCIES)))
        n = len(self.keys)
        distinct, inverse = np.unique(a.astype(np.int64) * n + b, return_inverse=True)
        parts = [self._features(c // n, c % n) for c in np.array_split(distinct, max(1, len(distinct) // _CHUNK))]
        return np.concatenate(parts)[inverse.ravel()]

    def _features(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        left, right = [self.keys[i] for i in a], [self.keys[i] for i in b]
        x = np.empty((len(a), len(TEXT_FEATURES) + len(FREQUENCIES)))
        x[:, 0] = edit_similarity(left, right)
        cosine = cosines(self.vectors[a], self.vectors[b])
        both = self.words[a].multiply(self.words[b].astype(bool)).tocsr()
        shared = np.asarray(both.sum(axis=1)).ravel()
        x[:, 1] = cosine
        x[:, 2] = both.max(axis=1).toarray().ravel()
        x[:, 3] = shared
        x[:, 4] = shared / np.maximum(self.mass[a] + self.mass[b] - shared, 1e-9)
        if self.near is None:
            x[:, 5] = np.nan
        else:
            closer = np.maximum(*((self.near[s] >= cosine[:, None] - 1e-6).sum(axis=1) for s in (a, b)))
            x[:, 5] = -np.log((closer + 0.5) / (self.near.shape[1] + 1))
        x[:, 6], x[:, 7] = self.frequency[a], self.frequency[b]
        return x


def cosines(left: sp.csr_matrix, right: sp.csr_matrix) -> np.ndarray:
    """Cosine of each row with the same row of the other, both of length 1: shape (n,), float32."""
    return np.asarray(left.multiply(right).sum(axis=1)).ravel().astype(np.float32)


def _nearness(vectors: sp.csr_matrix, reference: sp.csr_matrix) -> np.ndarray:
    """Cosines of all texts with the reference turns, shape (texts, references), float32; only columns of the reference count."""
    columns = np.unique(reference.indices)
    dense = reference[:, columns].toarray().T
    return np.concatenate(
        [np.asarray(vectors[s : s + _CHUNK][:, columns] @ dense, np.float32) for s in range(0, max(1, vectors.shape[0]), _CHUNK)]
    )


def edit_similarity(left: list[str], right: list[str]) -> np.ndarray:
    """1 - Levenshtein distance / length of the longer text, pair by pair: shape (n,), 0..1."""
    from rapidfuzz import process
    from rapidfuzz.distance import Levenshtein

    return process.cpdist(left, right, scorer=Levenshtein.normalized_similarity, dtype=np.float32)


def _echo(keys: pl.Series, replies: pl.Series, stats: TextStats) -> np.ndarray:
    """Share of each text's words, weighed by their rarity, that its reply holds too: shape (n,), 0..1."""
    texts, text = coded(keys)
    heard, reply = coded(replies)
    distinct, row = np.unique(text * len(heard) + reply, return_inverse=True)
    said = ngrams.words(texts.to_list())
    said.data = stats.word_idf[said.indices]
    mass = np.asarray(said.sum(axis=1)).ravel()
    said, text = said[distinct // len(heard)], distinct // len(heard)
    words = ngrams.words(heard.str.to_lowercase().str.replace_all(r"\s+", " ").to_list()).astype(bool)
    both = said.multiply(words[distinct % len(heard)])
    return (np.asarray(both.sum(axis=1)).ravel() / np.maximum(mass[text], 1e-9))[row]


def interpretations(turns: pl.DataFrame) -> np.ndarray:
    """What each turn was understood as: a number per column of INTERPRETATION, shape (turns, 2), NaN where there is none."""
    return np.stack([numbered(turns[n]) for n in ("intent", "slots")], axis=1)


def interpretation(understood: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """INTERPRETATION of the pairs (i, j) of turns that were `understood` so: shape (n, 2), float64, NaN where one side has none."""
    first, second = understood[i], understood[j]
    return np.where(np.isnan(first) | np.isnan(second), np.nan, first == second)


def friction_features(turns: pl.DataFrame, stats: Mapping[str, TextStats]) -> np.ndarray:
    """FRICTION_FEATURES of every turn of `ordered(turns)`, shape (turns, features), float64, NaN where not logged.

    `stats`: the texts of each locale; words of a locale without any are all as rare.
    """
    x = np.full((turns.height, len(FRICTION_FEATURES)), np.nan)
    if not turns.height:
        return x
    status = turns["status"].replace_strict(_STATUS, default=None, return_dtype=pl.Float64)
    x[:, 0] = status.fill_null(np.nan).to_numpy()
    x[:, 1] = np.where(np.isnan(x[:, 0]), np.nan, x[:, 0] > 0)
    for n, name in enumerate(("barge_in", "feedback", "intent_confidence", "asr_confidence"), 2):
        x[:, n] = turns[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
    run, reply = turns["run"].to_numpy(), turns["response"]
    said = reply.is_not_null().to_numpy()
    at = np.flatnonzero(said[1:] & said[:-1] & (run[1:] == run[:-1])) + 1
    if len(at):
        x[at, 6] = edit_similarity(reply.gather(at - 1).to_list(), reply.gather(at).to_list())
    for locale in turns["locale"].unique().sort():
        at = np.flatnonzero(said & (turns["locale"] == locale).to_numpy())
        if len(at):
            x[at, 7] = _echo(turns["key"].gather(at), reply.gather(at), stats.get(locale, TextStats()))
    return x
