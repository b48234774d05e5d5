"""A lake with a few small releases in it, without a log: what tests of releases and of the queue start from."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from release_world import AS_OF, build, frame, rewrite, world

from pipelines import registry
from pipelines.context import _fingerprint
from pipelines.engine import conform
from pipelines.store import Manifest, Store
from quality.gates import Verdicts
from quality.manifest import package
from quality.release import Parent
from rewrite.contracts import CANDIDATES, GOAL_CHANGES, GOAL_EDGES, GOALS


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


def fixtures(releases: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The fixtures of a module: `made, lake = fixtures(2)`: a lake that is made once (store, ids), and each test's own copy (store)."""

    @pytest.fixture(scope="module", name="made")
    def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[str]]:
        return make(tmp_path_factory.mktemp("lakes") / "lake", releases)

    @pytest.fixture(name="lake")
    def lake(made: tuple[Store, list[str]], tmp_path: Path) -> Store:
        shutil.copytree(made[0].root, tmp_path / "lake")
        return Store(str(tmp_path / "lake"))

    return made, lake


def mined(store: Store, as_of: Any, rows: dict[str, list[dict[str, Any]]] | None = None) -> None:
    """Candidates and goals of `release_world` as `aggregate` and `link` would publish them: what `release` and `gate` start from."""
    rows = rows or world()
    tables: list[tuple[str, str, Any, Any]] = [("candidates", f"as_of={as_of}/{n}", rows[n], s) for n, s in CANDIDATES.items()]
    tables += [("goals", f"as_of={as_of}", rows["goals"], GOALS), ("goal_changes", f"as_of={as_of}", rows["goal_changes"], GOAL_CHANGES)]
    for table, partition, data, schema in [*tables, ("goal_edges", f"as_of={as_of}", [], GOAL_EDGES)]:
        entry = store.attempt("t", table, partition, conform(frame(schema, data), schema))
        store.publish("t", Manifest(table, partition, "test", "f", (entry,)))
