"""Turns per second of `ingest` and `detect`, beside the same work in plain Polars, in the same run; and goals of many texts.

    make bench
    make bench BENCH="--turns 200000 --save"
    make bench BENCH="--turns 0 --texts 1000000"     # goals alone, see goals.py

The jobs run as they do on one machine: Beam's FnApiRunner, users shuffled into buckets, files published by manifest.
The plain form calls the same functions (contract, scrub, keys, duplicates, sessions, pairs, model, votes) file by file,
without Beam, shuffle, buckets or manifests, and writes the same rows. The ratio is what the engine costs: it does not
depend on how busy the machine is, as long as it is as busy in both halves.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import goals  # beside this file

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


def run_jobs(log: Path, lake: Path) -> dict[str, tuple[float, float, int]]:
    """Stage -> seconds, peak MiB, rows it counts."""
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
        done[name] = (stage.seconds, stage.peak_mib, int(stage.counts.get("votes", stage.counts.get("turns", 0))))
    return done


def run_plain(log: Path, lake: Path, out: Path) -> dict[str, tuple[float, float, int]]:
    """The same two steps without Beam, with the lake's key and model."""
    import polars as pl

    from pipelines import ingest, modelstore, sources
    from pipelines.config import Config
    from pipelines.context import Context
    from pipelines.options import DetectOptions
    from rewrite import turns as t
    from rewrite.contracts import TURNS
    from rewrite.votes import detect

    context, config = Context(DetectOptions(lake=str(lake), quiet=True)), Config()
    rules, secret, gap = ingest.rules_of(config), context.user_key(), config.sessions.gap
    files, _ = sources.find((str(log),))
    out.mkdir()

    def ingest_day(source: sources.Source) -> int:
        source = sources.inspect(source, rules)
        shard = sources.Shard(source, tuple(range(len(source.groups))))
        made = [ingest.convert(block, source, rules, secret) for block in sources.read(shard, rules, source.rows)]
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
    done["ingest"] = (stage.seconds, stage.peak_mib, rows)
    with context.stage("plain detect") as stage:
        model = modelstore.load(context.store.root, modelstore.current(context.store))
        rows = sum(detect_day(p, model) for p in sorted(out.glob("turns-*.parquet")))
    done["detect"] = (stage.seconds, stage.peak_mib, rows)
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


def table(beam: dict, plain: dict, scored: tuple[int, float], load: tuple[float, float]) -> str:
    turns = beam["ingest"][2]
    lines = [
        f"## {datetime.now(UTC):%Y-%m-%d}, {turns:,} turns kept of {DAYS} days",
        "",
        f"{cpu()}, {os.cpu_count()} cores, Python {platform.python_version()}, load {load[0]:.1f} before and {load[1]:.1f} after.",
        "",
        "| step | Beam, s | turns/s | peak MiB | plain Polars, s | turns/s | peak MiB | Beam / plain |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    sums = [sum(x[name][0] for name in ("ingest", "detect")) for x in (beam, plain)]
    peaks = [max(x[name][1] for name in ("ingest", "detect")) for x in (beam, plain)]
    rows = [(name, beam[name][0], beam[name][1], plain[name][0], plain[name][1]) for name in ("ingest", "detect")]
    rows.append(("both", sums[0], peaks[0], sums[1], peaks[1]))
    for name, b, b_peak, p, p_peak in rows:
        lines.append(f"| {name} | {b:.1f} | {turns / b:,.0f} | {b_peak:,.0f} | {p:.1f} | {turns / p:,.0f} | {p_peak:,.0f} | {b / p:.2f} |")
    n, seconds = scored
    lines += ["", f"`fit`, once for all days: {beam['fit'][0]:.1f} s."]
    lines += [f"Features and scores of {n:,} pairs: {seconds:.1f} s of one core, {seconds / n * 1e6:.1f} s per million."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=1_000_000, help="turns of the simulated log (default: 1,000,000)")
    parser.add_argument("--texts", type=int, default=50_000, help="texts to find the goals of, 0 for none (default: 50,000)")
    parser.add_argument("--save", action="store_true", help=f"add the table to {RESULTS.name}")
    options = parser.parse_args()
    os.environ.setdefault("SAYAGAIN_USER_KEY", "00" * 32)
    if options.texts:
        bench_goals(options.texts, options.save)
    if options.turns:
        bench_turns(options.turns, options.save)


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


def bench_turns(turns: int, save: bool) -> None:
    folder = Path(tempfile.mkdtemp(prefix="sayagain-bench-"))
    try:
        print("simulating ...", file=sys.stderr)
        small, log = simulate(folder / "small", 5_000), simulate(folder / "large", turns)
        run_jobs(small, folder / "warm")  # imports, and whatever is built once
        before, start = os.getloadavg()[0], time.perf_counter()
        print("ingest, fit, detect ...", file=sys.stderr)
        beam = run_jobs(log, folder / "lake")
        print("the same in plain Polars ...", file=sys.stderr)
        plain = run_plain(log, folder / "lake", folder / "plain")
        for name in plain:
            if plain[name][2] != beam[name][2]:
                sys.exit(f"{name}: {plain[name][2]} rows in plain Polars, {beam[name][2]} in Beam: this compares nothing")
        scored = run_pairs(folder / "plain", folder / "lake")
        text = table(beam, plain, scored, (before, os.getloadavg()[0]))
        tell(text, save)
        print(f"measured in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
