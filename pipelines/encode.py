"""The Beam side of `embed`. Apart from it, because Beam's inference imports torch, which takes seconds."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import apache_beam as beam
import numpy as np
import polars as pl
import pyarrow as pa
from apache_beam.ml.inference.base import ModelHandler, RunInference

from pipelines import aside, engine, models, shards
from pipelines.embed import READS
from pipelines.shards import Shard
from pipelines.store import FileEntry, Store
from rewrite.contracts import BUCKETS
from rewrite.text import as_strings

if TYPE_CHECKING:
    from rewrite.encoders import Encoder

encoder = lru_cache(maxsize=3)(models.load_encoder)
"""Each encoder once per process: the launcher asks it for its fingerprint, local workers for vectors."""


class Texts(beam.DoFn):
    """Votes of whole users over the window -> who said what: (bucket of the key, where [locale, key, users, linked] lies aside)."""

    def __init__(self, store: Store, attempt: str):
        self._store, self._attempt = store, attempt

    def process(self, shard: Shard) -> Iterable[tuple[str, bytes]]:
        votes = shards.read(self._store, shard, READS["votes"], categories=True).lazy()
        link = pl.col("kind") != "outcome"
        said = pl.concat(
            [
                votes.filter(~link).select("user_key", "locale", key="source", linked=pl.lit(False)),
                votes.filter(link).select("user_key", "locale", key="source", linked=pl.lit(True)),
                votes.filter(link).select("user_key", "locale", key="target", linked=pl.lit(True)),
            ]
        )
        texts = as_strings(said.group_by("locale", "key").agg(users=pl.col("user_key").n_unique(), linked=pl.col("linked").any()).collect())
        at = pl.Series("at", [zlib.crc32(k.encode()) % BUCKETS for k in texts["key"]], dtype=pl.Int64)
        parts = texts.with_columns(at).partition_by("at", as_dict=True, include_key=False)
        yield from aside.put(self._store, self._attempt, [(str(bucket), engine.to_ipc(part)) for (bucket,), part in parts.items()])


class Missing(beam.DoFn):
    """All that was said with keys of one bucket -> chunks of texts that no vector is kept of yet, by length."""

    def __init__(self, store: Store, k: int, chunk: int, cached: dict[int, tuple[FileEntry, ...]], locales: tuple[str, ...] | None):
        self._store, self._k, self._chunk, self._cached, self._locales = store, k, chunk, cached, locales

    def process(self, element: tuple[str, Iterable[bytes]]) -> Iterable[tuple[int, bytes]]:
        bucket, places = int(element[0]), element[1]
        texts = pl.concat([engine.frame(aside.get(self._store, place)) for place in places])
        texts = texts.group_by("locale", "key").agg(pl.col("users").sum(), pl.col("linked").any())
        if self._locales is not None:
            texts = texts.filter(pl.col("locale").is_in(self._locales))
        wanted = texts.filter((pl.col("users") >= self._k) | pl.col("linked")).select("key").unique()
        for entry in self._cached.get(bucket, ()):
            have = self._store.frame(entry, ["key"])
            wanted = wanted.join(have, on="key", how="anti")
        wanted = wanted.sort(pl.col("key").str.len_chars(), "key")
        for start in range(0, wanted.height, self._chunk):
            yield bucket, engine.to_ipc(wanted.slice(start, self._chunk))


class Encode(ModelHandler[tuple[int, bytes], tuple[int, bytes], "Encoder"]):
    """Chunks of texts -> chunks of float16 vectors. A chunk is an element, so that the encoder sees whole batches.

    `processes`: the model is one for all processes of a worker, which reach it through a socket; else its process has it to itself.
    """

    def __init__(self, spec: str, device: str, *, processes: bool):
        super().__init__(max_batch_size=1, min_batch_size=1, large_model=processes)
        self._spec, self._device = spec, device

    def load_model(self) -> Encoder:
        return encoder(self._spec, self._device)

    def run_inference(
        self, batch: Sequence[tuple[int, bytes]], model: Encoder, inference_args: dict[str, Any] | None = None
    ) -> Iterator[tuple[int, bytes]]:
        for bucket, buffer in batch:
            keys = engine.from_ipc(buffer)["key"]
            vectors = model.encode(keys.to_pylist()).astype(np.float16)
            flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float16()), vectors.shape[1])
            yield bucket, engine.to_ipc(pa.table({"key": keys.cast(pa.string()), "vector": flat}))

    def get_num_bytes(self, batch: Sequence[tuple[int, bytes]]) -> int:
        return sum(len(b) for _, b in batch)

    def get_metrics_namespace(self) -> str:
        return "sayagain_embed"


class Keep(beam.DoFn):
    """Chunks of vectors of one bucket -> one file; emits its receipt."""

    def __init__(self, store: Store, attempt: str, partition: str):
        self._store, self._attempt, self._partition = store, attempt, partition

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterable[dict[str, Any]]:
        bucket, buffers = element
        table = pa.concat_tables([engine.from_ipc(b) for b in buffers]).sort_by("key").combine_chunks()
        entry = self._store.attempt(self._attempt, "embeddings", self._partition, table, bucket)
        yield engine.receipt("embeddings", self._partition, entry)


class Embed(beam.PTransform):
    """Shards of votes, one per bucket of users -> receipts of new vectors."""

    def __init__(
        self,
        store: Store,
        attempt: str,
        partition: str,
        k: int,
        chunk: int,
        spec: str,
        device: str,
        cached: dict[int, tuple[FileEntry, ...]],
        locales: tuple[str, ...] | None = None,
        *,
        processes: bool,
    ):
        super().__init__()
        self._texts, self._missing = Texts(store, attempt), Missing(store, k, chunk, cached, locales)
        self._handler, self._keep = Encode(spec, device, processes=processes), Keep(store, attempt, partition)

    def expand(self, work: beam.PCollection[Shard]) -> beam.PCollection[dict[str, Any]]:
        return (
            work
            | "texts" >> beam.ParDo(self._texts)
            | "by key" >> beam.GroupByKey()
            | "missing" >> beam.ParDo(self._missing)
            | "spread chunks" >> beam.Reshuffle()
            | "encode" >> RunInference(self._handler)
            | "by bucket" >> beam.GroupByKey()
            | "keep" >> beam.ParDo(self._keep)
        )
