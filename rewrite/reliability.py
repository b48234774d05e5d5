"""Does what the model says come true? Reliability diagrams against behaviour that the judgement did not use."""

from __future__ import annotations

from datetime import date
from typing import Any, Final

import numpy as np
import polars as pl

from rewrite.asked_again import fit
from rewrite.curves import logit, sigmoid
from rewrite.model import Model
from rewrite.votes import detect

BINS: Final = 10
MIN_CASES: Final = 100
"""A diagram of fewer cases than ten a bin shows noise: the locale is seen in all locales together only."""

Diagram = dict[str, Any]


def diagram(predicted: np.ndarray, happened: np.ndarray) -> Diagram:
    """`n`, `ece`, and `bins` of equal width: [mean prediction, share that happened, cases], empty bins left out.

    `ece` is the expected calibration error (Naeini et al. 2015): the mean distance of the two, weighted by cases. Sums
    are taken in sorted order, so that the order of the rows changes nothing.
    """
    order = np.lexsort((happened, predicted))
    p, y = predicted[order].astype(np.float64), happened[order].astype(np.float64)
    at = np.minimum((p * BINS).astype(np.int64), BINS - 1)
    n, said, seen = (np.bincount(at, w, BINS) for w in (np.ones(len(p)), p, y))
    used = np.flatnonzero(n)
    bins = [[round(float(said[b] / n[b]), 4), round(float(seen[b] / n[b]), 4), int(n[b])] for b in used]
    ece = float(np.abs(said - seen).sum() / max(len(p), 1))
    return {"n": len(p), "ece": round(ece, 4), "mean": round(float(p.mean()), 4) if len(p) else None, "bins": bins}


def by_locale(cases: pl.DataFrame) -> dict[str, Diagram]:
    """Diagrams of `cases` (`locale, predicted, happened`): all locales ("") and each with enough cases of its own."""
    parts = {str(n): part for (n,), part in cases.sort("locale").group_by("locale", maintain_order=True) if part.height >= MIN_CASES}
    if cases.height >= MIN_CASES and (len(parts) != 1 or cases["locale"].n_unique() > 1):
        parts = {"": cases} | parts
    return {name: diagram(p["predicted"].to_numpy(), p["happened"].to_numpy()) for name, p in parts.items()}


def feedback_cases(turns: pl.DataFrame, model: Model, gap_s: float) -> pl.DataFrame:
    """`locale, predicted, happened` of turns with feedback: P(failed), and whether the feedback was -1. `turns`: whole sessions.

    The later half of the days is judged by a model that is fitted to the earlier half without any feedback, as `model` was
    to all, so neither sees what it foretells. Of a single day `model` itself judges, blind to the feedback.
    """
    blind, days = turns.with_columns(feedback=pl.lit(None, pl.Int8)), turns["date"].unique().sort()
    split = days[len(days) // 2] if len(days) else None
    early = blind.filter(pl.col("date") < split)
    found = detect(blind.filter(pl.col("date") >= split), fit(early, k=model.k) if early.height else model, gap_s).outcomes
    ids = ["date", "user_key", "turn_id"]
    given = turns.filter(pl.col("feedback").is_not_null() & (pl.col("feedback") != 0))
    cases = given.select(*ids, "locale", happened=pl.col("feedback") < 0).join(found.select(*ids, "p_failed"), on=ids)
    return cases.select("locale", predicted="p_failed", happened="happened")


def later_cases(said: pl.DataFrame, split: date) -> pl.DataFrame:
    """`locale, predicted, happened`: will someone who says this text from `split` on be refused or ask again?

    `said`: `locale, key, user_key, timestamp, turn_id, date, p_failed` (judged by the turn's own session) and `event`
    (refused, or asked again). Each user counts once per text, with the first turn; who said a text first from `split` on
    is a case. Of the earlier users, log odds add up to the text's P(failed), as they do in `aggregate`, and the locale's
    P(event | failed) and P(event | served) turn it into P(event). So users, days and what is looked at are others.
    """
    order = ["locale", "key", "timestamp", "turn_id", "user_key"]
    first = said.sort(order).unique(["locale", "key", "user_key"], keep="first", maintain_order=True)
    cases = []
    for _, part in first.group_by("locale", maintain_order=True):
        before, after = part.filter(pl.col("date") < split), part.filter(pl.col("date") >= split)
        if before.height < MIN_CASES or not after.height:
            continue
        prior = logit(before["p_failed"].to_numpy().mean())
        before = before.with_columns(llr=pl.Series(logit(before["p_failed"].to_numpy()) - prior))
        texts = before.group_by("key", maintain_order=True).agg(pl.col("llr").sum(), n=pl.len(), events=pl.col("event").sum())
        failed = sigmoid(texts["llr"].to_numpy() + prior)
        n, events = texts["n"].to_numpy(), texts["events"].to_numpy()
        if_failed, if_served = (float((w * events).sum() / max((w * n).sum(), 1e-9)) for w in (failed, 1.0 - failed))
        texts = texts.with_columns(predicted=pl.Series(failed * if_failed + (1.0 - failed) * if_served))
        found = after.join(texts.select("key", "predicted"), on="key", how="inner")
        cases.append(found.select("locale", "predicted", happened="event"))
    empty = pl.DataFrame(schema={"locale": pl.String, "predicted": pl.Float64, "happened": pl.Boolean})
    return pl.concat([empty, *cases])


def split_day(days: list[date]) -> date | None:
    """The first day of the last fifth (at least one) of the days; None for fewer than two."""
    days = sorted(days)
    return days[-max(1, len(days) // 5)] if len(days) > 1 else None


def borderline(pairs: pl.DataFrame, shared: pl.DataFrame, most: int = 20) -> pl.DataFrame:
    """The `most` pairs per locale that the model is least sure of, one row per two texts, the least sure first.

    `pairs`: `locale, text, next_text, probability` and more, neighbours in other words. `shared`: `locale, text` that k
    users of the locale said; a pair with another text in it never shows. Ties go by the texts, never by user or turn.
    """
    both = pairs.join(shared.select("locale", "text"), on=["locale", "text"], how="semi")
    both = both.join(shared.select("locale", next_text="text"), on=["locale", "next_text"], how="semi").with_columns(
        unsure=(pl.col("probability") - 0.5).abs()
    )
    order = ["locale", "unsure", "text", "next_text", *(c for c in pairs.columns if c not in ("locale", "text", "next_text"))]
    both = both.sort(order).unique(["locale", "text", "next_text"], keep="first", maintain_order=True)
    return both.group_by("locale", maintain_order=True).head(most).select(pairs.columns)


def gap_curves(model: Model) -> list[dict[str, Any]]:
    """Per detector: `locale, channel` ("*" is any), `pairs` it learned from, and its curve: `edges` in seconds, and the
    log likelihood ratio below each edge and above the last (`values`); no edges where the gap is no witness."""
    rows = []
    for (locale, channel), d in sorted(model.detectors.items()):
        if d.pairs:
            seconds = [round(float(np.exp(e) - 0.5), 3) for e in d.gap.edges]
            rows.append(
                {"locale": locale, "channel": channel, "pairs": d.pairs, "base": round(d.base, 4), "edges": seconds}
                | {"values": [round(v, 4) for v in d.gap.values]}
            )
    return rows
