"""The signal table: how often each signal of a turn is there, what it says, and how much, per locale, from counts that add.

A turn's *pattern* is the state of every signal (not logged, silent, fires), as one number. How many turns have a pattern
and how many of them failed (the sum of P(failed), in millionths) are integers: shards add up to the same table in any
order, and everything below follows from the sums. Terms after Snorkel's LFAnalysis (Ratner et al. 2017), but that the
latent class, not a label, says what is right.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import polars as pl

from rewrite.curves import logit, sigmoid
from rewrite.model import Model

SIGNALS: Final = {
    "refused": "status no_match or error",
    "cancelled": "status cancelled",
    "interrupted": "the user spoke into the answer",
    "thumbs down": "feedback -1",
    "thumbs up": "feedback +1",
    "asked again": "a later turn of the session asks again (P >= .5)",
    "same words next": "the next turn is the same text",
    "next one refused": "the next turn was refused",
    "nothing came next": "the session ended here",
    "same reply": "the reply is word for word the one before",
    "unsure of sound": "asr_confidence in its lowest tenth",
    "unsure of intent": "intent_confidence below .5, though answered",
}
"""Signal -> when it fires. The order fixes the pattern's digits; a change needs a new version of `detect`."""
VIEWS: Final = ("text", "gap", "friction")
MICRO: Final = 10**6
_NAMES = tuple(SIGNALS)
_COLUMNS = (("refused", "cancelled"), ("thumbs down", "thumbs up"))  # signals of one column: logged together or not at all
_IDS = ["date", "user_key", "turn_id"]
_EDGE = 1e-3  # P(failed) of a pattern stays this far from 0 and 1, as that of a turn does (`rewrite.outcomes`)
_ALIKE = 5
"""Fewer turns that are alike in all other signals are chance."""
_SAYS = np.log(1.1)
"""A view speaks when it moves the odds by more than a tenth; less is a curve's idle part."""

Counts = dict[str, dict[str, Any]]


def confidence_cuts(model: Model, locales: Iterable[str]) -> pl.DataFrame:
    """`locale, asr_cut, intent_cut`: confidences below the cut count as low; null where the model learned none."""
    rows = []
    for locale in sorted(set(locales)):
        deciles = model.asr_confidence.get(locale)
        rows.append((locale, deciles[0] if deciles else None, 0.5))  # by its own account more likely wrong than right
    return pl.DataFrame(rows, schema={"locale": pl.String, "asr_cut": pl.Float64, "intent_cut": pl.Float64}, orient="row")


def patterns(turns: pl.DataFrame, rephrases: pl.DataFrame, outcomes: pl.DataFrame, cuts: pl.DataFrame, gap_s: float) -> pl.DataFrame:
    """`date, user_key, locale, pattern, failed` (millionths) of every turn that is no retry, in no order.

    `turns` with `date`; `rephrases` and `outcomes` as `rewrite.votes.detect` makes them; `gap_s` the session gap in
    seconds: what comes after midnight is not known of a turn nearer to it than that.
    """
    pair = rephrases.with_columns(pl.col("date").cast(pl.Date))
    later = pair.filter(pl.col("lag") >= 1).group_by(_IDS).agg(again=pl.col("probability").max())
    said = turns.select(*_IDS, next_turn_id="turn_id", next_status="status", response="response")
    near = pair.filter(pl.col("lag") == 1).select(*_IDS, "next_turn_id", "same_text")
    near = near.join(said.select("date", "user_key", "next_turn_id", "next_status"), on=["date", "user_key", "next_turn_id"], how="left")
    before = near.join(said.select(*_IDS, "response"), on=_IDS, how="left")
    before = before.select("date", "user_key", turn_id="next_turn_id", reply_before="response")
    retries = pair.filter(pl.col("lag") == 0).select(_IDS)
    t = turns.join(retries, on=_IDS, how="anti").join(later, on=_IDS, how="left")
    t = t.join(near.drop("next_turn_id").unique(_IDS), on=_IDS, how="left").join(before.unique(_IDS), on=_IDS, how="left")
    t = t.join(outcomes.select(*_IDS, "p_failed"), on=_IDS, how="left").join(cuts, on="locale", how="left")
    midnight = pl.col("timestamp").dt.truncate("1d").dt.offset_by("1d")
    censored = (midnight - pl.col("timestamp")).dt.total_microseconds() < gap_s * 1e6
    status, answered = pl.col("status"), ~pl.col("status").is_in(["no_match", "error"])
    fires = {
        "refused": status.is_in(["no_match", "error"]),
        "cancelled": status == "cancelled",
        "interrupted": pl.col("barge_in"),
        "thumbs down": pl.col("feedback") < 0,
        "thumbs up": pl.col("feedback") > 0,
        "asked again": pl.col("again") >= 0.5,
        "same words next": pl.col("same_text"),
        "next one refused": pl.col("next_status").is_in(["no_match", "error"]),
        "nothing came next": pl.when(pl.col("again").is_not_null() | ~censored).then(pl.col("again").is_null()),
        "same reply": pl.col("response") == pl.col("reply_before"),
        "unsure of sound": pl.col("asr_confidence") < pl.col("asr_cut"),
        "unsure of intent": pl.when(answered.fill_null(True)).then(pl.col("intent_confidence") < pl.col("intent_cut")),
    }
    states = [(fires[n].cast(pl.Int64) + 1).fill_null(0) * 3**i for i, n in enumerate(_NAMES)]
    return t.select(
        "date", "user_key", "locale", pattern=pl.sum_horizontal(states), failed=(pl.col("p_failed") * MICRO).round().cast(pl.Int64)
    )


def pattern_counts(found: pl.DataFrame) -> Counts:
    """Locale -> pattern -> [turns, millionths failed], for a manifest."""
    counts = found.group_by("locale", "pattern").agg(turns=pl.len(), failed=pl.col("failed").sum()).sort("locale", "pattern")
    out: Counts = {}
    for locale, pattern, turns, failed in counts.iter_rows():
        out.setdefault(locale, {})[str(pattern)] = [turns, failed]
    return out


def view_counts(rephrases: pl.DataFrame, base: pl.Series) -> Counts:
    """Locale -> figure -> integer, over neighbours in other words: what each view of a pair says of it.

    `base`: the detector's share of pairs that ask again, row by row. Per view: `says` (pairs where it moves the odds),
    `against` (of those, the other two say the opposite), `agrees` (alone it decides as all three), `turns_it` (without it
    the decision is another), `weight` (sum of the absolute log likelihood ratio, in millionths).
    """
    near = rephrases.with_columns(base=base).filter((pl.col("lag") == 1) & ~pl.col("same_text"))
    prior = logit(near["base"].to_numpy())
    llr = {v: logit(near[f"p_{v}"].to_numpy()) - prior for v in VIEWS}
    whole = prior + sum(llr.values())
    columns: dict[str, np.ndarray] = {"pairs": np.ones(near.height, np.int64), "asked_again": near["probability"].to_numpy() >= 0.5}
    for v in VIEWS:
        others = whole - prior - llr[v]
        says = np.abs(llr[v]) > _SAYS
        columns |= {
            f"{v} says": says,
            f"{v} against": says & (np.abs(others) > _SAYS) & (np.sign(others) != np.sign(llr[v])),
            f"{v} agrees": (prior + llr[v] >= 0) == (whole >= 0),
            f"{v} turns_it": (whole - llr[v] >= 0) != (whole >= 0),
            f"{v} weight": np.round(np.abs(llr[v]) * MICRO),
        }
    sums = near.select("locale").with_columns(pl.Series(n, c.astype(np.int64)) for n, c in columns.items())
    sums = sums.group_by("locale").sum().sort("locale")
    steps = near.group_by("locale", "decided_by").len().sort("locale", "decided_by")
    out: Counts = {row.pop("locale"): row for row in sums.to_dicts()}
    for locale, step, n in steps.iter_rows():
        out[locale][f"decided {step}"] = n
    return out


def add(counts: Iterable[Counts]) -> Counts:
    """Counts added up, in the order of names."""
    total: Counts = {}
    for c in counts:
        for locale, found in c.items():
            into = total.setdefault(locale, {})
            for name, n in found.items():
                old = into.get(name)
                into[name] = n if old is None else [a + b for a, b in zip(old, n, strict=True)] if isinstance(n, list) else old + n
    return {locale: dict(sorted(found.items())) for locale, found in sorted(total.items())}


def with_all(counts: Counts) -> Counts:
    """The counts with all locales together first, under ""; where there is one locale it stays alone."""
    return counts if len(counts) < 2 else {"": add({"": c} for c in counts.values())[""]} | counts


def signal_table(counts: Counts) -> list[dict[str, Any]]:
    """One row per locale ("" is all of them) and signal that was logged at all:

    `logged`, `fires`: shares of turns. `overlap`: of the turns where it fires, the share where another one does.
    `failed`: mean P(failed) where it fires. `weight`: log P(fires | failed) / P(fires | served), positive when it speaks
    for failed. `accuracy`: where it fires, the mean probability of what it speaks for by the rest of the evidence alone
    (turns alike in all other signals, see `_rest`). `conflict`: the share where that rest, the prior put aside, speaks for
    the opposite.
    Weights are marginal ones: signals that fire together share what they know.
    """
    rows: list[dict[str, Any]] = []
    for locale, found in with_all(counts).items():
        pattern = np.array([int(p) for p in found], np.int64)
        turns, failed = np.array(list(found.values()), np.float64).T if found else np.zeros((2, 0))
        failed = failed / MICRO
        state = pattern[:, None] // 3 ** np.arange(len(_NAMES)) % 3  # (patterns, signals)
        firing = state == 2
        share = np.clip(failed / np.maximum(turns, 1.0), _EDGE, 1.0 - _EDGE)
        prior = failed.sum() / max(turns.sum(), 1.0)
        for s, name in enumerate(_NAMES):
            on, known = firing[:, s], state[:, s] > 0
            n = turns[on].sum()
            if not turns[known].sum():
                continue
            row = {"locale": locale, "signal": name, "turns": int(turns.sum()), "logged": turns[known].sum() / turns.sum()}
            row |= dict.fromkeys(("fires", "overlap", "conflict", "failed", "accuracy", "weight"))
            row["fires"] = n / turns.sum()
            if n:
                weight = _weights(turns, failed, state[:, s])
                rest = _rest(pattern, turns, share, state, s, weight)
                toward = np.sign(weight[2])
                says = sigmoid(toward * rest)
                against = toward * (rest - logit(prior)) < 0
                others = firing.sum(axis=1) > 1
                row |= {"overlap": turns[on & others].sum() / n, "failed": failed[on].sum() / n, "weight": float(weight[2])}
                row |= {"accuracy": (says * turns)[on].sum() / n, "conflict": turns[on & against].sum() / n}
            rows.append({k: float(v) if isinstance(v, np.floating) else v for k, v in row.items()})
    return rows


def _rest(pattern: np.ndarray, turns: np.ndarray, share: np.ndarray, states: np.ndarray, s: int, weight: np.ndarray) -> np.ndarray:
    """Log odds for failed by the rest of the evidence, per pattern: from turns alike in all signals of other columns that
    do not log this one, or alike in all others where it is silent (that weight taken off); without such turns, from its
    own, its own weight taken off. Own turns come last: where the verdict is near certain, what is left after a large
    weight is mostly rounding."""
    state = states[:, s]
    column = [_NAMES.index(n) for group in _COLUMNS if _NAMES[s] in group for n in group] or [s]
    unlogged = pattern - states[:, column] @ 3 ** np.array(column)
    rest = logit(share) - weight[state]
    order = np.argsort(pattern)
    for other, alike in ((1, pattern - (state - 1) * 3**s), (0, unlogged)):
        at = order[np.minimum(np.searchsorted(pattern[order], alike), len(order) - 1)]
        known = (pattern[at] == alike) & (turns[at] >= _ALIKE) & (state > other)
        rest = np.where(known, logit(share[at]) - weight[other], rest)
    return rest


def _weights(turns: np.ndarray, failed: np.ndarray, state: np.ndarray) -> np.ndarray:
    """log P(state | failed) / P(state | served) by state, among turns where it is logged; half a turn of smoothing."""
    bad = np.bincount(state, failed, 3) + 0.5
    good = np.bincount(state, turns - failed, 3) + 0.5
    llr = np.log(bad / bad[1:].sum()) - np.log(good / good[1:].sum())
    return np.array([0.0, llr[1], llr[2]])


def view_table(counts: Counts) -> list[dict[str, Any]]:
    """One row per locale and view of asked-again: shares of neighbouring pairs in other words, and `weight`, the mean of
    the absolute log likelihood ratio. See `view_counts`."""
    rows = []
    for locale, c in with_all(counts).items():
        n = c["pairs"]
        for v in VIEWS:
            says = max(c[f"{v} says"], 1)
            row = {"locale": locale, "view": v, "pairs": n, "coverage": c[f"{v} says"] / n, "conflict": c[f"{v} against"] / says}
            row |= {"accuracy": c[f"{v} agrees"] / n, "turns": c[f"{v} turns_it"] / n, "weight": c[f"{v} weight"] / n / MICRO}
            rows.append(row)
    return rows


def base_rates(turns: pl.DataFrame, rephrases: pl.DataFrame, model: Model) -> pl.Series:
    """The detector's base rate of every row of `rephrases`, by locale and channel of its first turn."""
    whose = turns.select(*_IDS, "channel").unique(_IDS) if "channel" in turns.columns else turns.select(*_IDS, channel=pl.lit(None))
    where = rephrases.select(*_IDS, "locale").join(whose.unique(_IDS), on=_IDS, how="left", maintain_order="left")
    known: Mapping[tuple[str, str | None], float] = {
        (locale, channel): model.detector(locale, channel).base
        for locale, channel in where.select("locale", "channel").unique().iter_rows()
    }
    table = pl.DataFrame(
        [(locale, channel, base) for (locale, channel), base in sorted(known.items(), key=str)],
        schema={"locale": pl.String, "channel": pl.String, "base": pl.Float64},
        orient="row",
    )
    where = where.with_columns(pl.col("channel").cast(pl.String))
    return where.join(table, on=["locale", "channel"], how="left", nulls_equal=True, maintain_order="left")["base"]
