"""Anytime-valid evidence on (source, target) pairs: a test that may be looked at every night.

Each user of a source says once, on the first day, what they wanted, if they ask again: `win` (they ended, and were served,
where the target serves), `loss` (they ended elsewhere). The null of a pair is that the target serves no larger share of those
whose want showed than leaving the source alone does (the upper bound of its own rate). Against it runs a betting martingale
(Waudby-Smith & Ramdas 2023): wealth is multiplied by 1 + bet * gain per user, gain >= -1 and of mean <= 0 under the null. So
by Ville's inequality P(wealth ever reaches 1/a) <= a, however often one looks; e-BH (Wang & Ramdas 2022) then controls
the share of false discoveries among all pairs at any one look, whatever their dependence.

Bets for a day come from the days before alone: from the pair's own, and from all pairs together (`pooled`). Pooling never
enters the wealth. What serves users live is tested apart, on the outcomes of rewritten turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from rewrite.blocks import Blocks
from rewrite.contracts import MILLION
from rewrite.trust import synchronised, usual_days

if TYPE_CHECKING:
    from rewrite.evidence import Options
    from rewrite.pool import Pool

BETS: Final = np.array([0.0, 0.1, 0.25, 0.5, 0.75, 0.95])
"""Fractions of the greatest fair bet that wealth is spread over. None loses everything to one user; the first keeps cash."""
SHARE: Final = 0.02
"""Of the wealth, spread anew each day (fixed share, Herbster & Warmuth 1998): a pair whose meaning changed after a hundred
days is bet on again within days instead of a hundred days; what it costs a pair that never changes is 2 % a day at most."""
LEAST: Final = 0.1
"""A target must serve a larger share than this, however rarely the source is served: what follows a request by chance, and
not by need, should stay below it. Of .1, .15 and .2, tried on two simulated logs, .1 proved most at the same precision."""
SHOWN: Final = 0.05
"""A user whose win and loss are both below this showed no want, and is not looked at: a miner's noise, not a gain."""

BLOCK: Final = 4_000_000
"""Rows of users against pairs that are looked at together: some 500 MB. A busy source has thousands of users and dozens of pairs."""


@dataclass(frozen=True)
class Tested:
    """Per pair, natural logarithms: `log_e`, evidence that the target is better than leaving the source alone; `against`, that it
    fails those it was served to. 0 is none."""

    log_e: np.ndarray
    against: np.ndarray


def ask_id() -> pl.Expr:
    """UInt64: an opaque name of a user's going on from a source, the same in every shard."""
    return pl.struct(pl.col(c).cast(pl.String) for c in ("user_key", "locale", "source")).hash()


def trials(frame: pl.LazyFrame) -> pl.LazyFrame:
    """What each user of a source went on to, on the first day that an assistant version heard it from them.

    frame: believed votes (`evidence.believed_votes`), with `date`, `known`, `copy`, `value` in millionths. One row per
    (ask, target): `locale, source, version, date, rewritten, ask, target, intent, slots` (of the target), `p` (P(same goal)),
    `own` (P(served) of that user's turns with the target that day), in millionths. Rewritten: the target is what was served,
    `p` is 1. Copies of accounts and new accounts prove nothing.
    """
    version = pl.col("assistant_version").fill_null("").alias("version")
    frame = frame.filter("known", pl.col("copy").is_null()).with_columns(
        version, ask=ask_id(), rewritten=pl.col("treatment") == "rewritten"
    )
    who = ["user_key", "locale", "source", "version"]
    link, outcome = frame.filter(pl.col("kind") != "outcome", ~pl.col("rewritten")), frame.filter(pl.col("kind") == "outcome")
    mean = (pl.col("value") * pl.col("events")).sum() // pl.col("events").sum().clip(1)
    alone = outcome.filter(~pl.col("rewritten"))
    said = alone.group_by("user_key", "locale", "date", "source").agg(own=mean)
    first = pl.concat([link.select(*who, "date"), alone.select(*who, "date")]).group_by(who).agg(pl.col("date").min())
    last = pl.col("intent", "slots").sort_by("intent", "slots").last()
    went = link.join(first, on=[*who, "date"]).group_by(*who, "date", "ask", "target").agg(last, p=pl.col("value").max())
    went = went.join(said.rename({"source": "target"}), on=["user_key", "locale", "date", "target"], how="left")
    live = outcome.filter("rewritten", pl.col("target").is_not_null())
    pair = [*who, "target"]
    tried = live.group_by(pair).agg(pl.col("date").min())
    served = live.join(tried, on=[*pair, "date"]).group_by(*pair, "date", "ask").agg(last, own=mean)
    served = served.with_columns(p=pl.lit(MILLION, pl.Int64))
    columns = ["locale", "source", "version", "date", "rewritten", "ask", "target", "intent", "slots", "p", "own"]
    both = [t.with_columns(rewritten=pl.lit(r)).select(columns) for t, r in ((went, False), (served, True))]
    return pl.concat(both).with_columns(pl.col("own").fill_null(0))


def test(pairs: pl.DataFrame, found: Blocks, pool: Pool, options: Options) -> Tested:
    """Test every pair on all trials. pairs: `s`, `t`, `goal` (of the pool), in any order; found: the merged `trials`, with `s` and `t`.

    The newest assistant version decides; what older ones earned until it came counts for `options.grace` days more.
    """
    n = pairs.height
    sources = pairs.select("s").unique()
    found = found.map(lambda block: block.join(sources, on="s", how="semi"))
    usual = usual_days(block.select("s", "ask", first="date") for block in found)
    bound = np.maximum(pool.column("served_high")[pairs["s"].to_numpy()], LEAST)
    parts = [_gains(shown(pairs, block, usual, pool, options), bound, options) for block in found]
    for_, against = (pl.concat(p) for p in zip(*parts, strict=True))
    if for_.is_empty():
        return Tested(np.zeros(n), np.zeros(n))
    versions = for_.group_by("version").agg(pl.col("day").min()).sort("day", "version")
    age = pl.col("version").replace_strict(versions["version"], pl.Series(range(versions.height), dtype=pl.Int64))
    log_e, before = wealth(for_.with_columns(age), 2 * n)
    failed, _ = wealth(against.with_columns(age), n, restart=True)
    if for_["day"].to_numpy().max() - versions["day"][-1] < options.grace:
        log_e = np.maximum(log_e, before)
    treated = np.bincount(against["item"].to_numpy(), minlength=n) > 0
    log_e = np.where(treated, np.logaddexp(log_e[:n], log_e[n:]) - np.log(2), log_e[:n])  # a mean of e-values is one
    return Tested(log_e, np.maximum(failed, 0))


test.__test__ = False  # type: ignore[attr-defined]  # not one of pytest's


def _gains(rows: pl.DataFrame, bound: np.ndarray, options: Options) -> list[pl.DataFrame]:
    """Of some sources' users (`shown`): `grown` for each pair (item: the pair left alone, or number of pairs + pair live), and against
    those live (item: the pair). bound: of each pair, the largest share that the null allows."""
    pair, live = rows["pair"].to_numpy(), rows["rewritten"].to_numpy()
    null = np.minimum(np.where(live, np.maximum(bound[pair], options.served), bound[pair]), 1 - 1e-6)
    win, loss = rows["win"].to_numpy() / MILLION, rows["loss"].to_numpy() / MILLION
    better = win * (1 - null) - loss * null
    at = rows.select("version", day=pl.col("date").to_physical(), item=pl.Series(pair + len(bound) * live, dtype=pl.Int64))
    at_live = at.filter(live).with_columns(pl.col("item") - len(bound))
    return [grown(at, better / null), grown(at_live, (-better / (1 - null))[live])]


def shown(pairs: pl.DataFrame, found: pl.DataFrame, usual: pl.DataFrame, pool: Pool, options: Options) -> pl.DataFrame:
    """One row per (pair, user, version) whose want showed: `pair, version, date, rewritten, win, loss` (millionths), sorted.

    found: trials of some of the pairs' sources; usual: of `trust.usual_days`."""
    ids = pool.texts.select("id", "goal", pl.col("intent", "slots").cast(pl.Categorical))
    burst = synchronised(found.select("s", "ask", first="date"), usual, options.burst)
    rows = found.filter(~burst | pl.col("rewritten"))
    rows = rows.rename({"t": "t2"}).join(ids.select(t2="id", g2="goal"), on="t2", how="left")
    each = pairs.select("s", "t", "goal").with_row_index("pair").with_columns(pl.col("pair").cast(pl.Int64))
    each = each.join(ids.select("intent", "slots", t="id"), on="t")
    # an interpretation is a number from here on: many rows, few interpretations
    meant = pl.concat([t.select("intent", pl.col("slots").fill_null("{}")) for t in (rows, each)]).unique().with_row_index("meant")
    rows, each = (t.with_columns(pl.col("slots").fill_null("{}")).join(meant, on=["intent", "slots"], how="left") for t in (rows, each))
    rows = rows.select("s", "ask", "version", "date", "rewritten", "p", "own", "t2", "g2", "meant")
    each = each.select("pair", "s", "t", "goal", t_meant="meant")
    size = rows.group_by("s").agg(n=pl.len()).join(each.group_by("s").agg(m=pl.len()), on="s").sort("s")
    block = size.select("s", block=(pl.col("n") * pl.col("m")).cast(pl.Int64).cum_sum() // BLOCK)
    parts = rows.join(block, on="s").partition_by("block", include_key=False, as_dict=True)
    users = [_shown(part, each) for _, part in sorted(parts.items())]
    order = ["date", "pair", "version", "rewritten", "win", "loss"]
    return pl.concat(users or [_shown(rows.clear(), each)]).select(order).sort(order)


def _shown(rows: pl.DataFrame, each: pl.DataFrame) -> pl.DataFrame:
    """`shown` of some sources: all rows of a source against all its pairs."""
    rows = rows.join(each, on="s")
    same_text = (pl.col("t2") == pl.col("t")).fill_null(False)
    meant = (pl.col("meant") == pl.col("t_meant")).fill_null(False)
    there = same_text | (pl.col("g2") == pl.col("goal")).fill_null(False) | meant
    value = pl.col("p") * pl.col("own") // MILLION
    rows = rows.filter(~pl.col("rewritten") | same_text).with_columns(
        win=pl.when("rewritten").then("own").when(there).then(value).otherwise(0),
        loss=pl.when("rewritten").then(MILLION - pl.col("own")).when(there).then(0).otherwise(value),
    )
    user = rows.group_by("pair", "ask", "version", "date", "rewritten").agg(pl.col("win", "loss").max())
    user = user.with_columns(loss=pl.min_horizontal("loss", MILLION - pl.col("win")))
    return user.filter(pl.max_horizontal("win", "loss") > SHOWN * MILLION)


def grown(users: pl.DataFrame, gain: np.ndarray) -> pl.DataFrame:
    """What a day's users make of each of `BETS`: sums of log(1 + bet * gain) as `growth`, one row per `day, item, version`.

    users: these three; gain (>= -1, of mean <= 0 under the null): parallel to them."""
    key = ["day", "item", "version"]
    rows = users.select(key).unique(maintain_order=True).with_row_index("row")
    at = users.join(rows, on=key, how="left", maintain_order="left")["row"].to_numpy()
    total = np.zeros((rows.height, len(BETS)))
    np.add.at(total, at, np.log1p(BETS * gain[:, None]))  # in the order of the rows, which a sum of floats depends on
    return rows.select(*key, growth=pl.Series(total, dtype=pl.Array(pl.Float64, len(BETS))))


def wealth(gains: pl.DataFrame, items: int, *, restart: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Log wealth of each item's bettor under the newest version, and under the one before on the day that the newest came.

    gains: of `grown`; day, item (below `items`) and version (0 is the oldest) whole numbers. A new version starts at 0 (e = 1), with
    its bets taken from the old one. restart: wealth is never below 1, which makes it a detector of change (an e-detector, Shin,
    Ramdas & Rinaldo 2023): it passes 1/a on average once in 1/a days or later.
    """
    *_, last = nights(gains, items, restart=restart)
    return last


def nights(gains: pl.DataFrame, items: int, *, restart: bool = False) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`wealth` as of every day that has a user, one after the other, and before the first."""
    gains = gains.sort("day")
    day, item, version, growth = (gains[c].to_numpy() for c in ("day", "item", "version", "growth"))
    versions = int(version.max()) + 1 if len(version) else 1
    log = np.zeros((versions, items))
    before = np.zeros(items)
    pooled = np.full(len(BETS), 1 / len(BETS))
    bets = np.tile(pooled, (versions, items, 1))
    came = np.zeros(versions, bool)
    seen = np.zeros((versions, items), bool)
    starts = np.full(versions, np.iinfo(np.int64).max)
    np.minimum.at(starts, version, day)
    yield log[versions - 1].copy(), before
    for today in np.unique(day):
        for new in np.flatnonzero(~came & (starts <= today)).tolist():
            came[new] = True
            if new:
                bets[new], before = bets[new - 1], log[new - 1].copy()
        now = slice(*np.searchsorted(day, [today, today + 1]))
        v, i, grew = version[now], item[now], growth[now]
        spread = (1 - SHARE) * bets[v, i] + SHARE * pooled
        fresh = ~seen[v, i] & (v == 0)  # nothing of its own yet: it bets as all pairs do
        spread[fresh] = pooled
        most = grew.max(axis=1, keepdims=True)
        worth = spread * np.exp(grew - most)
        total = worth.sum(axis=1)
        if restart:
            log[v, i] = np.maximum(log[v, i], 0)
        log[v, i] += np.log(total) + most[:, 0]
        bets[v, i] = worth / total[:, None]
        seen[v, i] = True
        # sums over sorted items: the same whatever the order of the rows
        pooled = (bets[seen].sum(axis=0) + 1) / (seen.sum() + len(BETS))
        yield log[versions - 1].copy(), before


def e_bh(log_e: np.ndarray, share: float) -> np.ndarray:
    """Mask of the discoveries among the hypotheses: the k largest e-values that are all >= n / (share * k) (e-BH)."""
    order = np.argsort(-log_e, kind="stable")
    enough = log_e[order] >= np.log(len(log_e) / (share * np.arange(1, len(log_e) + 1)))
    k = int(np.flatnonzero(enough)[-1]) + 1 if enough.any() else 0
    mask = np.zeros(len(log_e), bool)
    mask[order[:k]] = True
    return mask if not k else mask | (log_e >= log_e[order[k - 1]])
