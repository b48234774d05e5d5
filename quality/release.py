"""A release from candidates: what may leave the lake, in canonical rows, with an id that only depends on them.

Pure: frames in, frames out; no clock, no files. `quality.manifest` turns a release into bytes, `quality.gates` judges it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

import polars as pl
import pyarrow as pa

from quality import clearance
from quality.checks import COUNT_COLUMNS, DATE_COLUMNS, TEXT_COLUMNS, empty, floor_counts, metrics
from quality.splits import LEDGER, text_splits
from rewrite.contracts import CANDIDATES, GOAL_CHANGES, GOALS, RELEASED, UNIQUE_KEYS
from rewrite.text import rewrite_ids

FLOAT_DECIMALS: Final = 6
DELTAS: Final = ("retired", "goal_changes")
"""Tables that tell the difference to the parent; all others are a state."""
IDENTITY_FREE: Final = ("status", "first_seen", "last_seen", "expires")
"""Columns that may differ although nothing is new."""

Tables = Mapping[str, pl.DataFrame]


@dataclass(frozen=True)
class Parent:
    """The release that this one follows."""

    release_id: str
    as_of: date
    tables: Tables


@dataclass(frozen=True)
class Release:
    """Canonical tables and what was decided on the way to them.

    `metrics` counts broken promises that only private figures can show (true users per string); `dropped` counts
    proposed rows that were left out (table, reason, locale, rows); `ledger_rows` are to be added to the splits ledger.
    """

    release_id: str
    as_of: date
    k: int
    config_fingerprint: str
    parent_id: str | None
    parent_as_of: date | None
    tables: dict[str, pl.DataFrame]
    rows_sha256: dict[str, str]
    metrics: pl.DataFrame
    dropped: pl.DataFrame
    ledger_rows: pl.DataFrame

    @property
    def empty(self) -> bool:
        """No rewrite, no label and no pair."""
        return not any(self.tables[name].height for name in ("rewrites", "labels", "pairs"))

    def nothing_new(self, parent: Parent | None, *, renew_days: int) -> bool:
        """The rows, without status and dates, equal the parent's, and no rewrite expires within `renew_days` of as-of."""
        if parent is None:
            return False
        due = parent.tables["rewrites"].filter(pl.col("expires") < self.as_of + timedelta(days=renew_days))
        if due.height:
            return False
        return all(_identity(self.tables[name]).equals(_identity(parent.tables[name])) for name in RELEASED if name not in DELTAS)


def build_release(
    candidates: Tables,
    goals: pl.DataFrame | None,
    goal_changes: pl.DataFrame | None,
    parent: Parent | None,
    ledger: pl.DataFrame | None,
    *,
    as_of: date,
    k: int,
    config_fingerprint: str,
    expires_days: int,
    text_users: pl.DataFrame | None = None,
    slot_users: pl.DataFrame | None = None,
) -> Release:
    """The release of one as-of date, the same whatever the order of the rows that come in.

    `candidates`: frames of `contracts.CANDIDATES` (one may be missing); `goals`, `goal_changes`: of `link`, with true
    user counts; `ledger`: `LEDGER`; `expires_days`: how long a rewrite may serve without a newer release.
    `text_users` (locale, utterance, users) and `slot_users` (locale, value, users) add true user counts of strings;
    without them a text's users are those that goals, labels or rewrites count (`users` of a label are the users who
    said its text), and a slot value is cleared when a cleared text of its goal says it. Raises ValueError when a table lacks a column.
    """
    considered = {name: _conform(candidates.get(name), schema, name) for name, schema in CANDIDATES.items()}
    goals = _conform(goals, GOALS, "goals")
    roster = _roster(considered, goals, text_users)
    rejected = considered["rewrites"].filter(pl.col("decision") != "proposed")
    proposed = {name: table.filter(pl.col("decision") == "proposed") for name, table in considered.items()}
    cleared = roster.filter(pl.col("users") >= k).select("locale", "text")

    drops: list[pl.DataFrame] = []
    goals = clearance.goals(goals, cleared, k, drops)
    known = goals.select("goal_id").unique()
    labels = clearance.labels(proposed["labels"], goals, cleared, slot_users, k, drops)
    rewrites = clearance.rewrites(proposed["rewrites"], cleared, k, drops)
    rewrites, labels = (clearance.without_unknown_goals(t, known) for t in (rewrites, labels))
    pairs = clearance.pairs(proposed["pairs"], cleared, known, drops)

    splits, ledger_rows = text_splits(goals, labels, pairs, _conform_frame(ledger, LEDGER))
    labels = labels.join(splits, left_on=["locale", "utterance"], right_on=["locale", "text"], how="left")
    pairs = clearance.in_one_split(pairs, splits, drops)
    private = {"rewrites": rewrites, "labels": labels, "goals": goals, "pairs": pairs}

    rewrites, retired = _against_parent(rewrites, rejected, drops, parent, cleared, as_of, expires_days)
    changes = _conform(goal_changes, GOAL_CHANGES, "goal_changes").with_columns(floor_counts(pl.col("texts"), 1))
    built = {**private, "rewrites": rewrites, "retired": retired, "goal_changes": changes}
    tables = {name: _canonical(built[name], name, schema, k) for name, schema in RELEASED.items()}
    hashes = {name: rows_sha256(table) for name, table in tables.items()}
    parent_id = parent.release_id if parent else None
    return Release(
        release_id=release_id(as_of, hashes, config_fingerprint, parent_id),
        as_of=as_of,
        k=k,
        config_fingerprint=config_fingerprint,
        parent_id=parent_id,
        parent_as_of=parent.as_of if parent else None,
        tables=tables,
        rows_sha256=hashes,
        metrics=_private_metrics(tables, private, roster, slot_users, as_of, k),
        dropped=pl.concat(drops)
        .group_by("table", "reason", "locale")
        .len("rows")
        .cast({"rows": pl.Int64})
        .sort("table", "reason", "locale"),
        ledger_rows=ledger_rows,
    )


def release_id(as_of: date, rows_hashes: Mapping[str, str], config_fingerprint: str, parent_id: str | None) -> str:
    """`r<as-of>-<12 hex digits>` of the canonical rows, the configuration that changes rows, and the parent."""
    parts = [as_of.isoformat(), *(f"{name}={rows_hashes[name]}" for name in sorted(rows_hashes)), config_fingerprint, parent_id or ""]
    return f"r{as_of.isoformat()}-{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:12]}"


def rows_sha256(table: pl.DataFrame) -> str:
    """SHA-256 of the rows as JSON Lines, floats as millionths, so that no writer or float format has a say in it."""
    floats = [n for n, t in table.schema.items() if t.is_float()]
    fixed = table.with_columns((pl.col(n) * 10**FLOAT_DECIMALS).round() for n in floats)
    fixed = fixed.with_columns(pl.when(pl.col(n).is_finite()).then(n).cast(pl.Int64) for n in floats)
    return hashlib.sha256(fixed.write_ndjson().encode()).hexdigest()


def _identity(table: pl.DataFrame) -> pl.DataFrame:
    table = table.drop(IDENTITY_FREE, strict=False)
    return table.sort(table.columns)


def _conform_frame(frame: pl.DataFrame | None, schema: pl.Schema) -> pl.DataFrame:
    return frame.select(schema.names()).cast(schema) if frame is not None else pl.DataFrame(schema=schema)


def _conform(frame: pl.DataFrame | None, schema: pa.Schema, name: str) -> pl.DataFrame:
    """The columns of the contract with its types, in a fixed row order."""
    if frame is None:
        return empty(schema)
    missing = [n for n in schema.names if n not in frame.columns]
    if missing:
        raise ValueError(
            f"{name}: no column {', '.join(missing)} (there are: {', '.join(frame.columns)}); run the job that writes it again"
        )
    return frame.select(schema.names).cast(empty(schema).schema).sort(schema.names)


def _roster(considered: Tables, goals: pl.DataFrame, text_users: pl.DataFrame | None) -> pl.DataFrame:
    """True users per text, from every row that counts the users of a text, proposed or not: locale, text, users."""
    rewrites, labels = considered["rewrites"], considered["labels"]
    parts = [
        goals.select("locale", "users", text="utterance"),
        rewrites.select("locale", text="source", users="source_users"),
        rewrites.select("locale", text="target", users="target_users"),
        labels.select("locale", "users", text="utterance"),
    ]
    if text_users is not None:
        parts.append(text_users.select("locale", pl.col("users").cast(pl.Int64), text="utterance"))
    return pl.concat([p.select("locale", "text", "users") for p in parts]).group_by("locale", "text").agg(pl.col("users").max())


def _against_parent(
    rewrites: pl.DataFrame,
    rejected: pl.DataFrame,
    drops: list[pl.DataFrame],
    parent: Parent | None,
    cleared: pl.DataFrame,
    as_of: date,
    expires_days: int,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rewrites with id, expiry and status, and the parent's rewrites that are gone with the reason why."""
    ids = rewrite_ids(*(rewrites[c] for c in ("locale", "source", "target")))
    rewrites = rewrites.with_columns(
        rewrite_id=pl.Series(ids, dtype=pl.String), expires=pl.lit(as_of + timedelta(days=expires_days), dtype=pl.Date)
    )
    if parent is None:
        return rewrites.with_columns(status=pl.lit("new")), empty(RELEASED["retired"])
    before = parent.tables["rewrites"].select("rewrite_id", "locale", "source", "target", "expires")
    was = before.select("locale", "source", _was="target")
    status = (
        pl.when(pl.col("_was").is_null()).then(pl.lit("new"))
        .when(pl.col("_was") == pl.col("target")).then(pl.lit("kept"))
        .otherwise(pl.lit("changed"))
    )  # fmt: skip
    rewrites = rewrites.join(was, on=["locale", "source"], how="left", maintain_order="left").with_columns(status=status).drop("_was")
    gone = before.join(rewrites, on="rewrite_id", how="anti")
    # an ugly but honest order of reasons: a newer rewrite of the same source, what this release dropped, what aggregate rejected
    key = ["locale", "source", "target"]
    left_out = pl.concat([d.filter(pl.col("table") == "rewrites").select(*key, _dropped="reason") for d in drops])
    gone = (
        gone.join(rewrites.select("locale", "source", _now="target"), on=["locale", "source"], how="left")
        .join(left_out.unique(key, keep="first", maintain_order=True), on=key, how="left")
        .join(rejected.select(*key, _rejected="reason").unique(key, keep="first", maintain_order=True), on=key, how="left")
    )
    stale = pl.when(pl.col("expires") <= as_of).then(pl.lit("expired")).otherwise(pl.lit("no_evidence"))
    replaced = pl.when(pl.col("_now").is_not_null()).then(pl.lit("replaced"))
    gone = gone.with_columns(reason=pl.coalesce(replaced, "_dropped", "_rejected", stale))
    # a text that fewer than k users still share is named by its id alone
    shown = {c: pl.when(pl.lit(clearance.is_cleared(gone, cleared, "locale", c))).then(c) for c in ("source", "target")}
    return rewrites, gone.with_columns(**shown)


def _canonical(table: pl.DataFrame, name: str, schema: pa.Schema, k: int) -> pl.DataFrame:
    """Coarse counts and dates, rounded floats, the columns and types of the contract, sorted rows."""
    table = table.with_columns(floor_counts(pl.col(c), k) for c in COUNT_COLUMNS.get(name, ()))
    table = table.with_columns(pl.col(c).dt.truncate("1w") for c in DATE_COLUMNS.get(name, ()))
    floats = [n for n, t in table.schema.items() if t.is_float()]
    table = table.with_columns((pl.col(n).round(FLOAT_DECIMALS) + 0.0).fill_nan(None) for n in floats)
    table = _conform(table, schema, name)
    keys = [*UNIQUE_KEYS.get(name, ())]
    return table.sort([*keys, *(c for c in table.columns if c not in keys)]).rechunk()


def _private_metrics(
    tables: Tables,
    private: Tables,
    roster: pl.DataFrame,
    slot_users: pl.DataFrame | None,
    as_of: date,
    k: int,
) -> pl.DataFrame:
    """Counted again from the finished tables, beside the filters above: what only true user counts can show."""
    out: list[tuple[str, str, str, int, int]] = []
    true = roster.select("locale", "text", _users="users")
    for name, columns in TEXT_COLUMNS.items():
        for column in columns:
            locale = {"anchor": "locale_anchor", "negative": "locale_anchor", "positive": "locale_positive"}.get(column, "locale")
            said = tables[name].select(locale=locale, text=column).drop_nulls("text")
            known = said.join(true, on=["locale", "text"], how="left")
            out.append((name, "k_users", column, said.height, known.filter(pl.col("_users").fill_null(0) < k).height))
    for name, columns in {"rewrites": ("users", "source_users", "target_users"), "labels": ("users",)}.items():
        for column in columns:
            out.append((name, "k_evidence", column, tables[name].height, private[name].filter(pl.col(column).fill_null(0) < k).height))
    secret = clearance.secret_slots(tables["labels"], tables["goals"], slot_users, k)
    out.append(("labels", "k_slots", "slots", tables["labels"].height, int(secret.sum())))
    expires = tables["rewrites"]["expires"]
    out.append(("rewrites", "expired", "expires", len(expires), int((expires <= as_of).fill_null(True).sum())))
    return metrics(out)
