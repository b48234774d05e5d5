"""ingest: logs into the lake. Maps columns, scrubs personal data, replaces ids, cuts sessions, rejects bad rows.

Files are read in shards; rows meet again by date and by user (put aside meanwhile, see `aside`), where duplicates and conflicts
are settled together with what earlier runs left of the same day. So a day is the same whether its files came at once or one by one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache
from typing import Any

import apache_beam as beam
import polars as pl
import pyarrow as pa

from pipelines import aside, engine, gone, inputs, sources
from pipelines.context import KEY_ENV, Context
from pipelines.convert import CARRIED, convert, rules_of
from pipelines.errors import InputError, LakeError, NoInput, SayagainError, UsageError
from pipelines.inputs import UNDATED, Inputs, span
from pipelines.plan import Plan, Todo
from pipelines.shards import empty, partition
from pipelines.sources import Shard, Source
from pipelines.store import FileEntry, Manifest, Store
from rewrite import turns as t
from rewrite.contracts import BUCKETS, LOG, REJECTS, TURNS
from rewrite.text import KEY_VERSION

VERSION = f"3.{KEY_VERSION}"
SCHEMAS = {"turns": TURNS, "rejects": REJECTS}
READS = {"logs": LOG.names}
WRITES = {name: schema.names for name, schema in SCHEMAS.items()}


# the Beam side


@dataclass(frozen=True)
class Job:
    """What the workers need to know; the key comes by environment."""

    store: Store
    attempt: str
    rules: t.Rules
    given: frozenset[str]  # files whose rows replace what the lake has of them
    gap: float
    rows: int  # that a worker holds at a time
    groups: int  # per date; a group is the buckets that agree modulo this
    start: date | None = None
    end: date | None = None
    left_out: gone.Gone | None = None
    key_secret: str = ""  # the name of a secret, where the environment has no key


@dataclass(frozen=True)
class Touch:
    """Work without rows: a date that a given file was in before, to be merged again even if it no longer is."""

    partition: str


class Ingest(beam.PTransform):
    """Shards (or dates to touch) -> one receipt per file written aside, plus receipts `read` and `merged` with counts."""

    def __init__(self, job: Job):
        super().__init__()
        self.job = job

    def expand(self, work: beam.PCollection) -> beam.PCollection:
        read = beam.ParDo(_Read(self.job)).with_output_types(tuple[str, bytes])  # a key that every runner codes the same way
        rows, receipts = work | "read" >> read.with_outputs("receipts", main="rows")
        merged = rows | "users meet" >> beam.GroupByKey() | "merge" >> beam.ParDo(_Merge(self.job))
        return (merged, receipts) | beam.Flatten()


_NO_FILE = FileEntry("", 0, 0, "")


class _Read(beam.DoFn):
    def __init__(self, job: Job):
        self.job = job

    def process(self, work: Shard | Touch) -> Iterator[Any]:
        job = self.job
        if isinstance(work, Touch):
            for g in range(job.groups):
                yield f"{work.partition}/{g}", b""
            return
        counts: Counter[str] = Counter()
        scrubbed: dict[str, Counter[str]] = {}
        problem = ""
        try:
            secret = _secret(job.key_secret)
            for block in sources.read(work, job.rules, job.rows):
                rows = convert(block, work.source, job.rules, secret, job.start, job.end, job.left_out)
                counts += rows.counts
                for day, found in rows.scrubbed.items():
                    scrubbed.setdefault(day, Counter()).update(found)
                parts = []
                for kind, frame in ((b"t", rows.turns), (b"r", rows.rejects)):
                    keyed = frame.with_columns(group=pl.col("bucket") % job.groups)
                    for (day, group), part in keyed.partition_by("partition", "group", as_dict=True, include_key=False).items():
                        parts.append((f"{day}/{group}", kind + engine.to_ipc(part)))
                yield from aside.put(job.store, job.attempt, parts)
        except SayagainError as error:  # told to the launcher: an exception would reach it as a worker's stack trace
            problem = str(error)
        receipt = engine.receipt("read", work.source.path, _NO_FILE, counts=dict(counts), scrubbed=scrubbed, problem=problem)
        yield beam.pvalue.TaggedOutput("receipts", receipt)


@lru_cache(maxsize=1)
def _fetched(name: str) -> str:
    """The key from Google's Secret Manager, once per worker."""
    from apache_beam.transforms.util import GcpSecret

    return str(GcpSecret(name).get_secret_bytes().decode().strip())


def _secret(name: str = "") -> bytes:
    try:
        return bytes.fromhex(os.environ.get(KEY_ENV) or _fetched(name) if name else os.environ[KEY_ENV])
    except (KeyError, ValueError):
        raise UsageError(f"a worker has no user key: give its environment {KEY_ENV} from a secret manager") from None


class _Merge(beam.DoFn):
    def __init__(self, job: Job):
        self.job = job

    def process(self, element: tuple[str, Iterable[bytes]]) -> Iterator[dict[str, Any]]:
        key, pieces = element
        day, _, group = key.partition("/")
        job, buckets = self.job, range(int(group), BUCKETS, self.job.groups)
        read: dict[bytes, list[pl.DataFrame]] = {b"t": [], b"r": []}
        for where in pieces:
            if where:
                piece = aside.get(job.store, where)
                read[piece[:1]].append(engine.frame(piece[1:]))
        frames: dict[bytes, list[pl.DataFrame]] = {}
        base = {}
        for kind, (table, blank) in _BLANK.items():
            manifest = job.store.manifest(table, day)
            base[table] = _mark(manifest)
            fresh = [_shaped(pl.concat(read[kind]).with_columns(fresh=pl.lit(True)), blank)] if read[kind] else []
            frames[kind] = [blank, *fresh]
            for f in manifest.files if manifest else ():
                if f.bucket in buckets:
                    old = job.store.frame(f)
                    old = old.with_columns(bucket=pl.lit(f.bucket, pl.Int32), fresh=pl.lit(False)).filter(~pl.col("input").is_in(job.given))
                    frames[kind].append(blank if old.is_empty() else _shaped(old, blank))
        turns, rejects = (pl.concat(frames[k]) for k in (b"t", b"r"))
        turns, rejects, duplicates = t.merge(turns, rejects)
        turns = t.cut_sessions(turns, job.gap)
        for table, frame in (("turns", turns), ("rejects", rejects)):
            extra = ["row_hash"] if table == "rejects" else []
            for (bucket,), part in sorted(frame.partition_by("bucket", as_dict=True, maintain_order=True).items()):
                data = engine.conform(part.select(*WRITES[table], *extra), SCHEMAS[table])
                yield engine.receipt(table, day, job.store.attempt(job.attempt, table, day, data, bucket))
        found: dict[str, Counter[str]] = {}
        for name, n in duplicates.items():
            found.setdefault(name, Counter())["duplicates"] += n
        for name, n in turns.filter("fresh").group_by("input").len().iter_rows():
            found.setdefault(name, Counter())["turns"] += n
        for name, reason, n in rejects.filter("fresh").group_by("input", "reason").len().iter_rows():
            found.setdefault(name, Counter())[f"reject:{reason}"] += n
        yield engine.receipt("merged", day, _NO_FILE, buckets=list(buckets), base=base, inputs={k: dict(v) for k, v in found.items()})


def _mark(manifest: Manifest | None) -> str:
    """What a partition was when it was merged with; publishing checks that it still is."""
    return hashlib.sha256(manifest.to_json()).hexdigest()[:16] if manifest else ""


def _blank(schema: pa.Schema, more: dict[str, Any]) -> pl.DataFrame:
    return empty(schema).with_columns(pl.lit(None, kind).alias(name) for name, kind in more.items())


_BLANK = {
    b"t": ("turns", _blank(TURNS, {"row": pl.Int64, "bucket": pl.Int32, "fresh": pl.Boolean}).drop("session")),
    b"r": ("rejects", _blank(REJECTS, {"row_hash": pl.String, "bucket": pl.Int32, "fresh": pl.Boolean})),
}


def _shaped(frame: pl.DataFrame, like: pl.DataFrame) -> pl.DataFrame:
    """The columns and types of `like`; a column that is not there (the row number of a stored turn) is null."""
    lacking = [pl.lit(None).alias(n) for n in like.columns if n not in frame.columns]
    return frame.with_columns(lacking).select(like.columns).cast(like.schema)


# the launcher's side


def plan(context: Context) -> Plan:
    """Each file that would be read, and why."""
    made = inputs.find(context, VERSION)
    todo = [Todo("turns", path, made.why[path]) for path in sorted(made.todo)]
    return Plan(todo, "" if todo else _all_current(made))


def _all_current(made: Inputs) -> str:
    return f"all {len(made.why)} file(s) are in the lake already"


def preview(context: Context, n: int = 5) -> pl.DataFrame:
    """The first good rows of the log, mapped and scrubbed, at most `n`; writes nothing."""
    rules, (start, end) = rules_of(context.config), span(context)
    try:
        secret = context.user_key()
    except (SayagainError, FileNotFoundError):
        secret = bytes(32)  # no lake yet: the keys shown are not those it will have
    out: list[pl.DataFrame] = []
    for f in sources.find(inputs.logs(context), start, end)[0]:
        source = sources.inspect(f, rules)
        for shard in sources.shards(source, 1):
            for block in sources.read(shard, rules, 1_000):
                rows = convert(block, source, rules, secret, start, end).turns
                out.append(rows.select(n for n in CARRIED if n in rows.columns).head(n - sum(map(len, out))))
                if sum(map(len, out)) >= n:
                    return pl.concat(out)
    return pl.concat(out) if out else empty(TURNS).drop("session")


def run(context: Context, report: Any) -> None:
    """Read what is new and publish the days it touches. In the counts: turns + rejects + duplicates = rows."""
    start, end = span(context)
    rules = rules_of(context.config)
    with engine.leases(context, _lease_names(start, end)):
        try:
            made = inputs.find(context, VERSION)
        except NoInput as error:
            if not getattr(context.options, "if_there", False):
                raise
            report.skipped = f"{str(error).split('; ', maxsplit=1)[0]}: what the lake has of it stays as it is"
            return
        files = {path: sources.inspect(f, rules) for path, f in made.todo.items()}
        made.notes += _unmapped(files, rules)
        rows, held = sum(f.rows for f in files.values()), context.config.run.shard_turns
        if not files:
            report.skipped = _all_current(made)
        elif not rows and not made.touch:
            report.skipped = f"nothing to do: {len(files)} file(s) without a row"
        if report.skipped:
            inputs.note(context, VERSION, made, {}, {})
            return
        # few rows of a date: one group, whatever its buckets; many: as many groups as keep one small even if all is one date
        most = rows if any(f.day is None for f in files.values()) else max(_by_day(files.values()).values(), default=0)
        groups = next(g for g in (1, 2, 4, 8, BUCKETS) if g * held >= most or g == BUCKETS)
        attempt = f"{context.attempt}/ingest"
        job = Job(
            context.store,
            attempt,
            rules,
            frozenset(files),
            context.config.sessions.gap,
            held,
            groups,
            start,
            end,
            gone.read(context.store),
            context.options.user_key_secret,
        )
        work = [*(s for f in files.values() for s in sources.shards(f, held)), *(Touch(p) for p in sorted(made.touch))]
        os.environ[KEY_ENV] = context.user_key().hex()
        receipts = engine.execute(context, "ingest", work, Ingest(job))
        if moved := sources.changed(files.values()):
            context.store.clear_attempt(attempt)
            more = f" and {len(moved) - 1} more" if len(moved) > 1 else ""
            raise InputError(f"{moved[0]}{more}: changed while it was read; nothing was published, run again when it is whole")
        problems = [r["counts"]["problem"] for r in receipts if r["table"] == "read" and r["counts"]["problem"]]
        if problems:
            context.store.clear_attempt(attempt)
            raise InputError("\n".join(dict.fromkeys(problems)))
        per_input = _counts(receipts)
        for path, days in sorted(per_input.items()):
            n = _total(days)
            kept = n["turns"] + n["duplicates"] + sum(m for name, m in n.items() if name.startswith("reject:"))
            engine.accounted(f"rows of {path}", n["read"] - n["outside"], kept)
        inputs_of = _publish(context, made, receipts)
        inputs.note(context, VERSION, made, per_input, inputs_of)
        report.counts = _summary(per_input, made, len(set(inputs_of) - {UNDATED}))
    for note in report.counts["notes"]:
        context.say(f"  note: {note}")


def _by_day(files: Iterable[Source]) -> Counter[date | None]:
    rows: Counter[date | None] = Counter()
    for f in files:
        rows[f.day] += f.rows
    return rows


def _unmapped(files: dict[str, Source], rules: t.Rules) -> list[str]:
    """Mappings of optional columns that some files have not: often a slip of the pen."""
    notes = []
    for name, column in rules.columns.items():
        lacking = [p for p, f in files.items() if f.kind == "parquet" and column.source not in f.columns]
        if lacking:
            notes.append(f"log.columns.{name}: {len(lacking)} file(s) have no column {column.source!r}, such as {lacking[0]}")
    return notes


_WARNINGS = {"naive_timestamp": "timestamp without a time zone, taken as UTC"}


def _lease_names(start: date | None, end: date | None) -> list[str]:
    """The days of a range one by one, so that days run side by side; without a range the whole of ingest."""
    return [partition(start + timedelta(n)) for n in range((end - start).days + 1)] if start and end else ["ingest"]


Counts = dict[str, dict[str, Counter[str]]]  # input -> partition -> counts; the partition "" has what is known of the whole file alone


def _counts(receipts: list[dict[str, Any]]) -> Counts:
    """What was read of each input, and what it became."""
    counts: Counts = {}

    def add(path: str, day: str, found: dict[str, int]) -> None:
        counts.setdefault(path, {}).setdefault(day, Counter()).update(found)

    for r in receipts:
        if r["table"] == "read":
            add(r["partition"], "", r["counts"]["counts"])
            for day, found in r["counts"]["scrubbed"].items():
                add(r["partition"], day, found)
        elif r["table"] == "merged":
            for path, found in r["counts"]["inputs"].items():
                add(path, r["partition"], found)
    return counts


def _total(days: dict[str, Counter[str]]) -> Counter[str]:
    return sum(days.values(), Counter())


def _summary(per_input: Counts, made: Inputs, days: int) -> dict[str, Any]:
    total: Counter[str] = sum(map(_total, per_input.values()), Counter())

    def part(prefix: str) -> dict[str, int]:
        return {k.removeprefix(prefix): n for k, n in sorted(total.items()) if k.startswith(prefix)}

    reasons, warnings, current = part("reject:"), part("warning:"), len(made.why) - len(made.todo)
    lost = [f"{n:,} value(s): {_WARNINGS.get(k) or k.removeprefix('bad_') + ' could not be read and is null'}" for k, n in warnings.items()]
    counts: dict[str, Any] = {
        "files": len(made.todo),
        "days": days,
        "rows": total["read"] - total["outside"],
        "turns": total["turns"],
        "rejects": sum(reasons.values()),
        "duplicates": total["duplicates"],
    }
    counts |= {k: n for k, n in (("outside", total["outside"]), ("current", current)) if n}
    return counts | {"reasons": reasons, "warnings": warnings, "scrubbed": part("scrubbed:"), "notes": made.notes + lost}


def _publish(context: Context, made: Inputs, receipts: list[dict[str, Any]]) -> dict[str, set[str]]:
    """Publish every partition that was merged. Returns partition -> the given inputs with rows there."""
    merged: dict[str, list[dict[str, Any]]] = {}
    for r in receipts:
        if r["table"] == "merged":
            merged.setdefault(r["partition"], []).append(r["counts"])
    with_files = {(r["table"], r["partition"]) for r in receipts if r["entry"]["path"]}
    print_ = inputs.fingerprint(context.config, VERSION)
    manifests, inputs_of = [], {}
    for day, groups in sorted(merged.items()):
        covered = {b for g in groups for b in g["buckets"]}
        inputs_of[day] = {path for g in groups for path in g["inputs"]}
        for table in WRITES:
            old = context.store.manifest(table, day)
            if any(g["base"][table] != _mark(old) for g in groups):
                raise LakeError(f"{context.store.url(f'{table}/{day}')}: another run published it meanwhile; run again")
            if old is None and (table, day) not in with_files:
                continue
            stamps = {p: s for p, s in (old.inputs if old else {}).items() if p not in made.todo}
            stamps |= {p: made.todo[p].stamp for p in inputs_of[day] if p in made.todo}
            stamp = hashlib.sha256(json.dumps([print_, sorted(stamps.items())]).encode()).hexdigest()[:16]
            kept = tuple(f for f in (old.files if old else ()) if f.bucket not in covered)
            manifests.append(Manifest(table, day, "ingest", stamp, kept, {}, dict(sorted(stamps.items()))))
    # turns last: a day's turns stand only where its rejects do
    manifests.sort(key=lambda m: (m.partition, m.table))
    engine.publish(context, "ingest", receipts, manifests)
    return inputs_of
