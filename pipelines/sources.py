"""Log files: which ones a run reads, what each is, and their rows as plain Polars blocks.

Paths go through Beam's file systems, so that a folder, gs:// and s3:// are the same. What a file is is decided by its
first bytes; a name that says otherwise is an error that a person can act on.
"""

from __future__ import annotations

import glob
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from typing import IO, Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.errors import InputError, NoInput
from rewrite import casts
from rewrite.contracts import LOG_REQUIRED
from rewrite.turns import Rules, missing_columns

BLOCK_BYTES = 8 << 20  # JSON Lines are parsed so much at a time
HEAD_BYTES = 64 << 10  # of which the shape of a JSON Lines file is judged
NAMES = re.compile(r"\.(parquet|pq|(jsonl|ndjson|json)(\.gz|\.gzip|\.zst|\.zstd)?)$", re.IGNORECASE)
BROKEN = (pa.ArrowException, OSError, EOFError, zlib.error, zstandard.ZstdError)  # what a damaged file raises when it is read

_PARQUET, _GZIP, _ZSTD, _BOM = b"PAR1", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xef\xbb\xbf"
_OTHER = {
    b"PK\x03\x04": "a zip archive",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"ARROW1": "an Arrow IPC file",
    b"ORC": "ORC",
    b"Obj\x01": "Avro",
    b"SQLite": "an SQLite database",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"%PDF": "a PDF",
    b"\x89PNG": "a PNG picture",
}


@dataclass(frozen=True)
class Source:
    """One log file."""

    path: str
    size: int
    modified: float
    day: date | None = None  # of a {date} pattern
    kind: str = ""  # parquet or jsonl, once inspected
    columns: tuple[str, ...] = ()
    groups: tuple[int, ...] = ()  # rows per Parquet row group
    rows: int = 0  # JSON Lines: an estimate

    @property
    def stamp(self) -> str:
        """Changes when the file does."""
        return f"{self.size}:{self.modified:.6f}"


@dataclass(frozen=True)
class Shard:
    """What one worker reads: some row groups of a Parquet file, or a JSON Lines file."""

    source: Source
    groups: tuple[int, ...] = ()
    first_row: int = 0


@dataclass(frozen=True)
class Block:
    """Rows that were read: `rows` has contract columns of plain types and `row`; `broken` has `row` and `line`.

    `lost`: per column, values of a type that has no plain form (a list as an intent), now null.
    """

    rows: pl.DataFrame
    broken: pl.DataFrame
    lost: dict[str, int] = field(default_factory=dict)


# which files


def find(logs: tuple[str, ...], start: date | None = None, end: date | None = None) -> tuple[list[Source], list[str]]:
    """The files that paths, folders, globs and {date} patterns name, sorted, and notes about what was passed over.

    Raises NoInput when a path names nothing, or every day of a {date} pattern is missing.
    """
    endpoint = os.environ.get("AWS_ENDPOINT_URL")  # as in engine_options: workers get it with the job, the launcher here
    FileSystems.set_options(PipelineOptions([f"--s3_endpoint_url={endpoint}"] if endpoint else []))
    found: dict[str, Source] = {}
    notes: list[str] = []
    for spec in logs:
        days: list[date | None] = [None]
        if "{date}" in spec and start and end:
            days = [start + timedelta(n) for n in range((end - start).days + 1)]
        missing = []
        for day in days:
            files, skipped = _match(spec.replace("{date}", str(day)) if day else spec, day)
            if not files:
                missing.append(str(day) if day else spec)
            if skipped:
                notes.append(f"{spec}: {skipped} file(s) passed over: not named .parquet, .pq, .jsonl, .ndjson or .json (.gz, .zst)")
            for f in files:
                found.setdefault(f.path, f)
        if len(missing) == len(days):
            span = f"{start}" if len(days) == 1 else f"any day from {start} to {end}"
            what = f"no file for {span}" if days[0] else "no file there"
            raise NoInput(f"--logs {spec}: {what}; name Parquet or JSON Lines files, a folder, a glob (quoted) or a {{date}} pattern")
        if missing:
            notes.append(f"{spec}: no file for {len(missing)} of {len(days)} days: {', '.join(missing[:5])}{' ...' * (len(missing) > 5)}")
    return [found[p] for p in sorted(found)], notes


def _match(spec: str, day: date | None) -> tuple[list[Source], int]:
    """Files of one path, folder or glob, and how many files of a folder have a name that is no log's."""
    local = "://" not in spec
    if local:
        spec = os.path.abspath(os.path.expanduser(spec))  # noqa: PTH100, PTH111 (a Path would touch globs)
    exact = local and os.path.exists(spec)  # noqa: PTH110
    magic = None if exact else re.search(r"[*?\[]", spec)
    base = spec[: magic.start()].rpartition("/")[0] if magic else spec
    pattern = glob.escape(spec) if exact else spec
    try:
        matched = FileSystems.match([pattern, pattern.rstrip("/") + "/**"])
    except BeamIOError as error:
        raise InputError(f"--logs {spec}: cannot be listed: {error}") from None
    files, skipped = [], 0
    for i, result in enumerate(matched):
        for m in result.metadata_list:
            if local and os.path.isdir(m.path):  # noqa: PTH112
                continue
            inner = m.path.removeprefix(base).split("/")
            if m.path != spec and any(part.startswith((".", "_")) for part in inner if part):
                continue
            if i == 1 and not NAMES.search(m.path):
                skipped += 1
                continue
            files.append(Source(m.path, m.size_in_bytes, m.last_updated_in_seconds or 0.0, day))
    return files, skipped


def changed(files: Iterable[Source]) -> list[str]:
    """Those of the files that are gone, or not what they were when they were found."""
    was = {f.path: f.stamp for f in files}
    try:
        matched = FileSystems.match([glob.escape(p) if "://" not in p else p for p in was])
    except BeamIOError:
        return sorted(was)
    now = {m.path: Source(m.path, m.size_in_bytes, m.last_updated_in_seconds or 0.0).stamp for r in matched for m in r.metadata_list}
    return sorted(p for p, stamp in was.items() if now.get(p) != stamp)


# what each is


def _open(path: str) -> IO[bytes]:
    return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)


def inspect(source: Source, rules: Rules) -> Source:
    """The file with its kind, columns and number of rows. Raises InputError when it is not what it claims, or a column is missing."""
    path = source.path
    try:
        with _open(path) as f:
            head = f.read(16)
    except (OSError, BeamIOError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    claims = (NAMES.search(path) or [""])[0].lower().lstrip(".")
    is_parquet = head.startswith(_PARQUET)
    if claims in ("parquet", "pq") and not is_parquet:
        what = f"it begins with {head[:4]!r}, not {_PARQUET!r}" if head else "it is empty (0 bytes)"
        raise InputError(f"{path}: named as Parquet, but {what}; write it again, or give it the name of what it is (.jsonl, .jsonl.gz)")
    if claims.startswith(("json", "ndjson")) and is_parquet:
        raise InputError(f"{path}: named as JSON Lines, but it is Parquet; name it .parquet")
    return _inspect_parquet(source, rules) if is_parquet else _inspect_json(source, rules, head)


def _inspect_parquet(source: Source, rules: Rules) -> Source:
    path = source.path
    try:
        with _open(path) as f, pq.ParquetFile(f) as parquet:
            meta, schema = parquet.metadata, parquet.schema_arrow
            groups = tuple(meta.row_group(i).num_rows for i in range(meta.num_row_groups))
    except BROKEN as error:
        raise InputError(f"{path}: begins like Parquet but cannot be read as such (cut off?): {error}") from None
    problem = missing_columns(schema.names, rules)
    if problem:
        raise InputError(f"{path}: {problem}")
    for name in LOG_REQUIRED:
        if pa.types.is_nested(schema.field(rules.source(name)).type):
            raise InputError(f"{path}: column {rules.source(name)} is {schema.field(rules.source(name)).type}; {name} takes single values")
    kind = schema.field(rules.source("timestamp")).type
    if (pa.types.is_integer(kind) or pa.types.is_floating(kind)) and not rules.timestamp_unit:
        raise InputError(_no_unit(path, rules.source("timestamp"), str(kind)))
    return replace(source, kind="parquet", columns=tuple(schema.names), groups=groups, rows=sum(groups))


def _no_unit(path: str, column: str, kind: str) -> str:
    return (
        f"{path}: column {column} holds numbers ({kind}), and their unit is not known; "
        'say it in the configuration:\n[log]\ntimestamp_unit = "s"  # or "ms", "us", "ns"'
    )


def _inspect_json(source: Source, rules: Rules, magic: bytes) -> Source:
    path = source.path
    other = next((name for start, name in _OTHER.items() if magic.startswith(start)), None)
    if other:
        raise InputError(f"{path}: neither Parquet nor JSON Lines but {other}; convert it to one of them (UTF-8)")
    try:
        with _open(path) as f:
            lines = _decoded(f, magic).readlines(HEAD_BYTES)
    except BROKEN as error:
        raise InputError(f"{path}: cannot be decompressed: {error}") from None
    lines = [line for line in (*(first.removeprefix(_BOM) for first in lines[:1]), *lines[1:]) if line.strip()]
    if not lines:
        return replace(source, kind="jsonl")
    parsed = [_parse(line)[0] for line in lines]
    objects = [p for p in parsed if p is not None]
    if not objects:
        first = lines[0][:80].decode("utf-8", "replace").strip()
        hint = "it is one JSON array: write one object a line, such as with `jq -c '.[]'`" if first.startswith("[") else _shape(lines)
        raise InputError(f"{path}: not JSON Lines: none of its first {len(lines)} line(s) is a JSON object; {hint}")
    columns = tuple(dict.fromkeys(name for o in objects for name in o))
    problem = missing_columns(columns, rules)
    if problem:
        raise InputError(f"{path}: {problem}")
    stamps = [o[rules.source("timestamp")] for o in objects if o.get(rules.source("timestamp")) is not None]
    if stamps and not rules.timestamp_unit and all(isinstance(s, (int, float)) and not isinstance(s, bool) for s in stamps):
        raise InputError(_no_unit(path, rules.source("timestamp"), type(stamps[0]).__name__))
    unpacked = 6 if magic.startswith((_GZIP, _ZSTD)) else 1
    rows = max(1, source.size * unpacked * len(lines) // max(1, sum(map(len, lines))))
    return replace(source, kind="jsonl", columns=columns, rows=rows)


def _shape(lines: list[bytes]) -> str:
    if lines[0].strip() in (b"{", b"[") or lines[0].lstrip().startswith(b"{"):
        return "an object has to stand on one line, such as `jq -c .` writes it"
    return "write one JSON object a line, or Parquet"


def shards(source: Source, rows: int) -> list[Shard]:
    """Units of work: row groups of about `rows` rows together, or the whole file."""
    if source.kind != "parquet":
        return [Shard(source)]
    out: list[Shard] = []
    chosen: list[int] = []
    first = start = 0
    for i, n in enumerate(source.groups):
        if chosen and first + n - start > rows:
            out.append(Shard(source, tuple(chosen), start))
            chosen, start = [], first
        chosen.append(i)
        first += n
    return [*out, Shard(source, tuple(chosen), start)] if chosen else out


# their rows


def read(shard: Shard, rules: Rules, rows: int) -> Iterator[Block]:
    """The shard's rows, about `rows` at a time, only the columns that are needed. Raises InputError on a damaged file."""
    try:
        yield from (_read_parquet if shard.source.kind == "parquet" else _read_json)(shard, rules, rows)
    except BROKEN as error:
        raise InputError(f"{shard.source.path}: damaged: {error}; write it again, or leave it out") from None


def _read_parquet(shard: Shard, rules: Rules, rows: int) -> Iterator[Block]:
    wanted = {name: src for name, src in rules.sources().items() if src in shard.source.columns}
    row = shard.first_row
    with _open(shard.source.path) as f, pq.ParquetFile(f) as parquet:
        columns = sorted(set(wanted.values()))
        for batch in parquet.iter_batches(batch_size=rows, row_groups=list(shard.groups), columns=columns):
            table = pa.Table.from_batches([batch])
            series = [casts.from_arrow(table[src], as_json=name == "slots").alias(name) for name, src in wanted.items()]
            numbers = pl.int_range(row, row + table.num_rows, dtype=pl.Int64, eager=True).alias("row")
            lost = {s.name: s.null_count() - table[wanted[s.name]].null_count for s in series}
            yield Block(pl.DataFrame([numbers, *series]), _broken([]), {k: n for k, n in lost.items() if n > 0})
            row += table.num_rows


def _read_json(shard: Shard, rules: Rules, rows: int) -> Iterator[Block]:
    wanted = rules.sources()
    number = -1
    with _open(shard.source.path) as raw:
        magic = raw.read(4)
        raw.seek(0)
        stream = _decoded(raw, magic)
        while lines := stream.readlines(min(BLOCK_BYTES, 400 * rows)):
            objects, numbers, broken = [], [], []
            for raw_line in lines:
                number += 1
                line = raw_line.removeprefix(_BOM) if number == 0 else raw_line
                if not line.strip():
                    continue
                parsed, problem = _parse(line)
                if parsed is None:
                    broken.append((number, f"{problem}: {_masked(line, wanted)}"))
                else:
                    objects.append(parsed)
                    numbers.append(number)
            series, lost = [pl.Series("row", numbers, pl.Int64)], {}
            for name, src in wanted.items():
                values = [o.get(src) for o in objects]
                series.append(casts.from_values(values, as_json=name == "slots").alias(name))
                lost[name] = series[-1].null_count() - values.count(None)
            yield Block(pl.DataFrame(series), _broken(broken), {k: n for k, n in lost.items() if n > 0})


def lines(path: str) -> Iterator[dict[str, Any] | None]:
    """The objects of a JSON Lines file, plain or compressed; None for a line that is none. Raises InputError on a damaged file."""
    try:
        with _open(path) as raw:
            magic = raw.read(4)
            raw.seek(0)
            for number, line in enumerate(_decoded(raw, magic)):
                if line.strip():
                    yield _parse(line.removeprefix(_BOM) if number == 0 else line)[0]
    except (*BROKEN, BeamIOError) as error:
        raise InputError(f"{path}: damaged: {error}; write it again, or leave it out") from None


def _broken(rows: list[tuple[int, str]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={"row": pl.Int64, "line": pl.String}, orient="row")


def _decoded(raw: IO[bytes], magic: bytes) -> io.BufferedReader:
    if magic.startswith(_GZIP):
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), 1 << 20)  # type: ignore[arg-type]
    if magic.startswith(_ZSTD):
        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True), 1 << 20)
    return io.BufferedReader(raw, 1 << 20)  # type: ignore[type-var,arg-type]


_SURROGATE = re.compile("[\ud800-\udfff]")


def _parse(line: bytes) -> tuple[dict[str, Any] | None, str]:
    """One line as an object, or None and what is wrong with it."""
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return None, "not UTF-8"
    except json.JSONDecodeError as error:
        return None, f"{error.msg} at character {error.pos}"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        return None, type(error).__name__
    if not isinstance(value, dict):
        return None, "not an object"
    if b"\\u" in line:  # half a surrogate pair is valid JSON and no valid text
        value = {_whole(k): _whole(v) for k, v in value.items()}
    return value, ""


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    return value  # slots: written as JSON again, where they are replaced


def _masked(line: bytes, wanted: dict[str, str]) -> str:
    """A broken line for the excerpt, without the user's and the session's ids where they can be recognised."""
    text = line[:4_000].decode("utf-8", "replace").strip()
    names = "|".join(re.escape(wanted[n]) for n in ("user_id", "session_id"))
    return re.sub(rf'("(?:{names})"\s*:\s*)("(?:[^"\\]|\\.)*"?|[^,}}\s]*)', r'\1"..."', text)
