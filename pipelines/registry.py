"""Releases in the lake, found by their manifests, and what became of them: the manifest is the truth.

A manifest never changes; what happens later is an event, one immutable file each: `events/<release_id>/<name>.json`.
`LATEST` is the newest release that was not retracted, for readers who know nothing else.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from pipelines.errors import LakeError
from pipelines.store import Store

if TYPE_CHECKING:
    import polars as pl

LATEST = "releases/LATEST"


@dataclass(frozen=True)
class Published:
    """One release: its id, its as-of date, its manifest, the manifest's hash, and why it was retracted ("": it was not)."""

    release_id: str
    as_of: date
    manifest: dict[str, Any]
    sha256: str = ""
    retracted: str = ""


def releases(store: Store, *, retracted: bool = False) -> list[Published]:
    """Every published release by as-of date; retracted ones only where asked for."""
    gone = {e["release_id"]: e.get("reason") or "retracted" for e in events(store, "retract")}
    found = []
    for path in store.list("releases"):
        folder, _, name = path.removeprefix("releases/").partition("/")
        if name == "manifest.json" and (retracted or folder not in gone):
            try:
                manifest, digest = _manifest(store, folder)
            except LakeError:
                if folder not in gone:
                    raise
                # retracted because it was changed, say: it is listed, and nothing it says is believed
                manifest, digest = {"as_of": folder[1:11], "parent": None, "tables": {}}, ""
            found.append(Published(folder, date.fromisoformat(manifest["as_of"]), manifest, digest, gone.get(folder, "")))
    return sorted(found, key=lambda p: (p.as_of, p.release_id))


def parent_of(store: Store, as_of: date) -> Published | None:
    """The newest release before the date."""
    return next((p for p in reversed(releases(store)) if p.as_of < as_of), None)


def released_as_of(store: Store, as_of: date) -> Published | None:
    """The release as of this very date."""
    return next((p for p in releases(store) if p.as_of == as_of), None)


def is_retracted(store: Store, release_id: str) -> bool:
    """Was this very release taken back?"""
    return store.exists(f"events/{release_id}/retract.json")


def resolve(store: Store, release_id: str) -> str:
    """A release id from itself, from its beginning, or from LATEST. Raises LakeError when there is none, or are several."""
    if release_id != "LATEST":
        if store.exists(f"releases/{release_id}/manifest.json"):
            return release_id
        have = [p.release_id for p in releases(store, retracted=True)]
        found = [r for r in have if release_id and r.startswith(release_id)]
        if len(found) != 1:
            many = f"is the beginning of {', '.join(found)}; write more of it" if found else f"there is no such release in {store.root}"
            raise LakeError(f"release {release_id!r}: {many} (`sayagain releases list` shows all {len(have)})")
        return found[0]
    data = store.find(LATEST)
    if data is None:
        raise LakeError(f"{store.url('releases')}: there is no release" + (", all were retracted" if store.list("events") else " yet"))
    latest = data.decode().strip()
    if is_retracted(store, latest):  # whoever retracted it died before LATEST moved
        newest = newest_id(store)
        if newest is None:
            raise LakeError(f"{store.url(LATEST)}: names {latest}, which was retracted, as were all others")
        return newest
    return latest


# what a release holds, held to its manifest


def _manifest(store: Store, release_id: str) -> tuple[dict[str, Any], str]:
    """The manifest and its hash. Raises LakeError when it is not one, or not the one that was announced."""
    from quality import manifest as m

    path = f"releases/{release_id}/manifest.json"
    data = store.get(path)
    digest = hashlib.sha256(data).hexdigest()
    try:
        manifest = m.read_manifest(data)
    except (m.TamperedRelease, m.NewerFormat) as error:
        raise LakeError(f"{store.url(path)}: {error}") from None
    entry = store.find(f"queue/{release_id}.json")
    announced = json.loads(entry)["manifest_sha256"] if entry else digest
    if announced != digest or manifest.get("release_id") != release_id:
        raise LakeError(
            f"{store.url(path)}: sha256 {digest[:12]}, but the queue announced {announced[:12]}: the manifest was changed. "
            f"Restore it, or `sayagain releases retract {release_id}`"
        )
    return manifest, digest


class Opened:
    """A release whose every table is held to the manifest as it is read. Errors are LakeErrors that name the file."""

    def __init__(self, store: Store, release_id: str):
        self._store, self.release_id = store, release_id
        self.manifest, self.manifest_sha256 = _manifest(store, release_id)

    def _read(self, path: str) -> bytes:
        return self._store.get(f"releases/{self.release_id}/{path}")

    def tables(self, *names: str) -> dict[str, pl.DataFrame]:
        """Table -> rows; all tables when none is named."""
        from quality import manifest as m

        unknown = [n for n in names if n not in self.manifest["tables"]]
        if unknown:
            raise LakeError(f"{self.release_id} has no table {unknown[0]!r}; it has {', '.join(self.manifest['tables'])}")
        try:
            return m.load_tables(self.manifest, self._read, names or tuple(self.manifest["tables"]))
        except m.TamperedRelease as error:
            raise LakeError(f"{self._store.url(f'releases/{self.release_id}')}: {error}") from None
        except FileNotFoundError as error:
            raise LakeError(f"{error}: the manifest of {self.release_id} names it but it is gone; fetch the release again") from None

    def verify(self) -> None:
        """Hold every file and every row to the manifest, and its id to its content."""
        from quality import manifest as m

        try:
            m.verify(self.manifest, self._read)
        except m.TamperedRelease as error:
            raise LakeError(f"{self._store.url(f'releases/{self.release_id}')}: {error}") from None


# events


def events(store: Store, name: str = "") -> list[dict[str, Any]]:
    """Every event (of one name), each with the `object` that it is; by release, then name."""
    found = []
    for path in store.list("events"):
        if path.endswith(".json") and (not name or path.endswith(f"/{name}.json")):
            found.append(json.loads(store.get(path)) | {"object": path})
    return found


def record(store: Store, release_id: str, name: str, **body: Any) -> bool:
    """Write an event once and for ever; False when it was there already. Events are no release bytes: they may tell the time."""
    event = {"event": name, "release_id": release_id, "at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", **body}
    return store.put_new(f"events/{release_id}/{name}.json", (json.dumps(event, indent=1, sort_keys=True) + "\n").encode())


def event(store: Store, release_id: str, name: str) -> dict[str, Any] | None:
    """One event, None when it did not happen."""
    data = store.find(f"events/{release_id}/{name}.json")
    return json.loads(data) if data else None


def newest_id(store: Store) -> str | None:
    """The newest release that was not retracted."""
    have = releases(store)
    return have[-1].release_id if have else None


def move_latest(store: Store) -> str | None:
    """Point LATEST at the newest release that was not retracted; without one there is no LATEST."""
    newest = newest_id(store)
    if newest is None:
        store.delete([LATEST])
    else:
        store.put(LATEST, f"{newest}\n".encode())
    return newest


def retract(store: Store, release_id: str, reason: str) -> str | None:
    """Take one release back, for ever: no reader is given it, no later release has it as parent. Returns the new LATEST."""
    with store.lease("as_of"):
        record(store, release_id, "retract", reason=reason)
        return move_latest(store)


def rollback(store: Store, to: str, reason: str) -> list[str]:
    """Go back to a release: every newer one is retracted, the newest first, so that a run that dies leaves a whole state.

    Returns the ids that were retracted. Raises LakeError when the target itself was.
    """
    with store.lease("as_of"):
        have = releases(store)
        at = next((i for i, p in enumerate(have) if p.release_id == to), None)
        if at is None:
            raise LakeError(f"{to} was retracted: roll back to another (`sayagain releases list`), or mine a new release")
        gone = [p.release_id for p in reversed(have[at + 1 :])]
        for release_id in gone:
            record(store, release_id, "retract", reason=reason, rolled_back_to=to)
        move_latest(store)
    return gone
