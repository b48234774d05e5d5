"""The jobs in the order of the data's way, and how one of them is run alone."""

from __future__ import annotations

import importlib
import json
from types import ModuleType
from typing import Any

from pipelines import metrics, reporting
from pipelines.context import Context


def module(name: str) -> ModuleType:
    """The module of a job: it has READS, WRITES, VERSION, plan(context) and run(context, report)."""
    return importlib.import_module(f"pipelines.{name}")


def stage(context: Context, name: str) -> None:
    """Run one job inside a run: measured, and shown when it is done."""
    with context.stage(name) as report:
        module(name).run(context, report)


def run_one(name: str, options: Any) -> int:
    """One job alone, from the command line."""
    if getattr(options, "texts", None):
        return int(module("link_texts").main(options))
    if getattr(options, "dry_run", False):
        from pipelines.mine import dry_run

        dry_run(Context(options, dry=True), [name])
        return 0
    context = Context(options, make=name == "ingest")
    with metrics.written(context, name), context.running():
        stage(context, name)
        if name == "release":
            reporting.finish_run(context)
    report = context.stages[-1]
    reporting.headlines(context)
    if options.json:
        result = {k: v for k, v in context.result.items() if k not in ("lines", "gates")}
        took = {"seconds": round(report.seconds, 2), "cpu_seconds": round(report.cpu_seconds, 2), "peak_mib": round(report.peak_mib)}
        as_of = {} if name in ("ingest", "fit", "detect") else {"as_of": str(context.as_of() or "")}
        print(json.dumps({"job": name, "skipped": report.skipped, **as_of, **took, **report.counts, **result}, default=str))
    return context.exit_code
