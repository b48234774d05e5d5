"""A release as bytes, its manifest, and the check that nobody changed them.

`package` gives the files in the order in which they may be written: the manifest comes last, because a release without
a manifest is invisible to readers.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from quality.delta import delta
from quality.describe import croissant, dataset_card_header, json_bytes, json_schema
from quality.release import Parent, Release, release_id, rows_sha256
from rewrite.contracts import RELEASED
from rewrite.text import KEY_VERSION

if TYPE_CHECKING:
    from quality.gates import Verdicts

FORMAT: Final = 1
"""Version of the release layout; a reader refuses what is newer than it."""
MANIFEST: Final = "manifest.json"


class TamperedRelease(Exception):
    """A file of a release is missing or is not what its manifest says."""


class NewerFormat(Exception):
    """The release was written by a newer version than this one can read."""


def parquet_bytes(table: pl.DataFrame, schema: pa.Schema) -> bytes:
    """Parquet with fixed writer options and no metadata but the schema: the same rows give the same bytes."""
    arrow = table.select(schema.names).to_arrow().cast(schema).combine_chunks().replace_schema_metadata(None)
    sink = io.BytesIO()
    pq.write_table(arrow, sink, compression="zstd", compression_level=6, version="2.6", row_group_size=100_000, store_schema=False)
    return sink.getvalue()


def package(
    release: Release,
    verdicts: Verdicts,
    *,
    more: Mapping[str, bytes] | None = None,
    inputs: Mapping[str, Any] | None = None,
    parent: Parent | None = None,
) -> dict[str, bytes]:
    """Path -> bytes of every file of the release, `manifest.json` last.

    `more`: other files (`data_card.md`, `report.html`), which must hold no clock and no host; `inputs`: what the
    release was made from (manifest hashes, configuration, model fingerprints, versions), copied into the manifest;
    `parent`: what the delta is against.
    """
    files = {f"{name}.parquet": parquet_bytes(release.tables[name], schema) for name, schema in RELEASED.items()}
    files["gates.json"] = verdicts.to_json().encode()
    files.update(sorted((more or {}).items()))
    tables: dict[str, Any] = {
        name: {
            "rows": release.tables[name].height,
            "rows_sha256": release.rows_sha256[name],
            "schema": {field.name: str(field.type) for field in schema},
            "files": [_entry(f"{name}.parquet", files[f"{name}.parquet"])],
        }
        for name, schema in RELEASED.items()
    }
    of_tables = {f"{name}.parquet" for name in RELEASED}
    locales = _by_locale(release.tables)
    for name in RELEASED:
        files[f"schema/{name}.json"] = json_bytes(json_schema(name))
    entries = {name: table["files"][0] for name, table in tables.items()}
    files["croissant.json"] = json_bytes(croissant(release.release_id, release.as_of.isoformat(), entries))
    files["README.md"] = dataset_card_header(release.release_id, list(locales)).encode() + files.get("data_card.md", b"")
    manifest = {
        "format": FORMAT,
        "release_id": release.release_id,
        "as_of": release.as_of.isoformat(),
        "parent": release.parent_id,
        "k": release.k,
        "key_version": KEY_VERSION,
        "config_fingerprint": release.config_fingerprint,
        "tables": tables,
        "locales": locales,
        "delta": delta(parent.tables if parent else None, release.tables),
        "files": [_entry(path, data) for path, data in sorted(files.items()) if path not in of_tables],
        "gates": verdicts.summary(),
        "inputs": dict(inputs or {}),
    }
    files[MANIFEST] = json_bytes(manifest)
    return files


def _by_locale(tables: Mapping[str, pl.DataFrame]) -> dict[str, dict[str, int]]:
    """Locale -> table -> rows."""
    counts: dict[str, dict[str, int]] = {}
    for name, locale in (
        ("rewrites", "locale"),
        ("labels", "locale"),
        ("goals", "locale"),
        ("pairs", "locale_anchor"),
        ("retired", "locale"),
    ):
        for found, n in tables[name].group_by(locale).len().iter_rows():
            counts.setdefault(found or "und", {})[name] = n
    return {found: dict(sorted(n.items())) for found, n in sorted(counts.items())}


def _entry(path: str, data: bytes) -> dict[str, Any]:
    return {"path": path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def read_manifest(data: bytes) -> dict[str, Any]:
    """The manifest as a dict. Raises TamperedRelease if it is not one, NewerFormat if it is newer than this code."""
    try:
        manifest = json.loads(data)
        version, files = manifest["format"], list(_entries(manifest))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise TamperedRelease(f"{MANIFEST} is not a manifest ({type(error).__name__}: {error}); fetch the release again") from None
    if not isinstance(version, int) or version > FORMAT:
        raise NewerFormat(f"{MANIFEST} has format {version!r}; this version reads up to {FORMAT}: update sayagain")
    for entry in files:
        path = PurePosixPath(entry["path"])
        if path.is_absolute() or ".." in path.parts or "\\" in entry["path"]:
            raise TamperedRelease(f"{MANIFEST} names {entry['path']!r}, which lies outside the release")
    return manifest


def _entries(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    entries = [*manifest["files"], *(entry for table in manifest["tables"].values() for entry in table["files"])]
    if not all(isinstance(e["path"], str) and isinstance(e["sha256"], str) and isinstance(e["bytes"], int) for e in entries):
        raise ValueError("an entry without path, bytes and sha256")
    return entries


def verify(manifest: Mapping[str, Any], read: Callable[[str], bytes]) -> None:
    """Hold every file to the manifest; `read` takes a path inside the release.

    Raises TamperedRelease that names the first file which is missing or differs, or the manifest when its id is not
    that of its rows.
    """
    for entry in _entries(manifest):
        path = entry["path"]
        try:
            data = read(path)
        except (OSError, KeyError) as error:
            raise TamperedRelease(f"{path} is in the manifest of {manifest['release_id']} but cannot be read: {error}") from error
        found = hashlib.sha256(data).hexdigest()
        if found != entry["sha256"] or len(data) != entry["bytes"]:
            expected = f"{entry['bytes']} bytes, sha256 {entry['sha256'][:12]}"
            raise TamperedRelease(
                f"{path} of {manifest['release_id']} has {len(data)} bytes, sha256 {found[:12]}, not {expected} as its manifest says; "
                "fetch the release again or roll back"
            )
    hashes = {name: rows_sha256(table) for name, table in load_tables(manifest, read, tuple(manifest["tables"])).items()}
    for name, found in hashes.items():
        if found != manifest["tables"][name]["rows_sha256"]:
            raise TamperedRelease(f"the rows of {name} of {manifest['release_id']} are not those that its manifest was made for")
    identity = release_id(date.fromisoformat(manifest["as_of"]), hashes, manifest["config_fingerprint"], manifest["parent"])
    if identity != manifest["release_id"]:
        raise TamperedRelease(f"{MANIFEST} says {manifest['release_id']}, but its rows, configuration and parent make {identity}")


def load_tables(
    manifest: Mapping[str, Any], read: Callable[[str], bytes], names: tuple[str, ...] = tuple(RELEASED)
) -> dict[str, pl.DataFrame]:
    """Tables of a release as Polars frames, each file held to the manifest."""
    out = {}
    for name in names:
        frames = []
        for entry in manifest["tables"][name]["files"]:
            data = read(entry["path"])
            if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                raise TamperedRelease(f"{entry['path']} of {manifest['release_id']} is not what its manifest says; fetch it again")
            # no thread of Arrow's pools: one that is busy when a short command ends aborts the process
            table = pq.read_table(io.BytesIO(data), use_threads=False, pre_buffer=False)
            frames.append(pl.DataFrame(pl.from_arrow(table)))
        out[name] = pl.concat(frames)
    return out
