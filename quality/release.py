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

from quality.checks import COUNT_COLUMNS, DATE_COLUMNS, TEXT_COLUMNS, empty, floor_counts, metrics, slot_values
from quality.scrub import has_placeholder
from quality.splits import LEDGER, text_splits
from rewrite.contracts import CANDIDATES, GOAL_CHANGES, GOALS, RELEASED, UNIQUE_KEYS
from rewrite.text import rewrite_ids

FLOAT_DECIMALS: Final = 6
DELTAS: Final = ("retired", "goal_changes")
"""Tables that tell the difference to the parent; all others are a state."""
IDENTITY_FREE: Final = ("status", "first_seen", "last_seen", "expires")
"""Columns that may differ although nothing is new."""

_NULL: Final = pl.lit(None, pl.String)

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
    goals = _goals(goals, cleared, k, drops)
    known = goals.select("goal_id").unique()
    labels = _labels(proposed["labels"], goals, cleared, slot_users, k, drops)
    rewrites = _rewrites(proposed["rewrites"], cleared, k, drops)
    rewrites, labels = (_forget_unknown_goals(t, known) for t in (rewrites, labels))
    pairs = _keep(proposed["pairs"], "pairs", _pair_reasons(proposed["pairs"], cleared, known), drops)

    splits, ledger_rows = text_splits(goals, labels, pairs, _conform_frame(ledger, LEDGER))
    labels = labels.join(splits, left_on=["locale", "utterance"], right_on=["locale", "text"], how="left")
    pairs = _pair_splits(pairs, splits, drops)
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


def _keep(table: pl.DataFrame, name: str, reason: pl.DataFrame, drops: list[pl.DataFrame]) -> pl.DataFrame:
    """The rows without a reason to drop them; the others are counted (and kept for `retired`)."""
    marked = table.with_columns(reason.to_series().alias("_drop"))
    gone = marked.filter(pl.col("_drop").is_not_null())
    keys = {c: (pl.col(c) if c in gone.columns else _NULL) for c in ("locale", "source", "target")}
    if name == "pairs":
        keys["locale"] = pl.col("locale_anchor")
    drops.append(gone.select(pl.lit(name).alias("table"), pl.col("_drop").alias("reason"), **keys))
    return marked.filter(pl.col("_drop").is_null()).drop("_drop")


def _is_cleared(table: pl.DataFrame, cleared: pl.DataFrame, locale: str, text: str) -> pl.Series:
    """Boolean per row, in the order of the rows: did k users of the locale say the text?"""
    marks = cleared.select(pl.col("locale").alias(locale), pl.col("text").alias(text), _ok=pl.lit(True))
    return table.select(locale, text).join(marks, on=[locale, text], how="left", maintain_order="left")["_ok"].fill_null(False)


def _first_reason(table: pl.DataFrame, reasons: Mapping[str, pl.Expr | pl.Series]) -> pl.DataFrame:
    """One column: the first reason that holds, else null. An unknown (null) condition holds: doubt is not released."""
    conditions = [pl.when((pl.lit(r) if isinstance(r, pl.Series) else r).fill_null(True)).then(pl.lit(name)) for name, r in reasons.items()]
    return table.select(pl.coalesce(conditions).alias("_drop"))


def _without_doubles(table: pl.DataFrame, name: str, drops: list[pl.DataFrame]) -> pl.DataFrame:
    """The first row of every key; rows come sorted by preference."""
    doubled = ~pl.struct(UNIQUE_KEYS[name]).is_first_distinct()
    return _keep(table, name, _first_reason(table, {"doubled": doubled}), drops)


def _goals(goals: pl.DataFrame, cleared: pl.DataFrame, k: int, drops: list[pl.DataFrame]) -> pl.DataFrame:
    goals = goals.sort("locale", "utterance", "membership", "goal_id", descending=[False, False, True, False])
    reasons: dict[str, pl.Expr | pl.Series] = {
        "below_k": (pl.col("users") < k) | ~pl.lit(_is_cleared(goals, cleared, "locale", "utterance")),
        "placeholder": has_placeholder("utterance"),
    }
    goals = _without_doubles(_keep(goals, "goals", _first_reason(goals, reasons), drops), "goals", drops)
    # a goal whose exemplars stay home is named by the best text that is left
    best = ["membership", "users", "locale", "utterance"]
    goals = goals.sort("goal_id", *best, descending=[False, True, True, False, False])
    promoted = ~pl.col("is_exemplar").any().over("goal_id") & pl.col("goal_id").is_first_distinct()
    return goals.with_columns(is_exemplar=pl.col("is_exemplar") | promoted)


def _rewrites(table: pl.DataFrame, cleared: pl.DataFrame, k: int, drops: list[pl.DataFrame]) -> pl.DataFrame:
    table = table.sort("locale", "source", "probability", "target", descending=[False, False, True, False], nulls_last=True)
    reasons: dict[str, pl.Expr | pl.Series] = {
        "below_k": (pl.min_horizontal("users", "source_users", "target_users") < k)
        | pl.any_horizontal(pl.col("users", "source_users", "target_users").is_null()),
        "text_below_k": ~(_is_cleared(table, cleared, "locale", "source") & _is_cleared(table, cleared, "locale", "target")),
        "placeholder": has_placeholder("source") | has_placeholder("target"),
        "same_text": pl.col("source") == pl.col("target"),
    }
    table = _without_doubles(_keep(table, "rewrites", _first_reason(table, reasons), drops), "rewrites", drops)
    return _keep(table, "rewrites", _chains(table), drops)


def _chains(table: pl.DataFrame) -> pl.DataFrame:
    """A server rewrites once: what is rewritten is no target, and no target is rewritten. The likelier rewrite stays."""
    order = table.with_row_index("_row").sort("probability", "locale", "source", descending=[True, False, False])
    sources: set[tuple[str, str]] = set()
    targets: set[tuple[str, str]] = set()
    chained: list[int] = []
    for row, locale, source, target in order.select("_row", "locale", "source", "target").iter_rows():
        if (locale, target) in sources or (locale, source) in targets:
            chained.append(row)
        else:
            sources.add((locale, source))
            targets.add((locale, target))
    return table.with_row_index("_row").select(pl.when(pl.col("_row").is_in(chained)).then(pl.lit("chain")).alias("_drop"))


def _labels(
    table: pl.DataFrame, goals: pl.DataFrame, cleared: pl.DataFrame, slot_users: pl.DataFrame | None, k: int, drops: list[pl.DataFrame]
) -> pl.DataFrame:
    table = table.sort(
        "locale", "utterance", "confidence", "intent", "slots", descending=[False, False, True, False, False], nulls_last=True
    )
    reasons: dict[str, pl.Expr | pl.Series] = {
        "below_k": pl.col("users") < k,
        "text_below_k": ~_is_cleared(table, cleared, "locale", "utterance"),
        "placeholder": has_placeholder("utterance"),
        "no_intent": pl.col("intent").is_null(),
    }
    table = _without_doubles(_keep(table, "labels", _first_reason(table, reasons), drops), "labels", drops)
    secret = _secret_slots(table, goals, slot_users, k)
    without = table.filter(secret).select("locale", table=pl.lit("labels"), reason=pl.lit("slots_below_k (label kept)"))
    drops.append(without.select("table", "reason", "locale", source=_NULL, target=_NULL))
    return table.with_columns(slots=pl.when(~pl.lit(secret)).then("slots"))


def _secret_slots(labels: pl.DataFrame, goals: pl.DataFrame, slot_users: pl.DataFrame | None, k: int) -> pl.Series:
    """Boolean per label: does it hold a slot value that is in no cleared text of its goal, and not known of k users?

    Slots are canonical JSON (values under the text key), so a value is looked up as it stands in the keys.
    """
    rows = labels.with_row_index("_row").filter(pl.col("slots").is_not_null()).select("_row", "locale", "goal_id", "utterance", "slots")
    if rows.is_empty():
        return pl.Series("_secret", [False] * labels.height, dtype=pl.Boolean)
    said = goals.sort("utterance").group_by("locale", "goal_id").agg(said=pl.col("utterance").str.join("\n"))
    values = slot_values(rows).join(said, on=["locale", "goal_id"], how="left")
    in_text = pl.concat_str("utterance", pl.lit("\n"), pl.col("said").fill_null("")).str.contains(pl.col("value"), literal=True)
    values = values.with_columns(_ok=in_text)
    if slot_users is not None:
        common = slot_users.filter(pl.col("users") >= k).select("locale", "value", _known=pl.lit(True)).unique()
        values = values.join(common, on=["locale", "value"], how="left").with_columns(pl.col("_ok") | pl.col("_known").fill_null(False))
    secret = values.filter(~pl.col("_ok").fill_null(False))["_row"].unique()
    return labels.with_row_index("_row").select(pl.col("_row").is_in(secret.implode()).alias("_secret")).to_series()


def _forget_unknown_goals(table: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    return table.with_columns(goal_id=pl.when(pl.col("goal_id").is_in(known["goal_id"].implode())).then("goal_id"))


def _pair_reasons(table: pl.DataFrame, cleared: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    negative_ok = pl.lit(_is_cleared(table, cleared, "locale_anchor", "negative")) | pl.col("negative").is_null()
    sides_ok = _is_cleared(table, cleared, "locale_anchor", "anchor") & _is_cleared(table, cleared, "locale_positive", "positive")
    same = (pl.col("anchor") == pl.col("positive")) & (pl.col("locale_anchor") == pl.col("locale_positive"))
    same_negative = ((pl.col("negative") == pl.col("anchor")) | (pl.col("negative") == pl.col("positive"))).fill_null(False)
    reasons: dict[str, pl.Expr | pl.Series] = {
        "text_below_k": ~(pl.lit(sides_ok) & negative_ok),
        "placeholder": pl.any_horizontal(has_placeholder(pl.col(c).fill_null("")) for c in ("anchor", "positive", "negative")),
        "same_text": same | same_negative,
        "goal_unknown": ~pl.col("goal_id").is_in(known["goal_id"].implode()),
    }
    return _first_reason(table, reasons)


def _pair_splits(pairs: pl.DataFrame, splits: pl.DataFrame, drops: list[pl.DataFrame]) -> pl.DataFrame:
    """Pairs whose sides are in one split; a negative of another split is taken out, the pair stays."""
    for side, locale in (("anchor", "locale_anchor"), ("positive", "locale_positive"), ("negative", "locale_anchor")):
        named = splits.select(pl.col("locale").alias(locale), pl.col("text").alias(side), pl.col("split").alias(f"_{side}"))
        pairs = pairs.join(named, on=[locale, side], how="left", maintain_order="left")
    across = (pl.col("_anchor") != pl.col("_positive")) | (pl.col("_anchor") == "none")
    pairs = _keep(pairs, "pairs", _first_reason(pairs, {"other_split": across}), drops)
    inside = (pl.col("_negative") == pl.col("_anchor")).fill_null(False)
    pairs = pairs.with_columns(pl.when(inside).then("negative"), pl.when(inside).then("negative_origin"), split="_anchor")
    order = [*UNIQUE_KEYS["pairs"], "weight", "goal_id", "negative_origin"]
    pairs = pairs.sort(order, descending=[c == "weight" for c in order])
    # without its negative a row says nothing that the pair's other rows do not say
    bare = pl.col("negative").is_null() & pl.col("negative").is_not_null().any().over(UNIQUE_KEYS["pairs"][:4])
    pairs = _keep(pairs, "pairs", _first_reason(pairs, {"negative_other_split": bare}), drops)
    return _without_doubles(pairs, "pairs", drops)


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
    shown = {c: pl.when(pl.lit(_is_cleared(gone, cleared, "locale", c))).then(c) for c in ("source", "target")}
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
    secret = _secret_slots(tables["labels"], tables["goals"], slot_users, k)
    out.append(("labels", "k_slots", "slots", tables["labels"].height, int(secret.sum())))
    expires = tables["rewrites"]["expires"]
    out.append(("rewrites", "expired", "expires", len(expires), int((expires <= as_of).fill_null(True).sum())))
    return metrics(out)
