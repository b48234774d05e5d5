"""Which code made something: versions of the packages that have a say in rows, and a hash of our own sources."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "apache-beam",
    "great-expectations",
    "lightgbm",
    "numpy",
    "polars",
    "pyarrow",
    "rapidfuzz",
    "scipy",
    "sentence-transformers",
    "torch",
)
ROOMS = ("rewrite", "pipelines", "quality")


@lru_cache(maxsize=1)
def made_by() -> dict[str, Any]:
    """`packages`: name -> version, null when it is not installed; `code`: our version and the hash of our sources."""
    root = Path(__file__).resolve().parent.parent
    sources = hashlib.sha256()
    for path in sorted(p for room in ROOMS for p in (root / room).rglob("*.py")):
        sources.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return {
        "packages": {name: _version(name) for name in PACKAGES},
        "code": {"version": _version("sayagain"), "sources_sha256": sources.hexdigest()},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
