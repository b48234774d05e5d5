"""`aggregate`: votes become candidates: rewrites, labels and pairs, proposed or not, each with the reason."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from typing import Any

import apache_beam as beam
import polars as pl

from pipelines import engine, shards, window
from pipelines.context import Context
from pipelines.errors import LakeError
from pipelines.plan import Plan
from pipelines.shards import Shard
from pipelines.store import Manifest, Store
from rewrite import contracts
from rewrite.contracts import CANDIDATES

VERSION = 8
READS = {"votes": contracts.VOTES.names, "goals": contracts.GOALS.names}
WRITES = {f"candidates/{n}": s.names for n, s in CANDIDATES.items()}


class Decide(beam.DoFn):
    """The window's evidence and goals -> candidate tables; emits receipts."""

    def __init__(self, store: Store, attempt: str, as_of: date, options: dict[str, Any], goals: Manifest, sent: int):
        self._store, self._attempt, self._as_of, self._options, self._goals, self._sent = store, attempt, as_of, options, goals, sent

    def process(self, element: tuple[int, Iterable[window.Tables]]) -> Iterable[dict[str, Any]]:
        from rewrite.evidence import Options, candidates

        goals = pl.concat([self._store.frame(f) for f in self._goals.files])
        options = Options(**self._options)
        evidence = window.merged(self._store, self._attempt, element[1], self._sent)
        found = candidates(evidence, goals, as_of=self._as_of, k=options.k, options=options)
        for name, schema in CANDIDATES.items():
            frame = getattr(found, name)
            entry = self._store.attempt(self._attempt, "candidates", f"as_of={self._as_of}/{name}", engine.conform(frame, schema))
            proposed = int((frame["decision"] == "proposed").sum())
            yield engine.receipt("candidates", f"as_of={self._as_of}/{name}", entry, proposed=proposed)


class Aggregate(beam.PTransform):
    """What `gather` gathers evidence from -> receipts of the candidate tables."""

    def __init__(self, store: Store, gather: beam.PTransform, *decide: Any):
        super().__init__()
        self._gather, self._decide = gather, Decide(store, *decide)

    def expand(self, work: beam.PCollection[Shard]) -> beam.PCollection[dict[str, Any]]:
        return work | "evidence" >> self._gather | "decide" >> beam.ParDo(self._decide)


def _fingerprint(context: Context, as_of: date) -> str:
    goals = context.store.manifest("goals", f"as_of={as_of}")
    keys = context.config.fingerprint("privacy", "evidence.profile", "evidence.false_discovery", "evidence.grace")
    return window.fingerprint(context, as_of, goals.content if goals else "", keys, str(VERSION), history=_careful(context))


def _careful(context: Context) -> bool:
    return context.config.evidence.profile == "careful"


def settings(context: Context) -> dict[str, Any]:
    """Fields of `rewrite.evidence.Options` that the configuration sets."""
    p, e = context.config.privacy, context.config.evidence
    decided = {"careful": _careful(context), "false_discovery": e.false_discovery, "grace": e.grace}
    return {"k": p.k, "burst": p.burst, "scarce": p.scarce, **decided}


def _evidence(context: Context, as_of: date) -> tuple[list[Any], beam.PTransform, int]:
    """(work items, how they become evidence, how many shards of votes they are): what `link` of the same run kept, else the votes, one
    shard per bucket of users."""
    place = window.kept(context, as_of, history=_careful(context))
    if context.store.list(place):
        return [place], beam.Map(lambda kept: (0, [kept])), 0
    work = shards.by_bucket(window.manifests(context, as_of, _careful(context)))
    rules, since = window.rules(context), context.window(as_of)[0]
    return work, window.GatherEvidence(context.store, f"{context.attempt}/aggregate", rules, work, since), len(work)


def plan(context: Context) -> Plan:
    """The candidates of the as-of date, unless they were made from the same votes."""
    return window.plan(context, list(WRITES), _fingerprint)


def run(context: Context, report: Any) -> None:
    """Make the candidates of the as-of date."""
    todo = plan(context)
    if todo.skip:
        report.skipped = todo.skip
        return
    as_of = context.as_of()
    assert as_of is not None  # the plan says so
    window.refuse_older(context, "candidates", as_of)
    goals = context.store.manifest("goals", f"as_of={as_of}")
    if goals is None:
        raise LakeError(f"there are no goals as of {as_of}; run `sayagain link --lake {context.options.lake} --as-of {as_of}` first")
    with context.store.lease("as_of"):
        work, gather, sent = _evidence(context, as_of)
        transform = Aggregate(context.store, gather, f"{context.attempt}/aggregate", as_of, settings(context), goals, sent)
        receipts = engine.execute(context, "aggregate", work, transform, expect=len(CANDIDATES))
        fingerprint = _fingerprint(context, as_of)
        counts = {r["partition"]: r["counts"] for r in receipts}
        made = [Manifest("candidates", p, "aggregate", fingerprint, counts=counts[p]) for p in (f"as_of={as_of}/{n}" for n in CANDIDATES)]
        engine.publish(context, "aggregate", receipts, made)
    report.counts = {f"{r['partition'].split('/')[1]} proposed": r["counts"]["proposed"] for r in receipts}
    report.counts["considered"] = sum(r["entry"]["rows"] for r in receipts)
