"""What a turn costs, stage by stage, in CPU time: `python tests/bench/costs.py --turns 200000 --save` writes COSTS.md.

CPU seconds, not wall time: they hardly depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DAILY = ("ingest", "detect")
BILLION = 10**9

TEXT = """# What a turn costs

`python tests/bench/costs.py --turns {turns} --save`: `mine` on {turns:,} turns of {days} days of `sayagain simulate` ({locales}), {encoder};
{date}, {machine}, load {load:.0f} while it ran. CPU time of all threads; `fit` and the as-of stages start and load their libraries each time.

| stage | turns per core-hour | CPU seconds | peak MiB |
| --- | ---: | ---: | ---: |
{rows}

**Extrapolated, not measured**: a billion turns a day through the daily stages ({daily}) at this rate are {hours:,.0f} core-hours a day, so about
{cores:,.1f} cores busy all day, if cost per turn stays as it is here. `fit` reads at most 600,000 turns whatever the day. `embed`, `link`, `aggregate` and `release` grow
with the distinct texts and users of the window rather than with turns; no figure for them at that size follows from this table.
"""


def main() -> None:
    """Simulate, mine, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=200_000)
    parser.add_argument("--days", type=int, default=5)
    parser.add_argument("--locales", default="en-US,sw-KE")
    parser.add_argument("--model", default="auto", help="embedding.model")
    parser.add_argument("--save", action="store_true", help="write COSTS.md beside this file")
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "c.toml")
        config.write_text(f'[embedding]\nmodel = "{o.model}"\n')
        run = [sys.executable, "-m", "pipelines"]
        size = [f"--turns={o.turns}", f"--days={o.days}", f"--locales={o.locales}", "--by-day", "--no-truth", "--quiet"]
        subprocess.run([*run, "simulate", f"--out={folder}/world", *size], cwd=ROOT, check=True)
        mine = [*run, "mine", f"--logs={folder}/world/log", f"--lake={folder}/lake", f"--config={config}", "--quiet", "--json"]
        done = subprocess.run(mine, cwd=ROOT, check=True, capture_output=True, text=True)
    stages = json.loads(done.stdout.splitlines()[-1])["stages"]
    turns = stages["ingest"]["turns"]
    lines = [f"| {n} | {turns / s['cpu_seconds'] * 3600:,.0f} | {s['cpu_seconds']:.1f} | {s['peak_mib']:,} |" for n, s in stages.items()]
    daily = sum(stages[n]["cpu_seconds"] for n in DAILY)
    whole = sum(s["cpu_seconds"] for s in stages.values())
    lines.append(f"| all | {turns / whole * 3600:,.0f} | {whole:.1f} | {max(s['peak_mib'] for s in stages.values()):,} |")
    hours = BILLION / turns * daily / 3600
    text = TEXT.format(
        turns=o.turns,
        days=o.days,
        locales=o.locales,
        encoder=f"embedding.model = {o.model}",
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        machine=f"{os.cpu_count()} cores, Python {platform.python_version()}",
        load=os.getloadavg()[1],
        rows="\n".join(lines),
        daily=" + ".join(DAILY),
        hours=hours,
        cores=hours / 24,
    )
    print(text)
    if o.save:
        Path(__file__).with_name("COSTS.md").write_text(text)


if __name__ == "__main__":
    main()
