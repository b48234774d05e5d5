"""Candidate rewrites: for a text that fails, a text that serves the same goal.

Single pairs are too thin to prove anything, so the users of a source are pooled over all texts of a goal: how much of
what they went on to ask, and got served, lies in this goal? Votes and the absorbing chain say so; likeness only fills in
where they are silent. Then the goal's best served text that keeps every value of the source becomes the target.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from scipy import special

from rewrite import careful, meaning
from rewrite.contracts import CANDIDATE_REWRITES
from rewrite.likeness import Likeness, slot_values
from rewrite.pool import LOWER, MILLION, Pool

if TYPE_CHECKING:
    from rewrite.evidence import Options

PRIOR_USERS = 2.0
"""What likeness says about a goal counts as much as two users."""
FULL_USERS = 30
"""More users than this do not make a target better."""
TARGETS_PER_GOAL = 30
"""So many of a goal's best texts are tried as the target."""
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
AMBIGUOUS = 0.8
"""A second goal that serves users with this share of the best one's probability makes the source ambiguous. A goal that is not
served is no alternative, however many tried it."""

POPULAR, POPULAR_LEAST = 0.2, 50
"""A fifth of a locale's rewrites, and never less than 50, may lead to one target: twice what the most popular one has in four
simulated logs (63 of 599)."""

EXTRA: dict[str, type[pl.DataType]] = {
    "untouched_users": pl.Int64,
    "goal_users": pl.Int64,
    "support": pl.Float64,
    "likeness": pl.Float64,
    "lift_probability": pl.Float64,
    "treated_users": pl.Int64,
    "treated_served": pl.Float64,
    "log_e": pl.Float64,
    "log_e_against": pl.Float64,
}
"""Columns beyond the contract: untouched votes behind source_served; users who went from the source into the goal; users'
evidence for the goal (votes or chain); likeness of source and target; P(lift > 0); live evidence of this very pair;
ln of the anytime-valid evidence for and against it (`rewrite.careful`)."""


def mine(pool: Pool, options: Options) -> pl.DataFrame:
    """contracts.CANDIDATE_REWRITES and `EXTRA`, one row per considered (source, target), sorted by locale, source, target.

    At most one row per source is proposed. `reason` of a proposed row is `goal` (mined) or `live` (it serves users
    already, and well); of a rejected one the first rule it breaks.
    """
    into = _goals_of_sources(pool)
    into = _with_targets(into, pool, options)
    into = _score(into, pool)
    rows = _with_live(into, pool)
    rows = _decide(_tested(rows, pool, options), pool, options)
    return capped(meaning.kept(_table(rows, pool), pool.texts))


def capped(table: pl.DataFrame) -> pl.DataFrame:
    """`table` in which no target serves more than `POPULAR` of a locale's proposed sources: the surest stay, the others are `popular`.

    Rare requests drift into popular ones because popular ones succeed; no single guard sees that, the sum does.
    """
    at = ["locale", "target"]
    proposed = table.filter(pl.col("decision") == "proposed")
    room = (pl.len().over("locale") * POPULAR).clip(POPULAR_LEAST)
    nth = pl.struct(-pl.col("probability"), "source").rank("ordinal").over(at)
    over = proposed.filter(nth > room).select("locale", "source", "target", over=pl.lit(True))
    table = table.join(over, on=["locale", "source", "target"], how="left", maintain_order="left")
    decided = [
        pl.when(pl.col("over").is_null()).then(c).otherwise(pl.lit(v)).alias(c)
        for c, v in (("decision", "rejected"), ("reason", "popular"))
    ]
    return table.with_columns(decided).drop("over")


def _goals_of_sources(pool: Pool) -> pl.DataFrame:
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


def _with_targets(into: pl.DataFrame, pool: Pool, options: Options) -> pl.DataFrame:
    """The target of every (s, goal), with `blocked` = why there is none (then t is the text users went to most)."""
    values = slot_values(pool.texts["slots"])
    texts = pool.texts.with_columns(values=values)
    good = (pl.col("served") >= options.target_served) & (pl.col("users") >= options.k) & ~pl.col("placeholder")
    worth = pl.col("served") * pl.min_horizontal("users", FULL_USERS)
    shelf = (
        texts.filter(good)
        .with_columns(worth=worth)
        .sort("goal", "worth", "id", descending=[False, True, False])
        .group_by("goal", maintain_order=True)
        .head(TARGETS_PER_GOAL)
        .select("goal", t="id", worth="worth", t_text="utterance", t_numbers="numbers", t_values="values", t_known="known")
    )
    source = texts.select(s="id", s_text="utterance", s_numbers="numbers", s_values="values")
    linked = pool.asks.group_by("s", "t").agg(pair_users=pl.len().cast(pl.Int64), pair_value=pl.col("value").sum())
    pairs = (
        into.select("s", "goal")
        .join(shelf, on="goal")
        .filter(pl.col("s") != pl.col("t"))
        .join(source, on="s")
        .join(linked, on=["s", "t"], how="left")
        .with_columns(pl.col("pair_users").fill_null(0))
    )
    pairs = pairs.with_columns(
        _lost=_missing(pairs, "s_values", "t_text", "t_values"),
        _extra=_missing(pairs, "t_values", "s_text", "s_values"),
    )
    block = (
        pl.when(pl.col("s_numbers") != pl.col("t_numbers"))
        .then(pl.lit("number_changed"))
        .when(pl.col("_lost") > 0)
        .then(pl.lit("value_lost"))
        .when(pl.col("t_known") <= pl.col("pair_users"))
        .then(pl.lit("no_outside_users"))
        .when((pl.col("t_known") - pl.col("pair_users") < options.scarce * pl.col("pair_users")) & pl.lit(_only_wording(pairs, pool)))
        .then(pl.lit("no_other_wording"))
    )
    best = (
        pairs.with_columns(blocked=block)
        .sort("s", "goal", pl.col("blocked").is_not_null(), "_extra", "worth", "t", descending=[False, False, False, False, True, False])
        .unique(["s", "goal"], keep="first", maintain_order=True)
        .select("s", "goal", "t", "blocked", lost="_lost", extra="_extra")
    )
    # no text of the goal is a target: name the one that users went to, to say so
    by_votes = (
        pool.asks.group_by("s", "t")
        .agg(pl.col("value").sum())
        .join(pool.texts.select(t="id", goal="goal"), on="t")
        .sort("s", "goal", "value", "t", descending=[False, False, True, False])
        .unique(["s", "goal"], keep="first", maintain_order=True)
        .select("s", "goal", went="t")
    )
    by_chain = (
        pool.reach.join(pool.texts.select(t="id", goal="goal"), on="t")
        .sort("s", "goal", "score", "t", descending=[False, False, True, False])
        .unique(["s", "goal"], keep="first", maintain_order=True)
        .select("s", "goal", led="t")
    )
    on = ["s", "goal"]
    return (
        into.join(best, on=on, how="left", maintain_order="left")
        .join(by_votes, on=on, how="left", maintain_order="left")
        .join(by_chain, on=on, how="left", maintain_order="left")
        .with_columns(
            blocked=pl.when(pl.col("t").is_null()).then(pl.lit("no_served_target")).otherwise("blocked"),
            t=pl.coalesce("t", "went", "led"),
        )
        .drop("went", "led")
        .filter(pl.col("t").is_not_null())
        .with_columns(pl.col("lost", "extra").fill_null(0))
    )


def _only_wording(pairs: pl.DataFrame, pool: Pool) -> pl.Series:
    """Per row, whether nobody but new accounts said anything else (than s and t) that is understood as t is, or is of t's goal.

    What serves honest users is asked for in several wordings (all but .3 % of targets in six simulated logs); a ring has
    one. Rows whose target has no interpretation are let through: there a goal often is one wording.
    """
    meaning = ["locale", "intent", "slots"]
    known = pool.texts.select("id", "locale", "known")
    meant = pool.meanings.select("id", "intent", "slots").join(known, on="id")
    works = (pl.col("served") >= 0.5) & (pl.col("votes") > 0)  # what fails, or nobody was heard with, says nothing for the target
    text = pool.texts.select("id", "locale", "intent", "slots", "known", "goal", works=works)
    rows = (
        pairs.select("s", "t", "goal")
        .join(text.rename({"id": "t", "known": "t_known", "goal": "t_goal", "works": "t_works"}), on="t", how="left", maintain_order="left")
        .join(text.select(s="id", s_known="known", s_goal="goal", s_works="works"), on="s", how="left", maintain_order="left")
        .join(meant.group_by(meaning).agg(others=pl.col("known").sum()), on=meaning, how="left", maintain_order="left", nulls_equal=True)
        .join(meant.select(*meaning, s="id", s_meant="known"), on=[*meaning, "s"], how="left", maintain_order="left", nulls_equal=True)
        .join(text.filter("works").group_by("goal").agg(alike=pl.col("known").sum()), on="goal", how="left", maintain_order="left")
        .with_columns(pl.col("others", "alike", "s_meant").fill_null(0))
    )
    others = pl.col("others") - pl.col("t_known") - pl.col("s_meant")
    s_there, t_there = ((pl.col(f"{x}_goal") == pl.col("goal")) & pl.col(f"{x}_works") for x in ("s", "t"))
    alike = pl.col("alike") - pl.when(t_there).then("t_known").otherwise(0) - pl.when(s_there).then("s_known").otherwise(0)
    return rows.select(pl.col("intent").is_not_null() & (others <= 0) & (alike <= 0)).to_series()


def _missing(pairs: pl.DataFrame, values: str, text: str, other: str) -> pl.Series:
    """Per row, how many of the values are neither in the text nor among the other side's values."""
    long = pairs.select(values, text, other).with_row_index("row").explode(values, empty_as_null=False).filter(pl.col(values).is_not_null())
    gone = ~(pl.col(text).str.contains(pl.col(values), literal=True) | pl.col(other).list.contains(pl.col(values)))
    count = long.group_by("row").agg(gone=gone.sum())
    rows = pl.DataFrame({"row": pl.Series(range(pairs.height), dtype=pl.UInt32)})
    return rows.join(count, on="row", how="left", maintain_order="left")["gone"].fill_null(0).cast(pl.Int64)


def _score(into: pl.DataFrame, pool: Pool) -> pl.DataFrame:
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


def _with_live(into: pl.DataFrame, pool: Pool) -> pl.DataFrame:
    """Adds pairs that serve users already, and what became of them; a pair that failed taints its whole goal."""
    ids = pool.texts.select("locale", "utterance", "id", "goal")
    live = (
        pool.treated.join(ids.rename({"utterance": "source", "id": "s"}).drop("goal"), on=["locale", "source"])
        .join(ids.rename({"utterance": "target", "id": "t"}), on=["locale", "target"])
        .filter(pl.col("s") != pl.col("t"))
        .select("s", "t", "goal", treated_users="users", treated_served="success", treated_low="low", treated_better="better")
    )
    rows = into.join(live.drop("goal"), on=["s", "t"], how="full", coalesce=True, maintain_order="left_right")
    goal = pool.texts.select(t="id", of="goal")
    rows = rows.join(goal, on="t", how="left").with_columns(goal=pl.coalesce("goal", "of")).drop("of")
    worst = live.group_by("s", "goal").agg(goal_treated=pl.col("treated_served").max())
    return rows.join(worst, on=["s", "goal"], how="left")


def _tested(rows: pl.DataFrame, pool: Pool, options: Options) -> pl.DataFrame:
    """Adds `log_e` and `log_e_against` of `careful.test`, and `discovered` by e-BH over all pairs of shared texts whose source fails."""
    rows = rows.sort("s", "t", "goal")
    found = careful.test(rows.select("s", "t", "goal"), pool.trials, pool, options)
    users, served = pool.column("users"), pool.column("served")
    s, t = rows["s"].to_numpy(), rows["t"].to_numpy()
    hypotheses = np.flatnonzero((users[s] >= options.k) & (users[t] >= options.k) & (served[s] < options.served))
    discovered = np.zeros(rows.height, bool)
    discovered[hypotheses] = careful.e_bh(found.log_e[hypotheses], options.false_discovery)
    return rows.with_columns(
        log_e=pl.Series(found.log_e), log_e_against=pl.Series(found.against), discovered=pl.Series(discovered, dtype=pl.Boolean)
    )


def _decide(rows: pl.DataFrame, pool: Pool, options: Options) -> pl.DataFrame:
    # retirement is the mirror of release: by the posterior, or by evidence that may be looked at every night
    goal_failed = pl.col("goal_treated") < options.served
    if options.careful:
        goal_failed = (pl.col("log_e_against") >= np.log(1 / options.false_discovery)).any().over("s", "goal")
    source = pool.texts.select(s="id", source_users="users", source_served="served", s_hidden="placeholder", s_votes="votes")
    target = pool.texts.select(t="id", target_users="users", target_served="served", t_hidden="placeholder")
    rows = (
        rows.join(source, on="s")
        .join(target, on="t")
        .with_columns(
            live=(pl.col("treated_served") >= options.served).fill_null(False),
            mined=pl.col("score").is_not_null(),
            chance=(pl.col("right") * pl.col("target_served")).fill_null(0.0),
            chance_low=(pl.col("low") * pl.col("target_served")).fill_null(0.0),
        )
    )
    rows = rows.with_columns(
        probability=pl.when("live").then("treated_served").otherwise("chance"),
        lower=pl.when("live").then("treated_low").otherwise("chance_low"),
        lift_probability=pl.when("live").then("treated_better").otherwise(pl.col("better").fill_null(0.0)),
    )
    open_ = pl.col("s_hidden").not_() & pl.col("t_hidden").not_()
    rank = pl.struct(-pl.col("live").cast(pl.Int8), -pl.col("probability"), -pl.col("score").fill_null(0.0), "t").rank("ordinal").over("s")
    second = pl.col("chance").filter(~pl.col("live")).top_k(2).min().over("s")
    rows = rows.with_columns(first_choice=rank == 1, alone=pl.col("mined").sum().over("s") < 2, second=second)
    # while a rewrite serves its source, hardly anybody is heard untouched, and the prior would call the source served
    unheard = pl.col("live") & (pl.col("s_votes") < options.k)
    reason = (
        pl.when(~open_)
        .then(pl.lit("placeholder"))
        .when((pl.col("source_users") < options.k) | (pl.col("target_users") < options.k))
        .then(pl.lit("below_k"))
        .when((pl.col("source_served") >= options.served) & ~unheard)
        .then(pl.lit("source_served"))
        .when(goal_failed)
        .then(pl.lit("treated_failed"))
        .when(~pl.col("first_choice"))
        .then(pl.lit("other_goal"))
        .when(pl.col("live") & (pl.col("lift_probability") >= options.lift))
        .then(pl.lit("live"))
        .when(pl.col("blocked").is_not_null())
        .then(pl.col("blocked"))
        .when(pl.col("chance") < options.probability)
        .then(pl.lit("weak"))
        .when(pl.col("repeaters") >= options.repeaters * pl.col("goal_users").clip(1))
        .then(pl.lit("repeaters"))
        .when(~pl.col("alone") & ~pl.col("wording") & (pl.col("second") > AMBIGUOUS * pl.col("chance")))
        .then(pl.lit("ambiguous"))
        .when(pl.col("lift_probability") < options.lift)
        .then(pl.lit("no_lift"))
        .otherwise(pl.lit("goal"))
    )
    if options.careful:
        reason = pl.when(reason.is_in(["goal", "live"]) & ~pl.col("discovered")).then(pl.lit("unproven")).otherwise(reason)
    return rows.with_columns(reason=reason).with_columns(
        decision=pl.when(pl.col("reason").is_in(["goal", "live"])).then(pl.lit("proposed")).otherwise(pl.lit("rejected"))
    )


def _table(rows: pl.DataFrame, pool: Pool) -> pl.DataFrame:
    texts = pool.texts
    source = texts.select(
        "locale", s="id", source="utterance", source_text="text", untouched_users="untouched", s_first="first", s_last="last"
    )
    target = texts.select(t="id", target="utterance", target_text="text", goal_id="goal_id")
    pair = pool.asks.group_by("s", "t").agg(pair_users=(pl.col("step") & (pl.col("value") >= MILLION // 2)).sum())
    score = pool.reach.select("s", "t", chain="score")
    rows = (
        rows.join(source, on="s")
        .join(target, on="t")
        .join(pair, on=["s", "t"], how="left")
        .join(score, on=["s", "t"], how="left")
        .join(pool.causes.rename({"id": "s"}), on="s", how="left")
        .with_columns(pl.col("pair_users").fill_null(0))
        .with_columns(
            score=pl.col("chain").fill_null(0.0),
            lift=pl.col("probability") - pl.col("source_served"),
            # a quantile of a posterior off the mean it is shown beside may pass it: a bound never does
            lift_lower=pl.min_horizontal("lower", "probability") - pl.col("source_served"),
            users=pl.min_horizontal("source_users", "target_users"),
            votes=pl.col("votes").fill_null(0),
            goal_users=pl.col("goal_users").fill_null(0),
            first_seen=pl.coalesce("first", "s_first"),
            last_seen=pl.coalesce("last", "s_last"),
            pair_count_rate=pl.col("pair_users") / pl.col("source_users"),
        )
        .sort("locale", "source", "target")
    )
    schema = pl.DataFrame(CANDIDATE_REWRITES.empty_table()).schema
    table = rows.select(*(pl.col(n).cast(d) for n, d in schema.items()), *(pl.col(n).cast(d) for n, d in EXTRA.items()))
    return table.with_columns(pl.col(pl.Float64).round(6) + 0.0)
