"""What many rows weigh between two steps: the buffers lie in the lake, under the run's attempt, and only their places are
shuffled. So a runner that shuffles in memory, as the local one does, holds a shard of the input at a time and not the log."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from pipelines.store import Store


def put(store: Store, attempt: str, parts: list[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    """Keep the buffers, none of them empty, as one object; yields each one's key and its place. A worker that does it again writes the same object."""
    blob = b"".join(data for _, data in parts)
    if not parts:
        return
    path, start = f"_attempts/{attempt}/aside/{hashlib.sha256(blob).hexdigest()[:32]}", 0
    store.put(path, blob)
    for key, data in parts:
        yield key, f"{start} {len(data)} {path}".encode()
        start += len(data)


def get(store: Store, place: bytes) -> bytes:
    """The buffer that lies there. Raises LakeError when it is gone."""
    start, length, path = place.decode().split(" ", 2)
    return store.get_range(path, int(start), int(length))
