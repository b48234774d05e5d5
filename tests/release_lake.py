"""A lake with a few small releases in it, without a log: what tests of releases and of the queue start from."""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta
from pathlib import Path

from release_world import AS_OF, build, rewrite, world

from pipelines import registry
from pipelines.context import _fingerprint
from pipelines.store import Store
from quality.gates import Verdicts
from quality.manifest import package
from quality.release import Parent


def publish(store: Store, n: int, parent: Parent | None) -> Parent:
    """Release number `n`, a week after the one before; each has one rewrite more."""
    rows = world()
    more = [rewrite(text, "play jazz", goal_id="g2") for text in ("light on", "play jass")[:n]]
    rows["rewrites"] = [*(r for r in rows["rewrites"] if r["decision"] == "proposed"), *more]
    release = build(rows, parent, as_of=AS_OF + timedelta(weeks=n))
    files = package(release, Verdicts(()), more={"data_card.md": b"# card\n"}, parent=parent)
    for path, data in files.items():
        store.put(f"releases/{release.release_id}/{path}", data)
    digest = hashlib.sha256(files["manifest.json"]).hexdigest()
    entry = {"release_id": release.release_id, "as_of": str(release.as_of), "manifest_sha256": digest, "rows": {}}
    store.put(f"queue/{release.release_id}.json", json.dumps(entry).encode())
    store.put(registry.LATEST, f"{release.release_id}\n".encode())
    return Parent(release.release_id, release.as_of, release.tables)


def make(root: Path, releases: int = 3) -> tuple[Store, list[str]]:
    """The lake's store and the ids of its releases, oldest first."""
    store = Store(str(root))
    info = {"format": 1, "buckets": 16, "lake_id": hashlib.sha256(str(root).encode()).hexdigest()[:16]}
    info["key_fingerprint"] = _fingerprint(bytes(32))
    store.put("lake.json", json.dumps(info).encode())
    ids: list[str] = []
    parent = None
    for n in range(releases):
        parent = publish(store, n, parent)
        ids.append(parent.release_id)
    return store, ids
