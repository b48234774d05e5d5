"""`embed`: texts that k users said, and both sides of asked-again pairs, through the encoder; each text once ever per model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
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

VERSION = 3
READS = {"votes": ["user_key", "locale", "kind", "source", "target"]}
WRITES = {"embeddings": ["key", "vector"]}
CURRENT = "embeddings/CURRENT"


def _seen(context: Context, as_of: date) -> str:
    from pipelines import models

    c = context.config
    content = [found] if (found := models.folder_content(c.embedding.model)) else []
    return window.fingerprint(context, as_of, c.fingerprint("embedding.model", "privacy"), str(VERSION), *content)


@dataclass(frozen=True)
class Current:
    """The vectors in use: the configured model, what was seen when they were made, locale -> partition (`*`: every locale), and
    per locale how the model was chosen."""

    model: str
    seen: str
    partitions: dict[str, str]
    choice: dict[str, Any]

    def partition(self, locale: str) -> str | None:
        return self.partitions.get(locale) or self.partitions.get("*")


def current(context: Context) -> Current | None:
    """What the configured model made, None when nothing was embedded by it."""
    data = context.store.find(CURRENT)
    if data is None or not data.startswith(b"{"):
        return None
    found = Current(**json.loads(data))
    return found if found.model == context.config.embedding.model else None


def plan(context: Context) -> Plan:
    """Texts of the window that have no vector; without looking when the window was embedded before."""
    as_of = context.as_of()
    if as_of is None or not window.manifests(context, as_of):
        return Plan(skip="there are no votes to embed the texts of")
    have = current(context)
    if have and have.seen == _seen(context, as_of):
        kept = sum(m.rows for m in (context.store.manifest("embeddings", p) for p in set(have.partitions.values())) if m)
        return Plan(skip=f"every text of the window has a vector ({kept:,} kept)")
    return Plan([Todo("embeddings", "", "texts of the window may have no vector yet")])


def run(context: Context, report: Any) -> None:
    """Embed the texts of the window that have no vector yet, each locale by its model."""
    p = plan(context)
    if p.skip:
        report.skipped = p.skip
        return
    as_of = context.as_of()
    assert as_of is not None  # the plan says so
    c, store = context.config, context.store
    from pipelines import choose, models
    from pipelines.encode import Embed, encoder

    new = kept = 0
    seen = _seen(context, as_of)  # before a model is loaded: one that is changed meanwhile is another next time
    with store.lease("as_of"):
        choice = choose.run(context, as_of) if c.embedding.model == models.AUTO else {}
        wanted: dict[str, list[str]] = {}
        for locale, row in choice.items():
            wanted.setdefault(row["model"], []).append(locale)
        partitions: dict[str, str] = {}
        for spec, locales in sorted(wanted.items()) or [(c.embedding.model, [])]:
            partition = f"model={encoder(spec, c.embedding.device).fingerprint}"
            partitions |= dict.fromkeys(locales or ["*"], partition)
            before = store.manifest("embeddings", partition)
            cached: dict[int, tuple[FileEntry, ...]] = {}
            for f in before.files if before else ():
                cached[f.bucket or 0] = (*cached.get(f.bucket or 0, ()), f)
            attempt = f"{context.attempt}/embed"
            transform = Embed(
                store,
                attempt,
                partition,
                c.privacy.k,
                c.embedding.chunk,
                spec,
                c.embedding.device,
                cached,
                tuple(locales) or None,
                processes=context.options.processes,
            )
            receipts = engine.execute(context, "embed", shards.by_bucket(window.manifests(context, as_of)), transform, expect=BUCKETS)
            engine.publish(
                context, "embed", receipts, [Manifest("embeddings", partition, "embed", partition, before.files if before else ())]
            )
            new += sum(r["entry"]["rows"] for r in receipts)
            kept += before.rows if before else 0
        found = Current(c.embedding.model, seen, partitions, choice)
        store.put(CURRENT, (json.dumps(asdict(found), indent=1) + "\n").encode())
    report.counts = {"new texts": new, "kept": kept}
    if choice:
        report.counts["by model"] = {f"locale(s) by {spec}": len(locales) for spec, locales in sorted(wanted.items())}


def vectors(
    store: Store, have: Current | None, locales: pl.Series, keys: pl.Series, bucket: int | None = None
) -> tuple[np.ndarray | None, pl.Series]:
    """float32 (len(keys), widest dimension), and the partition each row's vector comes from (null where there is none).

    `bucket`: where all of these keys are, if that is known; else every file is read.
    A key without a vector has NaN in its row; vectors of a narrower model are filled up with zeros, which moves no cosine inside
    that model. None without embeddings. Raises LakeError when the kept vectors of one model are not of one dimension.
    """
    named = pl.DataFrame({"key": keys, "locale": locales}).with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
    at = {x: have.partition(x) if have else None for x in locales.unique()}
    named = named.with_columns(partition=pl.col("locale").replace_strict(at, default=None, return_dtype=pl.String))
    read = []
    for (partition,), rows in sorted(named.drop_nulls("partition").group_by("partition")):
        manifest = store.manifest("embeddings", str(partition))
        if manifest is None or not manifest.files:
            continue
        width = 0
        for entry in manifest.files:
            if bucket is not None and entry.bucket != bucket:
                continue
            table = store.read_file(entry)
            before, width = width, table.schema.field("vector").type.list_size
            if before not in (0, width):
                where, fix = store.url(entry.path), store.url("embeddings")
                raise LakeError(f"{where}: vectors of {width} dimensions beside {before}; delete {fix} and its manifests, run again")
            found = rows.join(pl.DataFrame({"key": pl.Series(table["key"].to_pylist(), dtype=pl.String)}).with_row_index("of"), on="key")
            flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
            read.append((found["row"].to_numpy(), flat[found["of"].to_numpy()].astype(np.float32)))
    if not read:
        return None, pl.Series("partition", [None] * len(keys), dtype=pl.String)
    out = np.full((len(keys), max(v.shape[1] for _, v in read)), np.nan, np.float32)
    for rows_at, values in read:
        out[rows_at] = 0.0
        out[rows_at, : values.shape[1]] = values
    return out, pl.select(pl.when(pl.Series(np.isfinite(out[:, 0]))).then(named["partition"])).to_series()
