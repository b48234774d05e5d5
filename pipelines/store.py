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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import obstore
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, PreconditionError
from obstore.store import LocalStore, MemoryStore, from_url

from pipelines.errors import LakeError, UsageError
from pipelines.leases import Leases

try:
    import fcntl
except ImportError:  # not on Windows, where nothing of this was tried
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
SCHEMES = ("s3", "gs", "az", "abfs", "abfss", "memory")
"""Stores with conditional writes, by obstore; a file system without them (hdfs, http) cannot keep a lake."""


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
        root = root.removeprefix("file://")
        self.root = root.rstrip("/") if "://" in root else str(Path(root).expanduser().absolute())
        self.local = "://" not in root
        self.leases = Leases(self)
        if not self.local and root.split("://")[0] not in SCHEMES:
            raise UsageError(f"--lake {root}: a lake needs conditional writes; name a local folder, or one of {', '.join(SCHEMES[:-1])}://")
        if self.local:
            Path(self.root).mkdir(parents=True, exist_ok=True)
            self._store: Any = LocalStore(self.root)
        elif root.startswith("memory://"):
            self._store = MemoryStore()
        else:
            with self._told(""):
                self._store = from_url(self.root)

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.root,)

    # objects

    def url(self, path: str) -> str:
        """Where a person finds it."""
        return f"{self.root}/{path}" if path else self.root

    @contextlib.contextmanager
    def _told(self, path: str) -> Iterator[None]:
        """What a disk or an object store refuses, as an error with the place and the fix; the caller handles what is not there."""
        try:
            yield
        except (NotFoundError, FileNotFoundError) as error:
            if "NoSuchBucket" not in str(error):
                raise
            raise LakeError(f"{self.url(path)}: there is no such bucket; make it, or name another --lake") from None
        except (AlreadyExistsError, FileExistsError, PreconditionError):
            raise
        except (BaseError, OSError, ValueError) as error:
            why = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:500]
            if "No space left" in str(error) or "os error 28" in str(error):
                fix = "make room and run again: what is published stays as it is"
            elif self.local:
                fix = "see that this user may write there, and run again"
            else:
                fix = "see the credentials, the bucket and the endpoint (AWS_..., GOOGLE_..., AZURE_... of the environment), and run again"
            raise LakeError(f"{self.url(path)}: {why}; {fix}") from None

    def get(self, path: str) -> bytes:
        found = self.find_version(path)
        if found is None:
            raise FileNotFoundError(self.url(path))
        return found[0]

    def get_range(self, path: str, start: int, length: int) -> bytes:
        """Some bytes of an object. Raises LakeError when it is gone."""
        try:
            with self._told(path):
                return bytes(obstore.get_range(self._store, path, start=start, length=length))
        except (NotFoundError, FileNotFoundError):
            raise LakeError(f"{self.url(path)}: is gone; run again") from None

    def find(self, path: str) -> bytes | None:
        """As `get`, None when there is nothing."""
        found = self.find_version(path)
        return found[0] if found else None

    def find_version(self, path: str) -> tuple[bytes, str] | None:
        """An object and its version, for `put_if`; None when there is nothing."""
        try:
            with self._told(path):
                found = obstore.get(self._store, path)
                return bytes(found.bytes()), str(found.meta["e_tag"])
        except (NotFoundError, FileNotFoundError):
            return None

    def exists(self, path: str) -> bool:
        try:
            with self._told(path):
                obstore.head(self._store, path)
        except (NotFoundError, FileNotFoundError):
            return False
        return True

    def size(self, path: str) -> int | None:
        """Bytes of an object, None when there is nothing."""
        try:
            with self._told(path):
                return int(obstore.head(self._store, path)["size"])
        except (NotFoundError, FileNotFoundError):
            return None

    def put(self, path: str, data: bytes) -> None:
        """Write or replace, whole or not at all."""
        with self._told(path):
            obstore.put(self._store, path, data)

    def put_new(self, path: str, data: bytes) -> bool:
        """Write only if absent; False when something is there."""
        return self.put_if(path, data, None) is not None

    def put_if(self, path: str, data: bytes, version: str | None) -> str | None:
        """Write only if the object still has this version (None: only if absent). Returns the new version; None: somebody was faster.

        Object stores decide it (If-None-Match, If-Match); in a local folder a lock on the folder does, among processes of
        this machine.
        """
        try:
            with self._told(path):
                if version is None:
                    return str(obstore.put(self._store, path, data, mode="create")["e_tag"])
                if not self.local:
                    return str(obstore.put(self._store, path, data, mode={"e_tag": version})["e_tag"])
                with self._alone():
                    found = self.find_version(path)
                    if found is None or found[1] != version:
                        return None
                    return str(obstore.put(self._store, path, data)["e_tag"])
        except (AlreadyExistsError, FileExistsError, PreconditionError, NotFoundError, FileNotFoundError):
            return None

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Among the processes of this machine."""
        handle = os.open(self.root, os.O_RDONLY)
        try:
            if fcntl:
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)  # ... which unlocks it

    def list(self, prefix: str = "") -> list[str]:
        """Every object below a folder, sorted."""
        with self._told(prefix):
            return sorted(o["path"] for chunk in obstore.list(self._store, prefix or None) for o in chunk)

    def delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            with contextlib.suppress(NotFoundError, FileNotFoundError), self._told(path):
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
        with self._told(target):
            obstore.rename(self._store, source, target)
        if self.local:
            self._prune(Path(self.root, source).parent)

    # tables

    @staticmethod
    def _manifest_path(table: str, partition: str) -> str:
        return f"_manifests/{table}/{partition}.json"

    def manifest(self, table: str, partition: str) -> Manifest | None:
        path = self._manifest_path(table, partition)
        data = self.find(path)
        return self._parsed(path, data) if data is not None else None

    def _parsed(self, path: str, data: bytes) -> Manifest:
        try:
            return Manifest.from_json(data)
        except (ValueError, KeyError, TypeError):
            raise LakeError(
                f"{self.url(path)}: {len(data)} bytes that are no manifest; delete it and run again: its table is made anew"
            ) from None

    def manifests(self, table: str) -> dict[str, Manifest]:
        """Partition -> manifest, in the order of the partitions' names."""
        return {m.partition: m for m in (self._parsed(p, self.get(p)) for p in self.list(f"_manifests/{table}"))}

    def attempt(self, attempt: str, table: str, partition: str, data: pa.Table, bucket: int | None = None) -> FileEntry:
        """Write one file of a partition aside; it becomes visible by `publish`."""
        blob = parquet_bytes(data)
        digest = hashlib.sha256(blob).hexdigest()
        folder = f"{table}/{partition}" + ("" if bucket is None else f"/bucket={bucket:02d}")
        path = f"{folder}/{digest[:16]}.parquet"
        self.put(f"_attempts/{attempt}/{path}", blob)
        return FileEntry(path, data.num_rows, len(blob), digest, bucket)

    def publish(self, attempt: str, manifest: Manifest) -> None:
        """Make a partition visible: move its new files into place, replace its manifest, delete what it superseded.

        The manifest is replaced on condition that it is still the one that was read here and that this process's leases
        were not taken over: of two runs that publish one partition, the slower fails, and its files are nobody's.
        """
        path = self._manifest_path(manifest.table, manifest.partition)
        before = self.find_version(path)
        old = {f.path for f in self._parsed(path, before[0]).files} if before else set()
        for f in manifest.files:
            if f.path in old:
                continue
            aside = f"_attempts/{attempt}/{f.path}"
            if self.exists(aside):
                self.move(aside, f.path)
            elif not self.exists(f.path):
                raise LakeError(f"{self.url(f.path)}: the file to publish is gone; run again")
        self.leases.still_held()
        if self.put_if(path, manifest.to_json(), before[1] if before else None) is None:
            raise LakeError(f"{self.url(path)}: another run published it meanwhile; run again")
        self.sweep(manifest.table, manifest.partition, {f.path for f in manifest.files})

    def sweep(self, table: str, partition: str, keep: set[str]) -> None:
        """Delete files of a partition that its manifest does not name: superseded ones, or those of a run that died."""
        self.delete(p for p in self.list(f"{table}/{partition}") if p not in keep)

    def clear_attempt(self, attempt: str) -> None:
        self.delete(self.list(f"_attempts/{attempt}"))

    def read_file(self, entry: FileEntry, columns: Sequence[str] | None = None) -> pa.Table:
        """One file of a manifest. Raises LakeError when it is gone or is not what the manifest says."""
        # By neither threads nor the dataset reader: workers are parallel as it is, the bytes are here, and a thread of Arrow's
        # pools that is still busy when a short command ends aborts the process (measured: one run in four, exit code 134).
        data = pa.BufferReader(self._bytes(entry))
        return pq.ParquetFile(data).read([*columns] if columns else None, use_threads=False)

    def frame(self, entry: FileEntry, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """`read_file` as a frame, by Polars' own reader: texts are read in a third of the time."""
        return pl.read_parquet(io.BytesIO(self._bytes(entry)), columns=[*columns] if columns else None)

    def _bytes(self, entry: FileEntry) -> bytes:
        mend = f"delete {self.url('_manifests/' + '/'.join(entry.path.split('/')[:2]))}* and run again: it is made anew"
        data = self.find(entry.path)
        if data is None:
            raise LakeError(f"{self.url(entry.path)}: named by its manifest but gone; {mend}")
        if len(data) != entry.bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise LakeError(f"{self.url(entry.path)}: {len(data)} bytes that are not what the manifest says; {mend}")
        return data

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

    def lease(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Hold `name` while the block runs, as `pipelines.leases` says. Raises LakeError that says who holds it."""
        return self.leases.held(name)
