"""What a run measured, as Prometheus text: for node_exporter's textfile collector, or to look at."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import SayagainError, UsageError

if TYPE_CHECKING:
    from pipelines.context import Context

_HELP = {
    "sayagain_stage_seconds": "Wall time of a stage.",
    "sayagain_stage_cpu_seconds": "CPU time of a stage on the launching machine, local workers included.",
    "sayagain_stage_peak_bytes": "Peak resident memory of the launcher during a stage; local workers in processes of their own are not in it.",
    "sayagain_stage_skipped": "1: there was nothing to do.",
    "sayagain_stage_count": "What a stage counted: rows, days, pairs, goals, as its line of the summary has them.",
    "sayagain_rejects": "Rows of the log that were rejected, by reason.",
    "sayagain_run_exit_code": "0 released or nothing new, 3 refused by a gate, 2 wrong usage, 1 error.",
    "sayagain_run_end_seconds": "Unix time of the end of the run.",
}


def label(text: Any) -> str:
    """A label's value: escaped, on one line."""
    return str(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def text(context: Context, command: str, exit_code: int) -> str:
    """All figures of a run in Prometheus' text format 0.0.4."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {name: [] for name in _HELP}
    for s in context.stages:
        of = {"stage": s.name}
        found["sayagain_stage_seconds"].append((of, round(s.seconds, 3)))
        found["sayagain_stage_cpu_seconds"].append((of, round(s.cpu_seconds, 3)))
        found["sayagain_stage_peak_bytes"].append((of, int(s.peak_mib * 2**20)))
        found["sayagain_stage_skipped"].append((of, int(bool(s.skipped))))
        for name, n in s.counts.items():
            if isinstance(n, int | float) and not isinstance(n, bool):
                found["sayagain_stage_count"].append((of | {"what": re.sub(r"\W+", "_", name)}, n))
        for reason, n in (s.counts.get("reasons") or {}).items():
            found["sayagain_rejects"].append(({"reason": reason}, n))
    found["sayagain_run_exit_code"].append(({"command": command}, exit_code))
    found["sayagain_run_end_seconds"].append(({"command": command}, int(time.time())))
    lines = []
    for name, rows in found.items():
        if rows:
            lines += [f"# HELP {name} {_HELP[name]}", f"# TYPE {name} gauge"]
            seen = {tuple(labels.items()): (labels, value) for labels, value in rows}  # of a stage that ran for several days, the last
            for labels, value in seen.values():
                inner = ",".join(f'{k}="{label(v)}"' for k, v in labels.items())
                lines.append(f"{name}{{{inner}}} {value}")
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def written(context: Context, command: str) -> Iterator[None]:
    """The figures of the block to the file of --metrics, also when it fails; nothing without the option."""
    try:
        yield
    except SayagainError as error:
        write(context, command, error.exit_code)
        raise
    except BaseException:
        write(context, command, SayagainError.exit_code)
        raise
    write(context, command, context.exit_code)


def write(context: Context, command: str, exit_code: int) -> None:
    """To the file of --metrics, whole or not at all; nothing without it."""
    path = getattr(context.options, "metrics", "")
    if not path:
        return
    aside = Path(f"{path}.{os.getpid()}")
    try:
        aside.write_text(text(context, command, exit_code), encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        raise UsageError(f"--metrics {path}: cannot be written: {error}") from None
