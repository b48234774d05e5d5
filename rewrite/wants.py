"""What do the users of a source want? The goals they went on to, and how likely each is the one.

Single pairs are too thin to prove anything, so the users of a source are pooled over all texts of a goal: how much of
what they went on to ask, and got served, lies in this goal? Votes and the absorbing chain say so; likeness only fills in
where they are silent.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from scipy import special

from rewrite.likeness import Likeness
from rewrite.pool import LOWER, MILLION, Pool

PRIOR_USERS = 2.0
"""What likeness says about a goal counts as much as two users."""
LEAST_VOTE = 0.25
"""A goal with less than a quarter of a user's evidence is not considered, and appears in no table: likeness alone proposes
nothing. Asking for half a user instead cost 1 to 3 % of the removable defects
on five simulated logs, and gained precision on one of them (.985 to .988)."""
LEARN_FROM = 0.8
"""Sources with this much evidence teach how likeness predicts where users go."""
SHARPEN, SHIFT = 2.0, 1.0
"""From share to probability: what lies in other goals is in good part the same goal in other words, or the next request. On
six simulated logs a goal with a share of .35 was right for half of later users, of .45 for 85 %, of .55 for 92 %, of .75 for
99 %. Twice the log odds plus one follows that from below."""
WORDING_SHIFT = 4.5
"""Without interpretations a goal is one wording of several, and users split over them: on a log stripped of intents a share
of .12 was right as often as one of .4 with them. So the shift is larger there, and a second wording makes nothing
ambiguous."""


def goals_of_sources(pool: Pool) -> pl.DataFrame:
    """One row per (s, goal): evidence of users (x), of the chain (xc), and of all that they asked after s (n)."""
    text = pool.texts.select(t="id", goal="goal", h=(pl.col("served") * MILLION).round().cast(pl.Int64))
    asks = pool.asks.lazy().join(text.lazy(), on="t").with_columns(v=pl.col("value") * pl.col("h") // MILLION)
    each = asks.group_by("s", "ask", "goal").agg(
        pl.col("v", "value", "events").max(), pl.col("first").min(), pl.col("last").max(), links=pl.len()
    )
    sure = pl.col("value") >= MILLION // 2
    votes = each.group_by("s", "goal").agg(
        x=pl.col("v").sum(),
        goal_users=sure.sum().cast(pl.Int64),
        repeaters=(sure & (pl.col("events") >= 3)).sum().cast(pl.Int64),
        votes=pl.col("links").sum().cast(pl.Int64),
        first=pl.col("first").min(),
        last=pl.col("last").max(),
    )
    whole = asks.group_by("s", "ask").agg(pl.col("v", "value").max()).group_by("s").agg(ns=pl.col("v").sum(), na=pl.col("value").sum())
    chain = pool.reach.lazy().join(text.lazy(), on="t").with_columns(b=(pl.col("score") * MILLION).round().cast(pl.Int64))
    reached = chain.group_by("s", "goal").agg(pl.col("b").sum())
    total = chain.group_by("s").agg(b_all=pl.col("b").sum())
    users = pool.texts.lazy().select(s="id", visits="users")
    share = pl.col("b") / pl.col("b_all").clip(1)
    served = pl.max_horizontal("ns", pl.min_horizontal("na", pl.col("b_all") * pl.col("visits"))) / MILLION
    return (
        votes.join(reached, on=["s", "goal"], how="full", coalesce=True)
        .join(whole, on="s", how="left")
        .join(total, on="s", how="left")
        .join(users, on="s", how="left")
        .with_columns(pl.col("x", "goal_users", "repeaters", "votes", "ns", "na", "b", "b_all").fill_null(0))
        .with_columns(n=served, x=pl.col("x") / MILLION)
        .with_columns(xc=pl.col("n") * share)
        .with_columns(support=pl.max_horizontal("x", "xc"))
        .filter(pl.col("support") >= LEAST_VOTE)
        .sort("s", "goal")
        .collect()
    )


def scored(into: pl.DataFrame, pool: Pool) -> pl.DataFrame:
    """Adds likeness, `score` (the goal's share of the source's evidence), `right` (that this is the goal) its lower bound `low`, and `better`, P(lift > 0)."""
    s, t = into["s"].to_numpy(), into["t"].to_numpy()
    alike = Likeness(pool.texts["utterance"]).cosine(s, t)
    same_goal = (pool.column("goal")[s] == pool.column("goal")[t]) * pool.column("membership")[s]
    lost, extra = into["lost"].to_numpy(), into["extra"].to_numpy()
    features = np.stack([np.ones(len(s)), alike, alike**2, same_goal, lost > 0, np.minimum(extra, 3)], axis=1).astype(np.float64)
    support, n = into["support"].to_numpy(), into["n"].to_numpy()
    teach = (n >= LEARN_FROM) & (pool.column("served")[s] < 0.5)
    q = _logistic(features, np.clip(support / np.maximum(n, 1e-9), 0, 1), np.where(teach, np.minimum(n, 10), 0.0))
    total = np.bincount(s, weights=q, minlength=int(s.max()) + 1 if len(s) else 0)
    q = q / np.maximum(1, total[s]) if len(s) else q
    a = support + PRIOR_USERS * q
    b = np.maximum(n, support) + PRIOR_USERS - a
    share = a / (a + b)
    b = np.maximum(b, 1e-6)
    low = special.betaincinv(a, b, LOWER)
    served = pool.column("served")
    wording = pool.texts["intent"].is_null().to_numpy()[t]
    shift = np.where(wording, WORDING_SHIFT, SHIFT)
    as_good = special.expit((special.logit(np.minimum(served[s] / served[t], 1)) - shift) / SHARPEN)  # the share that lifts nothing
    return into.with_columns(
        likeness=pl.Series(alike),
        score=pl.Series(share),
        wording=pl.Series(wording),
        right=pl.Series(_sharpened(share, shift)),
        low=pl.Series(_sharpened(low, shift)),
        better=pl.Series(1 - special.betainc(a, b, as_good)),
    )


def _sharpened(share: np.ndarray, shift: np.ndarray) -> np.ndarray:
    return special.expit(SHARPEN * special.logit(share) + shift)


def _logistic(x: np.ndarray, y: np.ndarray, weight: np.ndarray, ridge: float = 1.0, rounds: int = 25) -> np.ndarray:
    """Ridge logistic regression of fractions by Newton's method; the fitted probability of every row."""
    beta = np.zeros(x.shape[1])
    for _ in range(rounds):
        p = special.expit(x @ beta)
        slope = x.T @ (weight * (y - p)) - ridge * beta
        curve = (x * (weight * p * (1 - p))[:, None]).T @ x + ridge * np.eye(x.shape[1])
        beta = beta + np.linalg.solve(curve, slope)
    return special.expit(x @ beta)
