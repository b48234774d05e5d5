"""Was a turn served? Learned from how turns went and what came next, without labels, in three steps.

1. `latent_class`: texts that several users said are served or failed, from coarse cells of their turns. Where many agree
   the class is nearly certain, and stands in for labels.
2. Session: trees learn from those texts which signals of a turn's own session mean what (`signals.SESSION`), all at once,
   with signs held where they are known. This judges a turn alone, so votes stay independent and pooling over users
   happens once, in `aggregate`.
3. Looks: a text that nobody else said has a prior of its own, by confidence, rarity and length (`signals.LOOKS`), learned
   by EM with the session's evidence held fixed: inside one EM, what is the same for all who say a text would count as
   many witnesses.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import scipy.sparse as sp

from rewrite import causes, corrective, latent_class, ngrams, signals
from rewrite.curves import logit, sigmoid
from rewrite.latent_class import MIN_TEXTS, SESSION_GAP_S, cells
from rewrite.model import POOL, Model, Outcome, TextStats
from rewrite.text import key_expr
from rewrite.threads import side_by_side
from rewrite.trees import Learner, fit_trees, log_odds

_USERS = 3
"""Texts of this many users have a class that is nearly certain, and teach; if they are too few, texts of fewer users."""
_LOOKS_ROUNDS = 4
_TEXT_LIMIT = 4.0  # log odds: what other users' turns say of a text does not overrule what is seen of this turn
_TURN_LIMIT = 5.0  # log odds: nor does one turn say more than 150 : 1
_EDGE = 0.001  # votes stay within [_EDGE, 1 - _EDGE]


def fit(turns: pl.DataFrame, scored: pl.DataFrame, model: Model, gap_s: float = SESSION_GAP_S, seed: int = 0) -> Model:
    """`model` with its outcomes learned from the same turns (`pairs.ordered`) and their scored pairs."""
    columns = ("locale", "user_key", "key", "turn_id", "timestamp", "treatment", "is_retry")
    went = cells(turns, scored, gap_s)
    seen = pl.concat([turns.select(columns).with_row_index("row"), went], how="horizontal")
    seen = seen.filter(~pl.col("is_retry") & ~pl.col("censored")).sort("locale", "turn_id", "timestamp", "key")
    # What was served instead says nothing about the text that was said: such turns have no vote on it.
    ours = (pl.col("treatment") != "rewritten").fill_null(True)
    users = pl.col("user_key").filter(ours).n_unique().over("locale", "key")
    seen = seen.with_columns(
        weight=pl.when(ours).then(1.0 / ours.sum().over("locale", "user_key", "key")).otherwise(0.0),
        users=pl.when(ours).then(users).otherwise(0),
    )
    row = seen["row"].to_numpy()
    signs, before = signals.session_signals(turns, scored), corrective.said(turns)
    new = corrective.new_words(before, scored)
    session, words, (heard, looks) = signs[row], corrective.Said(before[row], new[row]), _looks(turns, model)
    outcomes: dict[str, Outcome] = {}
    stats = dict(model.stats)
    parts = dict(_by_locale(seen))
    enough = [n for n, rows in parts.items() if seen[rows].filter(pl.col("users") > 0)["key"].n_unique() >= MIN_TEXTS]
    all_rows = np.arange(seen.height)
    chosen = [parts[n] for n in enough] + ([] if len(parts) == len(enough) == 1 else [all_rows])  # the pool of one locale is that locale
    fitted = side_by_side(lambda at: _fit_part(seen[at], session[at], words.at(at), looks[row[at]], model.k, seed), chosen)
    for locale, (outcome, texts) in zip(enough, fitted, strict=False):
        outcomes[locale], stats[locale] = outcome, _with_served(model.stats[locale], texts)
    whole = fitted[-1][0]
    confidence = turns.drop_nulls("asr_confidence").sort("locale").group_by("locale", maintain_order=True).agg("asr_confidence")
    logged = zip(confidence["locale"], confidence["asr_confidence"], strict=True)
    deciles = {n: np.quantile(c.to_numpy(), np.arange(1, 10) / 10).tolist() for n, c in logged if len(c) >= MIN_TEXTS}
    deciles = {n: tuple(d) for n, d in deciles.items() if d[0] < d[-1]}
    model = replace(model, outcomes={POOL: whole} | outcomes, stats=stats, asr_confidence=deciles)
    own, more = _log_odds(turns, went, signs, new, looks, model)
    low = causes.low_confidence(turns, _by_locale(turns), model)
    said = seen["users"].to_numpy() > 0
    learn = {POOL: row[said]} | {locale: row[rows[said[rows]]] for locale, rows in parts.items() if locale in outcomes}
    return replace(model, causes=causes.fit(turns["key"], scored, heard, low, sigmoid(-(own + more)), learn, seed))


def _fit_part(
    seen: pl.DataFrame, session: np.ndarray, words: corrective.Said, looks: np.ndarray, k: int, seed: int
) -> tuple[Outcome, pl.DataFrame]:
    """The outcome model of some turns, and per text `key, users, llr` (log likelihood ratio of its turns for served)."""
    users = seen["users"].to_numpy()
    least = next((n for n in range(_USERS, 1, -1) if seen.filter(pl.col("users") >= n).select("locale", "key").n_unique() >= MIN_TEXTS), 1)
    teach = users >= least
    outcome, known = latent_class.fit_classes(seen.filter(pl.Series(teach)))
    weight, friction, nxt = (seen[c].to_numpy() for c in ("weight", "friction", "next"))
    refused = latent_class.is_refused()[friction]
    llr = latent_class.log_ratio(outcome, friction, nxt)
    text, other, total = _others(seen, weight * np.where(refused, llr, latent_class.log_ratio(outcome, friction, nxt, given_refused=True)))
    per_text = pl.DataFrame({"key": seen["key"].gather(np.unique(text, return_index=True)[1]), "llr": total})
    per_text = per_text.with_columns(users=pl.Series(np.bincount(text, weight)))
    if least < 2 or not outcome.turns:
        return outcome, per_text
    user = seen["user_key"].rank("dense").to_numpy().astype(np.int64)[teach]
    outcome = replace(outcome, corrective=corrective.learn(words.at(teach), known.text, user, known.served, weight[teach], k))
    session = _with_words(session, words.new, outcome)
    trees = fit_trees(session[teach], known.served, list(signals.SESSION.values()), weight=weight[teach], rounds=50, seed=seed)
    base = float(np.average(known.served, weights=weight[teach]))
    outcome = replace(outcome, session_trees=trees, session_base=base)
    llr = _session_llr(outcome, session)
    prior = np.full(len(llr), logit(base))
    said = users > 0
    other = np.where(said, np.clip(other, -_TEXT_LIMIT, _TEXT_LIMIT), 0.0)
    learner = Learner(looks, list(signals.LOOKS.values()), seed=seed)
    for _ in range(_LOOKS_ROUNDS):
        served = sigmoid(prior + llr + other)
        trees = learner.fit(served)
        prior = log_odds(trees, looks)
    share = float(np.clip(served[said].mean(), 0.02, 0.98))
    return replace(outcome, prior=share, looks_trees=trees), per_text


def _others(seen: pl.DataFrame, llr: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number of each row's text; what the text's other users say (sum of `llr` over their rows); what all say, per text."""
    text, own = (
        seen.select(pl.struct(c).rank("dense")).to_series().cast(pl.Int64).to_numpy() - 1
        for c in (["locale", "key"], ["locale", "key", "user_key"])
    )
    total = np.bincount(text, llr)
    return text, total[text] - np.bincount(own, llr)[own], total


def _with_words(session: np.ndarray, new: sp.csr_matrix, outcome: Outcome) -> np.ndarray:
    session = session.copy()
    session[:, list(signals.SESSION).index("corrective")] = corrective.says(new, outcome.corrective)
    return session


def _session_llr(outcome: Outcome, x: np.ndarray) -> np.ndarray:
    """Log likelihood ratio for served of a turn's session signals."""
    return np.clip(log_odds(outcome.session_trees, x) - logit(outcome.session_base), -_TURN_LIMIT, _TURN_LIMIT)


def _with_served(stats: TextStats, texts: pl.DataFrame) -> TextStats:
    """What a text's users say of it, but for one of them: the turn that is judged may be in the sample itself."""
    hashes = ngrams.hash_texts(texts["key"].to_list())
    order = np.argsort(hashes)
    at = np.minimum(np.searchsorted(hashes[order], stats.known), len(order) - 1)
    found = hashes[order][at] == stats.known
    llr = (texts["llr"] * (1.0 - 1.0 / texts["users"].clip(lower_bound=1.0))).to_numpy()[order][at]
    return replace(stats, served=np.where(found, np.clip(llr, -_TEXT_LIMIT, _TEXT_LIMIT), 0.0))


def judge(turns: pl.DataFrame, scored: pl.DataFrame, model: Model, gap_s: float = SESSION_GAP_S) -> pl.DataFrame:
    """`turn_id, p_failed, p_mixed, cause, cause_probability, p_failed_seen, censored` of every turn of `pairs.ordered(...)`, in its order.

    `p_failed_seen` is the judgement from this turn's own session alone, and what votes say; `p_failed` also knows what the
    text looks like, how confident the assistant was, and what the model knows of the text (other users' turns in the
    sample, when k said it).
    """
    seen, (heard, looks), parts = cells(turns, scored, gap_s), _looks(turns, model), _by_locale(turns)
    new = corrective.new_words(corrective.said(turns), scored)
    own, more = _log_odds(turns, seen, signals.session_signals(turns, scored), new, looks, model)
    friction, nxt = seen["friction"].to_numpy(), seen["next"].to_numpy()
    mixed = np.zeros(turns.height)
    for locale, at in parts:
        mixed[at] = latent_class.mixed(model.outcome(locale), friction[at], nxt[at])
    cause, sure = causes.likeliest(turns, scored, friction, heard, parts, model)
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


def _log_odds(
    turns: pl.DataFrame, seen: pl.DataFrame, session: np.ndarray, new: sp.csr_matrix, looks: np.ndarray, model: Model
) -> tuple[np.ndarray, np.ndarray]:
    """Log odds that each turn was served: from its own session, and what the text adds."""
    stands, friction, nxt = (seen[c].to_numpy() for c in ("stands", "friction", "next"))
    own, more = np.zeros(turns.height), np.zeros(turns.height)
    ours = (turns["treatment"] != "rewritten").fill_null(True).to_numpy()
    for locale, at in _by_locale(turns):
        o, s = model.outcome(locale), model.stats.get(locale, TextStats())
        llr = latent_class.log_ratio(o, friction[at], nxt[at])
        if o.session_trees:  # what came next is not known of a censored turn: the trees never saw that, the cells know
            llr = np.where(nxt[at] == latent_class.UNKNOWN, llr, _session_llr(o, _with_words(session[stands[at]], new[stands[at]], o)))
        own[at] = logit(o.prior) + llr
        if o.looks_trees:
            more[at] = log_odds(o.looks_trees, looks[at]) - logit(o.prior)
        keys = turns["key"].gather(at)
        distinct = keys.unique().sort()
        known = keys.replace_strict(distinct, pl.Series(s.served_llr(distinct.to_list())), return_dtype=pl.Float64).to_numpy()
        more[at] += np.where(ours[at], known, 0.0)
    return own, more


def _looks(turns: pl.DataFrame, model: Model) -> tuple[np.ndarray, np.ndarray]:
    """LOOKS of every turn: of what was said, and of what the assistant read (what was served instead, where it was)."""
    said = np.full((turns.height, len(signals.LOOKS)), np.nan)
    for locale, rows in _by_locale(turns):
        said[rows] = signals.looks(turns, rows, model.stats.get(locale, TextStats()))
    read = said.copy()
    other = turns.with_row_index("at").filter((pl.col("treatment") == "rewritten") & pl.col("served_utterance").is_not_null())
    other = other.with_columns(key=key_expr("served_utterance"))
    for locale, rows in _by_locale(other):
        read[other["at"].gather(rows).to_numpy()] = signals.looks(other, rows, model.stats.get(locale, TextStats()))
    return said, read


def _by_locale(turns: pl.DataFrame) -> list[tuple[str, np.ndarray]]:
    groups = turns.select("locale").with_row_index("row").group_by("locale").agg("row").sort("locale")
    return [(locale, rows.to_numpy().astype(np.int64)) for locale, rows in zip(groups["locale"], groups["row"], strict=True)]
