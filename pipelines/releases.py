"""`sayagain releases`: what was released, what changed, and the way back."""

from __future__ import annotations

import json
from typing import Any, cast

from pipelines import admin_options as o
from pipelines import registry
from pipelines.context import Context
from pipelines.errors import LakeError, UsageError
from pipelines.explain import printable
from pipelines.store import Store
from rewrite.contracts import UNIQUE_KEYS


def open_lake(options: o.LakeOptions) -> Context:
    """A context for a command that starts no Beam job."""
    return Context(cast(Any, options))


def main(options: o.LakeOptions) -> int:
    """Run the subcommand that the options belong to."""
    store = open_lake(options).store
    run: Any = {
        o.ReleasesListOptions: _list,
        o.ReleasesShowOptions: _show,
        o.ReleasesDiffOptions: _diff,
        o.ReleasesRollbackOptions: _rollback,
        o.ReleasesRetractOptions: _retract,
    }[type(options)]
    found, lines = run(store, options)
    print(json.dumps(found, default=str) if options.json else "\n".join(lines))
    return 0


def _rows(manifest: dict[str, Any]) -> dict[str, int]:
    return {name: table["rows"] for name, table in manifest["tables"].items()}


def _state(store: Store, p: registry.Published, latest: str) -> str:
    acked = registry.event(store, p.release_id, "ack")
    words = [f"retracted: {printable(p.retracted)}" if p.retracted else "", "LATEST" if p.release_id == latest else ""]
    return ", ".join([*filter(None, words), *([f"trained as {printable(acked['assistant_version'])}"] if acked else [])])


def _list(store: Store, options: o.ReleasesListOptions) -> tuple[Any, list[str]]:
    have = registry.releases(store, retracted=True)
    latest = registry.newest_id(store) or ""
    found = [
        {"release_id": p.release_id, "as_of": p.as_of, "parent": p.manifest["parent"], "rows": _rows(p.manifest), "retracted": p.retracted}
        | {"latest": p.release_id == latest, "manifest_sha256": p.sha256}
        for p in have
    ]
    shown = ("rewrites", "labels", "goals", "pairs")
    lines = [f"{'release':<24}" + "".join(f"{n:>10}" for n in shown) + "  parent"]
    for p in have:
        rows = _rows(p.manifest)
        counts = "".join(f"{rows.get(n, 0):>10,}" for n in shown)
        lines.append(f"{p.release_id:<24}{counts}  {p.manifest['parent'] or '-':<24}  {_state(store, p, latest)}".rstrip())
    return found, lines if have else [f"{store.url('releases')}: there is no release yet; `sayagain mine` makes one"]


def _show(store: Store, options: o.ReleasesShowOptions) -> tuple[Any, list[str]]:
    release_id = registry.resolve(store, options.release)
    opened = registry.Opened(store, release_id)
    m = opened.manifest
    happened = [e for e in registry.events(store) if e["release_id"] == release_id]
    found = {"manifest": m, "manifest_sha256": opened.manifest_sha256, "events": happened, "where": store.url(f"releases/{release_id}")}
    lines = [
        f"{release_id} as of {m['as_of']}, k = {m['k']}",
        f"  where     {found['where']}",
        f"  parent    {m['parent'] or 'none: the first of its line'}",
        f"  manifest  sha256 {opened.manifest_sha256}",
        f"  gates     {m['gates']['checked']} expectations, {m['gates']['warnings']} warnings",
        "",
        f"  {'table':<14}{'rows':>9}{'added':>9}{'kept':>9}{'changed':>9}{'retired':>9}",
    ]
    for name, n in _rows(m).items():
        moved = m.get("delta", {}).get(name)
        lines.append(
            f"  {name:<14}{n:>9,}" + ("".join(f"{moved[c]:>9,}" for c in ("added", "kept", "changed", "retired")) if moved else "")
        )
    locales = m.get("locales", {})
    lines += ["", "  by locale: " + "; ".join(f"{loc} " + ", ".join(f"{n:,} {t}" for t, n in c.items()) for loc, c in locales.items())]
    for e in happened:
        facts = ", ".join(f"{k} {printable(v)}" for k, v in e.items() if k not in ("event", "release_id", "object", "at") and v)
        lines.append(f"  {e['at']}  {printable(e['event'])}{': ' + facts if facts else ''}")
    return found, [line for line in lines if line != "  by locale: "]


def _diff(store: Store, options: o.ReleasesDiffOptions) -> tuple[Any, list[str]]:
    from quality.delta import changes

    if not options.old:
        raise UsageError("releases diff needs two releases, such as `sayagain releases diff r2026-01-24 r2026-01-31`")
    old, new = (registry.resolve(store, r) for r in (options.old, options.new))
    names = [options.table] if options.table else list(UNIQUE_KEYS)
    before, after = registry.Opened(store, old).tables(*names), registry.Opened(store, new).tables(*names)
    n = max(options.rows, 0)
    found: dict[str, Any] = {"old": old, "new": new, "tables": {}}
    lines = [f"{old} -> {new}"]
    for name in names:
        kinds = changes(name, before, after)
        found["tables"][name] = {k: {"rows": f.height, "first": f.head(n).to_dicts()} for k, f in kinds.items() if k != "kept"}
        found["tables"][name]["kept"] = {"rows": kinds["kept"].height}
        lines += ["", f"{name}: " + ", ".join(f"{f.height:,} {k}" for k, f in kinds.items())]
        for sign, kind in (("+", "added"), ("~", "changed"), ("-", "retired")):
            lines += [f"  {sign} {_line(name, row)}" for row in kinds[kind].head(n).to_dicts()]
            if n and kinds[kind].height > n:
                lines.append(f"  {sign} ... {kinds[kind].height - n:,} more (--rows {kinds[kind].height})")
    return found, lines


def _line(name: str, row: dict[str, Any]) -> str:
    """A row for a terminal: its key, then what it says, or what it said before."""
    keys = UNIQUE_KEYS[name]
    moved = [f"{c}: {row[f'was_{c}']} -> {row[c]}" for c in row if f"was_{c}" in row and row[c] != row[f"was_{c}"]]
    says = moved or [f"{c} {row[c]}" for c in ("target", "intent", "slots", "goal_id", "split") if c in row and row[c] is not None]
    return printable(" | ".join(str(row[k]) for k in keys if row[k] is not None) + "   " + ", ".join(says))


def _rollback(store: Store, options: o.ReleasesRollbackOptions) -> tuple[Any, list[str]]:
    have = registry.releases(store)
    if options.to:
        to = registry.resolve(store, options.to)
    elif len(have) > 1:
        to = have[-2].release_id
    else:
        raise LakeError(f"{store.url('releases')}: there is no earlier release to go back to; `sayagain releases list` shows what there is")
    gone = registry.rollback(store, to, options.reason)
    lines = [f"LATEST is {to}; retracted: {', '.join(gone) or 'none, it was LATEST already'}"]
    return {"latest": to, "retracted": gone}, lines


def _retract(store: Store, options: o.ReleasesRetractOptions) -> tuple[Any, list[str]]:
    if not options.release:
        raise UsageError("releases retract needs a release, such as `sayagain releases retract r2026-01-31 --reason ...`")
    release_id = registry.resolve(store, options.release)
    latest = registry.retract(store, release_id, options.reason)
    return {"retracted": release_id, "latest": latest}, [f"{release_id} is retracted; LATEST is {latest or 'gone: no release is left'}"]
