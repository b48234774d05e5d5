"""How sure may one be? From a goal's share of the evidence to the probability that it is what users of the source want.

Shares are too timid: what lies outside of the goal is in good part the same goal in other words, or the next request. How much,
a log says itself: shares from earlier days are held against the users of later days. What they went on to is no label either,
so it enters as a likelihood. One who wants goal g goes to g with probability `REACH`, else anywhere, as often as the locale is
served there (`base`), which is what takes unrelated next requests off; one who wants something else goes to g by chance alone. With
n_h users on goal h, the likelihood of h is proportional to R_h^n_h, R_h = 1 + REACH / ((1 - REACH) base_h), and the evidence for g
is its likelihood over the mean of all others'. The map from share to probability is the logistic curve under which the later users
are likeliest (EM), per locale, shrunk to all locales together, and those to `SHIFT, SHARPEN`.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from scipy import special

from rewrite.contracts import MILLION
from rewrite.pool import Pool, of_some

SHIFT, SHARPEN = 1.0, 2.0
"""log odds of the probability = SHIFT + SHARPEN * log odds of the share, where a log is too short to say: towards doubt from what six
simulated logs said (1.5 to 2.0, and 1.4 to 1.7)."""
WORDING_SHIFT = 4.5
"""Without interpretations a goal is one wording of several, and users split over them: on a log stripped of intents a share
of .12 was right as often as one of .4 with them. Later users go to the other wordings too, which says nothing against this one; so here
the map is not learned."""
REACH = 0.7
"""Users who go on to what they want, of those who go on: between .3 and .9 it moved the maps of five simulated logs by .2 at most."""
LAST = 5
"""A fifth of the days is later; the users of a log of fewer days are split instead."""
RIDGE = 2.0
"""Weight of the prior curve: about as much as what ten sources of middling share say."""
RAREST = 1e-5
SURE = 30.0
"""Log likelihood ratios are cut here: exp stays finite."""


def halves(pool: Pool) -> tuple[Pool, Pool]:
    """What users asked before the last fifth of the days, and from then on; a log of fewer days is split by user."""
    days = pool.asks.each(lambda a: a.select("first").unique())["first"].unique().sort()
    later = pl.col("first") >= days[-(len(days) // LAST)] if len(days) >= LAST else pl.col("ask").hash(0) % LAST == 0

    def before(asks: pl.DataFrame) -> pl.DataFrame:
        # a source that nobody asked later teaches nothing
        return asks.filter(~later).join(asks.filter(later).select("s").unique(), on="s", how="semi")

    return of_some(pool, before), of_some(pool, lambda a: a.filter(later), chained=False)


def base(texts: pl.DataFrame) -> pl.DataFrame:
    """`goal, base`: the share of each goal in what the users of its locale are served with. texts: of a `Pool`."""
    served = (pl.col("served") * pl.col("users") * MILLION).round().cast(pl.Int64)
    goals = texts.group_by("locale", "goal").agg(w=served.sum())
    return goals.select("goal", base=(pl.col("w") / pl.col("w").sum().over("locale")).clip(RAREST, 1.0))


def evidence(wanted: pl.DataFrame, went: pl.DataFrame, chance: pl.DataFrame) -> pl.DataFrame:
    """`s, users, llr`, sorted by s: what users said for each wanted goal against all others, as a log likelihood ratio.

    wanted: `s, goal`, one goal per source; went: `s, goal, n`, users (fractions are fine) who were served there; chance: of `base`. A
    goal that is not in `chance` is as rare as can be. Sources without a row in `went` are left out.
    """
    each = (
        went.join(chance, on="goal", how="left")
        .join(wanted.select("s", wanted="goal"), on="s")
        .with_columns(pl.col("base").fill_null(RAREST))
    )
    grown = pl.col("n") * (1 + REACH / ((1 - REACH) * pl.col("base"))).log()
    each = each.sort("s", "goal").with_columns(grown=grown, odds=pl.col("base").log() + grown, own=pl.col("goal") == pl.col("wanted"))
    others = pl.col("odds").filter(~pl.col("own"))
    source = each.group_by("s", maintain_order=True).agg(
        users=pl.col("n").sum(),
        own=pl.col("grown").filter("own").sum(),
        known=pl.col("base").filter(~pl.col("own")).sum(),
        most=others.max().fill_null(0.0),
        rest=(others - others.max()).exp().sum(),
        wanted=pl.col("wanted").first(),
    )
    here = (
        source.join(chance.rename({"goal": "wanted"}), on="wanted", how="left", maintain_order="left")["base"].fill_null(RAREST).to_numpy()
    )
    unseen = np.maximum(1 - source["known"].to_numpy() - here, RAREST)
    with np.errstate(divide="ignore"):
        rest = source["most"].to_numpy() + np.log(source["rest"].to_numpy())
    against = np.logaddexp(rest, np.log(unseen)) - np.log(1 - np.minimum(here, 0.5))
    llr = pl.Series(np.clip(source["own"].to_numpy() - against, -SURE, SURE), dtype=pl.Float64)
    return source.select("s", "users", llr=llr)


def learn(share: np.ndarray, llr: np.ndarray, locale: np.ndarray) -> dict[str, tuple[float, float]]:
    """(shift, sharpen) per locale, and of all together (""). Parallel arrays, one per source: share of the goal in the earlier
    evidence, later `evidence` for it, locale. None of them: the prior curve, under ""."""
    x = np.stack([np.ones(len(share)), special.logit(np.clip(share, 1e-6, 1 - 1e-6))], axis=1)
    everywhere = _curve(x, llr, np.array([SHIFT, SHARPEN]))
    found, names = {"": everywhere}, np.unique(locale)
    if len(names) > 1:  # the cases of a single locale would count twice
        found |= {str(name): _curve(x[locale == name], llr[locale == name], everywhere) for name in names}
    return {name: (float(c[0]), float(c[1])) for name, c in found.items()}


def _curve(x: np.ndarray, llr: np.ndarray, prior: np.ndarray, rounds: int = 50) -> np.ndarray:
    """The coefficients under which the later users are likeliest: EM with one Newton step per round, ridge around `prior`."""
    beta = prior.copy()
    for _ in range(rounds):
        p = special.expit(x @ beta)
        right = special.expit(x @ beta + llr)
        slope = x.T @ (right - p) - RIDGE * (beta - prior)
        curve = (x * (p * (1 - p))[:, None]).T @ x + RIDGE * np.eye(len(prior))
        step = np.linalg.solve(curve, slope)
        beta = beta + step
        if np.abs(step).max() < 1e-6:
            break
    return np.array([beta[0], max(beta[1], 0.0)])  # a greater share is never less


def share_right(llr: np.ndarray, weight: np.ndarray | None = None, rounds: int = 200) -> float:
    """The share of the cases that came true under which their evidence is likeliest (EM), cases weighing alike or by `weight`; .5 of none."""
    each = np.ones(len(llr)) if weight is None else weight
    share = 0.5
    for _ in range(rounds if len(llr) else 0):
        share = float(np.clip((each * special.expit(special.logit(share) + llr)).sum() / each.sum(), 1e-6, 1 - 1e-6))
    return share
