"""What a lake must not take in again: tombstones of users who asked to be forgotten, and the day before which nothing is kept.

A tombstone is named by a hash of the user key, so that the key itself is nowhere in the lake.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime

import polars as pl

from pipelines.store import Store

TOMBSTONES = "tombstones"
RETENTION = "retention.json"


def tombstone(user_key: str) -> str:
    """The name of a user key's tombstone: one way, and of no use to find other rows."""
    return hashlib.sha256(f"sayagain tombstone\0{user_key}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Gone:
    """Users and days that `ingest` leaves out."""

    tombstones: frozenset[str] = frozenset()
    before: date | None = None

    def mask(self, rows: pl.DataFrame) -> pl.Series:
        """Boolean per row of (user_key, timestamp): is it one that must not come back?"""
        out = pl.repeat(False, rows.height, dtype=pl.Boolean, eager=True)
        if self.before:
            out = out | (rows["timestamp"].dt.date() < self.before).fill_null(False)
        if self.tombstones:
            users = rows["user_key"].drop_nulls().unique()
            found = [u for u in users if tombstone(u) in self.tombstones]
            out = out | rows["user_key"].is_in(pl.Series(found, dtype=pl.String).implode()).fill_null(False)
        return out


def read(store: Store) -> Gone:
    """What was forgotten in this lake so far."""
    data = store.find(RETENTION)
    before = date.fromisoformat(json.loads(data)["before"]) if data else None
    return Gone(frozenset(p.split("/")[1].removesuffix(".json") for p in store.list(TOMBSTONES)), before)


def bury(store: Store, user_keys: Iterable[str]) -> None:
    """Write tombstones; again is no harm."""
    at = f"{datetime.now(UTC):%Y-%m-%d}"
    for user_key in user_keys:
        store.put_new(f"{TOMBSTONES}/{tombstone(user_key)}.json", (json.dumps({"at": at}) + "\n").encode())


def keep_from(store: Store, before: date) -> None:
    """Nothing from before this day comes in again; the day never moves back."""
    old = read(store).before
    store.put(RETENTION, (json.dumps({"before": str(max(old or before, before))}) + "\n").encode())
