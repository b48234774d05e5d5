"""Was a turn served? A latent class of texts, learned from how turns went and what came next, without labels.

A text is served, failed, or mixed (served sometimes). What is seen of a turn is one cell: friction (status x
interruption x feedback) x what came next (the session ended; the next turn asked again with a probability in one of
four bins). EM over texts, one vote per user and text, gives P(cell | served) and P(cell | failed); a turn is then judged
by its own cell alone, so that votes stay independent and pooling over users happens once, in `aggregate`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl

from rewrite import ngrams
from rewrite.contracts import STATUSES
from rewrite.curves import Curve, fit_curve, logit, sigmoid
from rewrite.model import POOL, Model, Outcome, TextStats

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
_TEXT_LIMIT = 4.0  # log odds: what other users' turns say of a text does not overrule what is seen of this turn
_EDGE = 0.001  # votes stay within [_EDGE, 1 - _EDGE]


def cells(turns: pl.DataFrame, scored: pl.DataFrame, gap_s: float = SESSION_GAP_S) -> pl.DataFrame:
    """One row per turn of `pairs.ordered(...)`, in its order: `friction`, `next` (cell numbers), `censored`, `p_again`.

    Censored: without a successor, and less than the session gap before midnight UTC. A retry takes the cell of the turn
    that stands for it.
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
    # A retry takes what is known of the turn that stands for it: the next one that is none.
    stands = np.where(turns["is_retry"].to_numpy(), n, np.arange(n))
    stands = np.minimum.accumulate(stands[::-1])[::-1]
    return pl.DataFrame({"friction": friction, "next": nxt, "censored": censored, "p_again": again})[stands]


def fit(turns: pl.DataFrame, scored: pl.DataFrame, model: Model, gap_s: float = SESSION_GAP_S) -> Model:
    """`model` with its outcomes learned from the same turns (`pairs.ordered`) and their scored pairs."""
    columns = ("locale", "user_key", "key", "turn_id", "timestamp", "treatment", "is_retry", "intent_confidence")
    seen = pl.concat([turns.select(columns), cells(turns, scored, gap_s)], how="horizontal")
    # What was served instead says nothing about the text that was said.
    ours = (pl.col("treatment") != "rewritten").fill_null(True) & ~pl.col("is_retry") & ~pl.col("censored")
    seen = seen.filter(ours).sort("locale", "turn_id", "timestamp", "key")
    seen = seen.with_columns(weight=1.0 / pl.len().over("locale", "user_key", "key"))
    outcomes, stats = {POOL: _latent_class(seen)[0]}, dict(model.stats)
    for locale, known in model.stats.items():
        part = seen.filter(pl.col("locale") == locale)
        if part["key"].n_unique() >= MIN_TEXTS:
            outcomes[locale], texts = _latent_class(part)
            stats[locale] = _with_served(known, texts)
    confidence = turns.drop_nulls("asr_confidence").sort("locale").group_by("locale", maintain_order=True).agg("asr_confidence")
    logged = zip(confidence["locale"], confidence["asr_confidence"], strict=True)
    deciles = {n: np.quantile(c.to_numpy(), np.arange(1, 10) / 10).tolist() for n, c in logged if len(c) >= MIN_TEXTS}
    deciles = {n: tuple(d) for n, d in deciles.items() if d[0] < d[-1]}
    return replace(model, outcomes=outcomes, stats=stats, asr_confidence=deciles)


def _with_served(stats: TextStats, texts: pl.DataFrame) -> TextStats:
    """What a text's users say of it, but for one of them: the turn that is judged may be in the sample itself."""
    hashes = ngrams.hash_texts(texts["key"].to_list())
    order = np.argsort(hashes)
    at = np.minimum(np.searchsorted(hashes[order], stats.known), len(order) - 1)
    found = hashes[order][at] == stats.known
    llr = (texts["llr"] * (1.0 - 1.0 / texts["users"].clip(lower_bound=1.0))).to_numpy()[order][at]
    return replace(stats, served=np.where(found, np.clip(llr, -_TEXT_LIMIT, _TEXT_LIMIT), 0.0))


def _latent_class(seen: pl.DataFrame) -> tuple[Outcome, pl.DataFrame]:
    """The classes, and per text `key, users, llr` (log likelihood ratio of its turns for served against failed)."""
    text = seen.select(pl.struct("locale", "key").rank("dense")).to_series().fill_null(0).cast(pl.Int64).to_numpy() - 1
    texts = int(text.max()) + 1 if len(text) else 0
    if texts < MIN_TEXTS:
        return _rule(), pl.DataFrame()
    friction, nxt, weight = (seen[c].to_numpy() for c in ("friction", "next", "weight"))
    cell = friction * NEXTS + nxt
    clean = (_is_clean()[friction] & (nxt <= 2)).astype(float)
    mass = np.bincount(text, weight, texts)
    share = np.bincount(text, weight * clean, texts) / mass
    q = np.stack([0.1 + 0.8 * share, 0.9 - 0.8 * share, np.full(texts, 0.05)], axis=1)
    q /= q.sum(axis=1, keepdims=True)
    served, failed, odds = np.ones(1), np.ones(1), np.full(len(text), 0.5)
    for _ in range(ROUNDS):
        good = q[text, 0] + q[text, 2] * odds
        served, failed = _cells(cell, good, weight)
        classes = (q * mass[:, None]).sum(axis=0) / mass.sum()
        like = np.stack([served[cell], failed[cell]])
        odds = like[0] / (like[0] + like[1])
        log_q = np.stack([np.bincount(text, weight * np.log(p), texts) for p in (*like, 0.5 * (like[0] + like[1]))], axis=1)
        log_q += np.log(np.maximum(classes, 1e-4))
        q = np.exp(log_q - log_q.max(axis=1, keepdims=True))
        q /= q.sum(axis=1, keepdims=True)
    prior = float(np.clip(classes[0] + 0.5 * classes[2], 0.02, 0.98))
    # The assistant's confidence is learned last, from texts that two users said: it is the same for all who say a text, so
    # inside EM it would count as many witnesses.
    answered = ~_is_refused()[friction] & seen["intent_confidence"].is_not_null().to_numpy() & (mass[text] >= 2)
    curve = Curve()
    if answered.sum() >= MIN_TEXTS:
        share = (q[:, 0] + 0.5 * q[:, 2])[text[answered]]
        curve = fit_curve(seen["intent_confidence"].to_numpy()[answered], share, rising=True, weight=weight[answered])
    llr = np.bincount(text, weight * (np.log(like[0]) - np.log(like[1])), texts)
    first = np.unique(text, return_index=True)[1]
    per_text = pl.DataFrame({"key": seen["key"].gather(first), "users": mass, "llr": llr})
    return Outcome(prior, float(classes[2]), tuple(served.tolist()), tuple(failed.tolist()), curve, len(text)), per_text


def _cells(cell: np.ndarray, good: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P(cell | served), P(cell | failed), flat, from P(served) of each turn; seldom seen cells lean on independence."""
    out = []
    for share in (good, 1.0 - good):
        n = np.bincount(cell, weight * share, FRICTIONS * NEXTS).reshape(FRICTIONS, NEXTS)
        rows = (n.sum(axis=1) + 0.5 / FRICTIONS) / (n.sum() + 0.5)
        columns = (n.sum(axis=0) + 0.5 / NEXTS) / (n.sum() + 0.5)
        out.append((n + _SMOOTH * rows[:, None] * columns) / (n.sum() + _SMOOTH))
    refused, silent = _is_refused(), _parts()[0] == len(STATUSES)
    _scale(out[0], refused, min(out[0][refused].sum(), _REFUSED_IF_SERVED))
    # Where "completed" is logged, a missing status says how the log was made (a call's last turn has none), not how the
    # turn went. Where it never is, no status is all the assent there is.
    seen = np.bincount(cell, weight, FRICTIONS * NEXTS).reshape(FRICTIONS, NEXTS).sum(axis=1)
    if seen[_parts()[0] == STATUSES.index("completed")].sum() > 0:
        for p in out:
            _scale(p, silent, np.clip(seen[silent].sum() / seen.sum(), 1e-6, 1 - 1e-6))
    both = sum(out) * (_ODD / 2)
    return tuple((p * (1.0 - _ODD) + both).ravel() for p in out)  # type: ignore[return-value]


def _scale(p: np.ndarray, rows: np.ndarray, total: float) -> None:
    """Scale `rows` of p to sum to `total`, the other rows to the rest, in place."""
    p[rows] *= total / p[rows].sum()
    p[~rows] *= (1.0 - total) / p[~rows].sum()


def _parts() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    f = np.arange(FRICTIONS)
    return f // 6, f // 3 % 2, f % 3 - 1


def _is_refused() -> np.ndarray:
    return np.isin(_parts()[0], [STATUSES.index("no_match"), STATUSES.index("error")])


def _is_clean() -> np.ndarray:
    status, barge, feedback = _parts()
    return np.isin(status, [STATUSES.index("completed"), len(STATUSES)]) & (barge == 0) & (feedback >= 0)


def _rule() -> Outcome:
    """For logs too thin to learn from: independent channels, weighed by hand on the cautious side."""
    status, barge, feedback = _parts()
    # log odds for served: completed +.5, refused -3, cancelled -.5; interrupted -1; feedback +-2; next asked again -2 at most
    friction = np.select([status == 0, _is_refused(), status == 3], [0.5, -3.0, -0.5], 0.0) - 1.0 * barge + 2.0 * feedback
    came_next = np.array([0.3, 0.7, 0.2, -1.0, -2.0])
    odds = sigmoid(friction[:, None] + came_next).ravel()
    flat = 1.0 / len(odds)
    return Outcome(0.7, 0.05, tuple((flat * odds).tolist()), tuple((flat * (1 - odds)).tolist()))


def judge(turns: pl.DataFrame, scored: pl.DataFrame, model: Model, gap_s: float = SESSION_GAP_S) -> pl.DataFrame:
    """`turn_id, p_failed, p_mixed, cause, cause_probability, p_failed_seen, censored` of every turn of `pairs.ordered(...)`, in its order.

    `p_failed_seen` is the judgement from this turn's own cell alone, and what votes say; `p_failed` also knows what the
    model knows of the text (other users' turns in the sample, when k said it) and the assistant's confidence.
    """
    seen = cells(turns, scored, gap_s)
    friction, nxt = seen["friction"].to_numpy(), seen["next"].to_numpy()
    own, more, mixed = np.zeros(turns.height), np.zeros(turns.height), np.zeros(turns.height)
    confidence = turns["intent_confidence"].fill_null(np.nan).to_numpy()
    ours = (turns["treatment"] != "rewritten").fill_null(True).to_numpy()
    for locale, at in _by_locale(turns):
        o, s = model.outcome(locale), model.stats.get(locale, TextStats())
        good, bad = (_with_margin(np.asarray(p))[friction[at], nxt[at]] for p in (o.served, o.failed))
        own[at] = logit(o.prior) + np.log(good) - np.log(bad)
        mixed[at] = o.mixed * 0.5 * (good + bad) / (o.prior * good + (1 - o.prior) * bad)
        keys = turns["key"].gather(at)
        distinct = keys.unique().sort()
        llr = keys.replace_strict(distinct, pl.Series(s.served_llr(distinct.to_list())), return_dtype=pl.Float64).to_numpy()
        more[at] = np.where(ours[at], llr, 0.0) + np.where(_is_refused()[friction[at]], 0.0, o.confidence(confidence[at]))
    cause, sure = _causes(turns, scored, seen, model)
    return pl.DataFrame(
        {
            "turn_id": turns["turn_id"],
            "p_failed": np.clip(sigmoid(-(own + more)), _EDGE, 1 - _EDGE),
            "p_mixed": np.clip(mixed, 0.0, 1.0),
            "cause": pl.Series(cause, dtype=pl.String),
            "cause_probability": sure,
            "p_failed_seen": np.clip(sigmoid(-own), _EDGE, 1 - _EDGE),
            "censored": seen["censored"],
        }
    )


def _by_locale(turns: pl.DataFrame) -> list[tuple[str, np.ndarray]]:
    groups = turns.select("locale").with_row_index("row").group_by("locale").agg("row").sort("locale")
    return [(locale, rows.to_numpy().astype(np.int64)) for locale, rows in zip(groups["locale"], groups["row"], strict=True)]


def _with_margin(p: np.ndarray) -> np.ndarray:
    """(friction, next) table with one more column for "not seen what came next"."""
    table = p.reshape(FRICTIONS, NEXTS)
    return np.concatenate([table, table.sum(axis=1, keepdims=True)], axis=1)


CAUSE_NAMES = ("unknown", "asr", "wording", "entity", "unsupported", "user")


def _causes(turns: pl.DataFrame, scored: pl.DataFrame, seen: pl.DataFrame, model: Model) -> tuple[list[str], np.ndarray]:
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
    for locale, rows in _by_locale(turns):
        if locale in model.stats:
            keys = turns["key"].gather(rows)
            distinct = keys.unique().sort()
            seldom = pl.Series(1.0 / (1.0 + model.stats[locale].log_frequency(distinct.to_list())))
            rare[rows] = keys.replace_strict(distinct, seldom, return_dtype=pl.Float64).to_numpy()
        if deciles := model.asr_confidence.get(locale):
            c = turns["asr_confidence"].gather(rows).fill_null(np.nan).to_numpy()
            low[rows] = np.where(np.isnan(c), 0.0, 0.5 - np.searchsorted(deciles, c) / (len(deciles) + 1))
    status = seen["friction"].to_numpy() // 6
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
