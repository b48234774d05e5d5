"""Leases: who may write which days or tables of a lake. One object each, written on condition that nobody holds it.

In a local folder a holder is alive as long as its process is. In an object store it renews its lease; one that fell silent
loses it, and can then publish nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipelines.errors import LakeError

if TYPE_CHECKING:
    from pipelines.store import Store

LEASE_SECONDS = 6 * 3600  # in a local folder, a lease of a machine that vanished is free after this
RENEW_SECONDS = 60  # in an object store its holder says so often that it lives
LOST_SECONDS = 15 * RENEW_SECONDS  # and is taken for dead after this silence: longer than any pause of a live one, clocks apart included


class Leases:
    """Those that this process holds in one store."""

    def __init__(self, store: Store):
        self._store = store
        self._held: dict[str, tuple[bytes, str]] = {}  # path -> what was written, its version
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Hold `name` while the block runs. Raises LakeError that says who holds it."""
        store, path, since = self._store, f"_leases/{name}.json", int(time.time())
        token = secrets.token_hex(8)
        mine = _held_by_us(since, token)
        version = store.put_if(path, mine, None)
        while version is None:
            found = store.find_version(path)
            held = json.loads(found[0]) if found else {}
            if found and not self.is_dead(held):
                who = f"process {held.get('pid')} on {held.get('host')}"
                raise LakeError(f"{store.url('')}: {name} is held by {who}; wait for it, or delete {store.url(path)} if it is gone")
            version = store.put_if(path, mine, found[1] if found else None)
        self._held[path] = mine, version
        done = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(path, since, token, done), daemon=True)
        if not store.local and not store.root.startswith("memory://"):
            renewing.start()
        try:
            yield
        finally:
            done.set()
            if renewing.is_alive():
                renewing.join()
            last = self._held.pop(path)[0]
            if store.find(path) == last:
                store.delete([path])

    def is_dead(self, held: dict[str, Any]) -> bool:
        """Whether what a lease says of its holder means that it is gone."""
        silent = time.time() - max(held.get("since", 0), held.get("renewed", 0))
        if silent > (LEASE_SECONDS if self._store.local else LOST_SECONDS):
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

    def _renew(self, path: str, since: int, token: str, done: threading.Event) -> None:
        while not done.wait(RENEW_SECONDS):
            data = _held_by_us(since, token)
            with contextlib.suppress(LakeError), self._lock:  # a store that is away for a while: the next time
                version = self._store.put_if(path, data, self._held[path][1])
                if version is None:
                    return  # taken over: `still_held` says so
                self._held[path] = data, version

    def still_held(self) -> None:
        """Raises LakeError when another run took a lease of ours for dead."""
        if self._store.local:
            return  # a live process keeps its leases there
        with self._lock:
            lost = [path for path, (data, _) in self._held.items() if self._store.find(path) != data]
        if lost:
            raise LakeError(
                f"{self._store.url(lost[0])}: this run was silent for {LOST_SECONDS} s and lost it; nothing was published, run again"
            )


def _held_by_us(since: int, token: str) -> bytes:
    held = {"host": socket.gethostname(), "pid": os.getpid(), "since": since, "renewed": int(time.time()), "token": token}
    return json.dumps(held).encode()
