"""`sayagain forget`: a user leaves the lake, with everything that only they said, and does not come back."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import admin_options as o
from pipelines import erase, gone, registry
from pipelines.context import Context
from pipelines.errors import UsageError
from pipelines.releases import open_lake
from pipelines.store import Manifest
from quality.checks import TEXT_COLUMNS
from rewrite.contracts import BUCKETS
from rewrite.turns import pseudonyms


def main(options: o.ForgetOptions) -> int:
    """Forget the users and say what it touched."""
    context = open_lake(options)
    users = [options.user] if options.user else []
    if options.file:
        try:
            lines = Path(options.file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--file {options.file}: {error}; it should hold one user id a line") from None
        users += [line.strip() for line in lines if line.strip()]
    if not users:
        raise UsageError(f"--file {options.file}: it holds no user id; one a line")
    with context.running():
        found = forget(context, users)
    print(json.dumps(found) if options.json else "\n".join(lines_of(found)))
    return 0


def forget(context: Context, users: list[str]) -> dict[str, Any]:
    """Remove the users' rows and what descends from them alone. Doing it twice is doing it once.

    Returns: users, rows removed per table, texts that nobody says any more, models collected, and per shipped release
    how many of its strings the users had said and which of its rows now rest on fewer than k users (counts, no texts).
    """
    store = context.store
    keys = pseudonyms(pl.Series(users, dtype=pl.String).unique().sort(), context.user_key()).to_list()
    theirs = pl.Series(keys, dtype=pl.String).implode()
    buckets = {int(k[:2], 16) % BUCKETS for k in keys}
    goes: erase.Row = lambda _, rows: rows["user_key"].is_in(theirs).fill_null(False)  # noqa: E731
    with held(context):
        gone.bury(store, keys)
        mine = erase.said(store, goes, going=True, buckets=buckets)
        shipped = releases_with(context, mine, goes)
        nobody = mine - erase.said(store, goes, going=False, among=mine)
        rows = erase.descendants(context, nobody, ledger=True)
        models = erase.models(store, nobody)
        found: dict[str, Any] = {"users": len(keys), "rows": rows, "texts": nobody.texts.height, "models": models, "releases": shipped}
        found["recounted"] = erase.recount(context, mine.texts, goes)
        # kept before the rows go: nothing could tell it afterwards; it names no user and no text
        store.put(f"runs/{context.attempt}/forget.json", (json.dumps(found, indent=1, sort_keys=True) + "\n").encode())
        for table, n in _daily(context, theirs, buckets, users).items():
            rows[table] = n
        store.clear_attempt(erase.attempt(context))
    return found


@contextlib.contextmanager
def held(context: Context) -> Any:
    """Nothing else may write meanwhile: the daily jobs, `fit`, the as-of jobs."""
    days = sorted({p for t in ("turns", "rejects") for p in context.store.manifests(t)})
    with contextlib.ExitStack() as stack:
        for name in ("ingest", *days, "fit", "as_of"):
            stack.enter_context(context.store.lease(name))
        yield


def _daily(context: Context, theirs: pl.Series, buckets: set[int], users: list[str]) -> dict[str, int]:
    """The users' rows out of the daily tables, day by day; turns last. A day that was current stays so."""
    from pipelines import detect

    store = context.store
    removed = dict.fromkeys(("votes", "rephrases", "outcomes", "rejects", "turns"), 0)
    for partition, turns in store.manifests("turns").items():
        columns = ["user_key", "turn_id", "locale"]
        said = [store.frame(f, columns) for f in turns.files if f.bucket in buckets]
        rows = pl.concat(said) if said else pl.DataFrame(schema=dict.fromkeys(columns, pl.String))
        own = rows.filter(pl.col("user_key").is_in(theirs))
        # A turn id is unique per user only. Where another user of these buckets has the same one, rows of both go, and the
        # day is scored again by the next `detect`.
        shared = not own.join(rows.filter(~pl.col("user_key").is_in(theirs)), on="turn_id", how="semi").is_empty()
        ids = own["turn_id"].implode()
        files, n = erase.changed(context, turns, _drop("user_key", theirs), buckets)
        after = Manifest(**vars(turns) | {"files": files})
        for table in detect.SCHEMAS:
            manifest = store.manifest(table, partition)
            if manifest is None:
                continue
            model = manifest.inputs.get("model", "")
            print_ = manifest.fingerprint
            if print_ == detect._fingerprint(context, turns, model):  # was current
                print_ = "some turn ids were shared" if shared else detect._fingerprint(context, after, model)
            taken: list[pa.Table] = []
            drop = _drop("user_key", theirs, taken) if table == "votes" else _drop("turn_id", ids, taken)
            kept, gone_ = erase.changed(context, manifest, drop, buckets)
            counts = manifest.counts
            if gone_ and counts:
                part = pl.DataFrame(pl.from_arrow(pa.concat_tables(taken)))
                counts = _less(counts, detect._counts(table, part, own.group_by("locale").len()))
            more = {"files": kept, "fingerprint": print_, "counts": counts, "inputs": manifest.inputs | {"turns": after.content}}
            if (new := Manifest(**vars(manifest) | more)) != manifest:
                store.publish(erase.attempt(context), new)
            removed[table] += gone_
        if n:
            store.publish(erase.attempt(context), after)
        removed["turns"] += n
    for manifest in store.manifests("rejects").values():
        # a line that could not be parsed has no user key, but its excerpt may name the user
        removed["rejects"] += erase.rewrite(context, manifest, _drop_rejects(theirs, users))
    return removed


def _drop(column: str, which: pl.Series, taken: list[pa.Table] | None = None) -> Any:
    """Drops rows by a column; those that went are added to `taken`."""

    def change(data: pa.Table) -> pa.Table:
        hit = erase.strings(data, column).is_in(which).fill_null(False).to_arrow()
        if taken is not None:
            taken.append(data.filter(hit))
        return data.filter(pc.invert(hit))

    return change


def _less(counts: dict[str, Any], taken: dict[str, Any]) -> dict[str, Any]:
    """Counts by locale without those of the rows that went."""
    left = {loc: {n: v - taken.get("by_locale", {}).get(loc, {}).get(n, 0) for n, v in c.items()} for loc, c in counts["by_locale"].items()}
    return counts | {"by_locale": {loc: c for loc, c in left.items() if any(c.values())}}


def _drop_rejects(theirs: pl.Series, users: list[str]) -> Any:
    words = r"(?:^|\W)(?:" + "|".join(re.escape(u) for u in users) + r")(?:\W|$)"

    def change(data: pa.Table) -> pa.Table:
        keys = erase.strings(data, "user_key")
        named = erase.strings(data, "excerpt").str.contains(words).fill_null(False)
        hit = keys.is_in(theirs).fill_null(False) | (keys.is_null() & named)
        return data.filter(pc.invert(hit.to_arrow()))

    return change


def releases_with(context: Context, mine: erase.Said, goes: erase.Row) -> list[dict[str, Any]]:
    """Shipped releases that hold a text of `mine` said in their window, and how many of their rows fall below k."""
    store, found = context.store, []
    for p in registry.releases(store, retracted=True):
        days = list(p.manifest.get("inputs", {}).get("votes") or erase.window_days(context, p.as_of))
        unknown = [d for d in days if store.manifest("votes", d) is None]
        users = erase.window_users(store, days, mine.texts, goes).filter(pl.col("users") > pl.col("stay"))
        if users.is_empty() or not p.manifest["tables"]:
            continue
        tables = registry.Opened(store, p.release_id).tables(*TEXT_COLUMNS)
        held_, below = 0, {}
        for name, columns in TEXT_COLUMNS.items():
            hit, low = pl.lit(False), pl.lit(False)
            table = tables[name]
            for c in columns:
                locale = {"anchor": "locale_anchor", "negative": "locale_anchor", "positive": "locale_positive"}.get(c, "locale")
                named = users.select(pl.col("locale").alias(locale), pl.col("text").alias(c), pl.col("stay").alias(f"_{c}"))
                table = table.join(named, on=[locale, c], how="left")
                hit, low = hit | pl.col(f"_{c}").is_not_null(), low | (pl.col(f"_{c}") < p.manifest["k"]).fill_null(False)
            held_ += table.filter(hit).height
            n = table.filter(low).height
            if n:
                below[name] = n
        if held_:
            state = {"retracted": bool(p.retracted), "days_unknown": len(unknown)}
            found.append({"release_id": p.release_id, "rows_with_their_texts": held_, "rows_below_k": below, **state})
    return found


def lines_of(found: dict[str, Any]) -> list[str]:
    """For a person."""
    removed = ", ".join(f"{n:,} {t}" for t, n in found["rows"].items() if n)
    lines = [f"{found['users']:,} user(s) forgotten; rows removed: {removed or 'none: the lake held nothing of theirs'}"]
    lines.append(f"  {found['texts']:,} texts that nobody else says are gone from goals, candidates and embeddings")
    if found["recounted"]:
        lines.append(f"  {found['recounted']:,} rows of goals and candidates count fewer users now")
    if found["models"]:
        lines.append(f"  models collected: {', '.join(m[:12] for m in found['models'])}")
    for r in found["releases"]:
        below = ", ".join(f"{n:,} {t}" for t, n in r["rows_below_k"].items())
        lines.append(
            f"  {r['release_id']}{' (retracted)' if r['retracted'] else ''}: {r['rows_with_their_texts']:,} rows hold texts of theirs"
        )
        if below:
            lines.append(
                f"    BELOW k now: {below}; `sayagain releases retract {r['release_id']}` and mine again, and tell who holds a copy"
            )
        if r["days_unknown"]:
            lines.append(f"    {r['days_unknown']} day(s) of its window are no longer in the lake: its counts are too low")
    return lines
