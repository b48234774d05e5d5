"""The demo's generator: as hard as the evaluation worlds, the same bytes every time, rewrites live, meanings that flip."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cpdist

from pipelines.simulate import world
from pipelines.simulate.judge import replay
from pipelines.simulate.job import run
from pipelines.simulate.options import LOCALES, SimulateOptions
from rewrite.contracts import LOG
from rewrite.text import key, key_expr


def read(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    return pl.read_parquet(folder / "log.parquet"), pl.read_parquet(folder / "truth.parquet")


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """The world of `sayagain demo`: all defaults."""
    out = tmp_path_factory.mktemp("world") / "demo"
    run(SimulateOptions(out=str(out)))
    return out


def neighbours(log: pl.DataFrame) -> pl.DataFrame:
    """Consecutive turns of a user that are not the same text: what a miner has to judge."""
    by = ["locale", "user_id"]
    after = lambda c: pl.col(c).shift(-1).over(by)  # noqa: E731
    t = log.unique("turn_id").with_columns(u=key_expr("utterance")).sort(*by, "timestamp", "turn_id")
    t = t.with_columns(v=after("u"), next_turn_id=after("turn_id"), gap=(after("timestamp") - pl.col("timestamp")).dt.total_seconds())
    t = t.with_columns(status2=after("status"), barge_in2=after("barge_in"))
    return t.filter(pl.col("gap") <= 600, pl.col("u") != pl.col("v"))


def edit_distance_ap(log: pl.DataFrame, truth: pl.DataFrame) -> float:
    """Average precision of edit distance as a ranker of neighbours for "asked again", as the evaluation's scorer counts it."""
    p = neighbours(log)
    yes = truth.filter("rephrase").select(turn_id="again_of", next_turn_id="turn_id", y=True)
    goal = truth.select("turn_id", "goal")
    p = p.join(goal, on="turn_id").join(goal.rename({"turn_id": "next_turn_id", "goal": "goal2"}), on="next_turn_id")
    p = p.join(yes, on=["turn_id", "next_turn_id"], how="left").with_columns(pl.col("y").fill_null(False))
    p = p.filter(pl.col("y") | (pl.col("goal") != pl.col("goal2")))
    s = cpdist(p["u"].to_list(), p["v"].to_list(), scorer=Levenshtein.normalized_similarity)
    order = np.argsort(-s, kind="stable")
    y, s = p["y"].to_numpy()[order], s[order]
    last = np.append(s[1:] != s[:-1], True)
    hit = np.cumsum(y)[last]
    precision, recall = hit / (np.arange(1, y.size + 1)[last]), hit / yes.height
    return float((np.diff(np.append(0.0, recall)) * precision).sum())


def pair_counting(log: pl.DataFrame) -> pl.DataFrame:
    """The naive miner: what three users said within 45 seconds, and was served, is the rewrite."""
    p = neighbours(log).filter(pl.col("gap") <= 45, pl.col("status2") == "completed", ~pl.col("barge_in2"))
    r = p.group_by("locale", "u", "v").agg(n=pl.col("user_id").n_unique()).filter(pl.col("n") >= 3)
    r = r.sort(["n", "v"], descending=[True, False]).unique(["locale", "u"], keep="first", maintain_order=True)
    return r.select("locale", source="u", target="v", probability=pl.col("n") / (pl.col("n") + 2.0))


def test_as_hard_as_the_evaluation_worlds(demo):
    log, truth = read(demo)
    judged = replay(demo, pair_counting(log))
    for locale in ("en-US", "de-DE", "sw-KE"):
        ap = edit_distance_ap(log.filter(pl.col("locale") == locale), truth.filter(pl.col("turn_id").str.starts_with(locale)))
        figures = f"{locale}: edit distance {ap:.3f}, pair counting {judged[locale]}"
        print(figures)
        assert 0.5 <= ap <= 0.85, figures
        assert judged[locale]["triggered"] >= 300, figures
        assert 0 < judged[locale]["win_loss"] <= 5, figures
