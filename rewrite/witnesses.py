"""How far can users be believed who went on to something else? The label model of projected labels, learned without labels.

Each user of a failed text who ends on a served one is a witness for what the text means. One who means it (with
probability a) names the text's intent, any other names an intent at random, as often as the locale is served with it
(pi). So n_c witnesses for c multiply its odds by R_c^n_c, R_c = 1 + a / ((1 - a) pi_c), which is Dawid & Skene's model
(1979) with one accuracy for everybody; users, not signals, are the witnesses. A text that 80 people said and two left for
the same other thing was left by chance: with N witnesses among U users, a = reach N / (N + chance U). The two
parameters make the witnesses of a locale's texts most likely to agree as they do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

REACH = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
CHANCE = (0.0, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2)
"""The grid of the search: no witness is beyond doubt, and chance cannot be told from meaning above one user in five."""
FEWEST = 30
"""A locale with fewer failed texts that have witnesses is judged by all locales together, and those by `USUAL`."""
USUAL = (0.9, 0.05)
"""Towards doubt from what six simulated logs gave (.95 to .98, .03 to .1)."""
RARE = 1e-4
"""Share of an intent that the locale was never served with."""
FAR = 600.0
"""Log odds are cut here: exp stays finite."""


@dataclass(frozen=True)
class Reliability:
    """P(a witness means it) = reach * witnesses / (witnesses + chance * users)."""

    reach: float
    chance: float
    texts: int  # learned from so many; 0: the usual values

    def means_it(self, witnesses: np.ndarray, users: np.ndarray) -> np.ndarray:
        return self.reach * witnesses / np.maximum(witnesses + self.chance * users, 1e-9)


def beliefs(votes: pl.DataFrame) -> tuple[pl.Series, dict[str, Reliability]]:
    """P(the text means this intent | it failed) per row, and what was learned per locale.

    votes: `id, locale, intent, witnesses` (users who ended there, fractions are fine), `base` (the intent's share of what
    the locale is served with; null: never), `users` (of the text), `failed` (P(the text fails)), one row per (id, intent),
    sorted by it. What is missing to 1 within a text is P(it means an intent that nobody went to).
    """
    believed = np.zeros(votes.height)
    locales = votes["locale"].to_numpy()
    everywhere = _learn(votes, Reliability(*USUAL, 0))
    found = {}
    names = sorted(set(locales.tolist()))
    for locale in names:
        mine = np.flatnonzero(locales == locale)
        part = votes[mine]
        found[locale] = _learn(part, everywhere) if len(names) > 1 else everywhere
        each = _Witnesses(part)
        odds, total, _ = each.odds(found[locale])
        believed[mine] = odds / total[each.at]
    return pl.Series("belief", believed, dtype=pl.Float64), found


class _Witnesses:
    """The columns of `votes` as arrays, and per row the row's text, from 0."""

    def __init__(self, votes: pl.DataFrame):
        self.at = votes["id"].rle_id().to_numpy()
        self.n, self.users = votes["witnesses"].to_numpy(), votes["users"].to_numpy()
        self.base = votes["base"].fill_null(RARE).clip(RARE, 1.0).to_numpy()
        self.all = np.bincount(self.at, self.n)[self.at]
        self.unseen = np.maximum(1 - np.bincount(self.at, self.base), 0)

    def odds(self, r: Reliability) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Per row base * R^n; per text its sum, unseen intents included; per row log P(witnesses | none means it)."""
        noise = (1 - (a := r.means_it(self.all, self.users))) * self.base
        odds = self.base * np.exp(np.minimum(self.n * np.log1p(a / noise), FAR))
        return odds, np.bincount(self.at, odds) + self.unseen, self.n * np.log(noise)


def _learn(votes: pl.DataFrame, else_: Reliability) -> Reliability:
    """The parameters under which the witnesses of failed texts are likeliest; ties go to the first of the grid."""
    total = pl.col("witnesses").sum().over("id")
    seen = votes.filter(pl.col("failed") > 0.5, total >= 0.5, pl.col("users") >= 2)
    texts = seen["id"].n_unique()
    if texts < FEWEST:
        return else_
    each = _Witnesses(seen)
    failed = seen["failed"].to_numpy()
    failed_text = failed[seen["id"].is_first_distinct().to_numpy()]
    best, most = else_, -np.inf
    for reach in REACH:
        for chance in CHANCE:
            tried = Reliability(reach, chance, texts)
            _, total_odds, alone = each.odds(tried)
            fit = float((failed_text * np.log(total_odds)).sum() + (failed * alone).sum())
            if fit > most + 1e-6:
                best, most = tried, fit
    return best
