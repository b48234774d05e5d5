"""Faults that happen to a run from within: a disk that is full, a worker that raises, a log that changes while it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import obstore
import polars as pl
import pytest
from obstore.exceptions import GenericError
from running import contents, difference

from pipelines.cli import main

CONFIG = '[embedding]\nmodel = "ngrams"\n'  # vectors are inputs; without torch a run takes seconds


class World:
    """A small log, the lake of a calm run, and as many disturbed ones as wanted, in this process."""

    def __init__(self, folder: Path, turns: int = 2_500, days: int = 2):
        self.folder, self.number = folder, 0
        size = [f"--turns={turns}", f"--days={days}", "--locales=en-US", "--by-day", "--no-truth", "--quiet"]
        assert main(["simulate", f"--out={folder}/world", *size]) == 0
        self.log = folder / "world" / "log"
        (folder / "c.toml").write_text(CONFIG)
        self.changes = 0
        with _after(_never, count=self):
            assert self.mine(folder / "calm") == 0
        self.calm = contents(folder / "calm")
        assert "releases/LATEST" in self.calm

    def mine(self, lake: Path, log: Path | None = None, *more: str) -> int:
        return main(["mine", f"--logs={log or self.log}", f"--lake={lake}", f"--config={self.folder}/c.toml", "--quiet", *more])

    def lake(self) -> Path:
        self.number += 1
        return self.folder / f"lake{self.number}"

    def heals(self, lake: Path) -> None:
        """The same command once more, and the lake is that of the calm run."""
        assert self.mine(lake) == 0
        assert not difference(self.calm, contents(lake))


def _never(_: int) -> None:
    return None


@contextmanager
def _after(fault: Callable[[int], None], count: World | None = None) -> Iterator[None]:
    """Call `fault` with the number of each change of the lake before it is made."""
    patch, done = pytest.MonkeyPatch(), 0

    def wrap(change):
        def wrapped(*arguments, **named):
            nonlocal done
            done += 1
            fault(done)
            if count is not None:
                count.changes = done
            return change(*arguments, **named)

        return wrapped

    for name in ("put", "rename"):
        patch.setattr(obstore, name, wrap(getattr(obstore, name)))
    try:
        yield
    finally:
        patch.undo()


@contextmanager
def full_disk(at: int) -> Iterator[None]:
    """From the `at`-th change on, nothing can be written any more; deleting still works, as it does."""

    def fault(n: int) -> None:
        if n >= at:
            raise GenericError("Unable to copy data to file: No space left on device (os error 28)")

    with _after(fault):
        yield


@contextmanager
def worker_raises(where: str, at: int) -> Iterator[None]:
    """The `at`-th element of a step (`pipelines.detect.Score`) raises, as a bug or a killed library would."""
    module, _, name = where.rpartition(".")
    step = getattr(__import__(module, fromlist=[name]), name)
    patch, calls, process = pytest.MonkeyPatch(), 0, step.process

    def broken(self, *arguments, **named):
        nonlocal calls
        calls += 1
        if calls == at:
            raise RuntimeError("planted: a worker died")
        yield from process(self, *arguments, **named)

    patch.setattr(step, "process", broken)
    try:
        yield
    finally:
        patch.undo()


@contextmanager
def log_changes(file: Path, rows: pl.DataFrame) -> Iterator[None]:
    """When the log is first read, one of its files has just been written anew."""
    from pipelines import sources

    patch, read, done = pytest.MonkeyPatch(), sources.read, False

    def reading(*arguments):
        nonlocal done
        if not done:
            done = True
            rows.write_parquet(file.with_suffix(".new"))
            file.with_suffix(".new").replace(file)
        yield from read(*arguments)

    patch.setattr(sources, "read", reading)
    try:
        yield
    finally:
        patch.undo()


def tables(lake: Path, name: str, *without: str) -> dict[str, str]:
    """Partition -> a hash of its rows, but for some columns."""
    out = {}
    for partition in sorted((lake / name).iterdir()):
        rows = pl.read_parquet(f"{partition}/**/*.parquet", hive_partitioning=False).drop(*without, strict=False)
        out[partition.name] = hashlib.sha256(rows.sort(rows.columns).write_json().encode()).hexdigest()
    return out
