"""What a job has to do and why: printed by --dry-run, followed by a run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Todo:
    """One partition that is not current."""

    table: str
    partition: str
    why: str


@dataclass(frozen=True)
class Plan:
    """Partitions to make; `skip` says why there are none."""

    todo: list[Todo] = field(default_factory=list)
    skip: str = ""


def digest(parts: Iterable[str]) -> str:
    """A short hash over a sequence of fingerprints."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
