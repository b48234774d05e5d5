"""Rings of nine fake accounts, of every kind, release at most 1 % of what they attack; honest rewrites fall by less than 2 %."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from running import simulate

from pipelines.simulate.rings import KINDS
from pipelines.simulate.siege import Fort, curve, markdown

pytestmark = pytest.mark.soak


def test_siege(tmp_path: Path, record: Callable[[str, str], None], say: Callable[[str], None]) -> None:
    log = pl.read_parquet(simulate(tmp_path / "world", 60_000, 14) / "*.parquet")
    table = curve(Fort.of(log), KINDS, (9,), 60, 0, say)
    say("\n" + markdown(table))
    rings = table.filter(pl.col("kind") != "none")
    assert rings["released"].sum() <= 0.01 * rings["attacks"].sum(), rings
    assert table.filter(pl.col("kind") == "none")["rewrites_now"].item() > 0.98
    honest = table.filter(pl.col("kind") == "none")["rewrites_now"].item()
    released, attacks = (int(rings[c].sum()) for c in ("released", "attacks"))
    record(
        "siege", f"rings of nine, {len(KINDS)} kinds: {released} of {attacks} attacks released; {honest:.1%} of honest rewrites are kept"
    )
