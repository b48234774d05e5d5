"""Served, failed or mixed: a latent class of texts, learned without labels from how their users' turns went.

What is seen of a turn is one cell: friction (status x interruption x feedback) x what came next (the session ended; the
next turn asked again with a probability in one of four bins). EM over texts, one vote per user and text, gives
P(cell | served) and P(cell | failed) (Dawid & Skene 1979 with one observer, the cell).

A text that is refused is mostly refused to everyone, and one that is misunderstood to everyone. Taken as independent
witnesses, its users would say the same thing many times. So failed texts are of two kinds, refused and answered, and the
refusal counts as one property of the text; only what each user did then is counted user by user.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

from rewrite.contracts import STATUSES
from rewrite.curves import sigmoid
from rewrite.model import Outcome

SESSION_GAP_S = 600.0
AGAIN_CUTS = (0.05, 0.5, 0.95)
ENDED = 0  # what came next: nothing
UNKNOWN = 5  # nothing seen, but the day ended first
NEXTS = 5
FRICTIONS = (len(STATUSES) + 1) * 2 * 3  # status or none logged; interrupted or not; feedback -1, none, +1
ROUNDS = 60
MIN_TEXTS = 200
"""Fewer distinct texts than this teach nothing; the pool, or the rule below, stands in."""
_SMOOTH = 5.0  # votes worth of independence between friction and what came next, for cells seldom seen
_REFUSED_IF_SERVED = 0.01
"""A refusal of a request that is served otherwise is an accident: at most this share of served turns."""
_ODD = 0.02
"""This share of turns goes as it goes for reasons of its own: no single turn says more than about 99 : 1."""


class Texts(NamedTuple):
    """What the fit says of the turns it saw: arrays by row, but for `mass`, votes per text."""

    text: np.ndarray  # number of the row's text
    served: np.ndarray  # P(the text is served), half of P(mixed) included
    mass: np.ndarray


def cells(turns: pl.DataFrame, scored: pl.DataFrame, gap_s: float = SESSION_GAP_S) -> pl.DataFrame:
    """One row per turn of `pairs.ordered(...)`, in its order: `friction`, `next` (cell numbers), `censored`, `p_again`,
    `stands` (row of the turn that stands for it: a retry takes the cell of the next turn that is none).

    Censored: without a successor, and less than the session gap before midnight UTC.
    """
    n = turns.height
    status = turns["status"].replace_strict({s: i for i, s in enumerate(STATUSES)}, default=len(STATUSES), return_dtype=pl.Int64)
    barge = turns["barge_in"].fill_null(False).cast(pl.Int64)
    feedback = turns["feedback"].fill_null(0).cast(pl.Int64).sign() + 1
    friction = ((status * 2 + barge) * 3 + feedback).to_numpy().astype(np.int64) if n else np.zeros(0, np.int64)
    again = np.full(n, -1.0)
    real = scored.filter(~pl.col("is_retry"))
    if real.height:
        np.maximum.at(again, real["i"].to_numpy(), real["probability"].to_numpy())
    left = (turns["timestamp"].dt.truncate("1d").dt.offset_by("1d") - turns["timestamp"]).dt.total_microseconds().to_numpy() / 1e6
    alone = again < 0
    censored = alone & (left < gap_s)
    nxt = np.where(alone, ENDED, 1 + np.searchsorted(AGAIN_CUTS, again, side="right"))
    nxt = np.where(censored, UNKNOWN, nxt)
    stands = np.where(turns["is_retry"].to_numpy(), n, np.arange(n))
    stands = np.minimum.accumulate(stands[::-1])[::-1]
    return pl.DataFrame({"friction": friction, "next": nxt, "censored": censored, "p_again": again, "stands": np.arange(n)})[stands]


def fit_classes(seen: pl.DataFrame) -> tuple[Outcome, Texts]:
    """The classes of the texts of `seen`: sorted rows with `locale, key, friction, next, weight` (one vote per user and
    text, shared among that user's turns). Below MIN_TEXTS distinct texts a rule by hand, which judges every text alike."""
    text = seen.select(pl.struct("locale", "key").rank("dense")).to_series().fill_null(0).cast(pl.Int64).to_numpy() - 1
    texts = int(text.max()) + 1 if len(text) else 0
    if texts < MIN_TEXTS:
        return rule(), Texts(text, np.full(len(text), rule().prior), np.ones(texts))
    friction, nxt, weight = (seen[c].to_numpy() for c in ("friction", "next", "weight"))
    cell, refused = friction * NEXTS + nxt, is_refused()[friction]
    clean = (_is_clean()[friction] & (nxt <= 2)).astype(float)
    mass = np.bincount(text, weight, texts)
    share, turned_down = (np.bincount(text, weight * x, texts) / mass for x in (clean, refused))
    failed = 0.9 - 0.8 * share
    q = np.stack([0.1 + 0.8 * share, failed * (1 - turned_down), failed * turned_down + 1e-3, np.full(texts, 0.05)], axis=1)
    q /= q.sum(axis=1, keepdims=True)
    odds = np.full(len(text), 0.5)
    rate = np.array([_REFUSED_IF_SERVED, 0.05, 0.9])  # P(refused | served), of failed texts that are answered, refused
    for n in range(ROUNDS):
        good = q[text, 0] + q[text, 3] * odds
        table = [_cells(cell, share, weight) for share in (good, 1.0 - good)]
        if n:
            at = [weight * q[text, c] for c in range(3)]
            rate = np.array([(w[refused].sum() + 0.01) / (w.sum() + 1.0) for w in at])
            rate[0] = min(rate[0], _REFUSED_IF_SERVED)
        classes = (q * mass[:, None]).sum(axis=0) / mass.sum()
        both = sum(table) * (_ODD / 2)
        given = [(p * (1.0 - _ODD) + both)[cell] for p in table]  # P(cell | refused or not, class)
        any_failed = (classes[1] * rate[1] + classes[2] * rate[2]) / max(classes[1] + classes[2], 1e-9)
        like = [np.where(refused, r, 1.0 - r) * given[min(c, 1)] for c, r in enumerate((*rate, any_failed))]
        odds = like[0] / (like[0] + like[3])
        log_q = np.stack([np.bincount(text, weight * np.log(p), texts) for p in (*like[:3], 0.5 * (like[0] + like[3]))], axis=1)
        log_q += np.log(np.maximum(classes, 1e-6))
        q = np.exp(log_q - log_q.max(axis=1, keepdims=True))
        q /= q.sum(axis=1, keepdims=True)
    of_text = (q[:, 0] + 0.5 * q[:, 3])[text]
    every = np.isin(np.arange(FRICTIONS), np.flatnonzero(is_refused()))[:, None]
    tables = [np.where(every, r, 1.0 - r) * p.reshape(FRICTIONS, NEXTS) for p, r in zip(table, (rate[0], any_failed), strict=True)]
    both = sum(tables) * (_ODD / 2)
    flat = [tuple((p * (1.0 - _ODD) + both).ravel().tolist()) for p in tables]
    prior = float(np.clip((weight * of_text).sum() / weight.sum(), 0.02, 0.98))
    return Outcome(prior, float(classes[3]), flat[0], flat[1], turns=len(text)), Texts(text, of_text, mass)


def _cells(cell: np.ndarray, share: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """P(cell | class, refused or not), flat: sums to 1 over refused cells, and over all others. Seldom seen cells lean on
    independence of friction and what came next."""
    n = np.bincount(cell, weight * share, FRICTIONS * NEXTS).reshape(FRICTIONS, NEXTS)
    rows = (n.sum(axis=1) + 0.5 / FRICTIONS) / (n.sum() + 0.5)
    columns = (n.sum(axis=0) + 0.5 / NEXTS) / (n.sum() + 0.5)
    p = (n + _SMOOTH * rows[:, None] * columns) / (n.sum() + _SMOOTH)
    refused, silent = is_refused(), _parts()[0] == len(STATUSES)
    # Where "completed" is logged, a missing status says how the log was made (a call's last turn has none), not how the
    # turn went. Where it never is, no status is all the assent there is.
    seen = np.bincount(cell, weight, FRICTIONS * NEXTS).reshape(FRICTIONS, NEXTS).sum(axis=1)
    if seen[_parts()[0] == STATUSES.index("completed")].sum() > 0 and (rest := ~refused & ~silent).any():
        logged = np.clip(seen[silent].sum() / seen[~refused].sum(), 1e-6, 1 - 1e-6)
        p[silent] *= logged / p[silent].sum()
        p[rest] *= (1.0 - logged) / p[rest].sum()
    for part in (refused, ~refused):
        p[part] /= p[part].sum()
    return p.ravel()


def log_ratio(outcome: Outcome, friction: np.ndarray, nxt: np.ndarray, *, given_refused: bool = False) -> np.ndarray:
    """Log likelihood ratio of cells for served against failed, shape of `friction`; `nxt` may be UNKNOWN.

    `given_refused`: what an answered turn says beyond that it was answered (that it was is the same for all who say a text).
    """
    good, bad = (_with_margin(np.asarray(p)) for p in (outcome.served, outcome.failed))
    if given_refused:
        answered = ~is_refused()
        for p in (good, bad):
            p[answered] /= p[answered][:, :NEXTS].sum()
    return np.log(good)[friction, nxt] - np.log(bad)[friction, nxt]


def mixed(outcome: Outcome, friction: np.ndarray, nxt: np.ndarray) -> np.ndarray:
    """P(the text of a turn is served sometimes), from its cell."""
    good, bad = (_with_margin(np.asarray(p))[friction, nxt] for p in (outcome.served, outcome.failed))
    return outcome.mixed * 0.5 * (good + bad) / (outcome.prior * good + (1 - outcome.prior) * bad)


def _with_margin(p: np.ndarray) -> np.ndarray:
    """(friction, next) table with one more column for "not seen what came next"."""
    table = p.reshape(FRICTIONS, NEXTS)
    return np.concatenate([table, table.sum(axis=1, keepdims=True)], axis=1)


def _parts() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    f = np.arange(FRICTIONS)
    return f // 6, f // 3 % 2, f % 3 - 1


def is_refused() -> np.ndarray:
    """Of every friction number, whether the assistant refused."""
    return np.isin(_parts()[0], [STATUSES.index("no_match"), STATUSES.index("error")])


def _is_clean() -> np.ndarray:
    status, barge, feedback = _parts()
    return np.isin(status, [STATUSES.index("completed"), len(STATUSES)]) & (barge == 0) & (feedback >= 0)


def rule() -> Outcome:
    """For logs too thin to learn from: independent channels, weighed by hand on the cautious side."""
    status, barge, feedback = _parts()
    # log odds for served: completed +.5, refused -3, cancelled -.5; interrupted -1; feedback +-2; next asked again -2 at most
    friction = np.select([status == 0, is_refused(), status == 3], [0.5, -3.0, -0.5], 0.0) - 1.0 * barge + 2.0 * feedback
    came_next = np.array([0.3, 0.7, 0.2, -1.0, -2.0])
    odds = sigmoid(friction[:, None] + came_next).ravel()
    flat = 1.0 / len(odds)
    return Outcome(0.7, 0.05, tuple((flat * odds).tolist()), tuple((flat * (1 - odds)).tolist()))
