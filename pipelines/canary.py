"""Votes for the canary: the window's last fifth is what happened, the days before are what the candidates were made from.

In a window of fewer days than `LEAST_DAYS` a fifth of the buckets of users takes the part of the last days: enough to see
whether rewrites come true, not to try labels out.
"""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any

import polars as pl

from pipelines import shards, window
from pipelines.context import Context
from pipelines.store import Store
from rewrite.contracts import GOALS, MILLION, VOTES

if TYPE_CHECKING:
    from quality.measures import Measure

LAST = 5  # a fifth of the window is predicted
LEAST_DAYS = 5  # fewer days with votes have no fifth
SERVED = 0.5


def settings(context: Context, as_of: date) -> dict[str, Any] | None:
    """What `try_out` needs; None when the canary is off or nobody voted."""
    c = context.config
    days = context.window(as_of)
    if not c.gates.canary_votes or not days:
        return None
    return {
        "votes": window.manifests(context, as_of),
        "from": days[-(len(days) // LAST)] if len(days) >= LEAST_DAYS else None,
        "as_of": as_of,
        "most": c.gates.canary_votes,
        "rules": window.rules(context),
        "k": c.privacy.k,
        "burst": c.privacy.burst,
        "scarce": c.privacy.scarce,
        "false_discovery": c.evidence.false_discovery,
    }


def try_out(store: Store, s: dict[str, Any] | None) -> tuple[list[Measure], dict[str, Any]]:
    """The canary's measures of buckets of whole users, as many as `most` votes hold, and what the report shows of rewrites that
    were foretold: `reliability` and `trade_off`. Goals are not used: they know the later days."""
    from quality.canary import canary
    from rewrite import evidence, foresight, labels, pool, rewrites, trust

    if s is None:
        return [], {}
    buckets, split = shards.first_buckets(store, s["votes"], VOTES.names, s["most"]), s["from"]
    if split:
        early, late = ([v.filter((pl.col("date") < split) == first) for v in buckets] for first in (True, False))
    else:
        early = [v for n, v in enumerate(buckets) if n % LAST] or buckets[:1]
        late = [v for n, v in enumerate(buckets) if n % LAST == 0][: len(buckets) - len(early)]
    believed = trust.learn((trust.sketch(v) for v in early), s["rules"])
    merged = evidence.merge_evidence([evidence.bucket_evidence(v, believed) for v in early])
    options = evidence.Options(k=s["k"], burst=s["burst"], scarce=s["scarce"], false_discovery=s["false_discovery"])
    known = pool.build(merged, pl.DataFrame(GOALS.empty_table()), options)
    later = evidence.later_trials(late, trust.learn((trust.sketch(v) for v in late), s["rules"]))
    cases = foresight.cases(rewrites.mine(known, options), merged["trials"], later, known)
    diagrams = foresight.reliability(cases)
    seen = {
        "reliability": [{"kind": "rewrites", "locale": name, **d} for name, d in diagrams.items()],
        "trade_off": foresight.trade_off(cases),
    }
    if not split:
        return [], seen
    taught = labels.mine(known, options).filter(pl.col("decision") == "proposed")
    heard, served = (_usual(_untouched(v)) for v in (pl.concat(early), _served(pl.concat(late))))
    taught = taught.select("locale", "utterance", "intent", "confidence")
    return canary(heard, taught, served, _usual(_asked_again(later))), seen


def _served(votes: pl.DataFrame) -> pl.DataFrame:
    """Votes of users who were served with texts that serve most who say them.

    Where a text fails most of its users, the few who seem served are mostly misjudged, and what they got is what the
    candidates are there to correct: it would hold every good correction against them.
    """
    key = ["locale", "source"]
    alone = votes.filter(pl.col("kind") == "outcome", pl.col("treatment") != "rewritten").sort(*key, "user_key", "date", "value")
    per = alone.group_by(*key, "user_key", maintain_order=True).agg(pl.col("value").mean())
    works = per.group_by(key, maintain_order=True).agg(pl.col("value").mean()).filter(pl.col("value") >= SERVED)
    return votes.filter(pl.col("value") >= SERVED).join(works.select(key), on=key, how="semi")


def _untouched(votes: pl.DataFrame) -> pl.DataFrame:
    """locale, source, intent, user: how turns that were left alone were understood."""
    alone = votes.filter(pl.col("kind") == "outcome", pl.col("treatment") != "rewritten")
    return alone.select("locale", "source", "intent", user="user_key")


def _asked_again(trials: pl.DataFrame) -> pl.DataFrame:
    """The same of texts after which users asked again and were served: with what, in the end."""
    ended = pl.col("p") * pl.col("own") >= SERVED * MILLION**2
    return trials.filter(~pl.col("rewritten"), ended).select("locale", "source", "intent", user="ask")


def _usual(understood: pl.DataFrame) -> pl.DataFrame:
    """locale, utterance, intent, users: what a text was usually understood as, by users."""
    key = ["locale", "source"]
    counts = understood.drop_nulls("intent").group_by(*key, "intent").agg(users=pl.col("user").n_unique().cast(pl.Int64))
    counts = counts.sort(*key, "users", "intent", descending=[False, False, True, False])
    usual = counts.unique(key, keep="first", maintain_order=True)
    return usual.select("locale", "intent", "users", utterance="source")
