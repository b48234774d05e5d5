"""Asked-again models in the lake: `models/<fingerprint>/`, and `models/CURRENT` that names the one in use."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pipelines.errors import LakeError
from pipelines.store import Store

if TYPE_CHECKING:
    from rewrite.asked_again import Model


def current(store: Store) -> str | None:
    """The fingerprint of the model in use, None when none was fitted yet."""
    data = store.find("models/CURRENT")
    return data.decode().strip() if data else None


def made_from(store: Store, fingerprint: str) -> dict[str, str]:
    """What a model was made from: the hash of its turns, and `through`, the last of their days; {} when it is gone."""
    data = store.find(f"models/{fingerprint}/manifest.json")
    return dict(json.loads(data)["made_from"]) if data else {}


def comparison(store: Store, fingerprint: str) -> dict[str, Any]:
    """How far a model moved from the one before it (`rewrite.drift.compare`); {} for a first one."""
    data = store.find(f"models/{fingerprint}/comparison.json")
    return json.loads(data) if data else {}


def save(store: Store, model: Model, made_from: dict[str, str], compared: dict[str, Any] | None = None) -> str:
    """Keep a model, and how it differs from the one before it, and make it current; the pointer moves last."""
    fingerprint, files = model.fingerprint, model.to_files()
    for name, data in files.items():
        store.put(f"models/{fingerprint}/{name}", data)
    manifest = {"files": {n: hashlib.sha256(d).hexdigest() for n, d in files.items()}, "made_from": made_from}
    store.put(f"models/{fingerprint}/manifest.json", (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode())
    if compared:
        store.put(f"models/{fingerprint}/comparison.json", (json.dumps(compared, indent=1, sort_keys=True) + "\n").encode())
    store.put("models/CURRENT", f"{fingerprint}\n".encode())
    return fingerprint


@lru_cache(maxsize=2)
def load(store_root: str, fingerprint: str) -> Model:
    """A model by its fingerprint; kept by the process. Raises LakeError when a file is gone, was changed, or is of another version."""
    from rewrite.asked_again import Model

    store = Store(store_root)
    try:
        manifest = json.loads(store.get(f"models/{fingerprint}/manifest.json"))
        files = {name: store.get(f"models/{fingerprint}/{name}") for name in manifest["files"]}
    except FileNotFoundError as error:
        raise LakeError(f"model {fingerprint}: {error} is gone; `sayagain fit` makes a new one") from None
    for name, digest in manifest["files"].items():
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise LakeError(
                f"{store.url(f'models/{fingerprint}/{name}')}: its sha256 is not the manifest's; `sayagain fit` makes a new one"
            )
    try:
        return Model.from_files(files)
    except ValueError as error:  # of another version of sayagain
        raise LakeError(f"model {fingerprint}: {error}") from None
