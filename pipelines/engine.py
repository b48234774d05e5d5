"""The Beam side that every job shares: how a run is started, and how tables are read and written inside one.

What flows between steps is Arrow IPC buffers or small descriptions of work, never one Python object per turn. (Slices
of a table pickle their whole parent: emit buffers.) Each job ends in a PCollection of receipts, one per file written;
the launcher publishes the partitions that they make up.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import polars as pl
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import worker_handlers
from tqdm import tqdm

from pipelines.context import Context
from pipelines.errors import LakeError, SayagainError
from pipelines.store import FileEntry, Manifest, Store


def to_ipc(table: pa.Table | pl.DataFrame) -> bytes:
    """An Arrow IPC buffer: what crosses a shuffle."""
    table = table.to_arrow() if isinstance(table, pl.DataFrame) else table
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def from_ipc(buffer: bytes) -> pa.Table:
    return pa.ipc.open_stream(buffer).read_all()


def frame(buffer: bytes) -> pl.DataFrame:
    """The table of an IPC buffer as a frame."""
    return pl.DataFrame(pl.from_arrow(from_ipc(buffer)))


def conform(frame: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    """The frame's columns in the order and types of a contract, extra columns after them. Raises KeyError on a missing one."""
    extra = [c for c in frame.columns if c not in schema.names]
    table = frame.select(*schema.names, *extra).to_arrow()
    fields = [*schema, *(pa.field(c, _plain(table.schema.field(c).type)) for c in extra)]
    return table.cast(pa.schema(fields))


def _plain(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_large_string(kind) or str(kind) == "string_view" else kind


def receipt(table: str, partition: str, entry: FileEntry, **counts: Any) -> dict[str, Any]:
    """What a worker tells the launcher about one file it wrote aside."""
    return {"table": table, "partition": partition, "entry": vars(entry), "counts": counts}


def accounted(what: str, sent: int, arrived: int) -> None:
    """Nothing is lost between steps: raises LakeError when what arrived is not what was sent."""
    if sent != arrived:
        raise LakeError(f"{what}: {sent:,} were sent and {arrived:,} arrived; the runner lost some, nothing was published; run again")


def add_by_locale(counts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Counts by locale of several receipts, added up."""
    total: dict[str, dict[str, int]] = {}
    for c in counts:
        for locale, found in c.get("by_locale", {}).items():
            into = total.setdefault(locale, {})
            for name, n in found.items():
                into[name] = into.get(name, 0) + n
    return {"by_locale": dict(sorted(total.items()))} if total else {}


def beam_options(context: Context, job: str) -> PipelineOptions:
    """Our flags as Beam's own options."""
    o = context.options
    if o.runner == "local":
        # Beam 2.77 flushes the buffers between local workers by a timer that takes no lock against who writes: what is
        # written while it sends is dropped. Without a time limit they are flushed by size, by the writer itself.
        worker_handlers.DATA_BUFFER_TIME_LIMIT_MS = 0
    return PipelineOptions(o.arguments(job, context.store.root), save_main_session=False)


class _KeepReceipts(beam.DoFn):
    def __init__(self, store: Store, path: str):
        self._store, self._path = store, path

    def process(self, receipts: list[dict[str, Any]]) -> Iterable[None]:
        self._store.put(self._path, json.dumps(receipts).encode())
        return ()


def assemble(pipeline: beam.Pipeline, context: Context, name: str, work: Sequence[Any], transform: beam.PTransform, path: str) -> None:
    """The whole graph of a job: work items, spread over workers, through its transform; the receipts are kept under `path`."""
    hints = context.options.hints(name)  # what its workers need, where an engine fits workers to it
    _ = (
        pipeline
        | "work" >> beam.Create(list(work), reshuffle=False)
        | "spread" >> beam.Reshuffle()
        | name >> (transform.with_resource_hints(**hints) if hints else transform)
        | "receipts" >> beam.combiners.ToList()
        | "keep receipts" >> beam.ParDo(_KeepReceipts(context.store, path))
    )


def execute(context: Context, name: str, work: Sequence[Any], transform: beam.PTransform, *, expect: int = 0) -> list[dict[str, Any]]:
    """Run one job's composite transform over its work items and return the receipts of its files.

    `work`: small picklable descriptions, one per unit of work. `expect`: how many files the progress bar waits for.
    """
    attempt = f"{context.attempt}/{name}"
    path = f"_attempts/{attempt}/receipts.json"
    # a worker's error is raised here as well: once is enough
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL if context.options.runner == "local" else logging.ERROR)
    options = beam_options(context, name)
    with _progress(context, name, attempt, expect), _own_errors(), beam.Pipeline(options=options) as pipeline:
        assemble(pipeline, context, name, work, transform, path)
    found = json.loads(context.store.get(path))
    context.store.delete([path])
    key = lambda r: (r["table"], r["partition"], -1 if r["entry"]["bucket"] is None else r["entry"]["bucket"], r["entry"]["path"])  # noqa: E731
    return sorted(found, key=key)


@contextlib.contextmanager
def _own_errors() -> Iterator[None]:
    """An error of ours that a worker raised reaches the user as it was, without the stack traces that the engine prints
    around it; what a worker printed is shown when the run is over, all of it if the error is not ours."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            yield
        sys.stderr.write(printed.getvalue())
    except SayagainError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, SayagainError):
                break
            cause = cause.__cause__ or cause.__context__
        # other runners send the worker's error as text
        found = cause or re.search(r"(?:pipelines\.\w+\.)?(?:LakeError|InputError|UsageError|ModelError): ([^\n]*)", str(error))
        if found is None:
            sys.stderr.write(printed.getvalue())
            raise
        text = str(found) if isinstance(found, BaseException) else found[1]
        raise LakeError(re.sub(r" \[while running '[^']*'\]", "", text)) from None


class _progress:
    """A bar that counts the files written aside so far: it works with every runner."""

    def __init__(self, context: Context, name: str, attempt: str, expect: int):
        self._context, self._attempt = context, attempt
        self._bar = tqdm(
            total=expect or None, desc=name, unit="file", leave=False, delay=1.0, disable=None if not context.options.quiet else True
        )
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._done.wait(1.0):
            self._bar.n = len(self._context.store.list(f"_attempts/{self._attempt}"))
            self._bar.refresh()

    def __enter__(self) -> None:
        if not self._bar.disable:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
        self._bar.close()


@contextlib.contextmanager
def leases(context: Context, partitions: Iterable[str]) -> Iterator[None]:
    """Hold one lease per day, so that days run side by side and no day runs twice."""
    with contextlib.ExitStack() as stack:
        for name in sorted(partitions):
            stack.enter_context(context.store.lease(name))
        yield


def publish(context: Context, name: str, receipts: list[dict[str, Any]], manifests: Iterable[Manifest]) -> None:
    """Publish partitions whose files the receipts name, in the order given."""
    files: dict[tuple[str, str], list[FileEntry]] = {}
    for r in receipts:
        files.setdefault((r["table"], r["partition"]), []).append(FileEntry(**r["entry"]))
    for m in manifests:
        entries = tuple(files.get((m.table, m.partition), ())) + m.files
        made = Manifest(**vars(m) | {"files": entries})
        context.store.publish(f"{context.attempt}/{name}", made)
        size = sum(f.bytes for f in entries)
        context.event("published", job=name, table=m.table, partition=m.partition, rows=made.rows, files=len(entries), bytes=size)
    context.store.clear_attempt(f"{context.attempt}/{name}")
