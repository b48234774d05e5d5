"""The one way to the lake: a small store over a local folder, S3 or GCS, and tables published by manifest.

A table is a set of partitions (`date=2026-01-01`, `as_of=2026-01-14`). Writers put Parquet files into `_attempts/`;
`publish` moves them under the table's root, then replaces the partition's manifest, then deletes what it superseded.
Readers go by the manifests alone, so a run that dies leaves nothing half-written, and between runs a plain glob over
the table's folder is right too. File names carry the hash of their bytes: the same content has the same name.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import obstore
import pyarrow as pa
import pyarrow.parquet as pq
from obstore.exceptions import AlreadyExistsError, NotFoundError
from obstore.store import LocalStore, MemoryStore, from_url

from pipelines.errors import LakeError

FORMAT = 1
LEASE_SECONDS = 6 * 3600  # a lease of a machine that vanished is free after this


@dataclass(frozen=True)
class FileEntry:
    """One Parquet file of a partition."""

    path: str
    rows: int
    bytes: int
    sha256: str
    bucket: int | None = None


@dataclass(frozen=True)
class Manifest:
    """What a partition holds and what it was made from. No clock, no host."""

    table: str
    partition: str
    job: str
    fingerprint: str  # of the inputs, the configuration keys it depends on, the job's version and the model
    files: tuple[FileEntry, ...] = ()
    counts: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)  # name -> stamp

    @property
    def rows(self) -> int:
        return sum(f.rows for f in self.files)

    @property
    def content(self) -> str:
        """A hash of the partition's bytes: what later tables depend on."""
        return hashlib.sha256("\n".join(sorted(f.sha256 for f in self.files)).encode()).hexdigest()[:16]

    def to_json(self) -> bytes:
        return (json.dumps(asdict(self), indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        raw = json.loads(data)
        return cls(**raw | {"files": tuple(FileEntry(**f) for f in raw["files"])})


def parquet_bytes(table: pa.Table) -> bytes:
    """Deterministic Parquet: the same table gives the same bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", compression_level=3, version="2.6", write_statistics=True, store_schema=True)
    return sink.getvalue()


class Store:
    """Objects under one root. `root`: a local folder, or a URL of S3 or GCS (`s3://bucket/prefix`)."""

    def __init__(self, root: str):
        self.root = root.rstrip("/") if "://" in root else str(Path(root).expanduser().absolute())
        self.local = "://" not in root
        if self.local:
            Path(self.root).mkdir(parents=True, exist_ok=True)
            self._store: Any = LocalStore(self.root)
        elif root.startswith("memory://"):
            self._store = MemoryStore()
        else:
            self._store = from_url(self.root)

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.root,)

    # objects

    def url(self, path: str) -> str:
        """Where a person finds it."""
        return f"{self.root}/{path}" if path else self.root

    def get(self, path: str) -> bytes:
        try:
            return bytes(obstore.get(self._store, path).bytes())
        except (NotFoundError, FileNotFoundError):
            raise FileNotFoundError(self.url(path)) from None

    def find(self, path: str) -> bytes | None:
        """As `get`, None when there is nothing."""
        try:
            return self.get(path)
        except FileNotFoundError:
            return None

    def exists(self, path: str) -> bool:
        try:
            obstore.head(self._store, path)
        except (NotFoundError, FileNotFoundError):
            return False
        return True

    def put(self, path: str, data: bytes) -> None:
        """Write or replace, whole or not at all."""
        obstore.put(self._store, path, data)

    def put_new(self, path: str, data: bytes) -> bool:
        """Write only if absent; False when something is there."""
        try:
            obstore.put(self._store, path, data, mode="create")
        except (AlreadyExistsError, FileExistsError):
            return False
        return True

    def list(self, prefix: str = "") -> list[str]:
        """Every object below a folder, sorted."""
        return sorted(o["path"] for chunk in obstore.list(self._store, prefix or None) for o in chunk)

    def delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            with contextlib.suppress(NotFoundError, FileNotFoundError):
                obstore.delete(self._store, path)
                if self.local:
                    self._prune(Path(self.root, path).parent)

    def _prune(self, folder: Path) -> None:
        """Empty folders are noise to whoever looks into the lake."""
        while folder != Path(self.root):
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent

    def move(self, source: str, target: str) -> None:
        obstore.rename(self._store, source, target)
        if self.local:
            self._prune(Path(self.root, source).parent)

    # tables

    @staticmethod
    def _manifest_path(table: str, partition: str) -> str:
        return f"_manifests/{table}/{partition}.json"

    def manifest(self, table: str, partition: str) -> Manifest | None:
        data = self.find(self._manifest_path(table, partition))
        return Manifest.from_json(data) if data else None

    def manifests(self, table: str) -> dict[str, Manifest]:
        """Partition -> manifest, in the order of the partitions' names."""
        return {m.partition: m for m in (Manifest.from_json(self.get(p)) for p in self.list(f"_manifests/{table}"))}

    def attempt(self, attempt: str, table: str, partition: str, data: pa.Table, bucket: int | None = None) -> FileEntry:
        """Write one file of a partition aside; it becomes visible by `publish`."""
        blob = parquet_bytes(data)
        digest = hashlib.sha256(blob).hexdigest()
        folder = f"{table}/{partition}" + ("" if bucket is None else f"/bucket={bucket:02d}")
        path = f"{folder}/{digest[:16]}.parquet"
        self.put(f"_attempts/{attempt}/{path}", blob)
        return FileEntry(path, data.num_rows, len(blob), digest, bucket)

    def publish(self, attempt: str, manifest: Manifest) -> None:
        """Make a partition visible: move its new files into place, replace its manifest, delete what it superseded."""
        before = self.manifest(manifest.table, manifest.partition)
        old = {f.path for f in before.files} if before else set()
        for f in manifest.files:
            if f.path in old:
                continue
            aside = f"_attempts/{attempt}/{f.path}"
            if self.exists(aside):
                self.move(aside, f.path)
            elif not self.exists(f.path):
                raise LakeError(f"{self.url(f.path)}: the file to publish is gone; run again")
        self.put(self._manifest_path(manifest.table, manifest.partition), manifest.to_json())
        self.sweep(manifest.table, manifest.partition, {f.path for f in manifest.files})

    def sweep(self, table: str, partition: str, keep: set[str]) -> None:
        """Delete files of a partition that its manifest does not name: superseded ones, or those of a run that died."""
        self.delete(p for p in self.list(f"{table}/{partition}") if p not in keep)

    def clear_attempt(self, attempt: str) -> None:
        self.delete(self.list(f"_attempts/{attempt}"))

    def read_file(self, entry: FileEntry, columns: Sequence[str] | None = None) -> pa.Table:
        """One file of a manifest. Raises LakeError when it is gone or is not what the manifest says."""
        mend = f"delete {self.url('_manifests/' + '/'.join(entry.path.split('/')[:2]))}* and run again: it is made anew"
        data = self.find(entry.path)
        if data is None:
            raise LakeError(f"{self.url(entry.path)}: named by its manifest but gone; {mend}")
        if len(data) != entry.bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise LakeError(f"{self.url(entry.path)}: {len(data)} bytes that are not what the manifest says; {mend}")
        # By neither threads nor the dataset reader: workers are parallel as it is, the bytes are here, and a thread of Arrow's
        # pools that is still busy when a short command ends aborts the process (measured: one run in four, exit code 134).
        return pq.ParquetFile(pa.BufferReader(data)).read([*columns] if columns else None, use_threads=False)

    def read(
        self, table: str, partition: str, columns: Sequence[str] | None = None, buckets: Iterable[int] | None = None
    ) -> pa.Table | None:
        """A partition as one Arrow table, None when it was never published or holds no file."""
        manifest = self.manifest(table, partition)
        if manifest is None or not manifest.files:
            return None
        wanted = None if buckets is None else set(buckets)
        parts = [self.read_file(f, columns) for f in manifest.files if wanted is None or f.bucket in wanted]
        return pa.concat_tables(parts) if parts else None

    # leases

    @contextlib.contextmanager
    def lease(self, name: str) -> Iterator[None]:
        """Hold `name` while the block runs. Raises LakeError that says who holds it."""
        path = f"_leases/{name}.json"
        mine = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": int(time.time())}).encode()
        if not self.put_new(path, mine):
            held = json.loads(self.find(path) or b"{}")
            if not _dead(held):
                who = f"process {held.get('pid')} on {held.get('host')}"
                raise LakeError(f"{self.url('')}: {name} is held by {who}; wait for it, or delete {self.url(path)} if it is gone")
            self.put(path, mine)
        try:
            yield
        finally:
            if self.find(path) == mine:
                self.delete([path])


def _dead(held: dict[str, Any]) -> bool:
    if time.time() - held.get("since", 0) > LEASE_SECONDS:
        return True
    if held.get("host") != socket.gethostname():
        return False
    try:
        os.kill(held["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
