"""Candidate rewrites: for a text that fails, a text that serves the same goal.

`rewrite.wants` says which goals the users of a source went to and how likely each is the one, `rewrite.targets` which text of
a goal would serve them; here it is decided what is proposed, and why the rest is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from rewrite import careful, meaning, wants
from rewrite.contracts import CANDIDATE_REWRITES
from rewrite.pool import Pool
from rewrite.targets import with_targets

if TYPE_CHECKING:
    from rewrite.evidence import Options

AMBIGUOUS = 0.8
"""A second goal that serves users with this share of the best one's share of the evidence makes the source ambiguous. A goal that is
not served is no alternative, however many tried it; nor is a second wording where there are no interpretations."""

RING = 2
"""One user who repeats is no ring, and a ring of one need not repeat: of 9 pairs held back for a single repeater all were right."""
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
    into = wants.goals_of_sources(pool)
    into = with_targets(into, pool, options)
    into = wants.believed(wants.weighed(into, pool), pool, options)
    rows = _with_live(into, pool)
    rows = _decide(_tested(rows, pool, options), pool, options)
    table = capped(meaning.kept(_table(rows, pool), pool.texts))
    return table if options.careful else controlled(table, options.false_discovery)  # careful: by e-BH


def controlled(table: pl.DataFrame, share: float) -> pl.DataFrame:
    """`table` in which at most `share` of a locale's proposed rows are expected to be wrong: the surest stay, the others are
    `false_discovery` (the Bayesian false discovery rate, Newton et al. 2004)."""
    order = pl.struct(-pl.col("probability"), "source")
    proposed = table.filter(pl.col("decision") == "proposed").sort("locale", order)
    wrong = (1 - pl.col("probability")).cum_sum() / pl.int_range(1, pl.len() + 1)
    over = proposed.with_columns(wrong=wrong.over("locale")).filter(pl.col("wrong") > share)
    return _rejected(table, over, "false_discovery")


def capped(table: pl.DataFrame) -> pl.DataFrame:
    """`table` in which no target serves more than `POPULAR` of a locale's proposed sources: the surest stay, the others are `popular`.

    Rare requests drift into popular ones because popular ones succeed; no single guard sees that, the sum does.
    """
    proposed = table.filter(pl.col("decision") == "proposed")
    room = (pl.len().over("locale") * POPULAR).clip(POPULAR_LEAST)
    nth = pl.struct(-pl.col("probability"), "source").rank("ordinal").over("locale", "target")
    return _rejected(table, proposed.filter(nth > room), "popular")


def _rejected(table: pl.DataFrame, rows: pl.DataFrame, reason: str) -> pl.DataFrame:
    over = rows.select("locale", "source", "target", over=pl.lit(True))
    table = table.join(over, on=["locale", "source", "target"], how="left", maintain_order="left")
    decided = [
        pl.when(pl.col("over").is_null()).then(c).otherwise(pl.lit(v)).alias(c) for c, v in (("decision", "rejected"), ("reason", reason))
    ]
    return table.with_columns(decided).drop("over")


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
    """Adds `log_e` and `log_e_against` of `careful.test`, and `discovered` by e-BH over all pairs of shared texts whose source fails.

    A goal with no more than `careful.LEAST` of its source's evidence speaks for the null, and is not tested unless it serves live: an e-value
    taken for 1 stays valid, and a busy source has a hundred such goals, each of them a loss of all its users.
    """
    rows = rows.sort("s", "t", "goal")
    share = (pl.col("score") > careful.LEAST).fill_null(False)
    tested = np.flatnonzero(rows.select(share | pl.col("treated_users").is_not_null()).to_series().to_numpy())
    log_e, against = np.zeros(rows.height), np.zeros(rows.height)
    found = careful.test(rows.select("s", "t", "goal")[tested], pool.trials, pool, options)
    log_e[tested], against[tested] = found.log_e, found.against
    users, served = pool.column("users"), pool.column("served")
    s, t = rows["s"].to_numpy(), rows["t"].to_numpy()
    hypotheses = np.flatnonzero((users[s] >= options.k) & (users[t] >= options.k) & (served[s] < options.served))
    discovered = np.zeros(rows.height, bool)
    discovered[hypotheses] = careful.e_bh(log_e[hypotheses], options.false_discovery)
    return rows.with_columns(log_e=pl.Series(log_e), log_e_against=pl.Series(against), discovered=pl.Series(discovered, dtype=pl.Boolean))


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
    wanted = (pl.col("score") * pl.col("target_served")).filter(~pl.col("live"))
    second = (wanted.top_k(2).min() / wanted.max()).over("s")
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
        .when(pl.col("repeaters") >= pl.max_horizontal(options.repeaters * pl.col("goal_users"), RING))
        .then(pl.lit("repeaters"))
        .when(~pl.col("alone") & ~pl.col("wording") & (pl.col("second") > AMBIGUOUS))
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
    pair = pool.pairs.select("s", "t", "pair_users")
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
