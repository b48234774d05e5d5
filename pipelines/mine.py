"""`mine`: the whole way, from logs to a gated release, resumable; and what a run tells a person at its end."""

from __future__ import annotations

import json
import sys
from datetime import date

from pipelines import jobs, metrics, reporting
from pipelines.context import Context
from pipelines.errors import SayagainError
from pipelines.explain import printable
from pipelines.options import JOBS, MineOptions

DAILY = ("ingest", "fit", "detect")
AS_OF = ("embed", "link", "aggregate", "release")


def main(options: MineOptions) -> int:
    """Run every job that is not current. Returns the exit code."""
    if options.dry_run:
        dry_run(Context(options, dry=True), list(JOBS))
        return 0
    context = Context(options, make=True)
    with metrics.written(context, "mine"), context.running():
        for name in DAILY:
            jobs.stage(context, name)
        context.shares = True
        for day in _as_ofs(context):
            context.pinned_as_of = day
            for name in AS_OF:
                jobs.stage(context, name)
        reporting.finish_run(context)
    summarise(context)
    return context.exit_code


def _as_ofs(context: Context) -> list[date | None]:
    if getattr(context.options, "each_day", False) and context.as_of():
        return list(context.chosen_dates("turns"))
    return [context.as_of()]


def dry_run(context: Context, names: list[str]) -> None:
    """The plan: what each stage reads and writes, which partitions it would make, and why. Nothing is written."""
    out = sys.stdout
    if context.options.runner != "local":
        from pipelines import graphs

        print(*graphs.shown(context, names), sep="\n", file=out)
    if context.options.runner == "dataflow":
        print("\nThe lake was not looked at; --dry-run with --runner local shows what there is to do.", file=out)
        return
    if "ingest" in names:
        from pipelines import ingest

        print("Five rows as they would be read, scrubbed:", file=out)
        for row in ingest.preview(context, 5).to_dicts():
            print("  " + "  ".join(f"{name}={printable(value)}" for name, value in row.items() if value is not None), file=out)
    for name in names:
        module = jobs.module(name)
        print(f"\n{name}", file=out)
        for table, columns in module.READS.items():
            print(f"  reads   {table}: {', '.join(columns)}", file=out)
        for table, columns in module.WRITES.items():
            print(f"  writes  {table}: {', '.join(columns)}", file=out)
        try:
            plan = module.plan(context)
        except SayagainError as error:
            print(f"  cannot run yet: {error}", file=out)
            continue
        if plan.skip:
            print(f"  nothing to do: {plan.skip}", file=out)
        for todo in plan.todo[:20]:
            print(f"  to do   {todo.table} {todo.partition}: {todo.why}", file=out)
        if len(plan.todo) > 20:
            print(f"  to do   ... and {len(plan.todo) - 20} more", file=out)


def summarise(context: Context) -> None:
    """Print the end of a run for a person, or as one JSON line with --json."""
    r = context.result
    if not context.options.json:
        print()
    reporting.headlines(context)
    if context.options.json:
        stages = {
            s.name: {
                "skipped": s.skipped,
                "seconds": round(s.seconds, 2),
                "cpu_seconds": round(s.cpu_seconds, 2),
                "peak_mib": round(s.peak_mib),
                **s.counts,
            }
            for s in context.stages
        }
        print(json.dumps({**r, "stages": stages}, default=str))
        return
    print(f"\n{'stage':<11}{'seconds':>8}{'peak MiB':>10}  what it did")
    for s in context.stages:
        print(f"{s.name:<11}{s.seconds:>8.1f}{s.peak_mib:>10,.0f}  {s.told()}")
    print()
    for name in ("release", "report"):
        if r.get(name):
            print(f"{name:<8} {r[name]}")
