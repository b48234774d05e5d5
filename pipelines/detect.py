"""`detect`: scores every pair of turns and every turn of a day, and casts the votes of its users."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import apache_beam as beam

from pipelines import engine, modelstore, shards
from pipelines.context import Context
from pipelines.errors import LakeError
from pipelines.plan import Plan, Todo, digest
from pipelines.shards import Shard
from pipelines.store import Manifest, Store
from rewrite import contracts

VERSION = 1
READS = {"turns": contracts.TURNS.names}
WRITES = {"rephrases": contracts.REPHRASES.names, "outcomes": contracts.OUTCOMES.names, "votes": contracts.VOTES.names}
SCHEMAS = {"rephrases": contracts.REPHRASES, "outcomes": contracts.OUTCOMES, "votes": contracts.VOTES}


class Score(beam.DoFn):
    """Shard of turns -> files of the three daily tables, one per day and bucket; emits receipts."""

    def __init__(self, store: Store, attempt: str, model: str):
        self._store, self._attempt, self._model = store, attempt, model

    def process(self, shard: Shard) -> Iterable[dict[str, Any]]:
        from rewrite.detect import detect

        model = modelstore.load(self._store.root, self._model)
        found = detect(shards.read(self._store, shard), model)
        for table, schema in SCHEMAS.items():
            frame = getattr(found, table)
            for (day, bucket), part in frame.partition_by("date", "bucket", as_dict=True, include_key=False, maintain_order=True).items():
                data = engine.conform(part, schema)
                entry = self._store.attempt(self._attempt, table, f"date={day}", data, int(bucket))
                yield engine.receipt(table, f"date={day}", entry)


class Detect(beam.PTransform):
    """Shards of turns -> receipts of rephrases, outcomes and votes."""

    def __init__(self, store: Store, attempt: str, model: str):
        super().__init__()
        self._dofn = Score(store, attempt, model)

    def expand(self, work: beam.PCollection[Shard]) -> beam.PCollection[dict[str, Any]]:
        return work | "score" >> beam.ParDo(self._dofn)


def _fingerprint(context: Context, turns: Manifest, model: str) -> str:
    return digest([turns.content, model, context.config.fingerprint("sessions.gap"), str(VERSION)])


def plan(context: Context) -> Plan:
    """Days whose turns, model or settings changed since they were scored."""
    model = modelstore.current(context.store) or ""
    todo = []
    have = {t: context.store.manifests(t) for t in SCHEMAS}
    turns = context.store.manifests("turns")
    for day in context.chosen_dates("turns"):
        p = shards.partition(day)
        want = _fingerprint(context, turns[p], model)
        old = [have[t].get(p) for t in SCHEMAS]
        if any(m is None or m.fingerprint != want for m in old):
            todo.append(Todo("votes", p, "never scored" if old[0] is None else "its turns, the model or the settings changed"))
    return Plan(todo, skip="" if todo else "every day is scored with the model in use" if turns else "there are no turns")


def run(context: Context, report: Any) -> None:
    """Score the days that are not current and publish them, day by day."""
    p = plan(context)
    if p.skip:
        report.skipped = p.skip
        return
    model = modelstore.current(context.store)
    if model is None:
        raise LakeError(f"{context.store.url('models')}: there is no model yet; run `sayagain fit --lake {context.options.lake}` first")
    turns = context.store.manifests("turns")
    todo = [t.partition for t in p.todo]
    work = shards.by_size((turns[d] for d in todo), context.config.run.shard_turns)
    attempt = f"{context.attempt}/detect"
    with engine.leases(context, todo):
        receipts = engine.execute(context, "detect", work, Detect(context.store, attempt, model), expect=3 * sum(len(s.files) for s in work))
        manifests = [
            Manifest(t, d, "detect", _fingerprint(context, turns[d], model), inputs={"turns": turns[d].content, "model": model})
            for d in todo
            for t in SCHEMAS  # votes last: later jobs go by them
        ]
        engine.publish(context, "detect", receipts, manifests)
    rows = {t: sum(r["entry"]["rows"] for r in receipts if r["table"] == t) for t in SCHEMAS}
    report.counts = {"days": len(todo), "pairs": rows["rephrases"], "votes": rows["votes"]}

