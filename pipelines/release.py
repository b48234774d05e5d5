"""`release`: the candidates that hold become a release: built aside, gated, published by its manifest, `LATEST` moved last."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from datetime import date
from typing import TYPE_CHECKING, Any

import apache_beam as beam
import polars as pl

from pipelines import embed, engine, modelstore, registry, reporting, shards, testset, versions, window
from pipelines.canary import settings as canary_settings
from pipelines.canary import try_out
from pipelines.context import Context
from pipelines.errors import LakeError, Refused
from pipelines.plan import Plan, Todo
from pipelines.store import Manifest, Store
from pipelines.veto import vetoes
from rewrite.contracts import CANDIDATES, RELEASED

if TYPE_CHECKING:
    from quality.gates import Verdicts
    from quality.holdback import Held
    from quality.measures import Measure
    from quality.release import Parent
    from quality.release import Release as Built
    from quality.reportdata import ReportData

VERSION = 3
READS = {f"candidates/{n}": s.names for n, s in CANDIDATES.items()}
WRITES = {n: s.names for n, s in RELEASED.items()}
NO_SAY = ("run.shard_turns", "embedding.device", "embedding.chunk", "queue.tries", "queue.database", "release.test_set")
"""Configuration keys that change no row, or name a place on some machine: release bytes do not hold them."""
TABLES = ("goals", "goal_changes", "goal_edges")


class BuildRelease(beam.DoFn):
    """An as-of date -> the files of its release, written aside, and what was decided about it."""

    def __init__(self, store: Store, attempt: str, settings: dict[str, Any]):
        self._store, self._attempt, self._settings = store, attempt, settings

    def process(self, as_of: date) -> Iterable[dict[str, Any]]:
        from quality import manifest

        store, s = self._store, self._settings
        built, verdicts, seen, parent = judged(store, as_of, s)
        counts: dict[str, Any] = {
            "status": seen.status,
            "release_id": built.release_id,
            "rows": {n: t.height for n, t in built.tables.items()},
            "gates": json.loads(verdicts.to_json()),
        }
        if seen.status == "released":
            more = reporting.release_files(seen, built, verdicts)
            files = manifest.package(built, verdicts, more=more, inputs=s["inputs"], parent=parent)
            for path, data in files.items():
                store.put(f"_attempts/{self._attempt}/releases/{built.release_id}/{path}", data)
            counts |= {"files": list(files), "manifest_sha256": hashlib.sha256(files["manifest.json"]).hexdigest()}
            new = built.ledger_rows.to_arrow()
            yield engine.receipt("splits", f"as_of={as_of}", store.attempt(self._attempt, "splits", f"as_of={as_of}", new))
        store.put(f"_attempts/{self._attempt}/report.json", seen.to_json().encode())
        yield {"table": "releases", "partition": str(as_of), "entry": {"bucket": None, "path": ""}, "counts": counts}


def judged(store: Store, as_of: date, s: dict[str, Any]) -> tuple[Built, Verdicts, ReportData, Parent | None]:
    """The release of a date as it would be, the gates' verdicts on it, what a report shows of it, and its parent; nothing
    is written."""
    from quality import gates, holdback, release
    from quality.measures import Limits, measures

    candidates = {n: shards.whole(store, "candidates", f"as_of={as_of}/{n}") for n in CANDIDATES}
    tables = {t: shards.whole(store, t, f"as_of={as_of}") for t in TABLES}
    found = {n: f for n, f in candidates.items() if f is not None}
    found, tables["goals"] = holdback.hold_back(found, tables["goals"], s["held"])
    parent = None
    if s["parent"]:
        opened = registry.Opened(store, s["parent"])
        parent = release.Parent(s["parent"], date.fromisoformat(opened.manifest["as_of"]), opened.tables())
    built = release.build_release(
        found,
        tables["goals"],
        tables["goal_changes"],
        parent,
        ledger(store, as_of),
        as_of=as_of,
        k=s["k"],
        config_fingerprint=s["config"],
        expires_days=s["expires"],
    )
    tried, foretold = try_out(store, s["canary"])
    measured = [*measures(built.tables, parent.tables if parent else None, found), _meaning(built.tables["rewrites"], found), *tried]
    verdicts = gates.run_gates(built.tables, built.metrics, k=s["k"], measured=measured, limits=Limits(**s["limits"]))
    status = "refused" if verdicts.refused else "empty" if built.empty and parent is None else "released"
    retracted = status == "released" and registry.is_retracted(store, built.release_id)
    if retracted or (status == "released" and built.nothing_new(parent, renew_days=s["renew"])):
        status = "nothing_new"
    seen = reporting.release_data(store, as_of, status, built, verdicts, found, tables, s, parent)
    for name, rows in foretold.items():
        seen.seeing[name] = seen.seeing.get(name, []) + rows
    if retracted:
        seen.why = f"{built.release_id} was retracted, and the same evidence and settings make the same release again"
    return built, verdicts, seen, parent


def _meaning(rewrites: pl.DataFrame, found: dict[str, pl.DataFrame]) -> Measure:
    """What is left that turns a meaning: mined ones were dropped one by one, live ones speak for themselves."""
    from quality.measures import share
    from rewrite import meaning

    labels = found["labels"].filter(pl.col("origin") == "own").with_columns(known="users") if "labels" in found else None
    turned = 0 if labels is None else int(meaning.turned(rewrites, meaning.turning(meaning.serving(labels))).sum())
    return share("rewrites", "meaning_kept", "target", rewrites.height, turned)


class Release(beam.PTransform):
    """As-of dates -> receipts of releases."""

    def __init__(self, *build: Any):
        super().__init__()
        self._build = BuildRelease(*build)

    def expand(self, work: beam.PCollection[date]) -> beam.PCollection[dict[str, Any]]:
        return work | "build" >> beam.ParDo(self._build)


def ledger(store: Store, as_of: date) -> pl.DataFrame | None:
    """The splits that texts were given in releases before the date."""
    parts = [shards.whole(store, "splits", p) for p in store.manifests("splits") if p < f"as_of={as_of}"]
    frames = [p for p in parts if p is not None]
    return pl.concat(frames) if frames else None


def plan(context: Context) -> Plan:
    """A release of the as-of date, unless there is one."""
    as_of = context.as_of()
    if as_of is None:
        return Plan(skip="there are no turns")
    have = registry.released_as_of(context.store, as_of)
    latest = context.store.find(registry.LATEST)
    if have and latest and latest.decode().strip() >= have.release_id:
        return Plan(skip=f"{have.release_id} was released")
    return Plan([Todo("releases", f"as_of={as_of}", "never released")])


def run(context: Context, report: Any) -> None:
    """Gate and publish; raises nothing when a gate refuses: the context's exit code and result say so."""
    as_of, store = context.as_of(), context.store
    p = plan(context)
    if as_of is None or p.skip:
        report.skipped = p.skip
        have = as_of and registry.released_as_of(store, as_of)
        context.result |= {"status": "nothing_new", "why": p.skip, "release_id": have.release_id if have else None}
        return
    published = registry.releases(store)
    if published and published[-1].as_of > as_of:
        raise LakeError(
            f"--as-of {as_of}: {published[-1].release_id} was released already, and releases are made in the order of their dates"
        )
    if store.manifest("candidates", f"as_of={as_of}/pairs") is None and context.window(as_of):
        raise LakeError(
            f"there are no candidates as of {as_of}; run `sayagain aggregate --lake {context.options.lake} --as-of {as_of}` first"
        )
    attempt = f"{context.attempt}/release"
    with store.lease("as_of"):
        receipts = engine.execute(context, "release", [as_of], Release(store, attempt, settings(context, as_of)))
        counts = next(r["counts"] for r in receipts if r["table"] == "releases")
        context.result["report_data"] = store.get(f"_attempts/{attempt}/report.json")
        shadow = getattr(context.options, "shadow", False)
        if counts["status"] == "released" and shadow:
            folder = f"runs/{context.attempt}/shadow"
            for path in counts["files"]:
                store.move(f"_attempts/{attempt}/releases/{counts['release_id']}/{path}", f"{folder}/{path}")
            counts["status"] = "shadow"
            context.result["release"] = store.url(folder)
        if counts["status"] == "released":
            _publish(context, attempt, as_of, counts, [r for r in receipts if r["table"] == "splits"])
    report.counts = {"status": counts["status"], **counts["rows"]}
    if counts["status"] == "released":
        context.result["release"] = store.url(f"releases/{counts['release_id']}")
    context.result |= {k: counts.get(k) for k in ("status", "release_id", "manifest_sha256", "gates", "rows")} | {"as_of": str(as_of)}
    if counts["status"] == "refused":
        context.exit_code = Refused.exit_code


def settings(context: Context, as_of: date) -> dict[str, Any]:
    """All that the release of a date depends on besides its tables: small, and picklable."""
    store, c = context.store, context.config
    parent = registry.parent_of(store, as_of)
    return {
        "k": c.privacy.k,
        "held": _held(context),
        "limits": {n: tuple(v) for n, v in dataclasses.asdict(c.gates).items() if isinstance(v, list)},
        "canary": canary_settings(context, as_of),
        "votes": window.manifests(context, as_of),
        "rules": window.rules(context),
        "burst": c.privacy.burst,
        "expires": c.release.expires,
        "renew": c.release.renew,
        "config": c.fingerprint("privacy", "release", "evidence", "embedding.model", "sessions", "run.seed"),
        "parent": parent.release_id if parent else None,
        "inputs": _inputs(context, as_of),
        "gap": c.sessions.gap,
        "days": [str(d) for d in context.window(as_of)],
    }


def _held(context: Context) -> Held:
    """What must not be released: vetoes of the lake, protected intents and texts, texts of the held-out test set."""
    from quality.holdback import held

    c = context.config.release
    return held(vetoes(context.store), c.protected_intents, c.protected_texts, _test_texts(c.test_set))


def _test_texts(path: str) -> list[str]:
    """The texts of a held-out test set. Raises UsageError when there are none to be found."""
    if not path:
        return []
    table, column = testset.read(path, f"release.test_set = {path!r}")
    return [str(t) for t in table[column].drop_nulls()]


def _inputs(context: Context, as_of: date) -> dict[str, Any]:
    """What the release is made from, for its manifest: partitions and their hashes, models, configuration, versions."""
    store = context.store
    embedded, config = embed.current(context), context.config.as_dict()
    return {
        "candidates": {n: m.content for n in CANDIDATES if (m := store.manifest("candidates", f"as_of={as_of}/{n}"))},
        "goals": {t: m.content for t in TABLES if (m := store.manifest(t, f"as_of={as_of}"))},
        "votes": {m.partition: m.content for m in window.manifests(context, as_of)},
        "model": modelstore.current(store),
        "embedding": context.config.embedding.model,
        "embedding_fingerprints": {at: p.removeprefix("model=") for at, p in sorted(embedded.partitions.items())} if embedded else {},
        "config": {s: kept for s, keys in config.items() if (kept := {k: v for k, v in keys.items() if f"{s}.{k}" not in NO_SAY})},
        **versions.made_by(),
    }


def _publish(context: Context, attempt: str, as_of: date, counts: dict[str, Any], splits: list[dict[str, Any]]) -> None:
    """Files, then the manifest, then what hangs on it, then `LATEST`: a run that dies in between is finished by the next."""
    store, release_id = context.store, counts["release_id"]
    for path in sorted(counts["files"], key=lambda p: p == "manifest.json"):
        store.move(f"_attempts/{attempt}/releases/{release_id}/{path}", f"releases/{release_id}/{path}")
    engine.publish(context, "release", splits, [Manifest("splits", f"as_of={as_of}", "release", release_id)])
    entry = {"release_id": release_id, "as_of": str(as_of), "manifest_sha256": counts["manifest_sha256"], "rows": counts["rows"]}
    store.put(f"queue/{release_id}.json", (json.dumps(entry, indent=1, sort_keys=True) + "\n").encode())
    store.put(registry.LATEST, f"{release_id}\n".encode())
