"""Whole runs from the command line, and what they leave in a lake; also runs that die in the middle."""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PRIVATE = ("_attempts/", "_leases/", "runs/", "lake.json")  # of one run or one lake: clocks, hosts, random names

_NURSERY = """
import json, os, sys
import apache_beam, great_expectations, lightgbm, obstore, scipy.sparse
import pipelines.engine, quality.gates  # not the jobs: some start threads of Polars, which do not live on in a fork
from pipelines.cli import main

assert not [t for t in os.listdir("/proc/self/task") if open(f"/proc/self/task/{t}/comm").read().startswith("polars-0")]

def dying(change):
    def wrapped(*arguments, **named):
        global done
        done += 1
        if done == at:
            os._exit(137)
        return change(*arguments, **named)
    return wrapped

for name in ("put", "rename", "delete"):
    setattr(obstore, name, dying(getattr(obstore, name)))
for order in sys.stdin:
    at, out, arguments = json.loads(order)
    child = os.fork()
    if not child:
        os.setsid()
        said = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        done = 0
        try:
            code = main(arguments)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = 70
        print("changes", done, flush=True)
        os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
DIED = 137
STUCK = 900  # seconds; a small run takes 20 on an idle machine


def run(*arguments: str, codes: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
    """`sayagain ...` to its end; any other exit code than `codes` fails with what it said."""
    done = subprocess.run([sys.executable, "-m", "pipelines", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in codes, f"{arguments} ended with {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return done


class Nursery:
    """Whole runs, each a process of its own that may die, forked from one that has imported everything: imports are most of a small run.

    The runs of one nursery share their hash seed; what is compared with another nursery's does not.
    """

    def __init__(self, folder: Path):
        self._said = folder / f"said{id(self)}"
        command = [sys.executable, "-c", _NURSERY]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, cwd=ROOT, text=True, bufsize=1, **pipes)

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self, *arguments: str, at: int = 0, after: float = 0) -> tuple[int, int]:
        """`sayagain ...` that is gone, no handler run, just before its `at`-th change of the lake, or is killed `after` seconds (0: never).

        Returns its exit code, 137 when it died, and how many changes it made when it did not. Any other code but 0 fails.
        """
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps([at, str(self._said), arguments]) + "\n")
        child = int(self._process.stdout.readline())
        if not select.select([self._process.stdout], [], [], after or STUCK)[0]:
            os.killpg(child, signal.SIGKILL)
            assert after, f"{arguments} still ran after {STUCK} s\n{self._said.read_text()[-6000:]}"
        code = int(self._process.stdout.readline())
        said = self._said.read_text()
        assert code in (0, DIED, -signal.SIGKILL), f"{arguments} ended with {code}\n{said[-6000:]}"
        return (0, int(said.split()[-1])) if code == 0 else (DIED, 0)


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
