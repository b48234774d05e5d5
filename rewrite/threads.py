"""Parts of one computation side by side, on the threads that Polars may use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import polars as pl

Part = TypeVar("Part")
Done = TypeVar("Done")


def side_by_side(function: Callable[[Part], Done], parts: Iterable[Part]) -> list[Done]:
    """`function` of every part, in the order of the parts. It pays where NumPy, LightGBM or Polars do the work: they leave the
    interpreter to others meanwhile. POLARS_MAX_THREADS says how many threads; results never depend on it."""
    with ThreadPoolExecutor(pl.thread_pool_size()) as pool:
        return list(pool.map(function, parts))
