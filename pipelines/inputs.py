"""Which log files a run has to read: what earlier runs noted about each, and whose rows they may have held back.

A note is one object per file and date range, written after publishing: a run that died has no note, and its files are
read again. Where a file's rows are is what the manifests say.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from pipelines import sources
from pipelines.config import Config
from pipelines.context import Context
from pipelines.sources import Source
from pipelines.store import Store

TABLES = ("turns", "rejects")

UNDATED = "date=unknown"
"""Partition of rejects whose date cannot be read (and whose file is no day's of a {date} pattern)."""


@dataclass
class Inputs:
    """Which files are read, and why; which are current."""

    todo: dict[str, Source] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    touch: set[str] = field(default_factory=set)  # partitions that given files were in before
    neighbours: set[str] = field(default_factory=set)  # files not given that share days with a changed one
    notes: list[str] = field(default_factory=list)


def fingerprint(config: Config, version: str) -> str:
    """Of what a row depends on besides its file: the configuration and the job's version."""
    return hashlib.sha256(f"{version} {config.fingerprint('log', 'sessions.gap')}".encode()).hexdigest()[:16]


def logs(context: Context) -> tuple[str, ...]:
    """--logs."""
    return tuple(getattr(context.options, "logs", ()))


def span(context: Context) -> tuple[date | None, date | None]:
    """--from and --to."""
    return getattr(context.options, "start", None), getattr(context.options, "end", None)


def _in_span(name: str, start: date | None, end: date | None) -> bool:
    if name == UNDATED:
        return True
    day = date.fromisoformat(name.removeprefix("date="))
    return (not start or day >= start) and (not end or day <= end)


def _folder(path: str) -> str:
    return f"_inputs/{hashlib.sha256(path.encode()).hexdigest()[:16]}"


def _notes(store: Store, paths: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """Path -> what runs noted about it: one object per file and date range, so that days run side by side."""
    folders = {_folder(p): p for p in paths}
    found: dict[str, list[dict[str, Any]]] = {}
    for name in store.list("_inputs"):
        path = folders.get(name.rpartition("/")[0])
        if path:
            found.setdefault(path, []).append(json.loads(store.get(name)) | {"object": name})
    return found


def _covers(note: dict[str, Any], start: date | None, end: date | None) -> bool:
    low, high = note["from"], note["to"]
    return (not low or bool(start and str(start) >= low)) and (not high or bool(end and str(end) <= high))


def _within(note: dict[str, Any], start: date | None, end: date | None) -> bool:
    """Are all its days in the range?"""
    low, high = note["from"], note["to"]
    return (not start or (low and low >= str(start))) and (not end or (high and high <= str(end)))


def find(context: Context, version: str) -> Inputs:
    """Find the files and decide which have to be read. Raises InputError when nothing is there."""
    start, end = span(context)
    made = Inputs()
    files, made.notes = sources.find(logs(context), start, end)
    print_ = fingerprint(context.config, version)
    noted = _notes(context.store, (f.path for f in files))
    where: dict[str, dict[str, str]] = {}  # path -> partition -> stamp
    for table in TABLES:
        for name, manifest in context.store.manifests(table).items():
            for path, stamp in manifest.inputs.items():
                where.setdefault(path, {})[name] = stamp
    changed: set[str] = set()
    for f in files:
        notes, places = noted.get(f.path, []), where.get(f.path, {})
        same = all(n["stamp"] == f.stamp and n["fingerprint"] == print_ for n in notes)
        there = all(places.get(p) == f.stamp for n in notes for p in n["partitions"])
        if there and same and any(_covers(n, start, end) for n in notes):
            made.why[f.path] = "current"
            continue
        made.todo[f.path] = f
        near = {p: stamp for p, stamp in places.items() if _in_span(p, start, end)}
        made.touch |= set(near)
        if any(stamp != f.stamp for stamp in near.values()) or (notes and not same):
            changed |= set(near) - {UNDATED}
            made.why[f.path] = "the file or the configuration changed"
        elif notes:
            made.why[f.path] = "other days of it were read"
        else:
            made.why[f.path] = "a run that read it died" if places else "new"
    # a changed file may have held back rows of others (duplicates, conflicts): those are read again
    shared = {path for path, places in where.items() if changed & set(places)} - set(made.todo)
    for f in files:
        if f.path in shared:
            made.todo[f.path] = f
            made.why[f.path] = "shares days with a changed file"
            made.touch |= {p for p in where[f.path] if _in_span(p, start, end)}
    made.neighbours = shared - set(made.todo)
    return made


def note(
    context: Context, version: str, made: Inputs, counts: Mapping[str, Mapping[str, Mapping[str, int]]], partitions: dict[str, set[str]]
) -> None:
    """After publishing: note what was read, so that it is not read again; forget notes that no longer hold, and their counts of these days.

    `counts`: path -> partition -> what its rows became.
    """
    store, (start, end) = context.store, span(context)
    noted = _notes(store, [*made.todo, *made.neighbours])
    print_ = fingerprint(context.config, version)
    for path in made.neighbours:
        store.delete(n["object"] for n in noted.get(path, []))
    name = f"{start or 'first'}_{end or 'last'}"
    for path, source in made.todo.items():
        for n in noted.get(path, []):  # what this run has read again would be counted twice
            if n["stamp"] != source.stamp or n["fingerprint"] != print_ or _within(n, start, end):
                store.delete([n["object"]])
            else:
                _forget_days(store, n["object"], start, end)
        entry = {
            "path": path,
            "stamp": source.stamp,
            "fingerprint": print_,
            "from": str(start or ""),
            "to": str(end or ""),
            "partitions": sorted(d for d, inputs in partitions.items() if path in inputs),
            "by_day": {day: dict(found) for day, found in counts.get(path, {}).items() if day},
        }
        store.put(f"{_folder(path)}/{name}.json", _written(entry))


def _written(entry: dict[str, Any]) -> bytes:
    return (json.dumps(entry, indent=1, sort_keys=True) + "\n").encode()


def _forget_days(store: Store, name: str, start: date | None, end: date | None) -> None:
    """Take the counts of these days, and of rows without one, out of a note; a run of other days that writes it meanwhile is faster."""
    if found := store.find_version(name):
        entry = json.loads(found[0])
        kept = {day: counts for day, counts in entry.get("by_day", {}).items() if not _in_span(day, start, end)}
        if kept != entry.get("by_day"):
            store.put_if(name, _written(entry | {"by_day": kept}), found[1])


def counted(store: Store) -> Counter[str]:
    """What became of every row that was ever read into this lake: turns, duplicates, reject:REASON, scrubbed:KIND."""
    total: Counter[str] = Counter()
    for path in store.list("_inputs"):
        for found in json.loads(store.get(path)).get("by_day", {}).values():
            total.update(found)
    return total
