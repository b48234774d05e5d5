"""The closed loop by functions alone: simulate an epoch, mine it, serve what was mined in the next one."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from pipelines.link import goal_inputs
from pipelines.simulate.job import Game
from pipelines.simulate.options import SimulateOptions
from pipelines.simulate.siege import GAP, turns_of
from rewrite import asked_again, trust
from rewrite.contracts import GOALS
from rewrite.encoders.ngrams import NgramEncoder
from rewrite.evidence import Options, bucket_evidence, candidates, merge_evidence
from rewrite.goals import build_goals
from rewrite.model import Model
from rewrite.text import rewrite_ids
from rewrite.votes import detect

WINDOW = 30


class Loop:
    """One miner and the world it serves. aware False: the log does not say what was served instead of what was said."""

    def __init__(self, folder: Path, epochs: int, turns: int, days: int, flip: int, *, aware: bool = True, options: Options | None = None):
        self.folder, self.epochs, self.turns, self.days, self.flip = folder, epochs, turns, days, flip
        self.aware, self.options = aware, options or Options()
        self.model: Model | None = None
        self.votes: list[pl.DataFrame] = []
        self.failed: list[float] = []
        self.live: list[int] = []
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, serve: bool = True) -> list[float]:
        """The share of failed turns, epoch by epoch. serve False: nothing that is mined is ever served."""
        for epoch in range(self.epochs):
            log, failed = self._play(epoch, serve)
            self.failed.append(failed)
            if serve:
                self._mine(log)
        return self.failed

    def _play(self, epoch: int, serve: bool) -> tuple[pl.DataFrame, float]:
        rewrites = self.folder / "rewrites.parquet"
        options = SimulateOptions(
            out=str(self.folder / "world"), locales="en-US", turns=self.turns, users=self.turns // 15, days=self.days, first_epoch=epoch,
            rewrites=str(rewrites) if serve and epoch else "", flip_day=self.flip * self.days, flip_share=0.5,
        )  # fmt: skip
        logs, turns, failed = [], 0, 0
        for _, _, log, _, counts in Game(options).days():
            logs.append(log)
            turns, failed = turns + counts.get("turns", 0), failed + counts.get("failed", 0)
        table = pl.DataFrame(pl.from_arrow(pa.concat_tables(logs).unify_dictionaries()))
        return table.with_columns(pl.col(pl.Categorical).cast(pl.String)).unique(
            "turn_id", keep="first", maintain_order=True
        ), failed / turns

    def _mine(self, log: pl.DataFrame) -> None:
        if not self.aware:
            log = log.with_columns(served_utterance=pl.lit(None, pl.String), rewrite_id=pl.lit(None, pl.String))
        turns = turns_of(log)
        self.model = self.model or asked_again.fit(turns)
        self.votes.append(detect(turns, self.model, GAP).votes)
        votes = pl.concat(self.votes)
        last = votes["date"].max()
        assert isinstance(last, dt.date)
        since = last - dt.timedelta(WINDOW - 1)
        votes = votes if self.options.careful else votes.filter(pl.col("date") >= since)
        believed = trust.learn([trust.sketch(votes)])
        evidence = merge_evidence([bucket_evidence(votes, believed, since)])
        texts, links, served = goal_inputs(evidence, self.options)
        vectors = np.asarray(NgramEncoder().encode(texts["utterance"].to_list()))
        goals = build_goals(texts.select("locale", "utterance", "users", "served"), vectors, links, served).goals
        found = candidates(evidence, goals.select(GOALS.names), as_of=last, options=self.options).rewrites
        found = found.filter(pl.col("decision") == "proposed").select("locale", "source", "target")
        ids = pl.Series(rewrite_ids(*(found[c] for c in found.columns)), dtype=pl.String)
        found.with_columns(rewrite_id=ids).write_parquet(self.folder / "rewrites.parquet")
        self.live.append(found.height)
