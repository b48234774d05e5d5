"""`fit`: learns from a sample of turns, without a label, when users ask again and when a turn has failed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import apache_beam as beam
import polars as pl

from pipelines import engine, modelstore, shards
from pipelines.context import Context
from pipelines.plan import Plan, Todo, digest
from pipelines.shards import Shard
from pipelines.store import Manifest, Store
from rewrite import contracts

VERSION = 2
READS = {"turns": contracts.TURNS.names}
WRITES = {"models": ["friction and asked-again parameters per locale and channel, frozen statistics of the log"]}
MAX_TURNS = 600_000
"""More turns teach a fit of 30,000 pairs nothing; whole sessions are drawn by a hash of their first turn id."""


class Sample(beam.DoFn):
    """Shard -> an IPC buffer of sampled turns: whole sessions, chosen by a hash that no user key enters."""

    def __init__(self, store: Store, share: float):
        self._store, self._share = store, share

    def process(self, shard: Shard) -> Iterable[tuple[int, bytes]]:
        turns = shards.read(self._store, shard)
        if self._share < 1:
            first = pl.col("turn_id").min().over("user_key", "date", "session")
            turns = turns.filter(first.hash(seed=1) < int(self._share * 2**64))
        yield 0, engine.to_ipc(turns)


class FitModel(beam.DoFn):
    """All sampled turns -> a model in the lake; emits what was learned."""

    def __init__(self, store: Store, seed: int, k: int, sample_pairs: int, made_from: dict[str, str], sent: int):
        self._store, self._made_from, self._sent = store, made_from, sent
        self._settings = {"seed": seed, "k": k, "max_pairs": sample_pairs}

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterable[dict[str, Any]]:
        from rewrite import asked_again

        parts = [pl.DataFrame(pl.from_arrow(engine.from_ipc(b))) for b in element[1]]
        engine.accounted("shards of turns", self._sent, len(parts))
        turns = pl.concat(parts)
        model = asked_again.fit(turns, **self._settings)
        fingerprint = modelstore.save(self._store, model, self._made_from)
        yield {"table": "models", "partition": fingerprint, "entry": {"bucket": None, "path": ""}, "counts": {"turns": turns.height}}


class Fit(beam.PTransform):
    """Shards of turns -> one model."""

    def __init__(self, store: Store, share: float, **settings: Any):
        super().__init__()
        self._store, self._share, self._settings = store, share, settings

    def expand(self, work: beam.PCollection[Shard]) -> beam.PCollection[dict[str, Any]]:
        return (
            work
            | "sample" >> beam.ParDo(Sample(self._store, self._share))
            | "gather" >> beam.GroupByKey()
            | "fit" >> beam.ParDo(FitModel(self._store, **self._settings))
        )


def plan(context: Context) -> Plan:
    """A model is used until told otherwise: fitted when there is none, or when asked for."""
    model = modelstore.current(context.store)
    if model and (getattr(context.options, "if_missing", False) or getattr(context.options, "refit", None) is False):
        return Plan([], skip=f"model {model[:12]} is in use; --refit or `sayagain fit` makes a new one")
    days = context.chosen_dates("turns")
    if not days:
        return Plan([], skip="there are no turns to learn from")
    return Plan([Todo("models", "", "there is no model yet" if not model else "a new model was asked for")])


def _newest(context: Context) -> list[Manifest]:
    """The newest chosen days that hold MAX_TURNS together: a sparse log is learned from whole, a dense one by its last days."""
    have, chosen, rows = context.store.manifests("turns"), [], 0
    for day in reversed(context.chosen_dates("turns")):
        if rows < MAX_TURNS:
            chosen.append(have[shards.partition(day)])
            rows += chosen[-1].rows
    return chosen[::-1]


def run(context: Context, report: Any) -> None:
    """Fit one model on the turns of the window and make it current."""
    p = plan(context)
    if p.skip:
        report.skipped = p.skip
        return
    manifests = _newest(context)
    rows = sum(m.rows for m in manifests)
    c = context.config
    made_from = {"turns": digest([m.content for m in manifests]), "config": c.fingerprint("asked_again", "run.seed", "privacy")}
    settings = {"seed": c.run.seed, "k": c.privacy.k, "sample_pairs": c.asked_again.sample_pairs, "made_from": made_from}
    with context.store.lease("fit"):
        work = shards.by_size(manifests, c.run.shard_turns)
        share = min(1.0, MAX_TURNS / max(rows, 1))
        receipts = engine.execute(context, "fit", work, Fit(context.store, share, sent=len(work), **settings))
    report.counts = {"turns": receipts[0]["counts"]["turns"], "model": receipts[0]["partition"][:12]}
