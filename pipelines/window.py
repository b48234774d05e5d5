"""The votes of a window, reduced to evidence: what `link` and `aggregate` both start from."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from datetime import date

import apache_beam as beam
import polars as pl

from pipelines import aside, engine, registry, shards
from pipelines.context import Context
from pipelines.errors import LakeError
from pipelines.plan import Plan, Todo, digest
from pipelines.shards import Shard
from pipelines.store import Manifest, Store
from rewrite import evidence, trust
from rewrite.blocks import Blocks
from rewrite.contracts import VOTES

Tables = dict[str, bytes]  # table -> Arrow IPC buffer, or where it lies (`aside`)
BLOCK = 8_000_000
"""Votes whose single users are looked at together, some 1 GiB with all that is made of them: a month of 6 M turns is one block."""


def manifests(context: Context, as_of: date, history: bool = False) -> list[Manifest]:
    """The published votes of the window, or of all evidence, in the order of their days."""
    have = context.store.manifests("votes")
    return [have[shards.partition(d)] for d in (context.history if history else context.window)(as_of)]


def fingerprint(context: Context, as_of: date, *more: str, history: bool = False) -> str:
    """A hash of the votes and of what else a table was made from."""
    return digest([f"{m.partition} {m.content}" for m in manifests(context, as_of, history)] + list(more))


def refuse_older(context: Context, table: str, as_of: date) -> None:
    """As-of tables are made in the order of their dates. Raises LakeError for a date before the newest."""
    newest = max((p.removeprefix("as_of=")[:10] for p in context.store.manifests(table)), default="")
    if newest > str(as_of):
        raise LakeError(
            f"--as-of {as_of}: {table} already reach {newest}, and as-of tables are made in the order of their dates; "
            "take a later date (late rows are seen by the next one), or a new lake"
        )


def plan(context: Context, tables: Sequence[str], fingerprint_of: Callable[[Context, date], str]) -> Plan:
    """The plan of as-of tables that one run makes (`goals`; `candidates/labels` is a part of one): made once, made again when
    what they come from changed, never after they were released. One that is gone is made anew, with the others: the bytes are the same."""
    as_of = context.as_of()
    if as_of is None or not manifests(context, as_of):
        return Plan(skip="there are no votes in the window")
    places = [(table, f"as_of={as_of}{slash}{part}") for table, slash, part in (name.partition("/") for name in tables)]
    have = [context.store.manifest(*place) for place in places]
    made = [m for m in have if m]
    current = {m.fingerprint for m in made} == {fingerprint_of(context, as_of)}
    if current and len(made) == len(places):
        return Plan(skip=f"the {places[0][0]} of {as_of} are made")
    if made and not current and registry.released_as_of(context.store, as_of):
        return Plan(skip=f"the {places[0][0]} of {as_of} were released, and as-of tables are never rebuilt: the next as-of sees the change")
    if not made:
        return Plan([Todo(*place, "never made") for place in places])
    if not current:
        return Plan([Todo(*place, "votes, settings or what it follows changed") for place in places])
    return Plan([Todo(*place, "is gone") for place, m in zip(places, have, strict=True) if m is None])


class Sketch(beam.DoFn):
    """Votes of whole users over the window -> what is usual among them, as counts and hashes."""

    def __init__(self, store: Store):
        self._store = store

    def process(self, shard: Shard) -> Iterable[tuple[int, Tables]]:
        votes = shards.read(self._store, shard, [*trust.SKETCHED], categories=True).drop("bucket")
        yield 0, {name: engine.to_ipc(t) for name, t in trust.sketch(votes).items()}


class Learn(beam.DoFn):
    """All sketches -> what is asked of a user of this log: the least texts, and the copied bands as an IPC buffer."""

    def __init__(self, rules: trust.Rules, sent: int):
        self._rules, self._sent = rules, sent

    def process(self, element: tuple[int, Iterable[Tables]]) -> Iterable[tuple[int, bytes]]:
        parts = list(element[1])
        engine.accounted("sketches of votes", self._sent, len(parts))
        found = trust.learn(({n: engine.frame(b) for n, b in p.items()} for p in parts), self._rules)
        yield found.least_texts, engine.to_ipc(found.copied)


class Reduce(beam.DoFn):
    """Votes of whole users -> additive evidence tables without user keys, laid aside; what is of single users in `blocks`. Days before
    `since` are history: tests alone see them."""

    def __init__(self, store: Store, attempt: str, rules: trust.Rules, since: date | None, tested: bool, blocks: int):
        self._store, self._attempt, self._rules, self._since, self._tested = store, attempt, rules, since, tested
        self._blocks = blocks

    def process(self, shard: Shard, learned: tuple[int, bytes]) -> Iterable[tuple[int, Tables]]:
        votes = shards.read(self._store, shard, VOTES.names, categories=True).drop("bucket")
        believed = trust.Trust(self._rules, learned[0], engine.frame(learned[1]))
        found = evidence.in_blocks(evidence.bucket_evidence(votes, believed, self._since, self._tested), self._blocks)
        yield 0, dict(aside.put(self._store, self._attempt, [(name, engine.to_ipc(t)) for name, t in found.items()]))


class GatherEvidence(beam.PTransform):
    """Shards of votes, one per bucket of users -> all their evidence, as one element that says where it lies: of a long log it is more
    than the 2 GiB that an engine moves in one piece.

    The votes are read twice: what to believe of a user is known when every bucket was sketched. Not `tested`: without `trials`.
    work: the shards.
    """

    def __init__(
        self, store: Store, attempt: str, rules: trust.Rules, work: Sequence[Shard], since: date | None = None, *, tested: bool = True
    ):
        super().__init__()
        self._store, self._rules, self._sent = store, rules, len(work)
        blocks = max(1, -(-sum(shard.rows for shard in work) // BLOCK))
        self._reduce = Reduce(store, attempt, rules, since, tested, blocks)

    def expand(self, work: beam.PCollection[Shard]) -> beam.PCollection[tuple[int, Iterable[Tables]]]:
        sketches = work | "sketch" >> beam.ParDo(Sketch(self._store)) | "gather sketches" >> beam.GroupByKey()
        learned = beam.pvalue.AsSingleton(sketches | "learn" >> beam.ParDo(Learn(self._rules, self._sent)))
        return work | "reduce" >> beam.ParDo(self._reduce, learned) | "gather" >> beam.GroupByKey()


def kept(context: Context, as_of: date, *, history: bool = False) -> str:
    """Where `link` leaves the evidence that it gathered for `aggregate` of the same run, if that is made of the same votes: the
    window's, of all that it takes to decide. In the run's attempt folder, so it goes with the run."""
    return f"_attempts/{context.attempt}/evidence/{fingerprint(context, as_of, context.config.fingerprint('privacy'), history=history)}"


def keep(store: Store, place: str, found: evidence.Evidence) -> None:
    """Leave merged evidence at `kept`. A worker that does it again writes the same rows."""
    for name, table in found.items():
        for n, block in enumerate(table if isinstance(table, Blocks) else [table]):
            store.put(f"{place}/{name}/{n:04}", engine.to_ipc(block))


def rules(context: Context) -> trust.Rules:
    """What an account must show, by the configuration."""
    p = context.config.privacy
    return trust.Rules(p.least_texts, p.few_texts, p.copies, p.links_per_day, p.links_per_window)


def merged(store: Store, attempt: str, parts: Iterable[Tables | str], shards_sent: int) -> evidence.Evidence:
    """What the element of GatherEvidence holds, added up, or (no shards sent) what `keep` left where its one part says. More than one
    block of single users lies aside. Raises LakeError when the evidence of a shard did not arrive."""
    found = list(parts)

    def read(place: bytes) -> pl.DataFrame:
        return engine.frame(aside.get(store, place))

    def write(block: pl.DataFrame) -> bytes:
        return next(aside.put(store, attempt, [("", engine.to_ipc(block))]))[1]

    several = Blocks((), read, write)
    if shards_sent:
        engine.accounted("shards of votes", shards_sent, len(found))
        return evidence.merge_evidence(found, read, several)
    kept: evidence.Evidence = {}
    for name, paths in itertools.groupby(store.list(str(found[0])), lambda path: path.split("/")[-2]):
        each = list(paths)
        frames = (engine.frame(store.get(path)) for path in each)
        kept[name] = (several if len(each) > 1 else Blocks()).of(frames) if name in evidence.ASKED else next(frames)
    return kept
