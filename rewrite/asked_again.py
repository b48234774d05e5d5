"""Did this turn ask again for the goal of that one? Learned from a log without labels.

Three views of a pair are nearly independent given the answer: how alike the texts are, how soon the second came, and how
the first went (status, interruption, feedback, confidence, reply, how often its text is said). They teach each other:

1. Text, to begin with: half the log odds of the cosine, the share of what was said that is said again.
2. Friction is fitted to the *contrast*: how much more alike the two texts are than the first is to anything that others
   said in the same place, after the most similar replies. Likeness alone would teach it dialogue grammar: after an
   address comes the phone number, in much the same words, and nothing had failed.
3. Rounds of EM. Every view is fitted to what the views together believe, and its log likelihood ratio replaces the last
   one. Only where the gap is a witness: three views identify a latent class, two do not (Allman, Matias & Rhodes 2009),
   and confirm each other's mistakes instead (measured on calls, where a machine sets the pace).

What this leaves undecided gets a closer look: such pairs are aligned word by word (`rewrite.alignment`), and the text view
knows the alignment too. Measured, aligning every pair adds nothing to that.

Signs are constrained throughout: likeness never counts against, a success never for. Fellegi-Sunter weights are the
special case of one binned view per feature; measured, that drifts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import polars as pl

from rewrite import ngrams, pairs
from rewrite.alignment import ALIGNMENT, align
from rewrite.contrast import beyond_places
from rewrite.curves import LIMIT, Curve, fit_curve, logit, sigmoid
from rewrite.model import POOL, Detector, Model, TextStats
from rewrite.text import coded
from rewrite.threads import side_by_side
from rewrite.trees import Learner, log_odds

MIN_PAIRS = 500
"""Fewer neighbouring pairs than this teach nothing that a rule fixed by hand does not know."""
MIN_OWN = 3000
"""A locale or channel of a pooled log learns for itself from this many pairs on."""
MAX_PAIRS = 30_000
"""Pairs used to fit; measured, more change nothing."""
ROUNDS = 5
"""Measured: ranking is best from 3 on, calibration from 4 to 6; later the views begin to agree too much."""
WITNESS = 0.25
"""The gap is a witness when it moves the log odds by this much on average; a constant one moves them by 0."""
SLOPE = 0.5
"""Of the log odds of the cosine, as the first guess: a text half of which is repeated is no better than even."""
REFERENCES = 400
MIN_REFERENCES = 50
CONTRASTED = 10_000
"""Pairs per locale whose contrast is measured; measured, more change nothing."""
UNDECIDED = logit(0.9)
"""Pairs with smaller log odds are aligned: 6 to 10 % of them. Measured on five logs, alignment turns none beyond 1.2."""
_T = len(pairs.TEXT_FEATURES)
_EDIT, _COSINE, _JACCARD = (list(pairs.TEXT_FEATURES).index(n) for n in ("edit", "cosine", "jaccard"))


def fit(sample_turns: pl.DataFrame, *, seed: int = 0, k: int = 3, max_pairs: int = MAX_PAIRS) -> Model:
    """Learn everything `rewrite.votes.detect` needs from a sample of turns (whole sessions), in any row order.

    Texts enter the model by name only if `k` distinct users said them. Never fails for lack of turns: parts that are too
    thin use the pool of all locales, and a thin pool a rule fixed by hand.
    """
    from rewrite import outcomes

    turns = pairs.ordered(sample_turns)
    stats = {locale: _text_stats(part, k, seed) for locale, part in _by_locale(turns)}
    p = pairs.candidate_pairs(turns)
    friction = pairs.friction_features(turns, stats)
    # Samples and sums go by turn, never by user key: another lake key must not give another model.
    neighbours = p.filter(pl.col("lag") == 1).sort("locale", "turn_id", "next_turn_id", "gap_s")
    detectors = _fit_detectors(turns, neighbours, friction, stats, seed, max_pairs)
    model = Model(k, stats, detectors, {})
    return outcomes.fit(turns, score(turns, p, model, friction), model, seed=seed)


def score(turns: pl.DataFrame, candidates: pl.DataFrame, model: Model, friction: np.ndarray | None = None) -> pl.DataFrame:
    """Probabilities of all candidate pairs: `candidates` and `probability, p_same_topic, decided_by, p_text, p_gap,
    p_friction, edit, jaccard`.

    `turns` is `pairs.ordered(...)`, `candidates` its `candidate_pairs`. `p_text` and so on are what one view alone would
    say. Of neighbours, `probability` combines the three. Further apart, two turns are of one goal when the chain of
    neighbours between them holds, or when their texts alone say so and the turns between are about something else.
    """
    n = candidates.height
    llr, alike = np.zeros((n, 3)), np.zeros((n, 2))
    base, related, undecided = np.full(n, 0.2), np.zeros(n), np.zeros(n, bool)
    near = ((candidates["lag"] == 1) & ~candidates["same_text"]).to_numpy()
    if friction is None:
        friction = pairs.friction_features(turns, model.stats)
    i, j = candidates["i"].to_numpy(), candidates["j"].to_numpy()
    kept = pairs.interpretation(pairs.interpretations(turns), i, j)
    log_gap = np.log(np.maximum(candidates["gap_s"].to_numpy(), 0.0) + 0.5)
    locale = candidates["locale"]
    channel = turns["channel"].gather(i) if n else turns["channel"].head(0)
    for (name,), part in _groups(locale):
        texts, a, b = _distinct(turns, i[part], j[part], model.stats.get(name, TextStats()))
        pair, of_pair = np.unique(a * len(texts.keys) + b, return_inverse=True)  # what many say is measured, and judged, once
        measured = texts.features(pair // len(texts.keys), pair % len(texts.keys))
        x = measured[of_pair]
        alike[part] = x[:, [_EDIT, _JACCARD]]
        for (said_on,), within in _groups(channel.gather(part)):
            d, rows = model.detector(name, said_on), part[within]
            some, of_some = np.unique(of_pair[within], return_inverse=True)
            llr[rows, 0] = _text_llr(d, measured[some])[of_some]
            llr[rows, 1] = _gap_llr(d, log_gap[rows])
            llr[rows, 2] = _friction_llr(d, np.hstack([friction[i[rows]], x[within, _T:], kept[rows]]))
            base[rows] = d.base
            if d.close_trees:
                close = np.flatnonzero(near[rows] & (np.abs(logit(d.base) + llr[rows].sum(axis=1)) < UNDECIDED))
                at = rows[close]
                aligned = align(turns["key"].gather(i[at]), turns["key"].gather(j[at]))
                llr[at, 0], undecided[at] = _close_llr(d, np.hstack([x[within[close], :_T], aligned])), True
            related[rows] = np.clip(1.0 - d.unrelated * np.exp(-_related(d.related, x[within, _COSINE], kept[rows, 0])), 0.0, 1.0)
    retry, same, lag = (candidates[c].to_numpy() for c in ("is_retry", "same_text", "lag"))
    prior = logit(base)
    combined = sigmoid(prior + llr.sum(axis=1))
    direct = sigmoid(2.0 * np.log(base) + llr[:, 0] + np.minimum(llr[:, 1], 0.0))
    probability = np.where(lag <= 1, combined, _further(i, j, lag, combined, direct))
    probability = np.where(retry, 0.0, np.clip(probability, 0.001, 0.999))
    p_text, p_gap, p_friction = sigmoid(prior[:, None] + llr).T
    # What neighbours share beyond chance and is not asking again: the same topic with a new value, or the next step.
    topic = np.where(retry, 0.0, related * (1.0 - probability))
    texts = np.abs(llr[:, 0]) >= np.abs(llr[:, 1:]).sum(axis=1)
    decided = np.select([retry, lag > 1, same, undecided, texts], ["retry", "chain", "identical", "alignment", "text"], "combined")
    return candidates.with_columns(
        probability=probability,
        p_same_topic=topic,
        decided_by=pl.Series(decided, dtype=pl.String),
        p_text=p_text,
        p_gap=p_gap,
        p_friction=p_friction,
        edit=alike[:, 0],
        jaccard=alike[:, 1],
    )


def _further(i: np.ndarray, j: np.ndarray, lag: np.ndarray, combined: np.ndarray, direct: np.ndarray) -> np.ndarray:
    """P(one goal) of pairs two or three turns apart, from the neighbours' probabilities and their own texts.

    Rows of one i are in the order of lag. chain(i, j) = product of the neighbours between; what is left over may still be
    one goal that another interrupted: direct(i, j), if no turn between belongs to either. That is rare (in eval .1 to .6 %
    of what is asked again), so `direct` starts from the square of the neighbours' base rate.
    """
    p = np.where(lag == 1, combined, 0.0)
    if not (lag > 1).any():
        return p
    step = np.zeros(int(max(i.max(), j.max())) + 1)  # probability of the neighbouring pair that starts at a turn
    after = np.full(len(step), -1)
    first = lag == 1
    step[i[first]], after[i[first]] = combined[first], j[first]
    for n in (2, 3):
        at = np.flatnonzero(lag == n)
        mid = after[i[at]]
        if n == 2:
            chain, apart = step[i[at]] * step[mid], (1 - step[i[at]]) * (1 - step[mid])
        else:
            mid2 = after[mid]
            chain = step[i[at]] * step[mid] * step[mid2]
            apart = (1 - step[i[at]]) * (1 - step[mid2])
        p[at] = chain + (1 - chain) * direct[at] * apart
    return p


# ---- views -------------------------------------------------------------------------------------------------------------


def _text_llr(d: Detector, x: np.ndarray) -> np.ndarray:
    if d.text_trees:
        return np.clip(log_odds(d.text_trees, x[:, :_T]) - d.text_mean, -LIMIT, LIMIT)
    return _first_guess(x) - d.text_mean if d.pairs else _text_rule(x)


def _close_llr(d: Detector, x: np.ndarray) -> np.ndarray:
    return np.clip(log_odds(d.close_trees, x) - d.close_mean, -LIMIT, LIMIT)


def _first_guess(x: np.ndarray) -> np.ndarray:
    return SLOPE * logit(np.clip(x[:, _COSINE], 0.01, 0.99))


def _gap_llr(d: Detector, log_gap: np.ndarray) -> np.ndarray:
    return d.gap(log_gap) if d.pairs else _gap_rule(log_gap)


def _friction_llr(d: Detector, x: np.ndarray) -> np.ndarray:
    if d.friction_trees:
        return np.clip(log_odds(d.friction_trees, x) - d.friction_mean, -LIMIT, LIMIT)
    return np.zeros(len(x)) if d.pairs else _friction_rule(x)


def _text_rule(x: np.ndarray) -> np.ndarray:
    """For logs too thin to learn from: half of the text alike is even odds."""
    alike = np.maximum(x[:, 0], x[:, 1])
    return np.clip(10.0 * (alike - 0.35), -3.0, 4.0)


def _gap_rule(log_gap: np.ndarray) -> np.ndarray:
    """45 seconds, the practitioner's rule for voice (Ponnusamy 2020), as even odds."""
    return np.clip(np.log(45.0) - log_gap, -2.0, 1.0)


def _friction_rule(x: np.ndarray) -> np.ndarray:
    refused, barge, feedback = (np.nan_to_num(x[:, c]) for c in (1, 2, 3))
    known = ~np.isnan(x[:, 1])
    return np.where(known, 3.0 * refused - 1.0, 0.0) + 1.5 * barge - 2.0 * feedback


# ---- fitting -----------------------------------------------------------------------------------------------------------


def _fit_detectors(
    turns: pl.DataFrame, neighbours: pl.DataFrame, friction: np.ndarray, stats: dict[str, TextStats], seed: int, max_pairs: int
) -> dict[tuple[str, str], Detector]:
    n = neighbours.height
    i, j, gap = (neighbours[c].to_numpy() for c in ("i", "j", "gap_s"))
    locale = neighbours["locale"]
    channel = turns["channel"].gather(i).fill_null(POOL) if n else turns["channel"].head(0)
    groups: dict[tuple[str, str], np.ndarray] = {}
    contrast = np.full(n, np.nan)
    for (name,), rows in _groups(locale):
        rng = np.random.default_rng([seed, len(rows)])
        some = np.sort(rng.choice(rows, min(CONTRASTED, len(rows)), replace=False))
        texts, a, b = _distinct(turns, i[some], j[some], stats[name])
        contrast[some] = beyond_places(turns[i[some]], texts, a, b, rng)
        if MIN_OWN <= len(rows) < n:
            groups[name, POOL] = rows
        for (said_on,), within in _groups(channel.gather(rows)):
            if said_on != POOL and MIN_OWN <= len(within) < len(rows):
                groups[name, said_on] = rows[within]
    groups[POOL, POOL] = np.arange(n)
    understood = pairs.interpretations(turns)

    def learned(members: np.ndarray) -> Detector:
        rng = np.random.default_rng([seed, len(members)])
        rows = np.sort(rng.choice(members, max_pairs, replace=False)) if len(members) > max_pairs else members
        x = np.empty((len(rows), _T + len(pairs.FREQUENCIES)))
        chance, other = np.zeros(len(rows)), j[rows].copy()
        for (loc,), part in _groups(locale.gather(rows)):
            at = rows[part]
            texts, a, b = _distinct(turns, i[at], j[at], stats[loc])
            x[part] = texts.features(a, b)
            order = rng.permutation(len(part))
            chance[part], other[part] = pairs.cosines(texts.vectors[a], texts.vectors[b[order]]), j[at[order]]
        kept = pairs.interpretation(understood, i[rows], j[rows])
        went = np.hstack([friction[i[rows]], x[:, _T:], kept])
        sides = turns["key"].gather(i[rows]), turns["key"].gather(j[rows])
        detector = _co_em(x, sides, went, np.log(np.maximum(gap[rows], 0.0) + 0.5), contrast[rows], seed)
        kept_chance = pairs.interpretation(understood, i[rows], other)
        related, unrelated = _fit_related(x[:, _COSINE], chance, kept[:, 0], kept_chance[:, 0])
        return replace(detector, related=related, unrelated=unrelated) if detector.pairs else detector

    names = sorted(groups)
    return dict(zip(names, side_by_side(learned, [groups[name] for name in names]), strict=True))


def _fit_related(
    near: np.ndarray, chance: np.ndarray, kept: np.ndarray, kept_chance: np.ndarray
) -> tuple[tuple[Curve, Curve, Curve], float]:
    """Neighbours (their cosines, whether they kept the intent) against the same turns shuffled among users: curves for
    `_related`, and the share of neighbours that are unrelated. These are chance pairs, so what neighbours have fewest
    of, relative to chance, is that share (positive-unlabelled learning, Elkan & Noto 2008)."""
    both, state = np.concatenate([near, chance]), _state(np.concatenate([kept, kept_chance]))
    neighbour = np.repeat([1.0, 0.0], len(near))
    curves, least = [], 0.0
    for s in range(3):
        x, y = both[state == s], neighbour[state == s]
        if len(x) < MIN_PAIRS:
            curves.append(Curve())
            continue
        curve, prior = fit_curve(x, y, rising=True), float(logit(y.mean()))
        curves.append(Curve(curve.edges, tuple(float(np.clip(v + prior, -LIMIT, LIMIT)) for v in curve.values)))
        if (y == 0).sum() >= MIN_PAIRS:
            least = min(least, *curves[-1].values)
    return (curves[0], curves[1], curves[2]), float(np.clip(np.exp(least), 0.05, 0.98))


def _related(curves: tuple[Curve, Curve, Curve], cosine: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Log likelihood ratio of neighbours against chance."""
    return np.choose(_state(kept), [curve(cosine) for curve in curves])


def _state(kept: np.ndarray) -> np.ndarray:
    """0 where an intent is not known, 1 where they differ, 2 where they are the same."""
    return np.where(np.isnan(kept), 0, 1 + (kept == 1.0))


def _co_em(
    x: np.ndarray,
    sides: tuple[pl.Series, pl.Series],
    friction: np.ndarray,
    log_gap: np.ndarray,
    contrast: np.ndarray,
    seed: int,
) -> Detector:
    """The three views of pairs with text features `x` and texts `sides`; `contrast` is NaN where it was not measured."""
    n = len(x)
    if n < MIN_PAIRS:
        return Detector(base=0.2)
    signs = [*pairs.FRICTION_FEATURES.values(), *pairs.FREQUENCIES.values(), *pairs.INTERPRETATION.values()]
    use = np.array([np.unique(column[~np.isnan(column)]).size > 1 for column in friction.T])
    signs = [sign if used else 0 for sign, used in zip(signs, use, strict=True)]
    known = np.where(use, friction, np.nan)
    llr = np.zeros((n, 3))
    first_guess = _first_guess(x)
    text_mean, base = float(first_guess.mean()), float(np.clip(x[:, _COSINE].mean(), 0.005, 0.95))
    llr[:, 0] = first_guess - text_mean
    seen = ~np.isnan(contrast)
    if seen.sum() < MIN_PAIRS:
        contrast, seen = x[:, _COSINE], np.ones(n, bool)
    friction_trees, friction_mean, _ = _view(known[seen], contrast[seen], Learner(known[seen], signs, seed=seed))
    llr[:, 2] = np.clip(log_odds(friction_trees, known) - friction_mean, -LIMIT, LIMIT)
    gap = fit_curve(log_gap, sigmoid(logit(base) + llr.sum(axis=1)), rising=False)
    if np.abs(gap(log_gap)).mean() < WITNESS:
        return Detector(base, text_mean=text_mean, friction_trees=friction_trees, friction_mean=friction_mean, pairs=n)
    close, close_signs = np.hstack([x[:, :_T], align(*sides)]), [*pairs.TEXT_FEATURES.values(), *ALIGNMENT.values()]
    frictions, closes = Learner(known, signs, seed=seed), Learner(close, close_signs, seed=seed)
    for _ in range(ROUNDS):
        gap = fit_curve(log_gap, sigmoid(logit(base) + llr.sum(axis=1)), rising=False)
        llr[:, 1] = gap(log_gap)
        friction_trees, friction_mean, llr[:, 2] = _view(known, sigmoid(logit(base) + llr.sum(axis=1)), frictions)
        close_trees, close_mean, llr[:, 0] = _view(close, sigmoid(logit(base) + llr.sum(axis=1)), closes)
        base = float(np.clip(sigmoid(logit(base) + llr.sum(axis=1)).mean(), 0.005, 0.95))
    # Most pairs need no alignment: the trees that know the other features alone say the same of them.
    text = _view(x[:, :_T], sigmoid(logit(base) + llr.sum(axis=1)), Learner(x[:, :_T], close_signs[:_T], seed=seed))
    return Detector(base, *text[:2], friction_trees, friction_mean, close_trees, close_mean, gap, pairs=n)


def _view(x: np.ndarray, q: np.ndarray, learner: Learner) -> tuple[str, float, np.ndarray]:
    """Trees of one view fitted to the belief q, their mean log odds, and the log likelihood ratios, shape (n,)."""
    q = np.clip(q, 0.001, 0.999)
    trees, mean = learner.fit(q), float(logit(q.mean()))
    return trees, mean, np.clip(log_odds(trees, x) - mean, -LIMIT, LIMIT)


def _distinct(turns: pl.DataFrame, i: np.ndarray, j: np.ndarray, stats: TextStats) -> tuple[pairs.Texts, np.ndarray, np.ndarray]:
    """The distinct texts of pairs of turns, each measured once, and which of them each side is."""
    keys = turns["key"].gather(np.concatenate([i, j]))
    distinct, code = coded(keys)
    return pairs.Texts(distinct.to_list(), stats), code[: len(i)], code[len(i) :]


def _text_stats(turns: pl.DataFrame, k: int, seed: int) -> TextStats:
    """Rarity of n-grams and words, and the texts of k users, of one locale's turns."""
    turns = turns.filter(~pl.col("is_retry"))
    per_text = turns.group_by("key").agg(n=pl.len(), users=pl.col("user_key").n_unique()).sort("key")
    texts = per_text["key"].to_list()
    df_ngrams, df_words = (np.bincount(m.indices, minlength=m.shape[1]) for m in (ngrams.ngram_counts(texts), ngrams.words(texts)))
    shared = per_text.filter(pl.col("users") >= k)
    hashes = ngrams.hash_texts(shared["key"].to_list())
    order = np.argsort(hashes)
    reference: list[str] = []
    if shared.height >= MIN_REFERENCES:
        rng = np.random.default_rng(seed)
        share = shared["n"].to_numpy() / shared["n"].sum()
        reference = sorted(shared["key"].gather(rng.choice(shared.height, REFERENCES, p=share)).to_list())
    ngram_columns, word_columns = np.flatnonzero(df_ngrams).astype(np.int32), np.flatnonzero(df_words).astype(np.int32)
    return TextStats(
        texts=len(texts),
        turns=turns.height,
        ngram_columns=ngram_columns,
        ngram_counts=df_ngrams[ngram_columns].astype(np.int32),
        word_columns=word_columns,
        word_counts=df_words[word_columns].astype(np.int32),
        known=hashes[order],
        frequency=(shared["n"].to_numpy() / max(turns.height, 1))[order],
        served=np.zeros(len(order)),
        reference=tuple(reference),
    )


def _by_locale(turns: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    return sorted((str(name[0]), part) for name, part in turns.partition_by("locale", as_dict=True).items()) if turns.height else []


def _groups(column: pl.Series) -> Iterable[tuple[tuple, np.ndarray]]:
    """((value,), row numbers) of every distinct value, in order, null first."""
    frame = pl.DataFrame({"value": column}).with_row_index("row").group_by("value").agg("row").sort("value", nulls_last=False)
    return [((value,), rows.to_numpy().astype(np.int64)) for value, rows in zip(frame["value"], frame["row"], strict=True)]
