"""`embed`: texts that k users said, and both sides of asked-again pairs, through the encoder; each text once ever per model."""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import polars as pl

from pipelines import engine, shards, window
from pipelines.context import Context
from pipelines.errors import LakeError
from pipelines.plan import Plan, Todo
from pipelines.store import FileEntry, Manifest, Store
from rewrite.contracts import BUCKETS

VERSION = 1
READS = {"votes": ["user_key", "locale", "kind", "source", "target"]}
WRITES = {"embeddings": ["key", "vector"]}
CURRENT = "embeddings/CURRENT"


def _seen(context: Context, as_of: date) -> str:
    c = context.config
    return window.fingerprint(context, as_of, c.fingerprint("embedding.model", "privacy"), str(VERSION))


def current(context: Context) -> Manifest | None:
    """The vectors of the configured model, None when nothing was embedded by it."""
    data = context.store.find(CURRENT)
    spec, _, partition = data.decode().strip().partition("\t") if data else ("", "", "")
    return context.store.manifest("embeddings", partition) if spec == context.config.embedding.model else None


def plan(context: Context) -> Plan:
    """Texts of the window that have no vector; without looking when the window was embedded before."""
    as_of = context.as_of()
    if as_of is None or not window.manifests(context, as_of):
        return Plan(skip="there are no votes to embed the texts of")
    have = current(context)
    if have and have.inputs.get("seen") == _seen(context, as_of):
        return Plan(skip=f"every text of the window has a vector ({have.rows:,} kept)")
    return Plan([Todo("embeddings", have.partition if have else "", "texts of the window may have no vector yet")])


def run(context: Context, report: Any) -> None:
    """Embed the texts of the window that have no vector yet."""
    p = plan(context)
    if p.skip:
        report.skipped = p.skip
        return
    as_of = context.as_of()
    assert as_of is not None  # the plan says so
    c, store = context.config, context.store
    from pipelines.encode import Embed, encoder

    partition = f"model={encoder(c.embedding.model, c.embedding.device).fingerprint}"
    before = store.manifest("embeddings", partition)
    cached: dict[int, tuple[FileEntry, ...]] = {}
    for f in before.files if before else ():
        cached[f.bucket or 0] = (*cached.get(f.bucket or 0, ()), f)
    attempt = f"{context.attempt}/embed"
    transform = Embed(store, attempt, partition, c.privacy.k, c.embedding.chunk, c.embedding.model, c.embedding.device, cached)
    with store.lease("as_of"):
        receipts = engine.execute(context, "embed", shards.by_bucket(window.manifests(context, as_of)), transform, expect=BUCKETS)
        manifest = Manifest(
            "embeddings", partition, "embed", partition, before.files if before else (), inputs={"seen": _seen(context, as_of)}
        )
        engine.publish(context, "embed", receipts, [manifest])
        store.put(CURRENT, f"{c.embedding.model}\t{partition}\n".encode())
    report.counts = {"new texts": sum(r["entry"]["rows"] for r in receipts), "kept": before.rows if before else 0}


def vectors(store: Store, manifest: Manifest | None, keys: pl.Series) -> np.ndarray | None:
    """float32 (len(keys), dimension); a key without a vector has NaN in its row. None without embeddings.

    Raises LakeError when the kept vectors are not of one dimension.
    """
    if manifest is None or not manifest.files:
        return None
    at = pl.DataFrame({"key": keys, "row": pl.Series(range(len(keys)), dtype=pl.Int64)})
    out: np.ndarray | None = None
    for entry in manifest.files:
        table = store.read_file(entry)
        width = table.schema.field("vector").type.list_size
        if out is None:
            out = np.full((len(keys), width), np.nan, np.float32)
        elif out.shape[1] != width:
            raise LakeError(
                f"{store.url(entry.path)}: vectors of {width} dimensions beside {out.shape[1]}; delete {store.url('embeddings')}, run again"
            )
        found = at.join(pl.DataFrame({"key": pl.Series(table["key"].to_pylist(), dtype=pl.String)}).with_row_index("of"), on="key")
        flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        out[found["row"].to_numpy()] = flat[found["of"].to_numpy()].astype(np.float32)
    return out
