"""Why did a turn fail, if it did? Likeliest of `contracts.CAUSES`, with its probability, learned without labels where the log teaches.

Misheard (`asr`): two views. What is known beforehand: misheard texts are rare, heard with low confidence, or understood with
confidence and failed all the same. And what the log teaches: a person who was misheard says it again, and a word of one
text then stands where its phonetic neighbour stands in the other; the text of rarer n-grams was misheard (measured, .6 to
.8 of them; of all that were said again in other words .2 to .6). Trees learn what such a text looks like
(`signals.LOOKS`), among all that were said again in other words (positive-unlabelled: whether a misheard person repeats or
rewords hardly depends on the text).

The others are weighed by hand, a first version: wording is followed by other words, an entity problem by the same words
but one; a request that many make and that is refused is unsupported; a cancelled one is the person's own.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from rewrite.alignment import ALIGNMENT, KINDS, align
from rewrite.contracts import CAUSES, STATUSES
from rewrite.curves import logit, sigmoid
from rewrite.model import Cause, Model
from rewrite.signals import LOOKS
from rewrite.trees import fit_trees, log_odds

_ALIKE = 0.6
_FRAME = 0.3
"""The rest was said again, and what was replaced is spelled or sounds alike. Both are flat around: .5 to .7, .2 to .5."""
_ASKED = 0.5
MIN_ASKED = 300
"""Changed texts that were said again; fewer teach nothing."""
_MISHEARD = 0.25
"""P(misheard | failed) before anything is known of a turn: it cannot be learned without labels."""


def fit(
    keys: pl.Series,
    scored: pl.DataFrame,
    looks: np.ndarray,
    low: np.ndarray,
    failed: np.ndarray,
    learn: Mapping[str, np.ndarray],
    seed: int,
) -> dict[str, Cause]:
    """What misheard texts look like, per locale and pooled. `scored`: pairs of turns; `keys, looks, low, failed` per turn: LOOKS,
    `low_confidence`, P(failed); `learn`: the rows to learn from, in an order that no user key decides, pooled and of each
    locale that learns for itself."""
    asked, alike = _said_again(keys, scored, looks)
    known = _beforehand(looks, low)
    out = {}
    for locale, rows in learn.items():
        weight = failed[rows] + 1e-9
        at = rows[asked[rows]]
        trees, evidence = "", known[rows]
        if len(at) >= MIN_ASKED and 0 < alike[at].sum() < len(at):
            trees = fit_trees(looks[at], alike[at].astype(float), [0] * len(LOOKS), weight=failed[at] + 1e-9, seed=seed)
            evidence = known[rows] + log_odds(trees, looks[rows])
        out[locale] = Cause(trees, float(np.average(evidence, weights=weight)) if len(rows) else 0.0)
    return out


def likeliest(
    turns: pl.DataFrame, scored: pl.DataFrame, friction: np.ndarray, looks: np.ndarray, parts: list[tuple[str, np.ndarray]], model: Model
) -> tuple[list[str], np.ndarray]:
    """Cause, and P(cause | failed), of every turn; `looks` and `friction` are those of `turns`, `parts` its rows by locale."""
    n = turns.height
    edit, jaccard, again = np.zeros(n), np.zeros(n), np.zeros(n)
    first = scored.filter((pl.col("lag") == 1) & ~pl.col("same_text"))
    at = first["i"].to_numpy()
    edit[at], jaccard[at], again[at] = (first[c].to_numpy() for c in ("edit", "jaccard", "probability"))
    misheard = np.zeros(n)
    known = _beforehand(looks, low_confidence(turns, parts, model))
    for locale, rows in parts:
        c = model.cause(locale)
        evidence = known[rows] + (log_odds(c.trees, looks[rows]) if c.trees else 0.0)
        misheard[rows] = sigmoid(logit(_MISHEARD) + evidence - c.mean)
    status = friction // 6
    refused, cancelled = np.isin(status, [STATUSES.index("no_match"), STATUSES.index("error")]), status == STATUSES.index("cancelled")
    score = {
        "wording": -0.6 + 2.0 * again * (0.7 - edit),
        "entity": -1.5 + 2.0 * again * (jaccard > 0.5) * (edit < 0.85),
        "unsupported": -1.5 + 2.0 * refused * (1 - _rare(looks)) * (1 - again),
        "user": -2.0 + 4.0 * cancelled,
        "unknown": np.full(n, -0.5),
    }
    p = np.exp(np.stack([score[name] for name in CAUSES if name != "asr"], axis=1))
    p *= ((1.0 - misheard) / p.sum(axis=1))[:, None]
    p = np.insert(p, CAUSES.index("asr"), misheard, axis=1)
    best = p.argmax(axis=1)
    return [CAUSES[b] for b in best], p[np.arange(n), best]


def low_confidence(turns: pl.DataFrame, parts: list[tuple[str, np.ndarray]], model: Model) -> np.ndarray:
    """How low a turn's asr_confidence is among its locale's: .5 the lowest tenth, -.4 the highest, 0 where not logged."""
    low = np.zeros(turns.height)
    for locale, rows in parts:
        if deciles := model.asr_confidence.get(locale):
            c = turns["asr_confidence"].gather(rows).fill_null(np.nan).to_numpy()
            low[rows] = np.where(np.isnan(c), 0.0, 0.5 - np.searchsorted(deciles, c) / (len(deciles) + 1))
    return low


def _beforehand(looks: np.ndarray, low: np.ndarray) -> np.ndarray:
    sure = np.nan_to_num(looks[:, 0], nan=0.5)
    return 2.0 * _rare(looks) + 2.0 * (sure - 0.5) + 3.0 * low


def _rare(looks: np.ndarray) -> np.ndarray:
    """1 for texts that fewer than k users said, towards 0 the more often a text is said."""
    return 1.0 / (1.0 + np.maximum(looks[:, list(LOOKS).index("frequency")], 0.0))


def _said_again(keys: pl.Series, scored: pl.DataFrame, looks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per turn: was it, or what it repeats, said in changed form; and is it then the one that holds the rarer of two phonetic
    neighbours?"""
    near = scored.filter((pl.col("lag") == 1) & ~pl.col("same_text") & (pl.col("probability") >= _ASKED))
    i, j = near["i"].to_numpy(), near["j"].to_numpy()
    rarity = looks[:, list(LOOKS).index("mean_ngram")]
    of = dict(zip(ALIGNMENT, align(keys.gather(i), keys.gather(j)).T, strict=True))
    close = (np.maximum(of["span_edit"], of["span_sound"]) >= _ALIKE) & (of["frame"] >= _FRAME)
    close &= of["kind"] == KINDS.index("substitute")
    asked, alike = np.zeros(len(looks), bool), np.zeros(len(looks), bool)
    asked[i] = asked[j] = True
    alike[i[close & (rarity[i] > rarity[j])]] = True
    alike[j[close & (rarity[j] > rarity[i])]] = True
    return asked, alike
