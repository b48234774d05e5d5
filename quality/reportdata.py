"""What a report shows, as plain data: filled by `report_data`, stored as JSON if need be, drawn by `quality.report`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

import polars as pl

from quality.checks import floor_counts
from quality.gates import Verdicts
from quality.goalmap import goal_map
from quality.goalview import goal_view
from quality.release import Release
from quality.rowevidence import of_labels, of_rewrites
from quality.scrub import has_placeholder

MAX_ROWS: Final = 2000
"""Rows of a table in the report; all of them are in the Parquet."""
MAX_REJECTED: Final = 500

Rows = list[dict[str, Any]]


@dataclass
class ReportData:
    """One run's report; everything but the headline may be left out. All values are JSON types.

    status: released, refused, nothing_new or empty. why: a sentence (made from the rest when empty).
    funnel: {step, locale, count} in the order of the steps (locale "" counts for all).
    drops: {step, reason, locale, count}: rows lost at a step. candidates: {table, decision, reason, locale, count}.
    rewrites, labels, rejected: rows with their evidence; rewrites and labels are released figures.
    rows_total: rows of each table, of which the lists above may be the top (of `goals`: distinct goals).
    changes: {status: count} of rewrites. retired: {reason: count} of the parent's rewrites.
    verdicts: fields of `quality.gates.Verdict`. goal_map: {points, edges, goals}, see `quality.goalmap`, what
    `quality.goalview.goal_view` adds, and {models, recall} of `link`.
    signals: any table, one row per signal. seeing: what `pipelines.seeing.gather` made of the model, drawn by
    `quality.seeing`. watch: what `pipelines.watch.gather` made of the votes, drawn by `quality.watch`. worth: what `sayagain
    evaluate` and `adapt` found, drawn by `quality.worth`. notes: sentences worth knowing.
    timings: {stage, seconds, peak_mib, what}, never in the copy inside a release.
    """

    status: str
    why: str = ""
    release_id: str | None = None
    parent_id: str | None = None
    as_of: str = ""
    k: int = 3
    funnel: Rows = field(default_factory=list)
    drops: Rows = field(default_factory=list)
    candidates: Rows = field(default_factory=list)
    rewrites: Rows = field(default_factory=list)
    labels: Rows = field(default_factory=list)
    rejected: Rows = field(default_factory=list)
    rows_total: dict[str, int] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)
    retired: dict[str, int] = field(default_factory=dict)
    verdicts: Rows = field(default_factory=list)
    goal_map: dict[str, Any] = field(default_factory=dict)
    signals: Rows = field(default_factory=list)
    seeing: dict[str, Any] = field(default_factory=dict)
    watch: dict[str, Any] = field(default_factory=dict)
    worth: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    timings: Rows | None = None

    def to_json(self) -> str:
        """One JSON object; the same data gives the same text."""
        return json.dumps(asdict(self), ensure_ascii=True, default=str)

    @classmethod
    def from_json(cls, text: str | bytes) -> ReportData:
        """The data that `to_json` wrote; fields of a newer version are ignored."""
        known = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in json.loads(text).items() if name in known})


def report_data(
    status: str,
    *,
    release: Release | None = None,
    verdicts: Verdicts | None = None,
    candidates: Mapping[str, pl.DataFrame | None] | None = None,
    goal_edges: pl.DataFrame | None = None,
    goal_graph: pl.DataFrame | None = None,
    k: int = 3,
    **more: Any,
) -> ReportData:
    """The data of a report from a release (published or refused) and what led to it; `more` are fields of ReportData.

    Only texts that `k` users share get in: those of the release's tables, and rejected rewrites whose true counts say so.
    """
    data = ReportData(status=status, k=k, **more)
    considered = {name: table for name, table in (candidates or {}).items() if table is not None}
    data.candidates = _decisions(considered)
    if "rewrites" in considered:
        data.rejected = _rejected(considered["rewrites"], k)
    if verdicts is not None:
        data.verdicts = verdicts.to_frame().to_dicts()
    if release is None:
        return data
    tables = release.tables
    data.release_id, data.parent_id, data.as_of = release.release_id, release.parent_id, release.as_of.isoformat()
    data.rows_total = {name: table.height for name, table in tables.items()} | {"goals": tables["goals"]["goal_id"].n_unique()}
    goals = tables["goals"]
    data.rewrites = of_rewrites(_top(tables["rewrites"], ["users", "probability", "source"]), considered.get("rewrites"), goals, k)
    data.labels = of_labels(_top(tables["labels"], ["users", "confidence", "utterance"]), considered.get("labels"), goals, k)
    data.changes = dict(tables["rewrites"].group_by("status").len().sort("status").iter_rows())
    data.retired = dict(tables["retired"].group_by("reason").len().sort("reason").iter_rows())
    drops = release.dropped.select(step=_STEP, reason="reason", locale="locale", count="rows")
    data.funnel = [*data.funnel, *_steps(data.candidates, release, "released" if status == "released" else "fit for release")]
    data.drops = [*data.drops, *_not_proposed(data.candidates), *drops.to_dicts()]
    data.goal_map |= goal_map(tables["goals"], goal_edges) | goal_view(tables["goals"], goal_graph)
    return data


GOALS_STEP: Final = "texts with a goal, considered"
_STEP: Final = pl.when(pl.col("table") == "goals").then(pl.lit(GOALS_STEP)).otherwise(pl.format("{} proposed", "table"))


def _steps(decisions: Rows, release: Release, last: str) -> Rows:
    """The end of the funnel: per table, what was considered, proposed, and fit for release."""
    out: Rows = []

    def step(name: str, rows: Rows) -> None:
        out.extend({"step": name, "locale": r["locale"], "count": r["count"]} for r in rows or [{"locale": "", "count": 0}])

    for name in ("goals", "rewrites", "labels", "pairs"):
        locale = "locale_anchor" if name == "pairs" else "locale"
        made = release.tables[name].group_by(pl.col(locale).alias("locale")).len("count").sort("locale").to_dicts()
        if name == "goals":
            lost = release.dropped.filter(table="goals").group_by("locale").agg(count=pl.col("rows").sum()).sort("locale").to_dicts()
            step(GOALS_STEP, made + lost)
            step(GOALS_STEP.replace("considered", last), made)
        else:
            mine = [d for d in decisions if d["table"] == name]
            step(f"{name} considered", mine)
            step(f"{name} proposed", [d for d in mine if d["decision"] == "proposed"])
            step(f"{name} {last}", made)
    return out


def _not_proposed(decisions: Rows) -> Rows:
    lost = [d for d in decisions if d["decision"] != "proposed"]
    return [{"step": f"{d['table']} considered", "reason": d["reason"], "locale": d["locale"], "count": d["count"]} for d in lost]


def _top(table: pl.DataFrame, by: list[str]) -> pl.DataFrame:
    last = [by[-1], "locale"]
    rows = table.sort([*by[:-1], *last], descending=[True] * (len(by) - 1) + [False, False], nulls_last=True).head(MAX_ROWS)
    return rows.with_columns(pl.col(pl.Date).cast(pl.String))


def _decisions(considered: Mapping[str, pl.DataFrame]) -> Rows:
    out: Rows = []
    for name, table in sorted(considered.items()):
        locale = "locale" if "locale" in table.columns else "locale_anchor"
        counts = table.group_by("decision", "reason", pl.col(locale).alias("locale")).len("count")
        counts = counts.sort("decision", "reason", "locale").select(pl.lit(name).alias("table"), pl.all())
        out += counts.to_dicts()
    return out


def _rejected(rewrites: pl.DataFrame, k: int) -> Rows:
    """Rewrites that were not proposed, both sides said by k users, the most used first; counts floored as in a release."""
    counts = ("users", "source_users", "target_users")
    shown = rewrites.filter(
        pl.col("decision") != "proposed",
        pl.col("source_users") >= k,
        pl.col("target_users") >= k,
        ~has_placeholder("source"),
        ~has_placeholder("target"),
    )
    columns = [c for c in ("locale", "source", "target", "reason", "probability", "lift_lower", *counts) if c in shown.columns]
    shown = shown.sort("source_users", "locale", "source", "target", descending=[True, False, False, False]).head(MAX_REJECTED)
    return shown.select(columns).with_columns(floor_counts(pl.col(c), k) for c in counts).to_dicts()
