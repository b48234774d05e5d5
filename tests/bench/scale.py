"""What a log of many turns costs, stage by stage: `sayagain simulate`, then `sayagain mine`, one line of figures per size.

    make bench BENCH="--scale 1000000,20000000 --save"

Texts become n-grams instead of the encoder's vectors (`embedding.model = ngrams`), so `embed` is next to nothing and the time of
all stages is the time without embedding. Memory is that of all processes of the run together, sampled twice a second. CPU seconds are
of all threads and processes: they say what a turn costs where the machine had other work to do, which wall time then does not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DAYS = 30
CHART = Path(__file__).with_name("scale.svg")


@dataclass(frozen=True)
class Stage:
    """Of one stage: wall seconds, CPU seconds, the most memory of all its processes together."""

    seconds: float
    cpu: float
    peak_mib: float


@dataclass(frozen=True)
class Run:
    """One size: turns kept, rows of the log, seconds to simulate it, the stages, load before and after."""

    turns: int
    rows: int
    made: float
    stages: dict[str, Stage]
    load: tuple[float, float]
    status: str


def measure(turns: int, workers: int, folder: Path, world: Path | None = None) -> Run:
    """Make the log (or take the `world` that is there), mine it, and delete what this made."""
    command = [sys.executable, "-m", "pipelines"]
    start = time.monotonic()
    if world is None:
        world = folder / f"world-{turns}"
        size = [f"--turns={turns}", f"--days={DAYS}", "--by-day", "--no-truth", "--quiet"]
        subprocess.run([*command, "simulate", f"--out={world}", *size], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    made = time.monotonic() - start
    config = folder / "ngrams.toml"
    config.write_text('[embedding]\nmodel = "ngrams"\n')
    load = os.getloadavg()[0]
    days = sorted(p.stem for p in (world / "log").iterdir())
    logs = [f"--logs={world}/log/{{date}}.parquet", f"--from={days[0]}", f"--to={days[-1]}"]
    lake = [*logs, f"--lake={folder}/lake-{turns}", f"--config={config}"]
    run = subprocess.Popen(
        [*command, "mine", *lake, f"--workers={workers}", "--quiet", "--json", "--log=json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"POLARS_MAX_THREADS": "1"} if workers > 1 else None,
    )
    assert run.stdout and run.stderr
    peak, done, stages = [0.0], threading.Event(), {}

    def watch() -> None:
        while not done.wait(0.5):
            peak[0] = max(peak[0], _memory(run.pid))

    threading.Thread(target=watch, daemon=True).start()
    said = []
    for line in run.stderr:
        event = json.loads(line) if line.startswith("{") else {}
        if event.get("event") == "stage":
            stages[event["stage"]] = Stage(event["seconds"], event["cpu_seconds"], peak[0])
            print(f"  {event['stage']}: {event['seconds']:.0f} s, {event['cpu_seconds']:.0f} CPU s, {peak[0]:,.0f} MiB", file=sys.stderr)
            peak[0] = 0.0
        elif not event:
            said.append(line)
    out = run.stdout.read().splitlines()
    done.set()
    if run.wait() not in (0, 3):
        sys.exit("".join(said[-20:]))
    result = json.loads(out[-1])
    kept, rows = (result["stages"]["ingest"][n] for n in ("turns", "rows"))
    return Run(kept, rows, made, stages, (load, os.getloadavg()[0]), str(result["status"]))


def _memory(pid: int) -> float:
    """MiB that a process and its children hold, pages that they share counted once (PSS)."""
    kib, todo = 0, [pid]
    while todo:
        p = todo.pop()
        try:
            rollup = Path(f"/proc/{p}/smaps_rollup").read_text()
            kib += int(next(line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:")))
            for task in Path(f"/proc/{p}/task").iterdir():
                todo += map(int, (task / "children").read_text().split())
        except (OSError, ValueError, StopIteration):  # it ended meanwhile
            continue
    return kib / 1024


def table(runs: list[Run], machine: str, workers: int) -> str:
    """Markdown: a row per size and stage, and what a turn costs."""
    lines = [f"{machine} `--workers {workers}`, {DAYS} days, no encoder.", ""]
    for r in runs:
        daily, whole = (sum(s.cpu for n, s in r.stages.items() if n in chosen) for chosen in (("ingest", "detect"), tuple(r.stages)))
        seconds = sum(s.seconds for s in r.stages.values())
        lines += [
            f"**{r.turns:,} turns** ({r.rows:,} rows, simulated in {r.made:.0f} s, {r.status}): {seconds:,.0f} s, {whole:,.0f} CPU seconds, "
            f"most memory {max(s.peak_mib for s in r.stages.values()) / 1024:.1f} GiB, load {r.load[0]:.0f} before and {r.load[1]:.0f} after. "
            f"CPU per turn: {whole / r.turns * 1e6:.1f} us in all, {daily / r.turns * 1e6:.1f} us in `ingest` and `detect`.",
            "",
            "| stage | seconds | CPU seconds | CPU us per turn | peak MiB |",
            "| --- | ---: | ---: | ---: | ---: |",
            *(f"| {n} | {s.seconds:.0f} | {s.cpu:.0f} | {s.cpu / r.turns * 1e6:.1f} | {s.peak_mib:,.0f} |" for n, s in r.stages.items()),
            "",
        ]
    return "\n".join(lines)


def chart(runs: list[Run]) -> str:
    """An SVG: CPU microseconds per turn against turns (logarithmic), all stages and the daily ones."""
    from math import log10

    runs = sorted(runs, key=lambda r: r.turns)
    low, high = log10(runs[0].turns), max(log10(runs[-1].turns), log10(runs[0].turns) + 0.1)
    series = {
        "all stages": [sum(s.cpu for s in r.stages.values()) / r.turns * 1e6 for r in runs],
        "ingest and detect": [sum(r.stages[n].cpu for n in ("ingest", "detect")) / r.turns * 1e6 for r in runs],
    }
    top = max(max(v) for v in series.values()) * 1.15
    at = [60 + 440 * (log10(r.turns) - low) / (high - low) for r in runs]
    y = lambda v: 250 - 220 * v / top  # noqa: E731
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 300" font-family="sans-serif" font-size="12">']
    parts += ["<title>CPU microseconds per turn, by turns of the log</title>", '<rect width="640" height="300" fill="white"/>']
    parts += ['<path d="M60 20V250H510" fill="none" stroke="#555"/>', '<text x="60" y="14">CPU microseconds per turn</text>']
    for v in range(0, int(top), 20):
        parts.append(f'<text x="54" y="{y(v) + 4:.0f}" text-anchor="end">{v}</text><path d="M60 {y(v):.0f}H510" stroke="#eee"/>')
    for x, r in zip(at, runs, strict=True):
        parts.append(f'<text x="{x:.0f}" y="268" text-anchor="middle">{r.turns / 1e6:.3g} M</text>')
    for colour, (name, values) in zip(("#0b5fa5", "#b3541e"), series.items(), strict=True):
        points = " ".join(f"{x:.0f},{y(v):.0f}" for x, v in zip(at, values, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.0f}" cy="{y(v):.0f}" r="3" fill="{colour}"/>' for x, v in zip(at, values, strict=True)]
        parts.append(f'<text x="518" y="{y(values[-1]) + 4:.0f}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, '<text x="285" y="290" text-anchor="middle">turns of the log</text>', "</svg>"]) + "\n"


def run(sizes: list[int], workers: int, machine: str) -> tuple[str, str]:
    """Table and chart of all sizes, one after the other."""
    runs = []
    for turns in sizes:
        print(f"{turns:,} turns ...", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="sayagain-scale-") as folder:
            runs.append(measure(turns, workers, Path(folder)))
    return table(runs, machine, workers), chart(runs)
