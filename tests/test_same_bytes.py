"""However the log is cut and whoever reads it, the lake is the same: a property of whole runs.

Vectors are inputs, so the encoder is the one that computes them anew: n-grams.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from faults import CONFIG, tables
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from running import contents, difference

from pipelines import shards as pieces
from pipelines import window
from pipelines.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.e2e]
EXAMPLES = int(os.environ.get("SAYAGAIN_SOAK_CUTS", "2"))  # besides the explicit ones; each is a run of some seconds
ONE = "input"  # the file that a row lay in; of duplicates one stays
DAILY = ("turns", "rephrases", "outcomes", "votes")


def mine(log: Path, lake: Path, config: str, *more: str) -> None:
    file = log.parent / f"{lake.name}.toml"
    file.write_text(config)
    assert main(["mine", f"--logs={log}", f"--lake={lake}", f"--config={file}", "--quiet", *more]) == 0


def as_of_and_released(lake: Path) -> dict[str, str]:
    """The model by its fingerprint: its manifest says which tables it saw, and `turns` says which file each row lay in."""
    return {n: h for n, h in contents(lake).items() if n.startswith(("models/CURRENT", "goal", "candidates/", "splits/", "releases/"))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, pl.DataFrame]:
    """The lake of one file, one shard, one process; and its log."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(["simulate", f"--out={folder}/w", "--turns=2000", "--days=2", "--locales=en-US", "--no-truth", "--quiet"]) == 0
    mine(folder / "w" / "log.parquet", folder / "lake", CONFIG)
    assert (folder / "lake" / "releases" / "LATEST").exists()
    return folder / "lake", pl.read_parquet(folder / "w" / "log.parquet")


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),  # a smaller cut that fails too says no more
    suppress_health_check=list(HealthCheck),
)
@example(shards=64, files=3, workers=2, seed=1)
@given(shards=st.integers(1, 64), files=st.integers(1, 6), workers=st.just(1), seed=st.integers(0, 2**32))
def test_shards_files_workers_and_row_order_change_nothing(whole, tmp_path_factory, shards, files, workers, seed):
    lake, log = whole
    folder, rng = tmp_path_factory.mktemp("cut"), np.random.default_rng(seed)
    rows = max(1, log.height // shards)
    where = rng.integers(files, size=log.height)
    shuffled = log[rng.permutation(log.height)]
    (folder / "log").mkdir()
    for i in range(files):
        shuffled.filter(pl.Series(where == i)).write_parquet(folder / "log" / f"{i}.parquet", row_group_size=rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window, "BLOCK", max(1, log.height // min(shards, 8)))
        patch.setattr(pieces, "PART", max(1, log.height // 16 // min(shards, 3)))
        mine(folder / "log", folder / "lake", f"{CONFIG}[run]\nshard_turns = {rows}\n", f"--workers={workers}")
    for name in DAILY:
        assert tables(folder / "lake", name, ONE) == tables(lake, name, ONE), name
    assert not difference(as_of_and_released(folder / "lake"), as_of_and_released(lake))
    shutil.rmtree(folder)
