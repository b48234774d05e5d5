"""`fit`: learns from a sample of turns, without a label, when users ask again and when a turn has failed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import apache_beam as beam
import polars as pl

from pipelines import engine, modelstore, shards
from pipelines.context import Context
from pipelines.errors import LakeError
from pipelines.explain import printable
from pipelines.plan import Plan, Todo, digest
from pipelines.shards import Shard
from pipelines.store import Manifest, Store
from rewrite import contracts

if TYPE_CHECKING:
    from rewrite.model import Model

VERSION = 6
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
            from rewrite import sampling

            turns = turns.filter(sampling.drawn(turns, self._share))
        yield 0, engine.to_ipc(turns)


class FitModel(beam.DoFn):
    """All sampled turns -> a model in the lake (not with `keep` off); emits what was learned, and how far it moved."""

    def __init__(
        self, store: Store, settings: dict[str, Any], gap: float, made_from: dict[str, str], sent: int, old: str | None, keep: bool
    ):
        self._store, self._settings, self._gap, self._made_from = store, settings, gap, made_from
        self._sent, self._old, self._keep = sent, old, keep

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterable[dict[str, Any]]:
        from rewrite import asked_again

        parts = [engine.frame(b) for b in element[1]]
        engine.accounted("shards of turns", self._sent, len(parts))
        turns = pl.concat(parts)
        model = asked_again.fit(turns, **self._settings)
        fingerprint, compared = model.fingerprint, {}
        if self._old:
            compared = self._compared(turns, model) | {"old": self._old}
        if self._keep:
            modelstore.save(self._store, model, self._made_from, compared if fingerprint != self._old else None)
        counts = {"turns": turns.height, "compared": compared}
        yield {"table": "models", "partition": fingerprint, "entry": {"bucket": None, "path": ""}, "counts": counts}

    def _compared(self, turns: pl.DataFrame, model: Model) -> dict[str, Any]:
        from rewrite import drift, sampling

        assert self._old is not None
        try:
            old = modelstore.load(self._store.root, self._old)
        except (LakeError, ValueError) as error:  # of another version, or damaged: the new one is needed, whatever it says
            return {"worth": True, "verdict": f"A refit is needed: the model in use cannot be read ({error})."}
        return drift.compare(sampling.thinned(turns, drift.SAMPLE_TURNS), old, model, self._gap)


class Fit(beam.PTransform):
    """Shards of turns -> one model."""

    def __init__(self, store: Store, share: float, *fit: Any):
        super().__init__()
        self._sample, self._fit = Sample(store, share), FitModel(store, *fit)

    def expand(self, work: beam.PCollection[Shard]) -> beam.PCollection[dict[str, Any]]:
        return work | "sample" >> beam.ParDo(self._sample) | "gather" >> beam.GroupByKey() | "fit" >> beam.ParDo(self._fit)


def plan(context: Context) -> Plan:
    """A model is used until told otherwise: fitted when there is none, or when asked for."""
    model = modelstore.current(context.store)
    if getattr(context.options, "compare", False):
        if model is None:
            raise LakeError(f"--compare: {context.store.url('models')} has no model to compare with; leave --compare away to fit the first")
        return Plan([Todo("models", "", f"to compare with {model[:12]}, which stays in use")])
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
    made_from = {
        "turns": digest([m.content for m in manifests]),
        "config": c.fingerprint("asked_again", "run.seed", "privacy"),
        "through": manifests[-1].partition.removeprefix("date="),
    }
    settings = {"seed": c.run.seed, "k": c.privacy.k, "max_pairs": c.asked_again.sample_pairs}
    old, keep = modelstore.current(context.store), not getattr(context.options, "compare", False)
    with context.store.lease("fit"):
        work = shards.by_size(manifests, c.run.shard_turns)
        share = min(1.0, MAX_TURNS / max(rows, 1))
        transform = Fit(context.store, share, settings, c.sessions.gap, made_from, len(work), old, keep)
        receipt = engine.execute(context, "fit", work, transform)[0]
    report.counts = {"turns": receipt["counts"]["turns"], "model": receipt["partition"][:12]}
    if moved := receipt["counts"]["compared"]:
        report.counts |= {n: moved[n] for n in _FIGURES if n in moved} | {"worth a refit": "yes" if moved["worth"] else "no"}
        context.result["lines"] = _told(moved, receipt["partition"], keep)


_FIGURES = ("flipped", "moved", "psi", "outcomes_flipped", "outcomes_moved")


def _told(moved: dict[str, Any], new: str, kept: bool) -> list[str]:
    """How far the new model moves, for a person."""
    if new == moved["old"]:
        return [f"The fit gives the model in use, {new[:12]}, number for number."]
    out = [printable(moved["verdict"])]
    if "moved" in moved:
        out.append(f"  asked again: P changes by {moved['moved']:.4f} on average; PSI {moved['psi']:.4f}")
        out.append(f"  failed: P changes by {moved['outcomes_moved']:.4f} on average")
    for name, what in (("bases", "base rate of asking again"), ("priors", "P(served)")):
        for part, (before, after) in moved.get(name, {}).items():
            if before != after:
                show = lambda v: "the pool's" if v is None else f"{v:.3f}"  # noqa: E731
                curve = f"; gap curve moves by {moved['curves'][part]:.2f} log odds" if part in moved["curves"] else ""
                out.append(f"  {printable(part)}: {what} {show(before)} -> {show(after)}{curve}")
    out.append(f"{new[:12]} is in use now; `sayagain detect` rebuilds the daily tables." if kept else f"{moved['old'][:12]} stays in use.")
    return out
