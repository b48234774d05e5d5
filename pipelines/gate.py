"""`sayagain gate`: the verdict on candidates, in memory; nothing is written to the lake."""

from __future__ import annotations

import dataclasses
import json
from datetime import date

from pipelines import registry, release
from pipelines.context import Context
from pipelines.errors import LakeError, Refused, UsageError
from pipelines.options import GateOptions


def main(options: GateOptions) -> int:
    """Gate the candidates of a date as `release` would, and print every verdict that is not plain success."""
    if options.candidates:
        text = options.candidates.removeprefix("as_of=")[:10]
        try:
            options = dataclasses.replace(options, as_of=date.fromisoformat(text))
        except ValueError:
            raise UsageError(f"--candidates {options.candidates}: should be a partition such as as_of=2026-01-31, or its date") from None
    context = Context(options)
    as_of = context.as_of()
    if as_of is None or context.store.manifest("candidates", f"as_of={as_of}/pairs") is None:
        have = sorted({p.split("/")[0] for p in context.store.manifests("candidates")})
        raise LakeError(f"there are no candidates as of {as_of}; there are {', '.join(have) or 'none at all: run `sayagain aggregate`'}")
    built, verdicts, *_ = release.judged(context.store, as_of, release.settings(context, as_of))
    shown = [v for v in verdicts.verdicts if not v.success]
    if options.json:
        print(json.dumps({"as_of": str(as_of), **verdicts.summary(), "failed": [dataclasses.asdict(v) for v in shown]}))
    else:
        rows = ", ".join(f"{t.height:,} {n}" for n, t in built.tables.items() if t.height)
        parent = registry.parent_of(context.store, as_of)
        print(f"As of {as_of}, after {parent.release_id if parent else 'no release'}: {rows or 'no rows'}")
        for v in shown:
            print(f"  {v.severity:<8} {v.told()}")
        s = verdicts.summary()
        print(
            f"{'REFUSED' if verdicts.refused else 'Passed'}: {s['checked']} checked, {s['critical_failures']} critical, {s['warnings']} warnings"
        )
    return Refused.exit_code if verdicts.refused else 0
