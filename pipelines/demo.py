"""`sayagain demo`: a log that the project makes itself, mined, with a report to open at the end."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pipelines import mine
from pipelines.options import DemoOptions, MineOptions


def main(options: DemoOptions) -> int:
    """Make the world unless it is there, then mine it into the lake beside it."""
    from pipelines.simulate.job import run
    from pipelines.simulate.options import SimulateOptions

    out = Path(options.out)
    log = out / "world" / "log.parquet"
    if not (out / "world" / "world.json").exists():
        print(f"Making a log of a simulated assistant in {out / 'world'} ...", file=sys.stderr)
        made = run(SimulateOptions(out=str(out / "world"), seed=options.seed + 1))
        print(json.dumps({k: made[k] for k in ("turns", "defect_rate", "rephrases") if k in made}), file=sys.stderr)
    code = mine.main(MineOptions(logs=(str(log),), lake=str(out / "lake"), quiet=options.quiet))
    if code == 0:
        print(f"\nAsk about a text:  sayagain explain 'TEXT' --lake {out / 'lake'}")
    return code
