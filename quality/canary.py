"""The canary: would a model that learns the candidates understand the next days better or worse than one that does not?

A multinomial naive Bayes over character trigrams (McCallum & Nigam 1998): no seed, no iterations, seconds for 10^5 texts, any
language. It is no good classifier; it only has to be the same on both sides.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl
from scipy import sparse

from quality.measures import LEAST, Measure

HASHED: Final = 1 << 16
MIX: Final = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio (Knuth's multiplicative hash)
SMOOTH: Final = 0.1
"""Added to every count: trigrams that a class never saw (Lidstone 1920; .01 to .5 give the same order of models)."""
BATCH: Final = 4096
SURE: Final = 1.645
"""A loss counts when it is beyond the 5 % that chance would do: one-sided normal bound of the texts that changed sides."""
BINS: Final = 10


def canary(heard: pl.DataFrame, labels: pl.DataFrame, served: pl.DataFrame, asked_again: pl.DataFrame | None = None) -> list[Measure]:
    """How much accuracy the candidates lose, and how well their confidence holds; nothing when the days are too thin.

    heard: locale, utterance, intent, users: what the assistant made of texts in the earlier days. labels: locale, utterance,
    intent, confidence: candidates from the evidence of those days alone. served: locale, utterance, intent, users: what
    users of the later days were served with; asked_again: the same of texts that fail, served after they asked again. Texts
    that serve as they are would alone hold every good correction against the candidates: they follow the assistant's own mind.
    """
    out = []
    both = labels.join(served.select("locale", "utterance", was="intent"), on=["locale", "utterance"])
    if both.height >= LEAST:
        right = (both["intent"] == both["was"]).to_numpy()
        bins = np.minimum((both["confidence"].to_numpy() * BINS).astype(int), BINS - 1)
        gaps = [
            abs(right[bins == b].mean() - both["confidence"].to_numpy()[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)
        ]
        out.append(Measure("labels", "calibration", "confidence", round(float(sum(gaps)), 6), both.height, int((~right).sum())))
    if served.height < LEAST or heard.is_empty() or labels.is_empty():
        return out
    key = ["locale", "utterance"]
    if asked_again is not None:
        served = pl.concat([served, asked_again.join(served, on=key, how="anti")])
    taught = heard.join(labels.select(*key, better="intent"), on=key, how="full", coalesce=True)
    taught = taught.select(*key, pl.coalesce("better", "intent").alias("intent"), pl.col("users").fill_null(1))
    truth = served["intent"].to_numpy()
    users = served["users"].to_numpy().astype(np.float64)
    without, with_ = (_predict(t, served) == truth for t in (heard, taught))
    gained, lost = users[with_ & ~without].sum(), users[~with_ & without].sum()
    worse = (lost - gained - SURE * np.sqrt(gained + lost)) / users.sum()  # what is left of the loss when chance has had its share
    out.append(Measure("labels", "canary", "intent", round(max(0.0, float(worse)), 6), served.height, int((~with_ & without).sum())))
    return out


def _trigrams(texts: list[str]) -> sparse.csr_matrix:
    """Which hashed trigrams are in each text, white space around it included: 0/1, shape (n, HASHED)."""
    padded = [f" {text} " for text in texts]
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    row = np.repeat(np.arange(len(texts), dtype=np.uint64), [len(p) for p in padded])
    at = np.flatnonzero(row[2:] == row[:-2])
    grams = (((codes[at] * MIX + codes[at + 1]) * MIX + codes[at + 2]) * MIX) >> np.uint64(48)
    cells = np.unique((row[at] << np.uint64(16)) | grams)
    rows, columns = (cells >> np.uint64(16)).astype(np.int64), (cells % HASHED).astype(np.int64)
    return sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=(len(texts), HASHED))


def _predict(taught: pl.DataFrame, asked: pl.DataFrame) -> np.ndarray:
    """The likeliest intent of every asked text, by a model of its locale; ties go to the first in the alphabet."""
    out = np.full(asked.height, "", dtype=object)
    asked = asked.with_row_index("_row")
    for (locale,), part in asked.partition_by("locale", as_dict=True).items():
        known = taught.filter(pl.col("locale") == locale).drop_nulls("intent").sort("utterance", "intent")
        if known.is_empty():
            continue
        intents = known["intent"].unique().sort()
        of = known["intent"].replace_strict(intents, pl.Series(range(len(intents)), dtype=pl.Int64)).to_numpy()
        weight = np.minimum(known["users"].to_numpy(), 10).astype(np.float32)  # a text that everybody says is still one text
        classes = sparse.csr_matrix((weight, (of, np.arange(len(of)))), shape=(len(intents), len(of)))
        counts = np.asarray((classes @ _trigrams(known["utterance"].to_list())).todense()) + SMOOTH
        words = np.log(counts / counts.sum(axis=1, keepdims=True)).T.astype(np.float32)
        prior = np.log(np.asarray(classes.sum(axis=1)).ravel() + 1)
        names = intents.to_numpy()
        texts, rows = part["utterance"].to_list(), part["_row"].to_numpy()
        for at in range(0, len(texts), BATCH):
            score = _trigrams(texts[at : at + BATCH]) @ words + prior
            out[rows[at : at + BATCH]] = names[np.argmax(score, axis=1)]
    return out
