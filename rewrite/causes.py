"""Why did a turn fail?"""

from __future__ import annotations

import numpy as np
import polars as pl

from rewrite.model import Model

CAUSE_NAMES = ("unknown", "asr", "wording", "entity", "unsupported", "user")


def likeliest(turns: pl.DataFrame, scored: pl.DataFrame, friction: np.ndarray, model: Model) -> tuple[list[str], np.ndarray]:
    """Likeliest cause if the turn failed, and its probability: a softmax over evidence weighed by hand (a first version).

    Misheard texts are rare ones that the person then says alike (a few letters apart), that were heard with low
    confidence, or that were understood with confidence and failed all the same; a wording problem is followed by other words; an entity problem by the same words but one; a request
    that many make and that is refused to all is unsupported; a cancelled one is the person's own.
    """
    n = turns.height
    edit, jaccard, again = np.zeros(n), np.zeros(n), np.zeros(n)
    first = scored.filter((pl.col("lag") == 1) & ~pl.col("same_text"))
    at = first["i"].to_numpy()
    edit[at], jaccard[at], again[at] = (first[c].to_numpy() for c in ("edit", "jaccard", "probability"))
    rare = np.ones(n)
    low = np.zeros(n)
    sure = turns["intent_confidence"].fill_null(0.5).fill_nan(0.5).to_numpy()
    for locale, rows in by_locale(turns):
        if locale in model.stats:
            keys = turns["key"].gather(rows)
            distinct = keys.unique().sort()
            seldom = pl.Series(1.0 / (1.0 + model.stats[locale].log_frequency(distinct.to_list())))
            rare[rows] = keys.replace_strict(distinct, seldom, return_dtype=pl.Float64).to_numpy()
        if deciles := model.asr_confidence.get(locale):
            c = turns["asr_confidence"].gather(rows).fill_null(np.nan).to_numpy()
            low[rows] = np.where(np.isnan(c), 0.0, 0.5 - np.searchsorted(deciles, c) / (len(deciles) + 1))
    status = friction // 6
    refused, cancelled = np.isin(status, [1, 2]), status == 3
    score = np.zeros((n, len(CAUSE_NAMES)))
    score[:, 1] = -2.0 + 2.0 * rare + 3.0 * again * (edit - 0.4) + 3.0 * low + 2.0 * (sure - 0.5)
    score[:, 2] = -0.5 + 2.0 * again * (0.7 - edit)
    score[:, 3] = -1.5 + 2.0 * again * (jaccard > 0.5) * (edit < 0.85)
    score[:, 4] = -1.5 + 2.0 * refused * (1 - rare) * (1 - again)
    score[:, 5] = -2.0 + 4.0 * cancelled
    p = np.exp(score - score.max(axis=1, keepdims=True)) if n else score
    p /= p.sum(axis=1, keepdims=True) if n else 1.0
    best = p.argmax(axis=1)
    return [CAUSE_NAMES[b] for b in best], p[np.arange(n), best]


def by_locale(turns: pl.DataFrame) -> list[tuple[str, np.ndarray]]:
    groups = turns.select("locale").with_row_index("row").group_by("locale").agg("row").sort("locale")
    return [(locale, rows.to_numpy().astype(np.int64)) for locale, rows in zip(groups["locale"], groups["row"], strict=True)]
