"""Turns per second of `ingest` and `detect`, beside the same work in plain Polars and in per-element Beam, in the same run; one
worker against two; goals of many texts; what a turn costs in long logs.

    make bench
    make bench BENCH="--turns 5000000 --times 3 --save"
    make bench BENCH="--turns 0 --texts 1000000"     # goals alone, see goals.py
    make bench BENCH="--turns 0 --texts 0 --scale 1000000,20000000 --save"     # see scale.py

The jobs run as they do on one machine: Beam's FnApiRunner, users shuffled into buckets, files published by manifest.
The plain form calls the same functions (contract, scrub, keys, duplicates, sessions, pairs, model, votes) file by file,
without Beam, shuffle, buckets or manifests, and writes the same rows. The ratio is what the engine costs: it does not
depend on how busy the machine is, as long as it is as busy in both halves. Where it is not, compare CPU seconds.

`peer.py` is the same logic as a dict per turn; it runs on fewer turns, so its turns per second are compared. Two workers are two processes with one Polars thread each, against one such process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import goals  # beside this file
import pyarrow.parquet as pq
import scale

from pipelines.config import Config
from pipelines.context import StageReport
from pipelines.store import Store

RESULTS = Path(__file__).with_name("RESULTS.md")
HEAD = """# Benchmarks

`make bench BENCH=--save` adds a table. Compare the ratios within one run; turns per second only on one idle machine.
"""
DAYS = 7


def simulate(folder: Path, turns: int) -> Path:
    size = [f"--turns={turns}", f"--days={DAYS}", "--by-day", "--no-truth", "--quiet"]
    subprocess.run([sys.executable, "-m", "pipelines", "simulate", f"--out={folder}", *size], check=True, stdout=subprocess.DEVNULL)
    return folder / "log"


class Took(NamedTuple):
    seconds: float
    cpu: float
    peak_mib: float
    rows: int  # turns kept, or votes


def took(stage: StageReport, rows: int) -> Took:
    return Took(stage.seconds, stage.cpu_seconds, stage.peak_mib, rows)


def run_jobs(log: Path, lake: Path) -> dict[str, Took]:
    from pipelines import jobs
    from pipelines.context import Context
    from pipelines.options import DetectOptions, FitOptions, IngestOptions

    done = {}
    for name, options in (
        ("ingest", IngestOptions(lake=str(lake), logs=(str(log),), quiet=True)),
        ("fit", FitOptions(lake=str(lake), quiet=True)),
        ("detect", DetectOptions(lake=str(lake), quiet=True)),
    ):
        context = Context(options, make=name == "ingest")
        jobs.stage(context, name)
        stage = context.stages[-1]
        done[name] = took(stage, int(stage.counts.get("votes", stage.counts.get("turns", 0))))
    return done


def run_plain(log: Path, lake: Path, out: Path) -> dict[str, Took]:
    """The same two steps without Beam, with the lake's key and model."""
    import polars as pl

    from pipelines import convert, modelstore, sources
    from pipelines.config import Config
    from pipelines.context import Context
    from pipelines.options import DetectOptions
    from rewrite import turns as t
    from rewrite.contracts import TURNS
    from rewrite.votes import detect

    context, config = Context(DetectOptions(lake=str(lake), quiet=True)), Config()
    rules, secret, gap = convert.rules_of(config), context.user_key(), config.sessions.gap
    files, _ = sources.find((str(log),))
    out.mkdir()

    def ingest_day(source: sources.Source) -> int:
        source = sources.inspect(source, rules)
        shard = sources.Shard(source, tuple(range(len(source.groups))))
        made = [convert.convert(block, source, rules, secret) for block in sources.read(shard, rules, source.rows)]
        turns, rejects = (pl.concat([getattr(m, n) for m in made]).with_columns(fresh=pl.lit(True)) for n in ("turns", "rejects"))
        turns, rejects, _ = t.merge(turns, rejects)
        turns = t.cut_sessions(turns, gap)
        name = Path(source.path).stem
        turns.select(*TURNS.names).write_parquet(out / f"turns-{name}.parquet", compression="zstd", compression_level=3)
        rejects.write_parquet(out / f"rejects-{name}.parquet", compression="zstd", compression_level=3)
        return turns.height

    def detect_day(path: Path, model: object) -> int:
        turns = pl.read_parquet(path).with_columns(date=pl.col("timestamp").dt.date())
        found = detect(turns, model, gap)
        for name, frame in found._asdict().items():
            frame.write_parquet(out / f"{name}-{path.name}", compression="zstd", compression_level=3)
        return found.votes.height

    done = {}
    with context.stage("plain ingest") as stage:
        rows = sum(ingest_day(f) for f in files)
    done["ingest"] = took(stage, rows)
    with context.stage("plain detect") as stage:
        model = modelstore.load(context.store.root, modelstore.current(context.store))
        rows = sum(detect_day(p, model) for p in sorted(out.glob("turns-*.parquet")))
    done["detect"] = took(stage, rows)
    return done


def run_pairs(plain: Path, lake: Path) -> tuple[int, float]:
    """Pairs of all days, and the processor seconds (of one core) of their features and scores."""
    import polars as pl

    from pipelines import modelstore
    from rewrite import asked_again, pairs

    model = modelstore.load(str(lake), str(modelstore.current(Store(str(lake)))))
    turns = [pairs.ordered(pl.read_parquet(p)) for p in sorted(plain.glob("turns-*.parquet"))]
    candidates = [pairs.candidate_pairs(t) for t in turns]
    start = time.process_time()
    for t, p in zip(turns, candidates, strict=True):
        asked_again.score(t, p, model)
    return sum(p.height for p in candidates), time.process_time() - start


def cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


STEPS = ("ingest", "detect")


def both(steps: dict[str, Took]) -> Took:
    """Log to votes: the daily steps together."""
    parts = [steps[n] for n in STEPS]
    return Took(sum(p.seconds for p in parts), sum(p.cpu for p in parts), max(p.peak_mib for p in parts), steps["ingest"].rows)


def table(beam: dict[str, Took], plain: dict[str, Took], scored: tuple[int, float], times: int, load: tuple[float, float]) -> str:
    turns = beam["ingest"].rows
    lines = [
        f"## {datetime.now(UTC):%Y-%m-%d}, {turns:,} turns kept of {DAYS} days",
        "",
        f"{cpu()}, {os.cpu_count()} cores, Python {platform.python_version()}, load {load[0]:.1f} before and {load[1]:.1f} after; "
        f"best of {times} (by seconds of both steps).",
        "",
        "| step | Beam, s | CPU s | turns/s | peak MiB | plain Polars, s | CPU s | turns/s | peak MiB | Beam / plain | by CPU |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows = [(name, beam[name], plain[name]) for name in STEPS] + [("both", both(beam), both(plain))]
    for name, b, p in rows:
        sides = (f"{x.seconds:.1f} | {x.cpu:.1f} | {turns / x.seconds:,.0f} | {x.peak_mib:,.0f}" for x in (b, p))
        lines.append(f"| {name} | {' | '.join(sides)} | {b.seconds / p.seconds:.2f} | {b.cpu / p.cpu:.2f} |")
    n, seconds = scored
    if "fit" in beam:
        lines += ["", f"`fit`, once for all days: {beam['fit'].seconds:.1f} s ({beam['fit'].cpu:.1f} CPU)."]
    lines += [f"Features and scores of {n:,} pairs: {seconds:.1f} s of one core, {seconds / n * 1e6:.1f} s per million."]
    return "\n".join(lines) + "\n"


def against_peer(log: Path, lake: Path, out: Path, ours: Took) -> str:
    """The per-element pipeline on a small log, with the lake's model: turns per second, and how many times ours is."""
    import peer

    from pipelines import modelstore

    store = Store(str(lake))
    model = modelstore.load(store.root, str(modelstore.current(store)))
    start, cpu_start = time.perf_counter(), time.process_time()
    votes = peer.run(log, out, model, bytes.fromhex(os.environ["SAYAGAIN_USER_KEY"]), Config().sessions.gap)
    seconds, used = time.perf_counter() - start, time.process_time() - cpu_start
    rows = sum(pq.read_metadata(p).num_rows for p in log.glob("*.parquet"))
    return (
        f"Per-element Beam (`peer.py`) on {rows:,} rows: {seconds:.1f} s ({used:.1f} CPU), {rows / seconds:,.0f} turns/s, {votes:,} votes. "
        f"Ours: {ours.rows / ours.seconds:,.0f} turns/s, {seconds / rows * ours.rows / ours.seconds:.1f} times as many "
        f"({used / rows * ours.rows / ours.cpu:.1f} times by CPU seconds).\n"
    )


def workers(log: Path, folder: Path, model_of: Path) -> str:
    """`ingest` and `detect` from the command line with one and with two worker processes, one Polars thread each."""
    env = os.environ | {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"}
    seconds, used = {}, {}
    for n in (1, 2):
        lake, load = folder / f"workers{n}", os.getloadavg()[0]
        for name, more in (("ingest", [f"--logs={log}"]), ("detect", [])):
            command = [sys.executable, "-m", "pipelines", name, f"--lake={lake}", "--quiet", "--json"]
            # one worker is one process with one thread; without the flag there would be two threads
            command += [f"--workers={n}"] if n > 1 else ["--beam=--direct_num_workers=1", "--beam=--direct_running_mode=in_memory"]
            done = subprocess.run([*command, *more], check=True, capture_output=True, text=True, env=env)
            stage = json.loads(done.stdout.splitlines()[-1])
            seconds[n, name], used[n, name] = stage["seconds"], stage["cpu_seconds"]
            if name == "ingest":
                shutil.copytree(model_of / "models", lake / "models")
        print(f"{n} worker(s): load {load:.1f}", file=sys.stderr)
    lines = ["| step | one worker, s | CPU s | two workers, s | CPU s | one / two |", "| --- | --- | --- | --- | --- | --- |"]
    for name, steps in (*((s, (s,)) for s in STEPS), ("both", STEPS)):
        one, two = (sum(seconds[n, s] for s in steps) for n in (1, 2))
        spent = [sum(used[n, s] for s in steps) for n in (1, 2)]
        lines.append(f"| {name} | {one:.1f} | {spent[0]:.1f} | {two:.1f} | {spent[1]:.1f} | {one / two:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=1_000_000, help="turns of the simulated log (default: 1,000,000)")
    parser.add_argument("--texts", type=int, default=50_000, help="texts to find the goals of, 0 for none (default: 50,000)")
    parser.add_argument("--times", type=int, default=1, help="runs of both sides, of which the best counts (default: 1)")
    parser.add_argument("--peer", type=int, default=30_000, help="turns of the per-element pipeline, 0 for none (default: 30,000)")
    parser.add_argument("--scale", default="", metavar="TURNS,TURNS", help="sizes to mine whole, see scale.py")
    parser.add_argument("--workers", type=int, default=1, help="worker processes of --scale (default: 1, with two threads)")
    parser.add_argument("--save", action="store_true", help=f"add the table to {RESULTS.name}")
    options = parser.parse_args()
    os.environ.setdefault("SAYAGAIN_USER_KEY", "00" * 32)
    if options.texts:
        bench_goals(options.texts, options.save)
    if options.turns:
        bench_turns(options)
    if options.scale:
        before = os.getloadavg()[0]
        found, drawn = scale.run([int(n) for n in options.scale.split(",")], options.workers, machine(before))
        tell(f"## {datetime.now(UTC):%Y-%m-%d}, long logs\n\n{found}", options.save)
        if options.save:
            scale.CHART.write_text(drawn)


def machine(load: float) -> str:
    return (
        f"{cpu()}, {os.cpu_count()} cores, Python {platform.python_version()}, load {load:.1f} before and {os.getloadavg()[0]:.1f} after."
    )


def tell(text: str, save: bool) -> None:
    print(text)
    if save:
        RESULTS.write_text((RESULTS.read_text() if RESULTS.exists() else HEAD) + "\n" + text)


def bench_goals(texts: int, save: bool) -> None:
    print(f"goals of {texts:,} texts ...", file=sys.stderr)
    before = os.getloadavg()[0]
    table = goals.run(texts)
    tell(f"## {datetime.now(UTC):%Y-%m-%d}, goals of {texts:,} texts\n\n{machine(before)}\n\n{table}", save)


def bench_turns(o: argparse.Namespace) -> None:
    folder = Path(tempfile.mkdtemp(prefix="sayagain-bench-"))
    try:
        print("simulating ...", file=sys.stderr)
        small, log = simulate(folder / "small", 5_000), simulate(folder / "large", o.turns)
        run_jobs(small, folder / "warm")  # imports, and whatever is built once
        before, start = os.getloadavg()[0], time.perf_counter()
        beams, plains = [], []
        for n in range(o.times):
            lake, plain = folder / f"lake{n}", folder / f"plain{n}"
            print("ingest, fit, detect ...", file=sys.stderr)
            beams.append(run_jobs(log, lake))
            print("the same in plain Polars ...", file=sys.stderr)
            plains.append(run_plain(log, lake, plain))
            for name in STEPS:
                if plains[-1][name].rows != beams[-1][name].rows:
                    sys.exit(f"{name}: {plains[-1][name].rows} rows in plain Polars, {beams[-1][name].rows} in Beam: this compares nothing")
            if n + 1 < o.times:
                shutil.rmtree(lake)
                shutil.rmtree(plain)
        scored = run_pairs(plain, lake)
        best = [min(runs, key=lambda r: both(r).seconds) for runs in (beams, plains)]
        text = table(*best, scored, o.times, (before, os.getloadavg()[0]))
        if o.peer:
            print("per-element Beam ...", file=sys.stderr)
            text += "\n" + against_peer(simulate(folder / "peer", o.peer), lake, folder / "peer-votes", both(best[0]))
            print("one worker, two workers ...", file=sys.stderr)
            text += f"\nLoad {os.getloadavg()[0]:.0f}:\n\n" + workers(log, folder, lake)
        tell(text, o.save)
        print(f"measured in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
