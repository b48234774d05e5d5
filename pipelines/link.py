"""`link`: wordings of one goal, across users and languages, become one goal with a stable id."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import date
from typing import TYPE_CHECKING, Any

import apache_beam as beam
import numpy as np
import polars as pl

from pipelines import cells, embed, engine, lexicon, models, shards, window
from pipelines.context import Context
from pipelines.errors import LakeError
from pipelines.plan import Plan
from pipelines.shards import Shard
from pipelines.store import Manifest, Store
from rewrite import contracts
from rewrite import neighbours as nb
from rewrite.goal_evidence import NEIGHBOURS

if TYPE_CHECKING:
    from rewrite.evidence import Evidence, Options
    from rewrite.lexicon import Rows

VERSION = 8
READS = {"votes": contracts.VOTES.names, "embeddings": ["key", "vector"], "goals": contracts.GOALS.names}
WRITES = {"goals": contracts.GOALS.names, "goal_edges": contracts.GOAL_EDGES.names, "goal_changes": contracts.GOAL_CHANGES.names}
SCHEMAS = {"goal_edges": contracts.GOAL_EDGES, "goal_changes": contracts.GOAL_CHANGES, "goals": contracts.GOALS}  # goals last


class Inputs(beam.DoFn):
    """The window's evidence -> what the goal graph is made from; one element. `keep`: where the evidence stays for `aggregate`, or nowhere."""

    def __init__(self, store: Store, attempt: str, keep: str, k: int, sent: int, burst: float, scarce: float):
        self._store, self._attempt, self._keep = store, attempt, keep
        self._k, self._sent, self._burst, self._scarce = k, sent, burst, scarce

    def process(self, element: tuple[int, Iterable[window.Tables]]) -> Iterable[window.Tables]:
        from rewrite.evidence import Options

        options = Options(k=self._k, burst=self._burst, scarce=self._scarce)
        evidence = window.merged(self._store, self._attempt, element[1], self._sent)
        if self._keep:
            window.keep(self._store, self._keep, evidence)
        found = goal_inputs(evidence, options)
        yield {name: engine.to_ipc(frame) for name, frame in zip(("texts", "links", "served"), found, strict=True)}


class BuildGoals(beam.DoFn):
    """Inputs and the neighbours found for big locales -> the goal graph of every locale together; emits receipts."""

    def __init__(
        self,
        store: Store,
        attempt: str,
        as_of: date,
        embeddings: embed.Current | None,
        last: Manifest | None,
        seed: int,
        words: Rows = (),
    ):
        self._store, self._attempt, self._as_of, self._words = store, attempt, as_of, words
        self._embeddings, self._last, self._seed = embeddings, last, seed

    def process(self, element: window.Tables, found: Iterable[tuple[str, bytes]]) -> Iterable[dict[str, Any]]:
        from rewrite import goals

        texts, links, served = (engine.frame(element[name]) for name in ("texts", "links", "served"))
        vectors, model = embed.vectors(self._store, self._embeddings, texts["locale"], texts["utterance"])
        last = None
        if self._last is not None:
            parts = [self._store.frame(f) for f in self._last.files]
            last = pl.concat(parts) if parts else None
        graph = goals.build_goals(
            texts.select("locale", "utterance", "users", "served"),
            vectors,
            links,
            served,
            last,
            seed=self._seed,
            models=model,
            lexicon=self._words,
            near=cells.neighbours(found),
            untaught=untaught(self._embeddings, texts["locale"].unique().sort()),
        )
        known = set(served.filter(pl.col("intent").is_not_null() & (pl.col("weight") > 0))["locale"])
        launched = sorted(set(texts["locale"]) - known) if known else []
        apart = untaught(self._embeddings, launched)
        partition = f"as_of={self._as_of}"
        recall = graph.curves["recall"].min() if graph.curves.height else 1.0
        for table, schema in SCHEMAS.items():
            frame = getattr(graph, {"goals": "goals", "goal_edges": "edges", "goal_changes": "changes"}[table])
            entry = self._store.attempt(self._attempt, table, partition, engine.conform(frame, schema))
            goals_n = frame["goal_id"].n_unique() if table == "goals" else 0
            yield engine.receipt(
                table,
                partition,
                entry,
                goals=goals_n,
                recall=recall,
                embedded=0 if vectors is None else int(np.isfinite(vectors[:, 0]).sum()),
                **({"apart": apart} if apart else {}),
            )


def untaught(have: embed.Current | None, locales: Iterable[str]) -> list[str]:
    """Those of the locales that are read by a model which cannot tell what their texts mean in another language."""
    chosen = have.choice if have else {}
    return [lo for lo in locales if have and not models.crosses(chosen[lo]["model"] if lo in chosen else have.model, lo)]


def goal_inputs(evidence: Evidence, options: Options) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """`texts`, `links` and `served` of `rewrite.goals.build_goals`, from merged evidence: texts of k users, or asked again."""
    from rewrite.pool import build

    pool = build(evidence, shards.empty(contracts.GOALS), options, chained=False)
    texts = pool.texts.filter(~pl.col("placeholder"))
    links = (
        pool.pairs.with_columns(weight=pl.col("value") / contracts.MILLION)
        .join(pool.texts.select(pl.col("id").alias("s"), "locale", pl.col("utterance").alias("source")), on="s")
        .join(pool.texts.select(pl.col("id").alias("t"), pl.col("utterance").alias("target")), on="t")
        .select("locale", "source", "target", "users", "weight")
    )
    linked = pl.concat([links.select("locale", utterance="source"), links.select("locale", utterance="target")]).unique()
    texts = texts.join(linked.with_columns(linked=True), on=["locale", "utterance"], how="left")
    texts = texts.filter((pl.col("users") >= options.k) | pl.col("linked")).sort("locale", "utterance")
    served = (
        pool.meanings.join(pool.texts.select("id", "locale", "utterance"), on="id")
        .select("locale", "utterance", "intent", "slots", "users", weight=pl.col("served") / contracts.MILLION)
        .join(texts.select("locale", "utterance"), on=["locale", "utterance"], how="semi")
    )
    links = links.join(texts.select("locale", source="utterance"), on=["locale", "source"], how="semi").join(
        texts.select("locale", target="utterance"), on=["locale", "target"], how="semi"
    )
    return texts, links, served


class Link(beam.PTransform):
    """Shards of votes, one per bucket of users -> receipts of goals, edges and changes."""

    def __init__(self, gather: window.GatherEvidence, inputs: Inputs, near: cells.NearNeighbours, build: BuildGoals):
        super().__init__()
        self._gather, self._inputs, self._near, self._build = gather, inputs, near, build

    def expand(self, work: beam.PCollection[Shard]) -> beam.PCollection[dict[str, Any]]:
        inputs = work | "evidence" >> self._gather | "inputs" >> beam.ParDo(self._inputs)
        found = inputs | "texts" >> beam.Map(lambda tables: tables["texts"]) | "neighbours" >> self._near
        return inputs | "build goals" >> beam.ParDo(self._build, beam.pvalue.AsList(found))


def steps(context: Context, attempt: str, as_of: date, have: embed.Current, last: Manifest | None, work: list[Shard]) -> Link:
    """The transform of one run of the job, over these buckets of votes."""
    c, store = context.config, context.store
    keep = window.kept(context, as_of) if context.shares else ""
    return Link(
        window.GatherEvidence(store, attempt, window.rules(context), work, tested=bool(keep)),
        Inputs(store, attempt, keep, c.privacy.k, len(work), c.privacy.burst, c.privacy.scarce),
        cells.NearNeighbours(store, attempt, have, cells.Plan(NEIGHBOURS, c.run.seed, nb.EXACT, nb.PER_CELL)),
        BuildGoals(store, attempt, as_of, have, last, c.run.seed, _lexicon(context)),
    )


def predecessor(store: Store, table: str, as_of: date) -> Manifest | None:
    """The newest partition of an as-of table before the date."""
    earlier = [m for p, m in store.manifests(table).items() if p < f"as_of={as_of}"]
    return earlier[-1] if earlier else None


def _fingerprint(context: Context, as_of: date) -> str:
    embeddings, last = embed.current(context), predecessor(context.store, "goals", as_of)
    more = [json.dumps(embeddings.partitions, sort_keys=True) if embeddings else "", last.content if last else ""]
    words = json.dumps(_lexicon(context)) if _lexicon(context) else ""
    return window.fingerprint(context, as_of, context.config.fingerprint("privacy", "run.seed"), *more, words, str(VERSION))


def _lexicon(context: Context) -> Rows:
    """The rows of the lexicon that the command line or the configuration names."""
    return lexicon.read(getattr(context.options, "lexicon", None) or context.config.goals.lexicon)


def plan(context: Context) -> Plan:
    """The goals of the as-of date, unless they were made from the same votes."""
    return window.plan(context, list(WRITES), _fingerprint)


def run(context: Context, report: Any) -> None:
    """Make the goal graph of the as-of date."""
    p = plan(context)
    if p.skip:
        report.skipped = p.skip
        return
    as_of = context.as_of()
    assert as_of is not None  # the plan says so
    window.refuse_older(context, "goals", as_of)
    have = embed.current(context)
    if have is None:
        raise LakeError(
            f"no text was embedded by {context.config.embedding.model}; run `sayagain embed --lake {context.options.lake}` first"
        )
    attempt = f"{context.attempt}/link"
    last = predecessor(context.store, "goals", as_of)
    with context.store.lease("as_of"):
        work = shards.by_bucket(window.manifests(context, as_of))
        transform = steps(context, attempt, as_of, have, last, work)
        receipts = engine.execute(context, "link", work, transform, expect=len(SCHEMAS))
        fingerprint, partition = _fingerprint(context, as_of), f"as_of={as_of}"
        counts = next(r["counts"] for r in receipts if r["table"] == "goals") | {"models": have.choice}
        engine.publish(context, "link", receipts, [Manifest(t, partition, "link", fingerprint, counts=counts) for t in SCHEMAS])
    texts = sum(r["entry"]["rows"] for r in receipts if r["table"] == "goals")
    report.counts = {"texts": texts, "goals": counts["goals"], "recall of neighbours": f"{counts['recall']:.3f}"}
    for locale, row in have.choice.items():
        others = ", ".join(f"{name} {row['far_auc'][name]:.3f}" for name in row["far_auc"]) or "nothing measured"
        context.say(f"texts of {locale} are read by {row['model']}: {row['why']} ({row['pairs']} pairs; {others})")
    for locale in counts.get("apart", ()):
        context.say(
            f"texts of {locale}: the log has no intents of it, and its model was not taught this language: its goals stay apart from those of "
            f'other languages, and it gets no labels. embedding.model = "{models.WIDE}" for all of them reads about 100 languages'
        )
