"""Rows out of a lake, and what descends from them: shared by `forget` (users) and `gc` (days).

The order makes a run that dies harmless: descendants first, the rows that say what descends from them last, so that the
same command finds the same texts again. Every partition is replaced whole, by its manifest.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import modelstore
from pipelines.context import Context
from pipelines.store import FileEntry, Manifest, Store

KEYS: Final = ("source", "target", "utterance", "utterance_a", "utterance_b", "anchor", "positive", "negative", "key", "text")
"""Columns of as-of tables that hold a text: a row goes with its text."""
VALUES: Final = ("source_text", "target_text", "utterance_text", "slots", "intent", "majority_intent")
"""Columns that hold what somebody said or was answered about another text: the value goes, the row stays."""
DESCENDANTS: Final = ("goals", "goal_edges", "candidates", "splits", "embeddings")

Row = Callable[[str, pl.DataFrame], pl.Series]  # (partition, rows with user_key) -> boolean: goes


@dataclass
class Said:
    """Texts (keys), and values (surface forms, slots, intents), as one column `text` each, distinct."""

    texts: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema={"text": pl.String}))
    values: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema={"text": pl.String}))

    def __sub__(self, other: Said) -> Said:
        return Said(self.texts.join(other.texts, on="text", how="anti"), self.values.join(other.values, on="text", how="anti"))

    def __add__(self, other: Said) -> Said:
        return Said(pl.concat([self.texts, other.texts]).unique(), pl.concat([self.values, other.values]).unique())


def _column(frame: pl.DataFrame, names: Iterable[str]) -> pl.DataFrame:
    parts = [frame.select(text=pl.col(n).cast(pl.String)).drop_nulls() for n in names if n in frame.columns]
    return pl.concat(parts).unique() if parts else pl.DataFrame(schema={"text": pl.String})


_READ: dict[str, tuple[list[str], tuple[str, ...], tuple[str, ...]]] = {
    "votes": (["user_key", "source", "target", "text", "slots", "intent"], ("source", "target"), ("text", "slots", "intent"))
}
_READ["turns"] = (["user_key", "key", "utterance", "slots", "intent"], ("key",), ("utterance", "slots", "intent"))


def said(store: Store, goes: Row, *, going: bool, buckets: set[int] | None = None, among: Said | None = None) -> Said:
    """What the rows say that go (or stay, `going=False`), file by file; of what stays, only what is `among`."""
    found = Said()
    for table, (columns, texts, values) in _READ.items():
        for partition, manifest in store.manifests(table).items():
            for entry in manifest.files:
                if buckets is not None and entry.bucket not in buckets:
                    continue
                rows = store.frame(entry, columns)
                rows = rows.filter(goes(partition, rows) if going else ~goes(partition, rows))
                part = Said(_column(rows, texts), _column(rows, values))
                if among:
                    part = Said(part.texts.join(among.texts, on="text", how="semi"), part.values.join(among.values, on="text", how="semi"))
                found += part
    return found


def descendants(context: Context, gone: Said, *, ledger: bool) -> dict[str, int]:
    """Take texts and values that nobody says any more out of every as-of table and the embeddings. Returns table -> rows.

    As-of tables are never rebuilt once they were released: they lose rows, the next as-of sees the rest of the change.
    `ledger`: of the splits ledger too.
    """
    removed: dict[str, int] = {}
    texts, values = gone.texts["text"].implode(), gone.values["text"].implode()

    def change(data: pa.Table) -> pa.Table:
        drop = pl.repeat(False, data.num_rows, dtype=pl.Boolean, eager=True)
        for name in (c for c in KEYS if c in data.column_names):
            drop = drop | strings(data, name).is_in(texts).fill_null(False)
        for name in (c for c in VALUES if c in data.column_names):
            hit = strings(data, name).is_in(values).fill_null(False)
            if hit.any():
                kind = data.schema.field(name)
                blank = pc.if_else(hit.to_arrow(), pa.scalar(None, kind.type), data[name])
                data = data.set_column(data.column_names.index(name), kind, blank)
        return data.filter((~drop).to_arrow())

    for table in DESCENDANTS:
        if table == "splits" and not ledger:
            continue
        removed[table] = sum(rewrite(context, m, change) for m in context.store.manifests(table).values())
    return removed


COUNTED: Final = {"source_users": ("source",), "target_users": ("target",), "users": ("source", "target", "utterance")}
"""Counts of users in as-of tables, and the texts whose users they count (the fewest of several)."""


def recount(context: Context, texts: pl.DataFrame, goes: Row) -> int:
    """Counts of users in as-of tables, lowered to those who stay and said the text in the table's window. Returns rows touched.

    Nothing is computed anew there, but `explain` and reports decide by these counts what k users share. Machines and new
    accounts, which evidence leaves out, are among those who stay: a count may be too high by them, never by who went.
    """
    store, touched = context.store, list[int]()
    tables = [m for t in ("goals", "candidates") for m in store.manifests(t).values()]
    for as_of in sorted({m.partition[6:16] for m in tables}):
        days = window_days(context, date.fromisoformat(as_of))
        users = window_users(store, days, texts, goes).filter(pl.col("users") > pl.col("stay")).select("locale", "text", "stay")
        for manifest in [m for m in tables if m.partition[6:16] == as_of] if users.height else []:
            rewrite(context, manifest, functools.partial(_lowered, users, touched))
    return sum(touched)


def _lowered(users: pl.DataFrame, touched: list[int], data: pa.Table) -> pa.Table:
    """`data` with counts of users at most `stay` of their texts; how many rows are different is added to `touched`."""
    before = after = pl.DataFrame(pl.from_arrow(data))
    for count, columns in COUNTED.items():
        for column in [c for c in columns if count in before.columns and c in before.columns]:
            named = users.select("locale", pl.col("text").alias(column), _stay="stay")
            after = after.join(named, on=["locale", column], how="left", maintain_order="left")
            after = after.with_columns(pl.min_horizontal(count, "_stay").cast(before.schema[count]).alias(count)).drop("_stay")
    hit = before.select(c for c in COUNTED if c in before.columns) != after.select(c for c in COUNTED if c in before.columns)
    rows = int(hit.select(pl.any_horizontal(pl.lit(False), pl.all().fill_null(False))).to_series().sum()) if hit.width else 0
    touched.append(rows)
    return after.to_arrow().cast(data.schema) if rows else data


def window_days(context: Context, as_of: date) -> list[str]:
    """Partitions of votes in the window of an as-of date, by today's configuration."""
    days = context.config.evidence.window or context.config.evidence.evidence_days
    return [p for p in context.store.manifests("votes") if f"date={as_of - timedelta(days - 1)}" <= p <= f"date={as_of}"]


def strings(data: pa.Table, name: str) -> pl.Series:
    """A string column."""
    return pl.Series(pl.from_arrow(data[name]), dtype=pl.String)


def changed(
    context: Context, manifest: Manifest, change: Callable[[pa.Table], pa.Table], buckets: set[int] | None = None
) -> tuple[tuple[FileEntry, ...], int]:
    """The files of a partition with `change` applied (to those of the buckets), written aside, and how many rows went.

    A file that stays as it is keeps its entry; one without rows is left out.
    """
    files, gone = list[FileEntry](), 0
    for entry in manifest.files:
        if buckets is not None and entry.bucket not in buckets:
            files.append(entry)
            continue
        before = context.store.read_file(entry)
        after = change(before)
        gone += before.num_rows - after.num_rows
        if after.equals(before):
            files.append(entry)
        elif after.num_rows:
            files.append(context.store.attempt(attempt(context), manifest.table, manifest.partition, after, entry.bucket))
    return tuple(files), gone


def attempt(context: Context) -> str:
    """Where files are written aside."""
    return f"{context.attempt}/erase"


def rewrite(
    context: Context, manifest: Manifest, change: Callable[[pa.Table], pa.Table], buckets: set[int] | None = None, **more: Any
) -> int:
    """Publish a partition with `change` applied, its manifest with `more`; only if something is different. Returns rows gone."""
    files, gone = changed(context, manifest, change, buckets)
    new = Manifest(**vars(manifest) | {"files": files} | more)
    if new != manifest:
        context.store.publish(attempt(context), new)
    return gone


def models(store: Store, gone: Said) -> list[str]:
    """Collect models that are not in use, and the one in use if it holds a text that nobody says. Returns their fingerprints."""
    current = modelstore.current(store)
    texts = set(gone.texts["text"])
    dropped = []
    for fingerprint in sorted({p.split("/")[1] for p in store.list("models") if p.count("/") == 2}):
        if fingerprint == current:
            data = store.find(f"models/{fingerprint}/model.json")
            known = {t for s in json.loads(data).get("stats", []) for t in s.get("reference", [])} if data else set()
            if not known & texts:
                continue
            store.delete(["models/CURRENT"])
        dropped.append(fingerprint)
        store.delete(store.list(f"models/{fingerprint}"))
    return dropped


def unpublish(store: Store, table: str, partition: str) -> None:
    """Remove a partition: its manifest first, so that no reader is sent to a file that is gone."""
    manifest = store.manifest(table, partition)
    store.delete([f"_manifests/{table}/{partition}.json"])
    store.delete(f.path for f in manifest.files) if manifest else None


def window_users(store: Store, partitions: Iterable[str], texts: pl.DataFrame, without: Row) -> pl.DataFrame:
    """Distinct users per (locale, text) of `texts`, in votes of the partitions: `users`, `stay` without the rows that go."""
    parts = []
    for partition in partitions:
        manifest = store.manifest("votes", partition)
        for entry in manifest.files if manifest else ():
            votes = store.frame(entry, ["user_key", "locale", "source", "target"])
            goes = without(partition, votes)
            votes = votes.with_columns(goes.alias("goes"))
            long = pl.concat([votes.select("user_key", "locale", "goes", text=c) for c in ("source", "target")]).drop_nulls("text")
            parts.append(long.join(texts, on="text", how="semi").unique())
    if not parts:
        return pl.DataFrame(schema={"locale": pl.String, "text": pl.String, "users": pl.Int64, "stay": pl.Int64})
    per_user = pl.concat(parts).group_by("user_key", "locale", "text").agg(pl.col("goes").all())
    counts = per_user.group_by("locale", "text").agg(users=pl.len().cast(pl.Int64), stay=(~pl.col("goes")).sum().cast(pl.Int64))
    return counts.sort("locale", "text")
