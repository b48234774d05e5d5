"""`sayagain gc`: what is older than the retention leaves the lake, as `forget` does it with users."""

from __future__ import annotations

import contextlib
import json
from datetime import date, timedelta
from typing import Any

import polars as pl

from pipelines import admin_options as o
from pipelines import erase, gone
from pipelines.context import Context
from pipelines.forget import held
from pipelines.releases import open_lake
from pipelines.store import Store

DAILY = ("votes", "rephrases", "outcomes", "rejects", "turns")
AS_OF = ("goal_edges", "goal_changes", "candidates", "goals")


def main(options: o.GcOptions) -> int:
    """Collect, and say what went."""
    context = open_lake(options)
    days = context.dates("turns")
    if not days:
        found: dict[str, Any] = {"before": None, "days": 0, "rows": {}, "texts": 0, "models": [], "as_of": 0, "runs": 0}
    else:
        try:
            cut = date.fromisoformat(options.older_than)
        except ValueError:
            cut = days[-1] - timedelta(seconds=o.seconds(options.older_than, "--older-than")) + timedelta(days=1)
        with context.running():
            found = collect(context, cut)
    words = ", ".join(f"{n:,} {t}" for t, n in found["rows"].items() if n) or "no row"
    lines = [f"before {found['before']}: {found['days']} day(s) with {words}; {found['texts']:,} texts that nobody said since"]
    lines.append(f"  {found['as_of']} as-of partition(s), {found['runs']} run folder(s), {len(found['models'])} model(s)")
    print(json.dumps(found) if options.json else "\n".join(lines))
    return 0


def collect(context: Context, before: date) -> dict[str, Any]:
    """Remove the days before `before` from the daily tables, what only they said from the rest, and as-of tables of theirs.

    Releases and the splits ledger stay: what is in them, k users said. The newest as-of tables stay too: goals keep
    their ids by them. `before` is noted, so that reading an old log again brings nothing back.
    """
    store = context.store
    first = f"date={before}"

    def goes(partition: str, rows: pl.DataFrame) -> pl.Series:
        return pl.repeat(partition < first, rows.height, dtype=pl.Boolean, eager=True)

    with held(context):
        gone.keep_from(store, before)
        old = erase.said(store, goes, going=True)
        nobody = old - erase.said(store, goes, going=False, among=old)
        rows = erase.descendants(context, nobody, ledger=False)
        models = erase.models(store, erase.Said())
        days = set()
        for table in DAILY:
            for partition, manifest in store.manifests(table).items():
                if partition < first:  # rows whose date cannot be read are of no age, and stay
                    days.add(partition)
                    rows[table] = rows.get(table, 0) + manifest.rows
                    erase.unpublish(store, table, partition)
        as_of = 0
        for table in AS_OF:
            have = list(store.manifests(table))
            newest = max((p[:16] for p in have), default="")  # as_of=YYYY-MM-DD
            for partition in have:
                if partition < f"as_of={before}" and partition[:16] != newest:
                    erase.unpublish(store, table, partition)
                    as_of += 1
        store.clear_attempt(erase.attempt(context))
        found = {"before": str(before), "days": len(days), "rows": rows, "texts": nobody.texts.height, "models": models}
        return found | {"as_of": as_of, "runs": _runs(store, before)}


def _runs(store: Store, before: date) -> int:
    """Folders of runs as of a day before; the number of them that went."""
    gone_ = 0
    for path in store.list("runs"):
        if path.endswith("/summary.json"):
            with contextlib.suppress(ValueError, TypeError):
                if date.fromisoformat(json.loads(store.get(path)).get("as_of") or "") < before:
                    store.delete(store.list(path.rpartition("/")[0]))
                    gone_ += 1
    return gone_
