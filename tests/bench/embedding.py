"""Throughput of the encoder inside the steps of `embed` behind the votes (missing texts, encode, keep), beside a bare `encode` of the same texts in the same run.

python tests/bench/embedding.py 5000
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import polars as pl
from apache_beam.ml.inference.base import RunInference
from goals import wordings  # beside this file

from pipelines import aside, encode, engine, models
from pipelines.store import Store

CHUNK = 2048
"""As `embedding.chunk` has it."""


def clocked(work: Callable[[], Any]) -> tuple[float, float]:
    """(seconds, processor seconds)."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu


def run(n: int, spec: str) -> str:
    """One row of the table."""
    texts = wordings(n)[0]
    encoder = encode.encoder(spec, "auto")
    encoder.encode(texts[:64])  # whatever is built once
    frame = pl.DataFrame({"locale": ["en-US"] * n, "key": texts, "users": [9] * n, "linked": [False] * n})
    parts = [(str(i % 16), engine.to_ipc(part)) for i, part in enumerate(frame.iter_slices(-(-n // 16)))]
    with tempfile.TemporaryDirectory() as folder:
        store = Store(str(Path(folder) / "lake"))
        said = list(aside.put(store, "bench", parts))

        def job() -> None:
            with beam.Pipeline() as p:
                made = (
                    p | beam.Create(said) | "all of a bucket" >> beam.GroupByKey() | beam.ParDo(encode.Missing(store, 1, CHUNK, {}, None))
                )
                vectors = made | beam.Reshuffle() | RunInference(encode.Encode(spec, "auto", processes=False))
                _ = vectors | beam.GroupByKey() | beam.ParDo(encode.Keep(store, "bench", "model=bench"))

        whole, whole_cpu = clocked(job)
    bare, bare_cpu = clocked(lambda: encoder.encode(sorted(texts, key=len)))
    return f"| {spec} | {n:,} | {whole:.1f} | {whole_cpu:.1f} | {bare:.1f} | {bare_cpu:.1f} | {bare / whole:.2f} | {bare_cpu / whole_cpu:.2f} |"


if __name__ == "__main__":
    print("| model | texts | embed, s | CPU s | bare encode, s | CPU s | throughput of embed / bare | by CPU |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for spec in (models.FAST, models.WIDE):
        print(run(int(sys.argv[1]) if len(sys.argv) > 1 else 5_000, spec), flush=True)
