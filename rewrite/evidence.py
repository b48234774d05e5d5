"""From votes to additive evidence to candidates.

Two stages, because a user lives in one bucket and buckets are reduced side by side:

    bucket_evidence(votes of a bucket over the window)  ->  tables of whole numbers, no user keys
    merge_evidence([...])                               ->  the same tables, added up
    candidates(evidence, goals, as_of=...)              ->  rewrites, labels, pairs; proposed or not, with the reason

Every sum is over integers (user counts, probabilities in millionths), so the result does not depend on how users are
spread over buckets, on row order or on the number of threads.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from rewrite.blocks import Blocks
from rewrite.careful import ask_id, trials
from rewrite.contracts import MILLION, VOTES
from rewrite.success import vote_bin
from rewrite.text import as_categories, as_enums, as_strings
from rewrite.trust import Rules, Trust, judge

BOT_EVENTS: Final = 50
BOT_DISTINCT: Final = 0.1
"""A user with 50 turns or more, of which under a tenth are distinct texts, is a machine: in six worlds this finds the bot
and at most one busy person; a limit on turns per day found busy people and missed the bot."""

# Each table: its key, then its additive columns; `first` and `last` dates are folded by min and max.
_TABLES: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    # who said what, in any role and under any treatment
    "texts": (("locale", "utterance"), ("users", "known")),
    "forms": (("locale", "utterance", "text"), ("users",)),
    # one vote per user: was it served when left alone? and when rewritten?
    "outcomes": (("locale", "utterance", "treatment", "bin"), ("users", "known")),
    "treated": (("locale", "source", "target", "rewrite_id", "bin"), ("users",)),
    # what the assistant understood, and how well that went (millionths)
    "interpretations": (("locale", "utterance", "intent", "slots", "assistant_version"), ("users", "served")),
    "causes": (("locale", "utterance", "cause"), ("failed",)),
    # who asked again with what, when left alone: one `ask` per user and source, so that pooling over targets can count the user once
    "asks": (("locale", "source", "ask", "copy", "target"), ("value", "step", "events")),
    # the same for tests, by the user's first day, and what came of it; see `careful.trials`
    "trials": (("locale", "source", "version", "date", "rewritten", "ask", "target", "intent", "slots"), ("p", "own")),
}
_DATED: Final = {"texts", "asks"}
ASKED: Final = ("asks", "trials")
"""Rows of single users, so of one part each: merging adds nothing up, and names their texts by row of the merged `texts`."""
Evidence = dict[str, Any]
"""Merged: a DataFrame per table, `Blocks` of `ASKED` ones."""


def believed_votes(votes: pl.DataFrame, trust: Trust | None = None) -> pl.LazyFrame:
    """The votes that count: machines are left out, new accounts link nothing, spare copies of an account judge nothing; of a
    user's links of a day the strongest stay. Adds `known`, `copy`, `spare` (of `trust.judge`); `value` in millionths (Int64).

    votes: contracts.VOTES and `date`, any number of days of whole users.
    """
    rules = trust.rules if trust else Rules()
    users = judge(votes, trust)
    link = pl.col("kind") != "outcome"
    strength = ["locale", "source", "target", "kind", "treatment", "rewrite_id"]
    frame = _strongest(votes, strength, ["user_key", "date"], rules.links_per_day).lazy()
    frame = frame.join(users.lazy(), on="user_key").filter(pl.when(link).then("known").otherwise(~pl.col("spare")))
    frame = frame.with_columns(value=(pl.col("value").clip(0, 1) * MILLION).round().cast(pl.Int64), events=pl.col("events").cast(pl.Int64))
    said = (
        frame.filter(pl.col("kind") == "outcome")
        .group_by("user_key", "locale")
        .agg(events=pl.col("events").sum(), distinct=pl.col("source").n_unique())
        .group_by("user_key")
        .agg(pl.col("events").sum(), pl.col("distinct").sum())
    )
    bots = said.filter(pl.col("events") >= BOT_EVENTS, pl.col("distinct") < BOT_DISTINCT * pl.col("events")).select("user_key")
    return frame.join(bots, on="user_key", how="anti")


def user_votes(believed: pl.LazyFrame, trust: Trust | None = None) -> pl.DataFrame:
    """One vote per user and key over the whole window, of `believed_votes`: links the greatest value, outcomes the mean over
    events. A user's links are capped, the strongest ones stay. `date` becomes `first` and `last`.
    """
    rules = trust.rules if trust else Rules()
    key = [n for n in VOTES.names if n not in ("value", "events")] + ["known", "copy", "spare"]
    one = (
        believed.group_by(key)
        .agg(
            greatest=pl.col("value").max(),
            mean=(pl.col("value") * pl.col("events")).sum() // pl.col("events").sum().clip(1),
            events=pl.col("events").sum(),
            first=pl.col("date").min(),
            last=pl.col("date").max(),
        )
        .with_columns(value=pl.when(pl.col("kind") == "outcome").then("mean").otherwise("greatest"))
        .drop("greatest", "mean")
        .collect()
    )
    return _strongest(one, ["locale", "source", "target", "kind"], ["user_key"], rules.links_per_window)


def _strongest(votes: pl.DataFrame, ties: list[str], who: list[str], most: int) -> pl.DataFrame:
    """The votes without the links of `who` beyond the `most` of greatest value. Ranking is dear and few have so many: the others are left alone."""
    link = pl.col("kind") != "outcome"
    many = votes.lazy().filter(link).group_by(who).len().filter(pl.col("len") > most).select(who).collect()
    if many.is_empty():
        return votes
    strength = pl.struct(-pl.col("value"), *(pl.col(name).cast(pl.String) for name in ties))
    some = votes.join(many, on=who, how="semi").filter(~link | (strength.rank("min").over(*who, link) <= most))
    return pl.concat([votes.join(many, on=who, how="anti"), some])


def bucket_evidence(
    votes: pl.DataFrame, trust: Trust | None = None, since: dt.date | None = None, tested: bool = True
) -> dict[str, pl.DataFrame]:
    """The additive tables of one bucket: see `_TABLES` for their keys. No user key is left; empty votes give empty tables.

    trust: of `rewrite.trust`, learned from all buckets; None believes everybody. since: the window's first day; days before
    it are in `trials` alone, because a test that starts anew with every window is not anytime-valid. Not `tested`: no `trials`.

    `asks` keeps one opaque number per user and source, which cannot be joined across sources.
    """
    believed = believed_votes(as_categories(votes), trust).collect()
    window = believed if since is None else believed.filter(pl.col("date") >= since)
    one = user_votes(window.lazy(), trust).lazy()
    alone = pl.col("treatment") != "rewritten"
    outcome, link = one.filter(pl.col("kind") == "outcome"), one.filter(pl.col("kind") != "outcome")
    dates = {"first": pl.col("first").min(), "last": pl.col("last").max()}
    mean = (pl.col("value") * pl.col("events")).sum() // pl.col("events").sum().clip(1)
    as_bin = vote_bin(pl.col("value") / MILLION)

    sides = pl.concat(
        [
            outcome.select("user_key", "known", "locale", "first", "last", utterance="source"),
            link.filter(~pl.col("spare")).select("user_key", "known", "locale", "first", "last", utterance="source"),
            link.filter(~pl.col("spare")).select("user_key", "known", "locale", "first", "last", utterance="target"),
        ]
    )
    heard = outcome.filter(alone)
    per_text = heard.group_by("user_key", "known", "locale", "treatment", utterance="source").agg(value=mean)
    per_pair = outcome.filter(~alone).group_by("user_key", "locale", "source", "target", "rewrite_id").agg(value=mean)
    per_meaning = heard.group_by("user_key", "locale", "intent", "slots", "assistant_version", utterance="source").agg(value=mean)
    per_cause = heard.group_by("user_key", "locale", "cause", utterance="source").agg(value=mean)
    per_link = (
        link.filter(alone)
        .group_by("user_key", "copy", "locale", "source", "target")
        .agg(value=pl.col("value").max(), step=(pl.col("kind") == "transition").any(), events=pl.col("events").sum(), **dates)
    )
    tables = {
        "texts": sides.group_by("locale", "utterance").agg(
            users=pl.col("user_key").n_unique(), known=pl.col("user_key").filter("known").n_unique(), **dates
        ),
        "forms": outcome.filter(pl.col("text").is_not_null())
        .group_by("locale", "text", utterance="source")
        .agg(users=pl.col("user_key").n_unique()),
        "outcomes": per_text.group_by("locale", "utterance", "treatment", bin=as_bin).agg(users=pl.len(), known=pl.col("known").sum()),
        "treated": per_pair.group_by("locale", "source", "target", "rewrite_id", bin=as_bin).agg(users=pl.len()),
        "interpretations": per_meaning.group_by("locale", "utterance", "intent", "slots", "assistant_version").agg(
            users=pl.len(), served=pl.col("value").sum()
        ),
        "causes": per_cause.filter(pl.col("cause").is_not_null())
        .group_by("locale", "utterance", "cause")
        .agg(failed=(MILLION - pl.col("value")).sum()),
        "asks": per_link.with_columns(ask=ask_id()).drop("user_key"),
        "trials": trials((believed if tested else believed.clear()).lazy()),
    }
    done = pl.collect_all([_typed(name, t) for name, t in tables.items()])
    named = zip(tables, map(as_strings, done), strict=True)
    return {name: t if name in ASKED else t.sort(_TABLES[name][0], nulls_last=True) for name, t in named}  # those are sorted when merged


def later_trials(parts: Iterable[pl.DataFrame], trust: Trust | None = None) -> pl.DataFrame:
    """`trials` of whole users' votes, bucket by bucket, without the other tables: what happened to those who come later."""
    tables = [_typed("trials", trials(believed_votes(v, trust))).collect() for v in parts] or [bucket_evidence(empty_votes())["trials"]]
    return pl.concat(tables)


def in_blocks(tables: dict[str, pl.DataFrame], count: int) -> dict[str, pl.DataFrame]:
    """`bucket_evidence` with its `ASKED` tables cut by source into so many (`asks/0`, `asks/1`), for every bucket in the same way: blocks of
    one number are merged, and held, together."""
    if count == 1:
        return tables
    block = pl.struct(pl.col("locale", "source").cast(pl.String)).hash() % count
    out = {name: table for name, table in tables.items() if name not in ASKED}
    for name in ASKED:
        parts = tables[name].with_columns(block=block).partition_by("block", include_key=False, as_dict=True)
        out |= {f"{name}/{n}": parts.get((n,), tables[name].clear()) for n in range(count)}
    return out


def merge_evidence(parts: Iterable[Any], read: Callable[[Any], pl.DataFrame] = lambda table: table, into: Blocks | None = None) -> Evidence:
    """Add the evidence of buckets up, whatever their order. An empty iterable gives empty tables.

    parts: tables of `bucket_evidence` by name, maybe `in_blocks`; or what `read` makes a table of, so few tables of all parts are held at
    a time. into: where several blocks are to lie; None: in memory. In `asks` and `trials` the texts become `s` and `t`, Int64 row numbers
    of `texts` (null: nobody said it in the window), and other strings Categorical.
    """
    parts = list(parts) or [bucket_evidence(empty_votes())]
    found: Evidence = {name: _added(name, [read(p[name]) for p in parts]) for name in _TABLES if name not in ASKED}
    ids = as_categories(found["texts"].select("locale", "utterance")).with_row_index("id").with_columns(pl.col("id").cast(pl.Int64))
    for name in ASKED:
        blocks = [key for key in parts[0] if key.partition("/")[0] == name]
        found[name] = (into if into and len(blocks) > 1 else Blocks()).of(_numbered((read(p[key]) for p in parts), ids) for key in blocks)
    return found


def _added(name: str, parts: list[pl.DataFrame]) -> pl.DataFrame:
    """One of the tables that are added up, of one part or more."""
    if len(parts) == 1:
        return parts[0]
    key, sums = _TABLES[name]
    folds = [pl.col(c).sum() for c in sums]
    if name in _DATED:
        folds += [pl.col("first").min(), pl.col("last").max()]
    return as_strings(as_enums(pl.concat(parts)).group_by(key).agg(folds).sort(key, nulls_last=True))


def _numbered(parts: Iterable[pl.DataFrame], ids: pl.DataFrame) -> pl.DataFrame:
    """`ASKED` rows of all parts, sorted: nothing depends on the order of several trials of one user and text."""
    rows = pl.concat(
        [
            p.join(ids.rename({"id": "s", "utterance": "source"}), on=["locale", "source"])
            .join(ids.rename({"id": "t", "utterance": "target"}), on=["locale", "target"], how="left")
            .drop("locale", "source", "target")
            for p in map(as_categories, parts)
        ]
    )
    return rows.sort("s", "ask", "t", nulls_last=True)


def empty_votes() -> pl.DataFrame:
    """Votes of nobody, typed."""
    empty = pl.DataFrame(VOTES.empty_table())
    return empty.with_columns(date=pl.lit(None, pl.Date)).clear()


def _typed(name: str, table: pl.LazyFrame) -> pl.LazyFrame:
    key, sums = _TABLES[name]
    whole = [pl.col(c).cast(pl.Int64) for c in sums if c != "step"]
    return table.with_columns(whole).select(*key, *sums, *(("first", "last") if name in _DATED else ()))


@dataclass(frozen=True)
class Options:
    """What decides over candidates. Defaults were chosen on en, de and ja and held on hi, sw and small logs."""

    k: int = 3
    served: float = 0.5  # a source at or above this is left alone
    target_served: float = 0.75  # a target is a text that is served this often
    probability: float = 0.5  # least probability that the target serves: more likely than not
    repeaters: float = 0.5  # share of voters who did it again and again, from which the pair is left out
    lift: float = 0.8  # least probability that the target does better than the source left alone
    burst: float = 1e-5  # a day's users of a source this unlikely came together: one honest day in 10^5 is lost
    scarce: float = 2.0  # a target with fewer outside users per user who went to it must be asked for in other wordings too
    careful: bool = False  # release and retire by anytime-valid evidence, see `rewrite.careful`
    false_discovery: float = 0.1  # the share of a release's rewrites that may be wrong; with `careful` at any look
    grace: int = 14  # days in which a new assistant version lives on what the one before it proved
    label: float = 0.8  # least confidence of a label: just above it three of four are right, below it fewer
    negatives: int = 2  # per positive pair
    pairs_per_goal: int = 40


@dataclass(frozen=True)
class Candidates:
    """contracts.CANDIDATE_REWRITES, CANDIDATE_LABELS and CANDIDATE_PAIRS, each with columns of its own appended."""

    rewrites: pl.DataFrame
    labels: pl.DataFrame
    pairs: pl.DataFrame


def candidates(evidence: Evidence, goals: pl.DataFrame, *, as_of: dt.date, k: int = 3, options: Options | None = None) -> Candidates:
    """All candidates of the merged evidence, proposed or rejected with a reason.

    evidence: from `merge_evidence`; goals: contracts.GOALS rows, may be empty; as_of: kept in no row, it is checked against
    the evidence (ValueError when votes are later). The same input in any row order gives the same frames.
    """
    from dataclasses import replace

    from rewrite import labels, rewrites, training_pairs
    from rewrite.pool import build

    chosen = replace(options or Options(), k=k)
    latest = evidence["texts"].select(pl.col("last").max()).item()
    if latest is not None and latest > as_of:
        raise ValueError(f"the evidence reaches to {latest}, later than as_of {as_of}: give the votes of the window only")
    pool = build(evidence, goals, chosen)
    return Candidates(rewrites.mine(pool, chosen), labels.mine(pool, chosen), training_pairs.mine(pool, chosen))
