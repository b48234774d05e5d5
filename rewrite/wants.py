"""What do the users of a source want? The goals they went on to, and how likely each is the one.

Single pairs are too thin to prove anything, so the users of a source are pooled over all texts of a goal: how much of
what they went on to ask, and got served, lies in this goal? Votes and the absorbing chain say so; likeness only fills in
where they are silent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from scipy import special

from rewrite import calibration
from rewrite.contracts import MILLION
from rewrite.likeness import Likeness
from rewrite.pool import FAILS, LOWER, Pool, in_vain, unchanged
from rewrite.targets import with_targets

if TYPE_CHECKING:
    from rewrite.evidence import Options

PRIOR_USERS = 2.0
"""What likeness says about a goal counts as much as two users."""
LEAST_VOTE = 0.1
"""A goal with less than a tenth of a user's evidence is not considered, and appears in no table: likeness alone proposes
nothing. Asking for a quarter instead cost 1 to 3 % of the removable defects on three of four simulated logs."""
LEAST_WORDING = 0.25
"""The same where the target has no interpretation, and a goal is a wording: below it real calls gave "south part of town" the target
"west part of town", on a seventh of a user."""
REPEATS = 3
"""A user who went from a text to a target so often is a repeater: natural failures are given up or remembered."""
CERTAIN = 0.5
"""A link at or above this probability makes its user a voter."""
LEARN_FROM = 0.8
"""Sources with this much evidence teach how likeness predicts where users go."""


def goals_of_sources(pool: Pool, least: float = LEAST_VOTE) -> pl.DataFrame:
    """One row per (s, goal): evidence of users (x), of the chain (xc), and of all that they asked after s (n)."""
    text = pool.texts.select(t="id", goal="goal", h=(pl.col("served") * MILLION).round().cast(pl.Int64))
    vain = in_vain(pool).select("s", "t", vain=pl.lit(True))
    votes, whole = map(pl.concat, zip(*(_voted(block, text, vain) for block in pool.asks), strict=True))
    reach = pool.reach.join(unchanged(pool.reach.select("s", "t"), pool), on=["s", "t"], how="anti")
    chain = reach.lazy().join(text.lazy(), on="t").with_columns(b=(pl.col("score") * MILLION).round().cast(pl.Int64))
    reached = chain.group_by("s", "goal").agg(pl.col("b").sum())
    total = chain.group_by("s").agg(b_all=pl.col("b").sum())
    users = pool.texts.lazy().select(s="id", visits="users")
    share = pl.col("b") / pl.col("b_all").clip(1)
    served = pl.max_horizontal("ns", pl.min_horizontal("na", pl.col("b_all") * pl.col("visits"))) / MILLION
    return (
        votes.lazy()
        .join(reached, on=["s", "goal"], how="full", coalesce=True)
        .join(whole.lazy(), on="s", how="left")
        .join(total, on="s", how="left")
        .join(users, on="s", how="left")
        .with_columns(pl.col("x", "goal_users", "repeaters", "votes", "ns", "na", "b", "b_all").fill_null(0))
        .with_columns(n=served, x=pl.col("x") / MILLION)
        .with_columns(xc=pl.col("n") * share)
        .with_columns(support=pl.max_horizontal("x", "xc"))
        .filter(pl.col("support") >= least)
        .sort("s", "goal")
        .collect()
    )


def _voted(asks: pl.DataFrame, text: pl.DataFrame, vain: pl.DataFrame) -> list[pl.DataFrame]:
    """Of some sources: what their users went on to by goal, each user once, and in all (`ns` of it served, `na`; millionths)."""
    went = asks.lazy().join(text.lazy(), on="t").join(vain.lazy(), on=["s", "t"], how="left")
    went = went.with_columns(v=pl.when("vain").then(0).otherwise(pl.col("value") * pl.col("h") // MILLION))
    each = went.group_by("s", "ask", "goal").agg(
        pl.col("v", "value", "events").max(), pl.col("first").min(), pl.col("last").max(), links=pl.len()
    )
    sure = pl.col("value") >= CERTAIN * MILLION
    votes = each.group_by("s", "goal").agg(
        x=pl.col("v").sum(),
        goal_users=sure.sum().cast(pl.Int64),
        repeaters=(sure & (pl.col("events") >= REPEATS)).sum().cast(pl.Int64),
        votes=pl.col("links").sum().cast(pl.Int64),
        first=pl.col("first").min(),
        last=pl.col("last").max(),
    )
    whole = went.group_by("s", "ask").agg(pl.col("v", "value").max()).group_by("s").agg(ns=pl.col("v").sum(), na=pl.col("value").sum())
    return pl.collect_all([votes, whole])


def weighed(into: pl.DataFrame, pool: Pool) -> pl.DataFrame:
    """`into` (with targets) and likeness, `score` (the goal's share of the source's evidence, a posterior mean), `a, b` (of that posterior,
    a Beta distribution), `wording` (the target has no interpretation)."""
    s, t = into["s"].to_numpy(), into["t"].to_numpy()
    alike = Likeness(pool.texts["utterance"], np.unique(np.concatenate([s, t]))).cosine(s, t)
    same_goal = (pool.column("goal")[s] == pool.column("goal")[t]) * pool.column("membership")[s]
    lost, extra = into["lost"].to_numpy(), into["extra"].to_numpy()
    features = np.stack([np.ones(len(s)), alike, alike**2, same_goal, lost > 0, np.minimum(extra, 3)], axis=1).astype(np.float64)
    support, n = into["support"].to_numpy(), into["n"].to_numpy()
    teach = (n >= LEARN_FROM) & (pool.column("served")[s] < FAILS)
    q = _logistic(features, np.clip(support / np.maximum(n, 1e-9), 0, 1), np.where(teach, np.minimum(n, 10), 0.0))
    total = np.bincount(s, weights=q, minlength=int(s.max()) + 1 if len(s) else 0)
    q = q / np.maximum(1, total[s]) if len(s) else q
    a = support + PRIOR_USERS * q
    b = np.maximum(n, support) + PRIOR_USERS - a
    return into.with_columns(
        likeness=pl.Series(alike),
        score=pl.Series(a / (a + b)),
        a=pl.Series(a),
        b=pl.Series(np.maximum(b, 1e-6)),
        wording=pool.texts["intent"].is_null()[t],
    ).filter(~pl.col("wording") | (pl.col("support") >= LEAST_WORDING))


def believed(into: pl.DataFrame, pool: Pool, options: Options) -> pl.DataFrame:
    """`weighed` rows and `right` (P(users of the source want this goal)), its lower bound `low`, and `better`, P(lift > 0)."""
    curves = learned(pool, options)
    locale = pool.texts["locale"][into["s"].to_numpy()]
    shift, sharpen = (
        locale.replace_strict({n: c[i] for n, c in curves.items()}, default=curves[""][i], return_dtype=pl.Float64).to_numpy()
        for i in (0, 1)
    )
    wording = into["wording"].to_numpy()
    shift, sharpen = np.where(wording, calibration.WORDING_SHIFT, shift), np.where(wording, calibration.SHARPEN, sharpen)
    a, b = into["a"].to_numpy(), into["b"].to_numpy()
    served, s, t = pool.column("served"), into["s"].to_numpy(), into["t"].to_numpy()
    least = (special.logit(np.minimum(served[s] / served[t], 1)) - shift) / np.maximum(sharpen, 1e-6)  # the share that lifts nothing
    return into.with_columns(
        right=pl.Series(special.expit(sharpen * special.logit(into["score"].to_numpy()) + shift)),
        low=pl.Series(special.expit(sharpen * special.logit(special.betaincinv(a, b, LOWER)) + shift)),
        better=pl.Series(1 - special.betainc(a, b, special.expit(least))),
    )


def learned(pool: Pool, options: Options) -> dict[str, tuple[float, float]]:
    """The curves of `calibration.learn` of every locale: the likeliest goal of each failing source, by earlier days and by later ones."""
    before, after = calibration.halves(pool)
    fails = pool.column("served") < FAILS
    into = goals_of_sources(before)
    into = into.filter(pl.Series(fails[into["s"].to_numpy()], dtype=pl.Boolean))
    into = weighed(with_targets(into, before, options), before).filter(pl.col("blocked").is_null(), ~pl.col("wording"))
    best = into.sort("s", "score", "goal", descending=[False, True, False]).unique("s", keep="first", maintain_order=True)
    later = goals_of_sources(after, 0.0).select("s", "goal", n="x").filter(pl.col("n") > 0)
    seen = calibration.evidence(best.select("s", "goal"), later, calibration.base(pool.texts))
    found = best.join(seen.select("s", "llr"), on="s", maintain_order="left")
    return calibration.learn(found["score"].to_numpy(), found["llr"].to_numpy(), pool.texts["locale"].to_numpy()[found["s"].to_numpy()])


def _logistic(x: np.ndarray, y: np.ndarray, weight: np.ndarray, ridge: float = 1.0, rounds: int = 25) -> np.ndarray:
    """Ridge logistic regression of fractions by Newton's method; the fitted probability of every row."""
    beta = np.zeros(x.shape[1])
    for _ in range(rounds):
        p = special.expit(x @ beta)
        slope = x.T @ (weight * (y - p)) - ridge * beta
        curve = (x * (weight * p * (1 - p))[:, None]).T @ x + ridge * np.eye(x.shape[1])
        beta = beta + np.linalg.solve(curve, slope)
    return special.expit(x @ beta)
