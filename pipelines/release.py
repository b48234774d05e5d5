"""`release`: the candidates that hold become a release: built aside, gated, published by its manifest, `LATEST` moved last."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import date
from typing import Any

import apache_beam as beam
import polars as pl

from pipelines import embed, engine, modelstore, registry, reporting, shards, versions, window
from pipelines.context import Context
from pipelines.errors import LakeError, Refused
from pipelines.plan import Plan, Todo
from pipelines.store import Manifest, Store
from rewrite.contracts import CANDIDATES, RELEASED

VERSION = 1
READS = {f"candidates/{n}": s.names for n, s in CANDIDATES.items()}
WRITES = {n: s.names for n, s in RELEASED.items()}
NO_SAY = ("run.shard_turns", "embedding.device", "embedding.chunk", "queue.tries", "queue.database")
"""Configuration keys that change no row: release bytes do not hold them, nor the host that a database's URL names."""
TABLES = ("goals", "goal_changes", "goal_edges")


class BuildRelease(beam.DoFn):
    """An as-of date -> the files of its release, written aside, and what was decided about it."""

    def __init__(self, store: Store, attempt: str, settings: dict[str, Any]):
        self._store, self._attempt, self._settings = store, attempt, settings

    def process(self, as_of: date) -> Iterable[dict[str, Any]]:
        from quality import gates, manifest, release

        store, s = self._store, self._settings
        candidates = {n: shards.whole(store, "candidates", f"as_of={as_of}/{n}") for n in CANDIDATES}
        tables = {t: shards.whole(store, t, f"as_of={as_of}") for t in TABLES}
        parent = None
        if s["parent"]:
            opened = registry.Opened(store, s["parent"])
            parent = release.Parent(s["parent"], date.fromisoformat(opened.manifest["as_of"]), opened.tables())
        built = release.build_release(
            {n: f for n, f in candidates.items() if f is not None},
            tables["goals"],
            tables["goal_changes"],
            parent,
            ledger(store, as_of),
            as_of=as_of,
            k=s["k"],
            config_fingerprint=s["config"],
            expires_days=s["expires"],
        )
        verdicts = gates.run_gates(built.tables, built.metrics, k=s["k"])
        status = "refused" if verdicts.refused else "empty" if built.empty and parent is None else "released"
        retracted = status == "released" and registry.is_retracted(store, built.release_id)
        if retracted or (status == "released" and built.nothing_new(parent, renew_days=s["renew"])):
            status = "nothing_new"
        seen = reporting.release_data(store, as_of, status, built, verdicts, candidates, tables, s)
        if retracted:
            seen.why = f"{built.release_id} was retracted, and the same evidence and settings make the same release again"
        counts: dict[str, Any] = {
            "status": status,
            "release_id": built.release_id,
            "rows": {n: t.height for n, t in built.tables.items()},
            "gates": json.loads(verdicts.to_json()),
        }
        if status == "released":
            files = manifest.package(
                built, verdicts, more=reporting.release_files(seen, built, verdicts), inputs=s["inputs"], parent=parent
            )
            for path, data in files.items():
                store.put(f"_attempts/{self._attempt}/releases/{built.release_id}/{path}", data)
            counts |= {"files": list(files), "manifest_sha256": hashlib.sha256(files["manifest.json"]).hexdigest()}
            new = built.ledger_rows.to_arrow()
            yield engine.receipt("splits", f"as_of={as_of}", store.attempt(self._attempt, "splits", f"as_of={as_of}", new))
        store.put(f"_attempts/{self._attempt}/report.json", seen.to_json().encode())
        yield {"table": "releases", "partition": str(as_of), "entry": {"bucket": None, "path": ""}, "counts": counts}


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
    as_of, store, c = context.as_of(), context.store, context.config
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
    manifest = store.manifest("candidates", f"as_of={as_of}/pairs")
    parent = registry.parent_of(store, as_of)
    settings = {
        "k": c.privacy.k,
        "expires": c.release.expires,
        "renew": c.release.renew,
        "config": c.fingerprint("privacy", "release", "evidence", "embedding.model", "sessions", "run.seed"),
        "parent": parent.release_id if parent else None,
        "inputs": _inputs(context, as_of),
        "days": [str(d) for d in context.window(as_of)],
    }
    if manifest is None and context.window(as_of):
        raise LakeError(
            f"there are no candidates as of {as_of}; run `sayagain aggregate --lake {context.options.lake} --as-of {as_of}` first"
        )
    attempt = f"{context.attempt}/release"
    with store.lease("as_of"):
        receipts = engine.execute(context, "release", [as_of], Release(store, attempt, settings))
        counts = next(r["counts"] for r in receipts if r["table"] == "releases")
        context.result["report_data"] = store.get(f"_attempts/{attempt}/report.json")
        if counts["status"] == "released":
            _publish(context, attempt, as_of, counts, [r for r in receipts if r["table"] == "splits"])
    report.counts = {"status": counts["status"], **counts["rows"]}
    if counts["status"] == "released":
        context.result["release"] = store.url(f"releases/{counts['release_id']}")
    context.result |= {k: counts.get(k) for k in ("status", "release_id", "manifest_sha256", "gates", "rows")} | {"as_of": str(as_of)}
    if counts["status"] == "refused":
        context.exit_code = Refused.exit_code


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
        "embedding_fingerprint": embedded.partition.removeprefix("model=") if embedded else None,
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
