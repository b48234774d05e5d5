"""Units of work over published tables: which files one worker reads at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

import polars as pl
import pyarrow as pa

from pipelines.store import FileEntry, Manifest, Store
from rewrite.text import as_categories

PART = 4_000_000
"""Rows of one bucket's users that are held at a time, some 3 GiB with what is made of them; a larger bucket is read in parts, so once
for each: no more of them than it takes."""


@dataclass(frozen=True)
class Shard:
    """Some buckets of some days of one table: all their users, or those of one part of so many."""

    table: str
    files: tuple[tuple[str, FileEntry], ...]  # (partition, file)
    part: tuple[int, int] = (0, 1)

    @property
    def rows(self) -> int:
        return sum(f.rows for _, f in self.files) // self.part[1]


def partition(day: date) -> str:
    return f"date={day}"


def by_size(manifests: Iterable[Manifest], rows: int) -> list[Shard]:
    """Shards of about `rows` rows; how they are cut never changes a result, because a file holds whole users of a day."""
    shards: list[Shard] = []
    files: list[tuple[str, FileEntry]] = []
    table = ""
    for m in manifests:
        table = m.table
        for f in m.files:
            if files and sum(g.rows for _, g in files) + f.rows > rows:
                shards.append(Shard(table, tuple(files)))
                files = []
            files.append((m.partition, f))
    return [*shards, Shard(table, tuple(files))] if files else shards


def by_bucket(manifests: Iterable[Manifest], rows: int | None = None) -> list[Shard]:
    """All days of the same users: a shard per bucket, or several of about `rows` (`PART`). How users are parted changes no result."""
    buckets: dict[int, list[tuple[str, FileEntry]]] = {}
    table = ""
    for m in manifests:
        table = m.table
        for f in m.files:
            buckets.setdefault(f.bucket or 0, []).append((m.partition, f))
    shards: list[Shard] = []
    for _, files in sorted(buckets.items()):
        parts = max(1, -(-sum(f.rows for _, f in files) // (rows or PART)))
        shards += [Shard(table, tuple(files), (n, parts)) for n in range(parts)]
    return shards


def read(store: Store, shard: Shard, columns: list[str] | None = None, *, categories: bool = False) -> pl.DataFrame:
    """The shard's rows, with `date` (from the partition) and `bucket`. `categories`: texts as Categoricals, a third of the memory.
    `columns` of a bucket's users hold `user_key`."""
    frames = []
    part, parts = shard.part
    for name, entry in shard.files:
        frame = store.frame(entry, columns)
        if parts > 1:
            frame = frame.filter(pl.col("user_key").hash() % parts == part)
        frames.append(
            (as_categories(frame) if categories else frame).with_columns(
                date=pl.lit(date.fromisoformat(name.removeprefix("date=")), pl.Date), bucket=pl.lit(entry.bucket or 0, pl.Int32)
            )
        )
    return pl.concat(frames)


def first_buckets(store: Store, manifests: Iterable[Manifest], columns: list[str], most: int) -> list[pl.DataFrame]:
    """Rows per bucket of users (of a part of it that holds `most`), until `most` are read; at least one, if there is any."""
    out: list[pl.DataFrame] = []
    for shard in by_bucket(manifests, most):
        if out and sum(f.height for f in out) >= most:
            break
        out.append(read(store, shard, columns).drop("bucket"))
    return out


def whole(store: Store, table: str, name: str) -> pl.DataFrame | None:
    """All rows of a partition, None when it was never published or holds no file."""
    data = store.read(table, name)
    return None if data is None else pl.DataFrame(pl.from_arrow(data))


def empty(schema: pa.Schema) -> pl.DataFrame:
    """No rows of a contract."""
    return pl.DataFrame(pl.from_arrow(schema.empty_table()))
