"""Rings of nine fake accounts, of every kind, release at most 1 % of what they attack; honest rewrites fall by less than 2 %."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from running import simulate

from pipelines.simulate.rings import KINDS
from pipelines.simulate.siege import Fort, curve, markdown

pytestmark = pytest.mark.soak


def test_siege(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = pl.read_parquet(simulate(tmp_path / "world", 60_000, 14) / "*.parquet")
    table = curve(Fort.of(log), KINDS, (9,), 60, 0, lambda text: None)
    with capsys.disabled():
        print(markdown(table))
    rings = table.filter(pl.col("kind") != "none")
    assert rings["released"].sum() <= 0.01 * rings["attacks"].sum(), rings
    assert table.filter(pl.col("kind") == "none")["rewrites_now"].item() > 0.98
