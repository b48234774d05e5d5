"""Rows of a log as turns and rejects: mapped, scrubbed, under user keys. What `ingest` does to a block before users meet."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import date

import polars as pl

from pipelines import gone
from pipelines.config import Config
from pipelines.errors import UsageError
from pipelines.inputs import UNDATED
from pipelines.shards import partition
from pipelines.sources import Block, Source
from quality.names import hide_names
from quality.scrub import KINDS, scrub, scrub_slots
from rewrite import turns as t
from rewrite.contracts import BUCKETS, LOG_REQUIRED, TURNS

CARRIED = [n for n in TURNS.names if n != "session"]  # through the shuffle
_TEXTS = ("utterance", "served_utterance", "response")


def rules_of(config: Config) -> t.Rules:
    """The `[log]` section as rules. Raises UsageError with every error in `log.columns`."""
    log = config.log
    try:
        columns = t.parse_columns(log.columns)
    except ValueError as error:
        raise UsageError(f"the configuration has errors:\n{error}") from None
    locale = t.casts.to_locale(pl.Series([log.locale]))[0]
    if locale is None:
        raise UsageError(f"log.locale = {log.locale!r}: not a language tag (BCP 47), such as en-US or sw")
    return t.Rules(columns, log.timestamp_unit, locale, log.channel, log.treatment, tuple(log.names))


@dataclass(frozen=True)
class Rows:
    """What a block became: rows that are turns so far, rejects, and counts."""

    turns: pl.DataFrame
    rejects: pl.DataFrame
    counts: Counter[str]  # read, outside, warning:NAME
    scrubbed: dict[str, Counter[str]]  # partition -> scrubbed:KIND


def convert(
    block: Block,
    source: Source,
    rules: t.Rules,
    secret: bytes,
    start: date | None = None,
    end: date | None = None,
    left_out: gone.Gone | None = None,
) -> Rows:
    """Rows of the log into turns and rejects, scrubbed and under user keys, each with its `partition` and `bucket`.

    Rows of users and days that were forgotten (`left_out`) count as outside, as if the log did not have them.
    """
    counts: Counter[str] = Counter(read=block.rows.height + block.broken.height)
    logged = source.kind == "parquet" and rules.source("rewrite_id") in source.columns
    rows, warnings = t.contract(block.rows, rules, treatment_logged=logged)
    day = pl.col("timestamp").dt.date()
    outside = pl.lit(False)
    if start:
        outside |= (day < start).fill_null(False)
    if end:
        outside |= (day > end).fill_null(False)
    inside = rows.filter(~outside)
    counts["outside"] += rows.height - inside.height
    warnings.update({f"bad_{k}": n for k, n in block.lost.items() if k not in LOG_REQUIRED})
    counts.update({f"warning:{k}": n for k, n in warnings.items()})
    inside = inside.with_columns(
        user_key=t.pseudonyms(inside["user_id"], secret),
        session_id=t.pseudonyms(inside["session_id"], secret, "session"),
        input=pl.lit(source.path),
        partition=pl.coalesce(pl.format("date={}", day), pl.lit(partition(source.day) if source.day else UNDATED)),
    ).drop("user_id")
    if left_out:
        forgotten = left_out.mask(inside)
        counts["outside"] += int(forgotten.sum())
        inside = inside.filter(~forgotten)

    good, bad = inside.filter(pl.col("reason").is_null()), inside.filter(pl.col("reason").is_not_null())
    clean, scrubbed = _scrub(good, rules.names)
    turns, lost = t.canonical(clean)
    if lost:
        counts["warning:bad_slots"] += lost

    rejects = bad.rename({"utterance": "text"}).select(_REJECT)
    if block.broken.height:
        where = partition(source.day) if source.day else UNDATED
        broken = block.broken.select(
            "row",
            input=pl.lit(source.path),
            reason=pl.lit("bad_json"),
            user_key=pl.lit(None, pl.String),
            text="line",
            partition=pl.lit(where),
        ).select(_REJECT)
        rejects = pl.concat([rejects, broken])
    texts = t.excerpts(rejects["text"], lambda s: scrub(s)[0])
    rejects = rejects.drop("text").with_columns(texts, row_hash=pl.lit(None, pl.String))
    bucket = t.bucket_expr().fill_null((pl.col("row") % BUCKETS).cast(pl.Int32))
    return Rows(
        turns.select(*CARRIED, "row", "partition", bucket.alias("bucket")),
        rejects.with_columns(bucket.alias("bucket")),
        counts,
        scrubbed,
    )


_REJECT = ("input", "row", "reason", "user_key", "text", "partition")


def _scrub(rows: pl.DataFrame, names: tuple[str, ...] = ()) -> tuple[pl.DataFrame, dict[str, Counter[str]]]:
    """Scrub every text column, and hide what the slots in `names` say; adds `scrubbed`, placeholders per row, and counts them by partition."""
    clean, found = [], []
    for name in (*_TEXTS, "slots"):
        series, kinds = (scrub_slots if name == "slots" else scrub)(rows[name], rows["locale"])
        clean.append(series.alias(name))
        found.append(kinds)
    total = found[0].select(
        sum((f[k].cast(pl.Int32) for f in found), start=pl.zeros(rows.height, pl.Int32, eager=True)).alias(k) for k in KINDS
    )
    per_row = total.select(pl.sum_horizontal(*KINDS).clip(0, 2**15 - 1).cast(pl.Int16).alias("scrubbed")).to_series()
    rows = rows.with_columns(*clean, per_row)
    if names:
        texts, slots, hidden = hide_names(rows.select(_TEXTS), rows["slots"], names)
        rows = rows.with_columns(*texts, slots, scrubbed=pl.col("scrubbed") + hidden)
        total = total.with_columns(name=hidden)
    by_day = total.with_columns(rows["partition"]).group_by("partition").sum()
    return rows, {
        day["partition"]: Counter({f"scrubbed:{k}": n for k, n in day.items() if k != "partition" and n}) for day in by_day.to_dicts()
    }
