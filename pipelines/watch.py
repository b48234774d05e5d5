"""What a report shows of the votes of a window: news, the work list, who was doubted, and whether trained releases helped.

Reads buckets of whole users until MOST_VOTES are read, so that counts of users can only be too low, never too high.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from typing import Any

import polars as pl

from pipelines import registry, shards
from pipelines.store import Manifest, Store
from rewrite import effect, news, trust
from rewrite.contracts import VOTES

MOST_VOTES = 500_000
"""Seconds to count, and a tenth of a percent of a locale's users is still a hundred of them."""
MOST_ROWS = 300
"""Rows of a list: more is no list that anybody works through. All texts that failed are in the votes and candidates."""
LAST = 5  # a fifth of the window is what is new
LEAST_DAYS = 2  # fewer days with votes have no before
MOST_VERSIONS = 3  # newest versions of the assistant that are compared
SIEGE = "siege.json"

Rows = list[dict[str, Any]]


def gather(
    store: Store, votes: list[Manifest], candidates: Mapping[str, pl.DataFrame | None], rules: trust.Rules, k: int, burst: float
) -> dict[str, Any]:
    """Everything that `quality.watch` draws, as JSON types; {} without votes. Only texts and words that k users share."""
    parts = shards.first_buckets(store, votes, VOTES.names, MOST_VOTES)
    if not parts:
        return {}
    days = sorted(m.partition.removeprefix("date=") for m in votes if m.rows)
    out: dict[str, Any] = {"buckets": [len(parts), len(shards.by_bucket(votes, MOST_VOTES))], "days": [days[0], days[-1]]}
    late = date.fromisoformat(days[-max(1, len(days) // LAST)])
    every = pl.concat(parts)
    counts = news.tally(every, late)
    if len(days) >= LEAST_DAYS:
        out["late"] = str(late)
        for what, name in (("words", "words"), ("texts", "failing_more")):
            found = news.growing(counts, what, k).head(MOST_ROWS)
            out[name] = _floored(found.select("locale", "text", "early", "late", "factor"), k, "early", "late")
    out["daily"] = _daily(every, k)
    out["coverage"] = _coverage(counts["texts"], candidates)
    out |= _work(news.failing(counts, k), candidates.get("rewrites"), k)
    out["trust"] = _doubted(every, rules, burst)
    out["effect"] = _effects(store, every, k)
    siege = store.find(SIEGE)
    out["siege"] = json.loads(siege) if siege else []
    return out


def _floored(rows: pl.DataFrame, k: int, *counts: str) -> Rows:
    from quality.checks import floor_counts

    return rows.with_columns(*(floor_counts(pl.col(c), k) for c in counts), pl.col(pl.Float64).round(2)).to_dicts()


def _daily(votes: pl.DataFrame, k: int) -> Rows:
    """locale, date, users (floored), defect: how many of a day's users (per text, in the mean) were not served; days of k users."""
    from quality.checks import floor_counts

    said = votes.lazy().filter(pl.col("kind") == "outcome").sort("locale", "date", "user_key", "source", "value", "events")
    days = said.group_by("locale", "date", maintain_order=True).agg(users=pl.col("user_key").n_unique(), defect=1 - pl.col("value").mean())
    days = days.filter(pl.col("users") >= k).with_columns(
        floor_counts(pl.col("users"), k), pl.col("defect").round(4), pl.col("date").cast(pl.String)
    )
    return days.sort("locale", "date").collect().to_dicts()


def _coverage(texts: pl.DataFrame, candidates: Mapping[str, pl.DataFrame | None]) -> Rows:
    """Per locale: what was said (users, per text), how much of it has a proposed label; how much failed, and of that a proposed rewrite."""
    rows = texts
    for name, column in (("labels", "utterance"), ("rewrites", "source")):
        table = candidates.get(name)
        known = (
            []
            if table is None
            else [table.filter(pl.col("decision") == "proposed").select("locale", text=column, **{name: pl.lit(True)}).unique()]
        )
        rows = rows.join(known[0], on=["locale", "text"], how="left") if known else rows.with_columns(pl.lit(None, pl.Boolean).alias(name))
    of = {"said": "users", "failed": "failed"}
    per = rows.group_by("locale").agg(
        *(pl.col(c).sum().alias(n) for n, c in of.items()),
        labelled=pl.col("users").filter(pl.col("labels").fill_null(False)).sum(),
        rewritten=pl.col("failed").filter(pl.col("rewrites").fill_null(False)).sum(),
    )
    shares = [(pl.col(n) / pl.col(whole).clip(1)).round(4) for n, whole in (("labelled", "said"), ("rewritten", "failed"))]
    return per.sort("said", "locale", descending=[True, False]).select("locale", *shares).to_dicts()


def _work(failing: pl.DataFrame, rewrites: pl.DataFrame | None, k: int) -> dict[str, Any]:
    """Failing texts without a proposed target: why there is none, by the best candidate, and how many there are."""
    rows = failing.with_columns(share=(pl.col("failed") / pl.col("users")).round(2))
    if rewrites is not None:
        # a target that k users share says more about why not than one that they do not
        ranked = rewrites.with_columns(_no=pl.col("decision") != "proposed", _rare=pl.col("reason") == "below_k")
        order = ["locale", "source", "_no", "_rare", "score", "target"]
        best = ranked.sort(order, descending=[False, False, False, False, True, False], nulls_last=True)
        best = best.unique(["locale", "source"], keep="first", maintain_order=True)
        best = best.select("locale", "cause", "reason", "decision", text="source")
        rows = rows.join(best, on=["locale", "text"], how="left", maintain_order="left")
        rows = rows.filter(pl.col("decision").fill_null("") != "proposed").drop("decision")
    return {"work": _floored(rows.head(MOST_ROWS), k, "users", "failed"), "work_total": rows.height}


def _doubted(votes: pl.DataFrame, rules: trust.Rules, burst: float) -> dict[str, int]:
    """How many accounts and links were not believed, and for what."""
    users = trust.judge(votes, trust.learn([trust.sketch(votes)], rules))
    link = pl.col("kind") != "outcome"
    made = votes.filter(link).group_by("user_key", "locale", "source", "target").agg(first=pl.col("date").min()).join(users, on="user_key")
    believed = made.filter("known", ~pl.col("spare")).select("first", ask="user_key", s=pl.struct("locale", "source").hash())
    hit = believed.filter(trust.synchronised(believed, trust.usual_days([believed]), burst))
    return {
        "accounts": users.height,
        "new": int((~users["known"]).sum()),
        "copies": int(users["copy"].is_not_null().sum()),
        "spare": int(users["spare"].sum()),
        "links": made.height,
        "links_of_new": made.filter(~pl.col("known")).height,
        "links_of_spare": made.filter("known", "spare").height,
        "bursts": hit["s"].n_unique(),
        "links_of_bursts": hit.height,
    }


def _effects(store: Store, votes: pl.DataFrame, k: int) -> Rows:
    """Per assistant version that a release was acknowledged with and that has answered since: defects before and after."""
    from quality.checks import count_steps

    first = dict(effect.versions(votes).iter_rows())
    trained: dict[str, str] = {}
    for event in registry.events(store, "ack"):
        version = str(event.get("assistant_version"))
        if version in first and not registry.is_retracted(store, event["release_id"]):
            trained[version] = max(event["release_id"], trained.get(version, ""))
    out = []
    for version in [v for v in first if v in trained][-MOST_VERSIONS:]:
        counts = effect.tally(votes, version, first[version])
        tables = registry.Opened(store, trained[version]).tables("rewrites", "labels")
        rows = effect.compare(counts, tables["rewrites"], tables["labels"], k)
        for row in rows:
            for name in ("users_before", "users_after"):
                row[name] = max(s for s in count_steps(int(row[name]), k) if s <= int(row[name]))
        out.append({"version": version, "release_id": trained[version], "first": str(first[version]), "rows": rows})
    return out
