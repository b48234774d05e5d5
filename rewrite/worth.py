"""What are labels worth? A small intent model taught with and without them, and how sure one can be of the difference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

ROUNDS = 2000
"""Bootstrap resamples: the ends of a 95 % interval move by about a fiftieth of its width."""
FEATURES = 60_000
"""Most frequent character n-grams that are kept: bounds memory, and what is rarer was seen once."""


class IntentModel:
    """Character n-grams and logistic regression: works in any script, learns thousands of texts in seconds on a CPU."""

    def __init__(self, texts: Sequence[str], intents: Sequence[str], weights: np.ndarray, seed: int):
        """`weights`: of each text, 1 for a human label. The same input and seed give the same model."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import SGDClassifier

        self._ngrams = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True, max_features=FEATURES)
        self._model: Any = SGDClassifier(loss="log_loss", alpha=2e-6, max_iter=12, tol=None, random_state=seed)
        self._model.fit(self._ngrams.fit_transform(list(texts)), list(intents), sample_weight=weights)

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """The likeliest intent of each text."""
        return self._model.predict(self._ngrams.transform(list(texts)))


def hits(taught: pl.DataFrame, test: pl.DataFrame, seeds: Sequence[int]) -> np.ndarray:
    """(test.height,): the share of seeds whose model is right. Both frames: `text, intent`; `taught` also `weight`; rows in any order.

    One fit moves by half a point of accuracy with its seed; the mean over seeds moves less.
    """
    taught = taught.select("text", "intent", "weight").sort("text", "intent", "weight")
    want = test["intent"].to_numpy()
    right = np.zeros(test.height)
    for seed in seeds:
        model = IntentModel(taught["text"].to_list(), taught["intent"].to_list(), taught["weight"].to_numpy(), seed)
        right += model.predict(test["text"].to_list()) == want
    return right / len(seeds)


def paired(after: np.ndarray, before: np.ndarray, seed: int, groups: np.ndarray | None = None) -> tuple[float, float, float]:
    """(difference of the means, low, high): 95 % percentile interval of the paired bootstrap (Efron 1979).

    Both are per test row; the same rows are drawn for both, so what is hard for both does not widen the interval. `groups`: of each
    row; whole groups are drawn, for rows that are right or wrong together. Without rows all three are 0.
    """
    gain = np.asarray(after, np.float64) - before
    if not len(gain):
        return 0.0, 0.0, 0.0
    at = np.arange(len(gain)) if groups is None else np.unique(groups, return_inverse=True)[1]
    sums, sizes = np.bincount(at, gain), np.bincount(at)
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(0, len(sums), len(sums)) for _ in range(ROUNDS))
    means = np.array([sums[i].sum() / sizes[i].sum() for i in drawn])
    low, high = np.quantile(means, (0.025, 0.975))
    return float(gain.mean()), float(low), float(high)


def head(train: pl.Series, test: pl.Series) -> np.ndarray:
    """Boolean per test intent: is it of the head, the most frequent intents that make up half of the training rows?

    The tail is all others, intents that the training set does not know included.
    """
    counts = train.to_frame("intent").group_by("intent").len().sort("len", "intent", descending=[True, False])
    before = counts["len"].cum_sum() - counts["len"]
    return test.is_in(counts.filter(before < len(train) / 2)["intent"].implode()).to_numpy()
