"""What a job runs in: the lake and its key, the configuration, the progress line, and the measures of each stage."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import hmac
import json
import os
import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from pipelines import config as configuration
from pipelines.errors import LakeError, UsageError
from pipelines.options import JobOptions
from pipelines.store import FORMAT, Store
from rewrite.contracts import BUCKETS

KEY_ENV = "SAYAGAIN_USER_KEY"
"""The lake's HMAC key, 64 hex digits: from a secret manager in production, else made once in a file outside the lake."""

NEEDS = "0.1"
"""The first version that reads lakes of `FORMAT`: raised together with it, for the message of those that cannot."""


@dataclass
class StageReport:
    """What one stage did: rows in and out, seconds, CPU seconds, peak memory of this process."""

    name: str
    counts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0  # of all threads, and of worker processes that have ended
    peak_mib: float = 0.0
    skipped: str = ""  # why nothing had to be done

    def told(self) -> str:
        """What it did, in a line."""
        if self.skipped:
            return f"skipped: {self.skipped}"
        plain = ((k, v) for k, v in self.counts.items() if not isinstance(v, dict | list))
        told = [f"{v:,} {k}" if isinstance(v, int) else f"{k} {v}" for k, v in plain]
        for name, found in self.counts.items():
            if isinstance(found, dict) and found:  # such as rejects by reason
                told.append(f"{name}: " + ", ".join(f"{n:,} {what}" for what, n in found.items()))
        return "; ".join([", ".join(t for t in told if ": " not in t), *(t for t in told if ": " in t)])


class Context:
    """One run on one lake."""

    def __init__(self, options: JobOptions, *, make: bool = False, dry: bool = False):
        """`make`: create the lake when it is not there (ingest does; readers say so instead). `dry`: it may stay away."""
        self.options = options
        self.config = configuration.load(options.config)
        if profile := getattr(options, "profile", None):
            self.config = dataclasses.replace(self.config, evidence=dataclasses.replace(self.config.evidence, profile=profile))
        if dry and "://" not in options.lake and not Path(options.lake).is_dir():
            options = dataclasses.replace(options, lake="memory://")
        elif not make and "://" not in options.lake and not Path(options.lake).is_dir():
            raise LakeError(f"--lake {options.lake}: there is no such folder; `sayagain ingest` or `sayagain mine` makes it")
        self.store = Store(options.lake)
        self.attempt = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
        self.stages: list[StageReport] = []
        self.notes: list[str] = []  # what the summary should mention
        self.result: dict[str, Any] = {}  # what the release job decided
        self.exit_code = 0
        self.shares = False  # a stage keeps what a later stage of this run would gather again
        self.pinned_as_of: date | None = None  # the one of this round, where a run makes several
        if not dry:
            self._open_lake(make)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Hold this run's attempt folder, and clear those of runs that died."""
        for name in {p.split("/")[1] for p in self.store.list("_attempts")}:
            with contextlib.suppress(LakeError), self.store.lease(f"attempt-{name}"):
                self.store.clear_attempt(name)
        with self.store.lease(f"attempt-{self.attempt}"):
            try:
                yield
            finally:
                self.store.clear_attempt(self.attempt)

    # the lake and its key

    def _open_lake(self, make: bool) -> None:
        data = self.store.find("lake.json")
        if data is None:
            if not make:
                raise LakeError(f"{self.store.url('')}: not a lake (no lake.json); `sayagain ingest` or `sayagain mine` makes one")
            info: dict[str, Any] = {"format": FORMAT, "needs": NEEDS, "buckets": BUCKETS, "lake_id": secrets.token_hex(8)}
            info["key_fingerprint"] = _fingerprint(_user_key(info["lake_id"], make=True))
            if self.store.put_new("lake.json", (json.dumps(info, indent=1, sort_keys=True) + "\n").encode()):
                return
            data = self.store.get("lake.json")
        info = json.loads(data)
        if info["format"] > FORMAT:
            raise LakeError(
                f"{self.store.url('lake.json')}: format {info['format']}; this sayagain reads up to {FORMAT}: "
                f"install sayagain {info.get('needs', 'of a newer version')} or later"
            )
        self.lake_id = info["lake_id"]

    def user_key(self) -> bytes:
        """The key that user ids are replaced under. Raises LakeError when it is not this lake's."""
        info = json.loads(self.store.get("lake.json"))
        key = _user_key(info["lake_id"], make=False)
        if _fingerprint(key) != info["key_fingerprint"]:
            raise LakeError(
                f"{self.store.url('')}: the key in {KEY_ENV} or {_key_file(info['lake_id'])} is not the one this lake was made with; "
                "users would be counted twice. Give the right key, or start a new lake"
            )
        return key

    # measures

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[StageReport]:
        """Time a stage and its peak memory, and show what it did."""
        report = StageReport(name)
        self.stages.append(report)
        _reset_peak()
        start, cpu = time.perf_counter(), sum(os.times()[:4])
        self.say(f"{name} ...", transient=True)
        outcome = "failed"
        try:
            yield report
            outcome = "skipped" if report.skipped else "done"
        finally:
            report.seconds = time.perf_counter() - start
            report.cpu_seconds = sum(os.times()[:4]) - cpu
            report.peak_mib = _peak_mib()
            measured = {
                "seconds": round(report.seconds, 3),
                "cpu_seconds": round(report.cpu_seconds, 2),
                "peak_mib": round(report.peak_mib),
                "skipped": report.skipped,
            }
            self.event("stage", stage=name, outcome=outcome, **measured, **report.counts)
        self.say(f"{name:<10} {report.seconds:6.1f} s  {report.peak_mib:6,.0f} MiB  {report.told()}")

    def event(self, event: str, **what: Any) -> None:
        """One line on stderr for machines, where --log asks for it: what happened, when, in which run."""
        kind = getattr(self.options, "log", "short")
        if kind == "short":
            return
        row = {"time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}", "run": self.attempt, "event": event, **what}
        if kind == "json":
            line = json.dumps(row, default=str)
        else:
            plain = ((k, v if isinstance(v, int | float) else json.dumps(v, default=str)) for k, v in row.items() if v != "")
            line = " ".join(f"{k.replace(' ', '_')}={v}" for k, v in plain)
        print(line, file=sys.stderr, flush=True)

    def say(self, line: str, *, transient: bool = False) -> None:
        """A line of progress on stderr; a transient one only where it can be wiped."""
        if self.options.quiet or getattr(self.options, "log", "short") != "short" or (transient and not sys.stderr.isatty()):
            return
        wipe = "\r\x1b[2K" if sys.stderr.isatty() else ""
        print(f"{wipe}{line}", end="" if transient else "\n", file=sys.stderr, flush=True)

    # dates

    def dates(self, table: str) -> list[date]:
        """Days that a daily table has, in order."""
        return sorted(date.fromisoformat(p.removeprefix("date=")) for p in self.store.manifests(table))

    def chosen_dates(self, table: str) -> list[date]:
        """Those of them between --from and --to."""
        start, end = getattr(self.options, "start", None), getattr(self.options, "end", None)
        return [d for d in self.dates(table) if (not start or d >= start) and (not end or d <= end)]

    def as_of(self) -> date | None:
        """The as-of date: --as-of, or the last date in `turns` up to --to; never the clock. None when there are no turns."""
        chosen = self.pinned_as_of or getattr(self.options, "as_of", None)
        if chosen:
            return chosen
        have = self.store.manifests("turns")
        days = [d for d in self.chosen_dates("turns") if have[f"date={d}"].rows]
        return days[-1] if days else None

    def history(self, as_of: date, table: str = "votes") -> list[date]:
        """The days of the table that are evidence as of a date: those of the window, and all that are kept before it."""
        return [d for d in self.dates(table) if d <= as_of and (as_of - d).days < self.config.evidence.evidence_days]

    def window(self, as_of: date, table: str = "votes") -> list[date]:
        """The days of the table that are in the window of the as-of date."""
        text = getattr(self.options, "window", None)
        days = 0 if text == "all" else int(text) if text else self.config.evidence.window
        days = min(days or 10**6, self.config.evidence.evidence_days)
        return [d for d in self.dates(table) if d <= as_of and (as_of - d).days < days]


def _key_file(lake_id: str) -> Path:
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return home / "sayagain" / "keys" / lake_id


def _user_key(lake_id: str, *, make: bool) -> bytes:
    text = os.environ.get(KEY_ENV)
    path = _key_file(lake_id)
    if not text:
        if path.exists():
            text = path.read_text().strip()
        elif make:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            text = secrets.token_hex(32)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as f:
                f.write(text + "\n")
        else:
            raise LakeError(f"the lake's user key is neither in {KEY_ENV} nor in {path}; without it the same user would get another key")
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) < 16:
        raise UsageError(f"{KEY_ENV}: should be 32 or more hex digits (it has {len(text)} characters); `openssl rand -hex 32` makes one")
    return key


def _fingerprint(key: bytes) -> str:
    return hmac.new(key, b"sayagain lake key", hashlib.sha256).hexdigest()[:16]


def _reset_peak() -> None:
    """Linux can forget a process's peak; elsewhere the peak is that of the whole run so far."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mib() -> float:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
