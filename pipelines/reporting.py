"""What the report of a release and of a run shows, gathered from the lake; drawn by `quality.report`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING, Any

import polars as pl

from pipelines.context import Context
from pipelines.store import Store

if TYPE_CHECKING:
    from quality.gates import Verdicts
    from quality.release import Parent, Release
    from quality.reportdata import ReportData, Rows

Frames = Mapping[str, pl.DataFrame | None]


def _daily(store: Store, days: list[str]) -> dict[str, Counter[str]]:
    """Step -> locale -> count, of the daily tables of a window."""
    steps: dict[str, Counter[str]] = {}
    for table in ("outcomes", "rephrases"):
        have = store.manifests(table)
        for day in days:
            manifest = have.get(f"date={day}")
            for locale, found in (manifest.counts if manifest else {}).get("by_locale", {}).items():
                for step, n in found.items():
                    steps.setdefault(step, Counter())[locale] += n
    return steps


def release_data(
    store: Store,
    as_of: date,
    status: str,
    built: Release,
    verdicts: Verdicts,
    candidates: Frames,
    tables: Frames,
    settings: dict[str, Any],
    parent: Parent | None = None,
) -> ReportData:
    """Everything but what the run itself took: the same for the same lake."""
    from pipelines import inputs, seeing, watch
    from quality.measures import movers
    from quality.reportdata import report_data

    watched = watch.gather(store, settings["votes"], candidates, settings["rules"], settings["k"], settings["burst"])
    if parent is not None:
        watched["movers"] = movers(built.tables["labels"], parent.tables["labels"])
    read = inputs.counted(store)
    rows = sum(n for name, n in read.items() if name in ("turns", "duplicates") or name.startswith("reject:"))
    daily = _daily(store, settings["days"])
    funnel: Rows = []

    def step(name: str, counts: Mapping[str, int]) -> None:
        funnel.extend({"step": name, "locale": locale, "count": int(n)} for locale, n in sorted(counts.items()))

    def of(frame: pl.DataFrame | None, column: str = "locale") -> dict[str, int]:
        return {} if frame is None else dict(frame.group_by(column).len().iter_rows())

    step("rows read", {"": rows})
    step("turns of the window", daily.get("turns", {}))
    step("pairs of turns", daily.get("pairs", {}))
    step("asked again in other words", daily.get("asked_again", {}))
    goals = tables.get("goals")
    step("texts linked", of(goals))
    step("goals", {} if goals is None else dict(goals.group_by("locale").agg(pl.col("goal_id").n_unique()).iter_rows()))
    drops = [
        {"step": "rows read", "reason": reason.removeprefix("reject:"), "locale": "", "count": n}
        for reason, n in sorted(read.items())
        if reason.startswith("reject:") and n
    ]
    if read["duplicates"]:
        drops.append({"step": "rows read", "reason": "duplicate", "locale": "", "count": read["duplicates"]})
    scrubbed = {kind.removeprefix("scrubbed:"): n for kind, n in sorted(read.items()) if kind.startswith("scrubbed:")}
    watched["scrubbed"] = scrubbed
    notes = [f"Scrubbed before anything was written: {', '.join(f'{n:,} {kind}' for kind, n in scrubbed.items())}."] if scrubbed else []
    if settings["days"]:
        notes.append(f"Evidence of {len(settings['days'])} day(s) with turns, {settings['days'][0]} to {settings['days'][-1]}.")
    return report_data(
        status,
        release=built,
        verdicts=verdicts,
        candidates=candidates,
        goal_edges=tables.get("goal_edges"),
        goal_graph=tables.get("goals"),
        goal_map=_linked(store, as_of),
        k=settings["k"],
        funnel=funnel,
        drops=drops,
        notes=notes,
        seeing=seeing.gather(store, settings["days"], settings["gap"], tables.get("goals"), settings["k"]),
        watch=watched,
    )


def _linked(store: Store, as_of: date) -> dict[str, Any]:
    """What `link` says of its own work: which model read which locale and why, and the recall of the search for neighbours."""
    from quality.goalview import model_rows

    manifest = store.manifest("goals", f"as_of={as_of}")
    counts = manifest.counts if manifest else {}
    return {"models": model_rows(counts.get("models") or {}), "recall": counts.get("recall")}


def release_files(data: ReportData, built: Release, verdicts: Verdicts) -> dict[str, bytes]:
    """The report and the data card that lie inside a release: no clock, no host."""
    from quality.data_card import data_card
    from quality.report import render_report

    return {"report.html": render_report(data).encode(), "data_card.md": data_card(built, verdicts).encode()}


def finish_run(context: Context) -> None:
    """Write `runs/<run_id>/`: the report with what the run took, the gates' verdicts, the summary; say so in the result."""
    from quality.report import render_report
    from quality.reportdata import ReportData

    data = context.result.pop("report_data", None)
    if data is None:
        why = context.result.get("why") or "there is nothing to do"
        status = context.result.get("status", "empty")
        shown = ReportData(status=status, why=f"{why[0].upper()}{why[1:]}.", as_of=str(context.as_of() or ""), k=context.config.privacy.k)
        shown.seeing = _seeing(context)
    else:
        shown = ReportData.from_json(data)
    shown.worth = _worth(context.store)
    shown.notes += context.notes
    shown.timings = [
        {"stage": s.name, "seconds": round(s.seconds, 2), "peak_mib": round(s.peak_mib), "what": s.told()} for s in context.stages
    ]
    folder = f"runs/{context.attempt}"
    context.store.put(f"{folder}/report.html", render_report(shown).encode())
    gates = context.result.pop("gates", None)
    context.store.put(f"{folder}/gates.json", (json.dumps(gates or {"verdicts": []}, indent=1, sort_keys=True) + "\n").encode())
    summary = {
        **context.result,
        "config": context.config.as_dict(),
        "notes": context.notes,
        "stages": [
            {"name": s.name, "seconds": round(s.seconds, 3), "peak_mib": round(s.peak_mib), "skipped": s.skipped, **s.counts}
            for s in context.stages
        ],
    }
    context.store.put(f"{folder}/summary.json", (json.dumps(summary, indent=1, sort_keys=True, default=str) + "\n").encode())
    context.result["report"] = context.store.url(f"{folder}/report.html")
    context.result["lines"] = headline(context, shown, gates)


def _worth(store: Store) -> dict[str, Any]:
    """Of the newest release that somebody evaluated; figures that are known only after a release."""
    from pipelines import registry
    from pipelines.evaluate import worth_of

    return next((w for p in reversed(registry.releases(store)) if (w := worth_of(store, p.release_id))), {})


def _seeing(context: Context) -> dict[str, Any]:
    """The model as the tables of the window see it, for a run that had nothing to decide; a second's work at most."""
    from pipelines import seeing

    as_of = context.as_of()
    if as_of is None:
        return {}
    days = [str(d) for d in context.window(as_of)]
    return seeing.gather(context.store, days, context.config.sessions.gap, None, context.config.privacy.k, deep=False)


def headlines(context: Context) -> None:
    """Print what came of the run: to stderr where stdout is a line of JSON, and there also in quiet when a gate refused."""
    if not context.options.json or not context.options.quiet or context.exit_code:
        for line in context.result.get("lines", ()):
            print(line, file=sys.stderr if context.options.json else sys.stdout, flush=True)


def headline(context: Context, data: ReportData, gates: dict[str, Any] | None) -> list[str]:
    """The summary's first lines: what came of the run, and why."""
    from quality.gates import Verdict, Verdicts
    from quality.reasons import sentence
    from quality.report import why_of

    out = []
    rows = context.result.get("rows") or {}
    if data.status == "released":
        word = "Released to nobody (shadow)" if context.result.get("status") == "shadow" else "Released"
        out.append(f"{word} {data.release_id} as of {data.as_of}: " + ", ".join(f"{n:,} {t}" for t, n in rows.items() if n))
    elif data.status == "nothing_new":
        out.append(f"Nothing new as of {data.as_of}: {data.why or 'the rows equal the last release'}")
    elif data.status == "refused":
        out.append(f"REFUSED as of {data.as_of}; the last release stays. These gates failed:")
        failures = Verdicts(tuple(Verdict(**v) for v in (gates or {}).get("verdicts", []))).failures
        out += [f"  {v.told()}" for v in failures]
    else:
        out.append(f"Nothing to release{f' as of {data.as_of}' if data.as_of else ''}. {data.why or why_of(data)}")
    total: dict[str, int] = {}
    for f in data.funnel:
        total[f["step"]] = total.get(f["step"], 0) + f["count"]
    if total:
        out.append(
            "  "
            + " > ".join(
                f"{n:,} {s}" for s, n in total.items() if s in ("rows read", "turns of the window", "asked again in other words", "goals")
            )
        )
    for table in ("rewrites", "labels", "pairs"):
        if f"{table} considered" not in total and not total.get(f"{table} considered"):
            continue
        reasons: Counter[str] = Counter()
        for c in data.candidates:
            if c["table"] == table and c["decision"] != "proposed":
                reasons[c["reason"]] += c["count"]
        why = "; ".join(f"{n:,} {sentence(r, table)}" for r, n in reasons.most_common(3))
        released = total.get(f"{table} released", 0)
        out.append(
            f"  {table}: {total[f'{table} considered']:,} considered, {total.get(f'{table} proposed', 0):,} proposed, {released:,} released"
            + (f" (not: {why})" if why else "")
        )
    return out
