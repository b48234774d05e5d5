"""Whole runs from the command line, and what they leave in a lake; also runs that die in the middle."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PRIVATE = ("_attempts/", "_leases/", "runs/", "lake.json")  # of one run or one lake: clocks, hosts, random names

DYING = """
import os, sys
import obstore

left, done = int(os.environ["DIE_AT"]), 0

def dying(change):
    def wrapped(*arguments, **named):
        global done
        done += 1
        if done == left:
            os._exit(137)
        return change(*arguments, **named)
    return wrapped

for name in ("put", "rename", "delete"):
    setattr(obstore, name, dying(getattr(obstore, name)))
from pipelines.cli import main
code = main(sys.argv[1:])
print("changes", done, file=sys.stderr)
sys.exit(code)
"""
DIED = 137


def run(*arguments: str, codes: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
    """`sayagain ...` to its end; any other exit code than `codes` fails with what it said."""
    done = subprocess.run([sys.executable, "-m", "pipelines", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in codes, f"{arguments} ended with {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return done


def run_dying(at: int, *arguments: str) -> tuple[int, int]:
    """The same, but the process is gone, no handler run, just before its `at`-th change of the lake (0: never).

    Returns its exit code, 137 when it died, and how many changes it made when it did not.
    """
    command = [sys.executable, "-c", DYING, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"DIE_AT": str(at)})
    assert done.returncode in (0, DIED), f"{arguments} ended with {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return done.returncode, int(done.stderr.split()[-1]) if done.returncode == 0 else at


def simulate(out: Path, turns: int, days: int, *more: str) -> Path:
    """A small English log, one file a day; returns its folder."""
    run("simulate", f"--out={out}", f"--turns={turns}", f"--days={days}", "--locales=en-US", "--by-day", "--quiet", *more)
    return out / "log"


def contents(lake: Path) -> dict[str, str]:
    """Every file that a lake keeps, releases included, and the hash of its bytes."""
    files = {str(p.relative_to(lake)): p for p in sorted(lake.rglob("*")) if p.is_file()}
    return {name: hashlib.sha256(p.read_bytes()).hexdigest() for name, p in files.items() if not name.startswith(PRIVATE)}


def difference(a: dict[str, str], b: dict[str, str]) -> list[str]:
    """Names that are in one of them only, or have other bytes."""
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
