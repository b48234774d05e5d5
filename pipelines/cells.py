"""The neighbours of many texts as Beam steps: `rewrite.neighbours.near_cosine`, each step of it on as many workers as there are.

Locales of up to `exact` texts are left to whoever builds the graph. Of a bigger one every vector crosses the network once, to
its cell, which is written aside as a file; a search reads the cells that it needs. What every worker must know is small:
the centres (cells x dimension) and the rows whose true neighbours are found, to see what is missed.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import polars as pl
import pyarrow as pa

from pipelines import embed, engine
from pipelines.store import FileEntry, Store
from rewrite import neighbours as nb
from rewrite.contracts import BUCKETS

BLOCK = 50_000
"""Texts that one worker assigns at a time: 100 MB of vectors."""

CELLS_PER_TASK = 16
"""Cells of one neighbourhood that are searched together, because they look into the same cells: read once for all."""

Found = tuple[str, dict[str, Any]]  # locale, what is known of it


@dataclass(frozen=True)
class Plan:
    """What `near_cosine` takes, for all locales: neighbours per text, the seed, rows up to which it is exact, rows of a cell."""

    k: int
    seed: int = 0
    exact: int = nb.EXACT
    per_cell: int = nb.PER_CELL


@dataclass(frozen=True)
class Block:
    """Some texts of one locale, all of one bucket of the embeddings: row numbers (among the locale's texts with a vector) and keys."""

    locale: str
    n: int
    bucket: int
    texts: bytes


class Blocks(beam.DoFn):
    """(Keys of every locale's texts, sorted) -> blocks of the locales with too many for an exact search."""

    def __init__(self, store: Store, have: embed.Current | None, plan: Plan):
        self._store, self._have, self._plan = store, have, plan

    def process(self, texts: bytes) -> Iterable[Block]:
        frame = engine.frame(texts)
        big = [lo for lo, n in frame["locale"].value_counts().sort("locale").iter_rows() if n > self._plan.exact]
        for locale in big if self._have else ():
            keys = frame.filter(pl.col("locale") == locale)["utterance"]
            vectors, _ = embed.vectors(self._store, self._have, pl.Series([locale] * len(keys), dtype=pl.String), keys)
            keys = keys.filter(pl.Series(there(vectors))) if vectors is not None else keys.head(0)
            if len(keys) <= self._plan.exact:
                continue
            bucket = pl.Series("bucket", [zlib.crc32(k.encode()) % BUCKETS for k in keys], dtype=pl.Int64)
            rows = pl.DataFrame({"row": np.arange(len(keys)), "key": keys}).with_columns(bucket)
            for (at,), part in sorted(rows.group_by("bucket", maintain_order=True)):
                for piece in part.drop("bucket").iter_slices(BLOCK):
                    yield Block(locale, len(keys), int(str(at)), engine.to_ipc(piece))


def there(vectors: np.ndarray) -> np.ndarray:
    """bool (n,): which rows are vectors: neither unknown (NaN) nor zero."""
    return np.isfinite(vectors[:, 0]) & vectors.any(axis=1)


class _OfBlock(beam.DoFn):
    """A step that starts from a block's vectors."""

    def __init__(self, store: Store, have: embed.Current | None, plan: Plan):
        self._store, self._have, self._plan = store, have, plan

    def read(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        """(row numbers int64, vectors float32)."""
        texts = engine.frame(block.texts)
        locales = pl.Series([block.locale] * texts.height, dtype=pl.String)
        vectors, _ = embed.vectors(self._store, self._have, locales, texts["key"], block.bucket)
        assert vectors is not None  # these keys were found among the vectors
        return texts["row"].to_numpy(), vectors


class Sample(_OfBlock):
    """Block -> its rows that centres are learned from, and those whose neighbours are looked up: ((locale, what), vectors)."""

    def process(self, block: Block) -> Iterable[tuple[tuple[str, str], bytes]]:
        rows, vectors = self.read(block)
        for what, sample in _samples(block.n, self._plan).items():
            of = np.isin(rows, sample)
            yield (block.locale, what), _to_ipc(rows[of], vectors[of].astype(np.float16), n=block.n)


def _samples(n: int, plan: Plan) -> dict[str, np.ndarray]:
    train = nb.TRAIN * nb.cells_of(n, plan.per_cell)
    return {"train": nb.sample_rows(n, train, plan.seed), "asked": nb.sample_rows(n, nb.SAMPLE, plan.seed + 1)}


class Learn(beam.DoFn):
    """All of one sample -> what every worker should know: centres, or the rows that are asked."""

    def __init__(self, plan: Plan):
        self._plan = plan

    def process(self, element: tuple[tuple[str, str], Iterable[bytes]]) -> Iterable[tuple[tuple[str, str], bytes]]:
        (locale, what), parts = element
        rows, vectors, n = _from_ipc(parts)
        if what == "train":
            vectors = nb.train_cells(vectors, nb.cells_of(n, self._plan.per_cell), self._plan.seed)
            rows = np.arange(len(vectors))
        yield (locale, what), _to_ipc(rows, vectors)


class Assign(_OfBlock):
    """Block -> ((locale, cell), its rows at home there); ((locale, -1), the block's nearest to the rows that are asked)."""

    def process(self, block: Block, known: Mapping[tuple[str, str], bytes]) -> Iterable[tuple[tuple[str, int], bytes]]:
        rows, vectors = self.read(block)
        _, centres, _ = _from_ipc([known[block.locale, "train"]])
        asked, queries, _ = _from_ipc([known[block.locale, "asked"]])
        home = nb.home_cells(vectors, centres)
        for cell in np.unique(home).tolist():
            yield (block.locale, cell), _to_ipc(rows[home == cell], vectors[home == cell].astype(np.float16))
        near, cosines = nb.search(queries, asked, vectors, rows, self._plan.k)
        at = np.where(near >= 0, home[np.searchsorted(rows, np.maximum(near, rows[0]))], -1)
        yield (block.locale, -1), engine.to_ipc(pa.table([_lists(near), _lists(cosines), _lists(at)], ["near", "cosine", "home"]))


class Gather(beam.DoFn):
    """One cell, whole -> its file, aside; or the true neighbours of the rows that are asked -> how many cells to look into."""

    def __init__(self, store: Store, attempt: str, plan: Plan):
        self._store, self._attempt, self._plan = store, attempt, plan

    def process(self, element: tuple[tuple[str, int], Iterable[bytes]], known: Mapping[tuple[str, str], bytes]) -> Iterable[Found]:
        (locale, cell), parts = element
        if cell >= 0:
            rows, vectors, _ = _from_ipc(parts)
            table = engine.from_ipc(_to_ipc(rows, vectors.astype(np.float16)))
            entry = self._store.attempt(self._attempt, "cells", f"locale={zlib.crc32(locale.encode()):08x}", table, cell)
            yield locale, {"cell": cell, "entry": asdict(entry)}
            return
        blocks = [engine.from_ipc(p) for p in parts]
        near, cosine, home = (np.hstack([_matrix(b, name) for b in blocks]) for name in ("near", "cosine", "home"))
        order = np.lexsort((near, -cosine))[:, : self._plan.k]
        _, centres, _ = _from_ipc([known[locale, "train"]])
        _, queries, _ = _from_ipc([known[locale, "asked"]])
        probes, recall = nb.enough_cells(nb.look_cells(queries, centres, len(centres)), np.take_along_axis(home, order, axis=1))
        yield locale, {"probes": probes, "recall": recall}


class Tasks(beam.DoFn):
    """All cells of a locale -> tasks of neighbouring ones. Every task knows where all cells are."""

    def process(self, element: tuple[str, Iterable[dict[str, Any]]], known: Mapping[tuple[str, str], bytes]) -> Iterable[Found]:
        locale, found = element
        cells: dict[int, dict[str, Any]] = {}
        told: dict[str, Any] = {}
        for f in found:
            if "cell" in f:
                cells[f["cell"]] = f["entry"]
            else:
                told = f
        _, centres, _ = _from_ipc([known[locale, "train"]])
        group = nb.home_cells(centres, nb.train_cells(centres, max(1, len(centres) // CELLS_PER_TASK)))
        for g in np.unique(group).tolist():
            yield locale, told | {"cells": cells, "search": [c for c in np.flatnonzero(group == g).tolist() if c in cells]}


class Search(beam.DoFn):
    """A task -> (locale, neighbours of all rows of its cells)."""

    def __init__(self, store: Store, attempt: str, plan: Plan):
        self._store, self._attempt, self._plan = store, attempt, plan

    def process(self, element: Found, known: Mapping[tuple[str, str], bytes]) -> Iterable[tuple[str, bytes]]:
        locale, task = element
        _, centres, _ = _from_ipc([known[locale, "train"]])
        kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}

        def cell(c: int) -> tuple[np.ndarray, np.ndarray]:
            if c not in kept and c not in task["cells"]:  # nothing is at home there
                kept[c] = np.zeros((0, centres.shape[1]), np.float32), np.zeros(0, np.int64)
            elif c not in kept:
                entry = FileEntry(**task["cells"][c])
                aside = FileEntry(f"_attempts/{self._attempt}/{entry.path}", entry.rows, entry.bytes, entry.sha256, entry.bucket)
                rows, vectors, _ = _unpacked([self._store.read_file(aside)])
                kept[c] = vectors, rows
            return kept[c]

        if not task["search"]:
            return
        members = [cell(c) for c in task["search"]]
        vectors, rows = (np.concatenate(column) for column in zip(*members, strict=True))
        near, cosines = nb.search_cells(vectors, rows, nb.look_cells(vectors, centres, task["probes"]), cell, self._plan.k)
        table = pa.table([pa.array(rows), _lists(near), _lists(cosines)], ["row", "near", "cosine"])
        yield locale, engine.to_ipc(table.replace_schema_metadata({"probes": str(task["probes"]), "recall": repr(task["recall"])}))


class NearNeighbours(beam.PTransform):
    """One element, keys of texts (locale, utterance; sorted) -> (locale, neighbours of some rows), for the locales beyond the exact search."""

    def __init__(self, store: Store, attempt: str, have: embed.Current | None, plan: Plan):
        super().__init__()
        self._steps = (Blocks(store, have, plan), Sample(store, have, plan), Learn(plan), Assign(store, have, plan))
        self._more = (Gather(store, attempt, plan), Search(store, attempt, plan))

    def expand(self, texts: beam.PCollection[bytes]) -> beam.PCollection[tuple[str, bytes]]:
        blocks, sample, learn, assign = self._steps
        gather, search = self._more
        work = texts | "blocks" >> beam.ParDo(blocks) | "spread blocks" >> beam.Reshuffle()
        known = work | "sample" >> beam.ParDo(sample) | "all of a sample" >> beam.GroupByKey() | "learn" >> beam.ParDo(learn)
        every = beam.pvalue.AsDict(known)
        return (
            work
            | "assign" >> beam.ParDo(assign, every)
            | "all of a cell" >> beam.GroupByKey()
            | "gather cells" >> beam.ParDo(gather, every)
            | "all cells" >> beam.GroupByKey()
            | "tasks" >> beam.ParDo(Tasks(), every)
            | "spread tasks" >> beam.Reshuffle()
            | "search" >> beam.ParDo(search, every)
        )


def neighbours(found: Iterable[tuple[str, bytes]]) -> dict[str, nb.Near]:
    """What `NearNeighbours` found, put together per locale."""
    parts: dict[str, list[pa.Table]] = {}
    for locale, buffer in found:
        parts.setdefault(locale, []).append(engine.from_ipc(buffer))
    near = {}
    for locale, tables in sorted(parts.items()):
        rows = np.concatenate([t["row"].to_numpy() for t in tables])
        of, cosine = (np.concatenate([_matrix(t, name) for t in tables]) for name in ("near", "cosine"))
        engine.accounted(f"texts of {locale} whose neighbours were searched", int(rows.max()) + 1, len(rows))
        order = np.argsort(rows)
        told = tables[0].schema.metadata
        near[locale] = nb.Near(of[order], cosine[order], float(told[b"recall"]), int(told[b"probes"]))
    return near


def _lists(values: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).ravel()), values.shape[1])


def _matrix(table: pa.Table, name: str) -> np.ndarray:
    """A column of fixed-size lists, (rows, size)."""
    width = table.schema.field(name).type.list_size
    return table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, width)


def _to_ipc(rows: np.ndarray, vectors: np.ndarray, **told: int) -> bytes:
    """Rows and vectors. Embeddings are kept in float16 and lose nothing in it; centres stay as they are."""
    table = pa.table([pa.array(rows), _lists(vectors)], ["row", "vector"])
    return engine.to_ipc(table.replace_schema_metadata({name: str(value) for name, value in told.items()}))


def _from_ipc(parts: Iterable[bytes]) -> tuple[np.ndarray, np.ndarray, int]:
    """(rows ascending, vectors float32 (n, d), the `n` told or 0) of several buffers together."""
    return _unpacked([engine.from_ipc(p) for p in parts])


def _unpacked(tables: list[pa.Table]) -> tuple[np.ndarray, np.ndarray, int]:
    rows = np.concatenate([t["row"].to_numpy() for t in tables])
    order = np.argsort(rows)
    vectors = np.concatenate([_matrix(t, "vector") for t in tables])[order].astype(np.float32)
    return rows[order], vectors, int((tables[0].schema.metadata or {}).get(b"n", b"0"))
