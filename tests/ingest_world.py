"""Logs for the tests of `ingest`, its runs in this process, and what they leave in a lake."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import ingest
from pipelines.context import Context
from pipelines.options import IngestOptions
from pipelines.store import Store

START = datetime(2026, 1, 1, 12, tzinfo=UTC)


def row(n, user="u1", text="play jazz", **more):
    return {"turn_id": f"t{n}", "timestamp": START + timedelta(minutes=n), "user_id": user, "utterance": text} | more


def parquet(path, rows, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, **kw)
    return path


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [r if isinstance(r, bytes) else json.dumps(r, default=str).encode() for r in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def run(lake, *logs, config="", **options):
    """One run; returns its counts."""
    if config:
        file = Path(f"{lake}.toml")
        file.write_text(config)
        options["config"] = str(file)
    context = Context(IngestOptions(lake=str(lake), logs=tuple(map(str, logs)), quiet=True, **options), make=True)
    with context.running(), context.stage("ingest") as report:
        ingest.run(context, report)
    return report


def table(lake, name, drop=()):
    store = Store(str(lake))
    parts = [store.read(name, p) for p in store.manifests(name)]
    frames = [pl.DataFrame(pl.from_arrow(p)) for p in parts if p is not None]
    return pl.concat(frames).drop(drop) if frames else None


def content(lake, name="turns"):
    return {p: m.content for p, m in Store(str(lake)).manifests(name).items() if m.files}


def balances(counts):
    return counts["turns"] + counts["rejects"] + counts["duplicates"] == counts["rows"]
