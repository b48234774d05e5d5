"""`detect`: scores every pair of turns and every turn of a day, and casts the votes of its users."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import apache_beam as beam
import polars as pl

from pipelines import engine, modelstore, shards
from pipelines.context import Context
from pipelines.errors import LakeError
from pipelines.plan import Plan, Todo, digest
from pipelines.shards import Shard
from pipelines.store import Manifest, Store
from rewrite import contracts
from rewrite.turns import bucket_expr

VERSION = 7
READS = {"turns": contracts.TURNS.names}
WRITES = {"rephrases": contracts.REPHRASES.names, "outcomes": contracts.OUTCOMES.names, "votes": contracts.VOTES.names}
SCHEMAS = {"rephrases": contracts.REPHRASES, "outcomes": contracts.OUTCOMES, "votes": contracts.VOTES}


class Score(beam.DoFn):
    """Shard of turns -> files of the three daily tables, one per day and bucket; emits receipts."""

    def __init__(self, store: Store, attempt: str, model: str, gap: float):
        self._store, self._attempt, self._model, self._gap = store, attempt, model, gap

    def process(self, shard: Shard) -> Iterable[dict[str, Any]]:
        from rewrite import signal_table
        from rewrite.votes import detect

        model = modelstore.load(self._store.root, self._model)
        turns = shards.read(self._store, shard)
        said = turns.group_by("date", "bucket", "locale").len().sort("locale")
        found = detect(turns.drop("bucket"), model, self._gap)
        cuts = signal_table.confidence_cuts(model, turns["locale"].unique())
        whose = bucket_expr().alias("bucket")
        patterns = signal_table.patterns(turns, found.rephrases, found.outcomes, cuts, self._gap).with_columns(whose)
        based = found.rephrases.with_columns(whose, base=signal_table.base_rates(turns, found.rephrases, model))
        for table, schema in SCHEMAS.items():
            frame = getattr(found, table).with_columns(whose)
            if "user_key" not in schema.names:
                frame = frame.drop("user_key")
            for (day, bucket), part in frame.partition_by("date", "bucket", as_dict=True, include_key=False, maintain_order=True).items():
                data = engine.conform(part, schema)
                entry = self._store.attempt(self._attempt, table, f"date={day}", data, int(bucket))
                counts = _counts(table, part, said.filter(date=day, bucket=bucket))
                if table == "outcomes":
                    counts["signals"] = signal_table.pattern_counts(patterns.filter(date=day, bucket=bucket))
                elif table == "rephrases":
                    pairs = based.filter(date=day, bucket=bucket)
                    counts["views"] = signal_table.view_counts(pairs, pairs["base"])
                yield engine.receipt(table, f"date={day}", entry, **counts)


def _counts(table: str, part: pl.DataFrame, said: pl.DataFrame) -> dict[str, Any]:
    """What the report's funnel shows, by locale."""
    if table == "outcomes":
        return {"by_locale": {locale: {"turns": n} for locale, n in said.select("locale", "len").iter_rows()}}
    if table == "rephrases":
        changed = (pl.col("probability") >= 0.5) & ~pl.col("same_text") & (pl.col("lag") == 1)
        found = part.group_by("locale").agg(pairs=pl.len(), asked_again=changed.sum()).sort("locale")
        return {"by_locale": {locale: {"pairs": n, "asked_again": m} for locale, n, m in found.iter_rows()}}
    return {}


def _summed(receipts: list[dict[str, Any]], table: str, partition: str) -> dict[str, Any]:
    """The counts of a day's files, added up: by locale for the funnel, by signal and view for the signal tables."""
    from rewrite import signal_table

    counts = [r["counts"] for r in receipts if (r["table"], r["partition"]) == (table, partition)]
    total = engine.add_by_locale(counts)
    for name in ("signals", "views"):
        if any(name in c for c in counts):
            total[name] = signal_table.add(c.get(name, {}) for c in counts)
    return total


class Detect(beam.PTransform):
    """Shards of turns -> receipts of rephrases, outcomes and votes."""

    def __init__(self, store: Store, attempt: str, model: str, gap: float):
        super().__init__()
        self._dofn = Score(store, attempt, model, gap)

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
        transform = Detect(context.store, attempt, model, context.config.sessions.gap)
        receipts = engine.execute(context, "detect", work, transform, expect=3 * sum(len(s.files) for s in work))
        for d in todo:
            judged = sum(r["entry"]["rows"] for r in receipts if (r["table"], r["partition"]) == ("outcomes", d))
            engine.accounted(f"turns of {d}", turns[d].rows, judged)
        manifests = [
            Manifest(
                t,
                d,
                "detect",
                _fingerprint(context, turns[d], model),
                counts=_summed(receipts, t, d),
                inputs={"turns": turns[d].content, "model": model},
            )
            for d in todo
            for t in SCHEMAS  # votes last: later jobs go by them
        ]
        engine.publish(context, "detect", receipts, manifests)
    rows = {t: sum(r["entry"]["rows"] for r in receipts if r["table"] == t) for t in SCHEMAS}
    again = engine.add_by_locale(r["counts"] for r in receipts).get("by_locale", {})
    asked = sum(v.get("asked_again", 0) for v in again.values())
    report.counts = {"days": len(todo), "pairs": rows["rephrases"], "asked again": asked, "votes": rows["votes"]}
