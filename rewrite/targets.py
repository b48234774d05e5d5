"""Which text of a goal becomes the target of a rewrite: one that serves, keeps every value of the source, and is asked for by others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from rewrite.contracts import MILLION
from rewrite.likeness import slot_values
from rewrite.pool import FAILS, Pool, in_vain

if TYPE_CHECKING:
    from rewrite.evidence import Options

FULL_USERS = 30
"""More users than this do not make a target better."""
TARGETS_PER_GOAL = 30
"""So many of a goal's best texts are tried as the target."""
AT_ONCE = 50_000
"""Goals of sources whose targets are tried together: 1.5 million pairs of texts at most, some 500 MB."""
IN_VAIN = 0.5
"""A text that half of its users said after another one failed them with the same meaning fails too: they gave up, and look
served (6 of 6 such texts in two simulated logs; of those below, 7 of 44)."""


def with_targets(into: pl.DataFrame, pool: Pool, options: Options) -> pl.DataFrame:
    """The target of every (s, goal), with `blocked` = why there is none (then t is the text users went to most)."""
    values = slot_values(pool.texts["slots"])
    texts = pool.texts.with_columns(values=values)
    good = (pl.col("served") >= options.target_served) & (pl.col("users") >= options.k) & ~pl.col("placeholder")
    # one target serves many sources, which all fail with it: that it works must be beyond the doubt that one rewrite is allowed
    good &= pl.col("works") >= 1 - options.false_discovery
    again = in_vain(pool).group_by("t").agg(vain=pl.col("value").sum() / MILLION)
    texts = texts.join(again, left_on="id", right_on="t", how="left", maintain_order="left")
    good &= pl.col("vain").fill_null(0) < IN_VAIN * pl.col("users")
    heard = pl.min_horizontal("users", FULL_USERS)
    worth = pl.col("served") * heard
    # an assistant does the same with one meaning in any words: what fails the goal's users in other words fails them in these, and the few
    # who said these gave up
    serves = ((worth * MILLION).round().cast(pl.Int64).sum() >= FAILS * MILLION * heard.sum()).over("goal", "means")
    good &= serves | pl.col("means").is_null()
    shelf = (
        texts.filter(good)
        .with_columns(worth=worth)
        .sort("goal", "worth", "id", descending=[False, True, False])
        .group_by("goal", maintain_order=True)
        .head(TARGETS_PER_GOAL)
        .select("goal", t="id", worth="worth", t_text="utterance", t_numbers="numbers", t_values="values", t_known="known", t_means="means")
    )
    source = texts.select(s="id", s_text="utterance", s_numbers="numbers", s_values="values", s_means="means")
    linked, only_wording = pool.pairs.select("s", "t", pair_users="users"), _OnlyWording(pool)

    def best_of(wanted: pl.DataFrame) -> pl.DataFrame:
        """Of every (s, goal) the text of the shelf that is blocked by nothing and adds least to what was said."""
        pairs = wanted.join(shelf, on="goal").filter(pl.col("s") != pl.col("t")).join(source, on="s")
        pairs = pairs.join(linked, on=["s", "t"], how="left").with_columns(pl.col("pair_users").fill_null(0))
        pairs = pairs.with_columns(
            # the gate `entities_kept` asks this of the finished rows by means of its own, so that a fault here does not pass there
            # what a source does not say it cannot lose: the slots of a text that fails may be of another request
            _lost=_missing(pairs, "s_values", "t_text", "t_values", said="s_text"),
            _extra=_missing(pairs, "t_values", "s_text", "s_values"),
        )
        block = (
            pl.when(pl.col("s_means") == pl.col("t_means"))
            .then(pl.lit("same_meaning"))
            .when(pl.col("s_numbers") != pl.col("t_numbers"))
            .then(pl.lit("number_changed"))
            .when(pl.col("_lost") > 0)
            .then(pl.lit("value_lost"))
            .when(pl.col("t_known") <= pl.col("pair_users"))
            .then(pl.lit("no_outside_users"))
            .when((pl.col("t_known") - pl.col("pair_users") < options.scarce * pl.col("pair_users")) & pl.lit(only_wording.of(pairs)))
            .then(pl.lit("no_other_wording"))
        )
        return (
            pairs.with_columns(blocked=block)
            .sort(
                "s", "goal", pl.col("blocked").is_not_null(), "_extra", "worth", "t", descending=[False, False, False, False, True, False]
            )
            .unique(["s", "goal"], keep="first", maintain_order=True)
            .select("s", "goal", "t", "blocked", lost="_lost", extra="_extra")
        )

    wanted = into.select("s", "goal")
    best = pl.concat([best_of(wanted.slice(at, AT_ONCE)) for at in range(0, max(1, wanted.height), AT_ONCE)])
    # no text of the goal is a target: name the one that users went to, to say so
    by_votes = (
        pool.pairs.join(pool.texts.select(t="id", goal="goal"), on="t")
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


class _OnlyWording:
    """Whether nobody but new accounts said anything else (than s and t) that is understood as t is, or is of t's goal.

    What serves honest users is asked for in several wordings (all but .3 % of targets in six simulated logs); a ring has
    one. Rows whose target has no interpretation are let through: there a goal often is one wording.
    """

    def __init__(self, pool: Pool):
        works = (pl.col("served") >= 0.5) & (pl.col("votes") > 0)  # what fails, or nobody was heard with, says nothing for the target
        text = pool.texts.select("id", "locale", "intent", "slots", "known", "goal", works=works)
        meant = pool.meanings.select("id", "intent", "slots").join(pool.texts.select("id", "locale", "known"), on="id")
        self._meaning = ["locale", "intent", "slots"]
        self._t = text.rename({"id": "t", "known": "t_known", "goal": "t_goal", "works": "t_works"})
        self._s = text.select(s="id", s_known="known", s_goal="goal", s_works="works")
        self._others = meant.group_by(self._meaning).agg(others=pl.col("known").sum())
        self._meant = meant.select(*self._meaning, s="id", s_meant="known")
        self._alike = text.filter("works").group_by("goal").agg(alike=pl.col("known").sum())

    def of(self, pairs: pl.DataFrame) -> pl.Series:
        """Boolean per row of `pairs` (s, t, goal)."""
        rows = (
            pairs.select("s", "t", "goal")
            .join(self._t, on="t", how="left", maintain_order="left")
            .join(self._s, on="s", how="left", maintain_order="left")
            .join(self._others, on=self._meaning, how="left", maintain_order="left", nulls_equal=True)
            .join(self._meant, on=[*self._meaning, "s"], how="left", maintain_order="left", nulls_equal=True)
            .join(self._alike, on="goal", how="left", maintain_order="left")
            .with_columns(pl.col("others", "alike", "s_meant").fill_null(0))
        )
        others = pl.col("others") - pl.col("t_known") - pl.col("s_meant")
        s_there, t_there = ((pl.col(f"{x}_goal") == pl.col("goal")) & pl.col(f"{x}_works") for x in ("s", "t"))
        alike = pl.col("alike") - pl.when(t_there).then("t_known").otherwise(0) - pl.when(s_there).then("s_known").otherwise(0)
        return rows.select(pl.col("intent").is_not_null() & (others <= 0) & (alike <= 0)).to_series()


def _missing(pairs: pl.DataFrame, values: str, text: str, other: str, said: str | None = None) -> pl.Series:
    """Per row, how many of the values are neither in the text nor among the other side's values; of those that `said` holds, if given."""
    long = pairs.with_row_index("row").explode(values, empty_as_null=False).filter(pl.col(values).is_not_null())
    gone = ~(pl.col(text).str.contains(pl.col(values), literal=True) | pl.col(other).list.contains(pl.col(values)))
    if said:
        gone &= pl.col(said).str.contains(pl.col(values), literal=True)
    count = long.group_by("row").agg(gone=gone.sum())
    rows = pl.DataFrame({"row": pl.Series(range(pairs.height), dtype=pl.UInt32)})
    return rows.join(count, on="row", how="left", maintain_order="left")["gone"].fill_null(0).cast(pl.Int64)
