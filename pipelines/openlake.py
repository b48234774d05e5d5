"""`sayagain open`: SQL over the finished tables of a lake, and what their columns mean.

Views, not files: a partition is there when its manifest is, so what a run is writing just now is never seen.
"""

from __future__ import annotations

import code
import json
import sys
from typing import TYPE_CHECKING, Any

from pipelines import admin_options as o
from pipelines import registry
from pipelines.errors import LakeError, UsageError
from pipelines.explain import printable
from pipelines.releases import open_lake
from pipelines.store import Store

if TYPE_CHECKING:
    import duckdb

PRIVATE = (
    "turns",
    "rejects",
    "rephrases",
    "outcomes",
    "votes",
    "goals",
    "goal_edges",
    "goal_changes",
    "candidates",
    "splits",
    "embeddings",
)
"""Tables of the lake; those of the newest release are `released_NAME`."""
_SHOWN = 40  # rows that a terminal gets; --json gives all


def files(store: Store) -> dict[str, list[str]]:
    """View -> its Parquet files: of the tables by their manifests (candidates by kind), of the newest release by its own."""
    found: dict[str, list[str]] = {}
    for table in PRIVATE:
        for partition, manifest in store.manifests(table).items():
            kind = f"{table}_{partition.rpartition('/')[2]}" if "/" in partition else table
            found.setdefault(kind, []).extend(store.url(f.path) for f in manifest.files)
    newest = registry.newest_id(store)
    if newest:
        opened = registry.Opened(store, newest)
        opened.verify()
        for name, table in opened.manifest["tables"].items():
            found[f"released_{name}"] = [store.url(f"releases/{newest}/{f['path']}") for f in table["files"]]
    return {name: paths for name, paths in found.items() if paths}


def connect(store: Store) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with one view per table; `date`, `as_of`, `bucket` come from the folders."""
    try:
        import duckdb
    except ImportError:
        raise UsageError("`sayagain open` needs DuckDB: pip install duckdb") from None
    db = duckdb.connect()
    for name, paths in files(store).items():
        quoted = ", ".join("'" + p.replace("'", "''") + "'" for p in paths)
        db.execute(f'CREATE VIEW "{name}" AS SELECT * FROM read_parquet([{quoted}], hive_partitioning = true, union_by_name = true)')
    return db


def dictionary(store: Store) -> dict[str, list[tuple[str, str, str]]]:
    """View -> (column, type, meaning)."""
    from quality.describe import COLUMNS

    db = connect(store)
    names = [row[0] for row in db.execute("SELECT table_name FROM information_schema.tables ORDER BY 1").fetchall()]
    out = {}
    for name in names:
        columns = db.execute(f'DESCRIBE "{name}"').fetchall()
        out[name] = [(c[0], c[1], COLUMNS.get(c[0], PRIVATE_COLUMNS.get(c[0], ""))) for c in columns]
    return out


PRIVATE_COLUMNS = {
    "as_of": "evidence through the end of this day",
    "asr_confidence": "of the speech recogniser, 0 to 1",
    "barge_in": "the user interrupted the answer",
    "bucket": "hash of the user: all rows of a user are in one bucket",
    "cause_probability": "how likely the cause is",
    "date": "day, UTC",
    "decided_by": "the step that decided: retry, identical, text, combined, alignment (a closer look), chain (through the turns between)",
    "decision": "proposed or rejected",
    "events": "turns or pairs behind the vote",
    "excerpt": "scrubbed beginning of the row",
    "feedback": "-1 or +1, from the user",
    "input": "the file the row came from",
    "intent_confidence": "of the assistant, 0 to 1",
    "key": "key of the text",
    "kind": "transition, same_goal or outcome",
    "lag": "1: the next turn of the user",
    "lift": "probability of success with the rewrite less that of leaving the source alone",
    "next_turn_id": "the later turn",
    "p_failed": "probability that the turn failed",
    "p_mixed": "probability that the turn failed in part",
    "p_same_topic": "probability of the same topic with a new value",
    "response": "what the assistant answered, scrubbed",
    "rewrite_id": "the live rewrite that was applied",
    "row": "row number in the file, from 0",
    "served_utterance": "what was interpreted instead",
    "session": "number of the session within the user's day",
    "timestamp": "when the user spoke, UTC",
    "treatment": "untouched, rewritten or unknown",
    "turn_id": "the turn; unique per user and date",
    "user_key": "pseudonym of the user under the lake's key",
    "utterance": "what the assistant received, scrubbed; in as-of tables its key",
    "value": "of the vote, 0 to 1",
    "vector": "of the text encoder",
}


def main(options: o.OpenOptions) -> int:
    """One query, the dictionary, or a Python prompt with `db`."""
    store = open_lake(options).store
    if not store.local:
        raise UsageError(f"{store.root}: `sayagain open` reads local lakes; for others use DuckDB's httpfs on the files of the manifests")
    if options.columns:
        found = dictionary(store)
        if options.json:
            print(json.dumps(found))
        for name, columns in found.items() if not options.json else ():
            print(f"\n{name}")
            for column, kind, meaning in columns:
                print(f"  {column:<20} {kind:<26} {meaning}")
        return 0
    db = connect(store)
    if options.sql:
        _query(db, options)
        return 0
    if not sys.stdin.isatty():
        raise UsageError('--sql is missing: without a terminal there must be a query, such as --sql "SELECT count(*) FROM turns"')
    views = ", ".join(row[0] for row in db.execute("SELECT table_name FROM information_schema.tables ORDER BY 1").fetchall())
    banner = f'db.sql("SELECT intent, count(*) FROM turns GROUP BY 1").show()   .pl() and .df() give Polars and pandas\nviews: {views}'
    code.interact(banner, local={"db": db}, exitmsg="")
    return 0


def _query(db: Any, options: o.OpenOptions) -> None:
    try:
        cursor = db.execute(options.sql)
        names, rows = [d[0] for d in cursor.description], cursor.fetchall()
    except Exception as error:  # DuckDB's own words name the place in the query
        raise LakeError("--sql: " + "; ".join(printable(line) for line in str(error).splitlines() if line.strip())) from None
    if options.json:
        print(json.dumps([dict(zip(names, row)) for row in rows], default=str))
        return
    print("\t".join(map(printable, names)))
    for row in rows[:_SHOWN]:
        print("\t".join("" if v is None else printable(v) for v in row))
    if len(rows) > _SHOWN:
        print(f"... {len(rows) - _SHOWN:,} more rows; LIMIT, or --json for all")
