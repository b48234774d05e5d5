"""Rows of single users, in blocks of whole sources: of a long log they are nearly all there is, so one block is held at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import polars as pl


def _as_is(block: Any) -> Any:
    return block


@dataclass(frozen=True)
class Blocks:
    """Frames of the same columns, one or more, maybe empty; all rows of a source are in one of them.

    parts: what `write` made of them and `read` makes frames of; the frames themselves, if nobody says where else they lie.
    """

    parts: tuple[Any, ...] = ()
    read: Callable[[Any], pl.DataFrame] = _as_is
    write: Callable[[pl.DataFrame], Any] = _as_is

    def __iter__(self) -> Iterator[pl.DataFrame]:
        return map(self.read, self.parts)

    def of(self, frames: Iterable[pl.DataFrame]) -> Blocks:
        """These frames, kept where this keeps its own."""
        return replace(self, parts=tuple(map(self.write, frames)))

    def map(self, change: Callable[[pl.DataFrame], pl.DataFrame]) -> Blocks:
        """Every block changed."""
        return self.of(map(change, self))

    def each(self, reduce: Callable[[pl.DataFrame], pl.DataFrame]) -> pl.DataFrame:
        """What every block comes down to, one after the other."""
        return pl.concat([reduce(block) for block in self])
