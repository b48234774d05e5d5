"""Candidate labels: what a text means, by what served the people who said it.

P(c | s) = h [own = c] + (1 - h) q_c: with probability h the text is served and its own interpretation stands; else it means
what its users were served with in the end, read off the absorbing chain, each of them a witness (`rewrite.witnesses`). A
goal adds what its other texts mean; in a locale without any intent, a language just launched, what those of other locales do. The majority vote of users stands beside it, and takes its place
in a locale where held-out users side with it (`rewrite.majority`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from rewrite import majority, spans, witnesses
from rewrite.contracts import CANDIDATE_LABELS, MILLION
from rewrite.pool import Pool, unchanged

if TYPE_CHECKING:
    from rewrite.evidence import Options

MEETS = 0.85
"""P(two locales' texts of one goal mean the same): locales meet from .7 on (`rewrite.across`). On logs stripped of their intents, beside
English ones, 460 German labels were right in .85, 106 Swahili ones in .62: the encoder knows little of that language, and
nothing in the log says so. Membership says nothing about it: below one half they were right in .89 and .72."""
GOAL_USERS = 0.5
"""What the goal's other texts mean counts as much as half a user, where users do not say more: a text is in its goal because
some of them asked again, and they count once."""


def mine(pool: Pool, options: Options) -> pl.DataFrame:
    """contracts.CANDIDATE_LABELS, one row per (locale, utterance) with any known intent, sorted by that key.

    The likeliest intent of every text; `reason` is the origin when proposed (own, projected, goal), else the first of
    placeholder, below_k, unsure. Empty when the log has no intents.
    """
    voted = majority.votes(pool)
    contest = majority.contest(pool, lambda half: _best(_chances(half)), options.k)
    lost = pool.texts.join(contest.filter("vote_wins"), on="locale", how="semi").select("id")
    best = _best(_chances(pool), voted.join(lost, on="id", how="semi"))
    rows = best.join(_slots(pool, best, options), on=["id", "intent"], how="left").join(voted, on="id", how="left")
    users = pl.max_horizontal("projected", "goal_mass") == pl.col("projected")
    origin = (
        pl.when("foreign")
        .then(pl.lit("goal"))
        .when(pl.col("own") * pl.col("h") >= pl.col("failed") * pl.col("belief"))
        .then(pl.lit("own"))
        .when(users)
        .then(pl.lit("projected"))
        .otherwise(pl.lit("goal"))
    )
    rows = rows.with_columns(origin=origin).join(pool.texts, on="id", suffix="_text")
    reason = (
        pl.when("placeholder")
        .then(pl.lit("placeholder"))
        .when(pl.col("users") < options.k)
        .then(pl.lit("below_k"))
        .when(pl.col("chance") < options.label)
        .then(pl.lit("unsure"))
        .otherwise("origin")
    )
    rows = rows.with_columns(reason=reason, utterance_text=pl.col("text"), confidence=pl.col("chance"), sample_weight=pl.col("chance"))
    rows = rows.with_columns(
        decision=pl.when(pl.col("reason").is_in(["own", "projected", "goal"])).then(pl.lit("proposed")).otherwise(pl.lit("rejected")),
        slots=pl.col("label_slots"),
        votes=pl.col("votes").fill_null(0),
    ).sort("locale", "utterance")
    schema = pl.DataFrame(CANDIDATE_LABELS.empty_table()).schema
    return rows.select(pl.col(n).cast(d) for n, d in schema.items()).with_columns(pl.col(pl.Float64).round(6) + 0.0)


def _chances(pool: Pool) -> pl.DataFrame:
    """`_masses` with `h`, `belief` and P(the text means this intent) as `chance`."""
    mass = _masses(pool)
    h = 1 - pl.col("failed")
    mass = mass.with_columns(witnesses.beliefs(mass)[0])
    mass = mass.with_columns(h=h, chance=pl.col("own") * h + pl.col("failed") * pl.col("belief"), foreign=pl.lit(False))
    return pl.concat([mass.drop("locale", "users"), _foreign(pool)], how="diagonal").sort("id", "intent")


def _best(chances: pl.DataFrame, votes: pl.DataFrame | None = None) -> pl.DataFrame:
    """The likeliest intent of every text; that of `votes`, as sure as their share, for the texts that are in it."""
    if votes is not None:
        voted = chances.join(votes.rename({"majority_intent": "intent"}), on=["id", "intent"], how="semi")
        voted = voted.join(votes.select("id", "majority_share"), on="id").with_columns(chance="majority_share").drop("majority_share")
        chances = pl.concat([chances.join(votes, on="id", how="anti"), voted])
    return chances.sort("id", "chance", "intent", descending=[False, True, False]).unique("id", keep="first", maintain_order=True)


def _masses(pool: Pool) -> pl.DataFrame:
    """Per (id, intent), sorted: own share of the served interpretation, projected and goal mass in users, and what `witnesses` needs."""
    own = pool.meanings.group_by("id", "intent").agg(pl.col("served").sum())
    own = own.select("id", "intent", own=pl.col("served") / pl.col("served").sum().over("id").clip(1))
    meaning = pool.texts.filter(pl.col("intent").is_not_null()).select(t="id", intent="intent", goal="goal", th="served", tu="users")
    visits = pool.texts.select(s="id", visits="users")
    reach = pool.reach.join(unchanged(pool.reach.select("s", "t"), pool), on=["s", "t"], how="anti")
    projected = (
        reach.join(meaning, on="t")
        .join(visits, on="s")
        .group_by("s", "intent")
        .agg(projected=(pl.col("score") * MILLION).round().cast(pl.Int64).sum(), visits=pl.col("visits").first())
        .select("intent", id="s", projected=pl.col("projected") * pl.col("visits") / MILLION)
    )
    weight = (pl.col("th") * pl.min_horizontal("tu", 30) * MILLION).round().cast(pl.Int64)
    served = meaning.filter(pl.col("th") >= 0.5).group_by("goal", "intent").agg(w=weight.sum())
    share = served.select("goal", "intent", share=pl.col("w") / pl.col("w").sum().over("goal"))
    members = pool.texts.filter(pl.col("goal_id").is_not_null(), pl.col("served") < 0.5).select("id", "goal", "membership")
    goal = members.join(share, on="goal").select("id", "intent", goal_mass=GOAL_USERS * pl.col("membership") * pl.col("share"))
    on = ["id", "intent"]
    return (
        own.join(projected, on=on, how="full", coalesce=True)
        .join(goal, on=on, how="full", coalesce=True)
        .with_columns(pl.col("own", "projected", "goal_mass").fill_null(0.0))
        .with_columns(witnesses=pl.max_horizontal("projected", "goal_mass"))
        .join(pool.texts.select("id", "locale", "users", failed=1 - pl.col("works")), on="id")
        .join(_base(pool), on=["locale", "intent"], how="left")
        .sort(on)
    )


def _foreign(pool: Pool) -> pl.DataFrame:
    """`_chances` of the texts of locales without any intent: what the texts of other locales in their goal are served with."""
    texts = pool.texts.filter(pl.col("goal_id").is_not_null())
    silent = pool.texts.group_by("locale").agg(pl.col("intent").is_null().all()).filter("intent").select("locale")
    weight = (pl.col("served") * pl.min_horizontal("users", 30) * MILLION).round().cast(pl.Int64)
    known = texts.filter(pl.col("intent").is_not_null(), pl.col("served") >= 0.5).group_by("goal_id", "intent").agg(w=weight.sum())
    share = known.select("goal_id", "intent", share=pl.col("w") / pl.col("w").sum().over("goal_id"))
    wanted = texts.join(silent, on="locale", how="semi").select("id", "goal_id")
    return wanted.join(share, on="goal_id").select(
        "id",
        "intent",
        own=pl.lit(0.0),
        projected=pl.lit(0.0),
        goal_mass=MEETS * pl.col("share"),
        chance=MEETS * pl.col("share"),
        h=pl.lit(0.0),
        failed=pl.lit(1.0),
        foreign=pl.lit(True),
    )


def _base(pool: Pool) -> pl.DataFrame:
    """`locale, intent, base`: the share of each intent in what the users of a locale were served with."""
    served = pool.meanings.join(pool.texts.select("id", "locale"), on="id").group_by("locale", "intent").agg(pl.col("served").sum())
    return served.select("locale", "intent", base=pl.col("served") / pl.col("served").sum().over("locale").clip(1))


def _slots(pool: Pool, best: pl.DataFrame, options: Options) -> pl.DataFrame:
    """Slots and assistant version of a label: of the text's own interpretation when it has that intent, else of the most
    reached text of that intent, as the text itself says them (`rewrite.spans`). Slots of texts that fewer than k users said
    stay away."""
    own = pool.meanings.unique(["id", "intent"], keep="first", maintain_order=True).select("id", "intent", "slots", "assistant_version")
    far = (
        pool.reach.join(pool.texts.filter(pl.col("users") >= options.k).select(t="id", intent="intent"), on="t")
        .sort("s", "intent", "score", "t", descending=[False, False, True, False])
        .unique(["s", "intent"], keep="first", maintain_order=True)
        .join(own.rename({"id": "t", "slots": "t_slots", "assistant_version": "t_version"}), on=["t", "intent"], how="left")
        .select("intent", "t_slots", "t_version", "t", id="s")
    )
    rows = best.select("id", "intent", served=pl.col("own") * pl.col("h") >= (1 - pl.col("h")) * pl.col("projected"))
    rows = rows.join(own, on=["id", "intent"], how="left").join(far, on=["id", "intent"], how="left")
    rows = rows.with_columns(t_slots=_projected(rows, pool.texts["utterance"]))
    return rows.select(
        "id",
        "intent",
        label_slots=pl.when("served").then("slots").otherwise("t_slots"),
        assistant_version=pl.coalesce(pl.when("served").then("assistant_version").otherwise("t_version"), "assistant_version"),
    )


def _projected(rows: pl.DataFrame, utterances: pl.Series) -> pl.Series:
    """`t_slots` of each row, spoken by the text `id` instead of the text `t`."""
    wanted = rows.with_row_index("at").filter(~pl.col("served").fill_null(True), pl.col("t_slots").is_not_null(), pl.col("t_slots") != "{}")
    sources, targets = utterances.gather(wanted["id"]), utterances.gather(wanted["t"])
    said = [spans.project(*each) for each in zip(wanted["t_slots"], targets, sources, strict=True)]
    return rows["t_slots"].scatter(wanted["at"], pl.Series(said, dtype=pl.String))
