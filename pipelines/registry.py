"""Releases in the lake, found by their manifests: the manifest is the truth."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date
from typing import Any

from pipelines.errors import LakeError
from pipelines.store import Store

LATEST = "releases/LATEST"


@dataclass(frozen=True)
class Published:
    """One release: its id, its as-of date, its manifest."""

    release_id: str
    as_of: date
    manifest: dict[str, Any]


def releases(store: Store) -> list[Published]:
    """Every published release that was not retracted, by as-of date."""
    found = []
    for path in store.list("releases"):
        folder, _, name = path.removeprefix("releases/").partition("/")
        if name == "manifest.json" and not store.exists(f"events/{folder}/retract.json"):
            manifest = json.loads(store.get(path))
            found.append(Published(folder, date.fromisoformat(manifest["as_of"]), manifest))
    return sorted(found, key=lambda p: (p.as_of, p.release_id))


def parent_of(store: Store, as_of: date) -> Published | None:
    """The newest release before the date."""
    return next((p for p in reversed(releases(store)) if p.as_of < as_of), None)


def released_as_of(store: Store, as_of: date) -> Published | None:
    """The release as of this very date."""
    return next((p for p in releases(store) if p.as_of == as_of), None)


def resolve(store: Store, release_id: str) -> str:
    """A release id; LATEST is looked up. Raises LakeError when there is none."""
    if release_id != "LATEST":
        if not store.exists(f"releases/{release_id}/manifest.json"):
            raise LakeError(f"--release {release_id}: there is no such release in {store.url('releases')}")
        return release_id
    data = store.find(LATEST)
    if data is None:
        raise LakeError(f"{store.url('releases')}: nothing was released yet")
    return data.decode().strip()
