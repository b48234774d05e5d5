"""One options dataclass per job; the command line is made from them, and a job is built from nothing else.

Imports neither Beam nor Polars, so that `--help` stays instant.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from datetime import date
from typing import ClassVar

from pipelines.engine_options import EngineOptions
from pipelines.errors import UsageError
from pipelines.flags import opt

LOGS = ("short", "lines", "json")
DRY_RUN = opt(False, "print the plan, and with another runner than local each job's graph; write nothing")


def day(text: str) -> date:
    """A date of the command line."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a date; write it as 2026-01-31") from None


@dataclass(frozen=True)
class JobOptions(EngineOptions):
    """What every job takes."""

    lake: str = opt("", "where everything is kept: a folder, or s3://bucket/prefix, gs://bucket/prefix", metavar="DIR")
    config: str | None = opt(None, "TOML file; `sayagain config` prints one with every key", metavar="FILE")
    quiet: bool = opt(False, "no progress on the terminal")
    json: bool = opt(False, "print a one-line JSON summary on stdout, for scripts")
    log: str = opt(
        "short", "on stderr: a line per stage (short), or one per stage and published partition, as key=value (lines) or JSON", choices=LOGS
    )
    metrics: str = opt("", "write what the run measured to this file at its end, as Prometheus text", metavar="FILE")

    def validate(self) -> None:
        """Raises UsageError before anything is started."""
        if not self.lake:
            raise UsageError("--lake is missing: name the folder that holds (or will hold) everything, such as --lake ./lake")
        self.check_engine(self.lake)
        start, end = getattr(self, "start", None), getattr(self, "end", None)
        if start and end and start > end:
            raise UsageError(f"--from {start} is after --to {end}")


@dataclass(frozen=True)
class DatedOptions(JobOptions):
    """A job over daily partitions."""

    start: date | None = opt(None, "first day, UTC; default: the first there is", name="from", kind=day, metavar="DATE")
    end: date | None = opt(None, "last day, UTC; default: the last there is", name="to", kind=day, metavar="DATE")


@dataclass(frozen=True)
class IngestOptions(DatedOptions):
    """Reads logs into the lake: maps columns, scrubs personal data, replaces user ids, cuts sessions, rejects bad rows.

    Example: sayagain ingest --logs 'logs/{date}/*.parquet' --lake ./lake --from 2026-01-01 --to 2026-01-07
    """

    logs: tuple[str, ...] = opt(
        (),
        "Parquet or JSON Lines (.jsonl, .gz, .zst): files, folders, globs, patterns with {date}; any Beam path",
        metavar="PATH",
        many=True,
    )
    if_there: bool = opt(False, "leave the lake as it is where no log file is there (deleted since the days were read)")
    dry_run: bool = opt(
        False, "print five mapped and scrubbed rows, the plan, and with another runner than local each job's graph; write nothing"
    )

    def validate(self) -> None:
        super().validate()
        if not self.logs:
            raise UsageError("--logs is missing: name at least one file, folder, glob or {date} pattern")
        self.check_logs(self.logs)
        for path in self.logs:
            if "{date}" in path and not (self.start and self.end):
                raise UsageError(f"--logs {path}: a {{date}} pattern needs --from and --to")


@dataclass(frozen=True)
class FitOptions(DatedOptions):
    """Learns, from the log alone, when users ask again and when a turn has failed; makes the model current.

    Example: sayagain fit --lake ./lake
    """

    dry_run: bool = DRY_RUN
    if_missing: bool = opt(False, "do nothing when the lake has a model")
    compare: bool = opt(False, "say how far a new model would move from the one in use, and keep that one")

    def validate(self) -> None:
        super().validate()
        if self.compare and self.if_missing:
            raise UsageError("--compare needs a model to compare with, --if-missing fits only where there is none: give one of them")


@dataclass(frozen=True)
class DetectOptions(DatedOptions):
    """Scores pairs of turns (asked again?) and turns (failed?), and casts the votes of each user.

    Example: sayagain detect --lake ./lake --from 2026-01-07 --to 2026-01-07
    With --explain it scores nothing and says why one turn was judged as it was: its session, its pairs, its outcome.
    """

    dry_run: bool = DRY_RUN
    explain: str | None = opt(None, "say why this turn was judged as it was; shows only texts that k users share", metavar="TURN_ID")
    private: bool = opt(False, "with --explain: also show texts that fewer than k users share")

    def validate(self) -> None:
        super().validate()
        if self.explain is not None and not self.explain.strip():
            raise UsageError("--explain: give a turn_id of the log")
        if self.private and self.explain is None:
            raise UsageError("--private goes with --explain TURN_ID")


@dataclass(frozen=True)
class AsOfOptions(JobOptions):
    """A job over the evidence through one day."""

    as_of: date | None = opt(None, "evidence through the end of this day, UTC; default: the last day in the lake", kind=day, metavar="DATE")
    window: str | None = opt(
        None, "how many days of votes choose candidates, or all; default: evidence.window of the configuration", metavar="DAYS|all"
    )

    def validate(self) -> None:
        super().validate()
        if self.window is not None and self.window != "all" and not (self.window.isdigit() and int(self.window) > 0):
            raise UsageError(f"--window {self.window!r}: should be a number of days, or all")


@dataclass(frozen=True)
class EmbedOptions(AsOfOptions):
    """Embeds the texts of the window that k users said, and both sides of asked-again pairs; a text is embedded once ever.

    Example: sayagain embed --lake ./lake
    """

    dry_run: bool = DRY_RUN


@dataclass(frozen=True)
class LinkOptions(AsOfOptions):
    """Joins wordings of one goal, across users and languages, into the goal graph; goals keep their ids.

    Examples: sayagain link --lake ./lake --lexicon words.tsv
              sayagain link --texts wordings.csv --out ./goals
    """

    dry_run: bool = DRY_RUN
    texts: str | None = opt(None, "no lake: join the texts of this .parquet, .csv or .jsonl (columns text, locale)", metavar="FILE")
    out: str = opt("goals", "folder for the tables of --texts", metavar="DIR")
    lexicon: str | None = opt(
        None, "TSV of words that say the same: locale, phrase, locale, phrase; default: goals.lexicon", metavar="FILE"
    )

    def validate(self) -> None:
        if not self.texts:
            super().validate()
        elif self.lake:
            raise UsageError("--texts needs no --lake; give one of them")


PROFILES = ("balanced", "careful")


@dataclass(frozen=True)
class AggregateOptions(AsOfOptions):
    """Turns votes into candidates: rewrites, labels and pairs, proposed or not, each with the reason.

    Example: sayagain aggregate --lake ./lake
    """

    profile: str | None = opt(None, "how much evidence a rewrite needs; default: evidence.profile of the configuration", choices=PROFILES)
    dry_run: bool = DRY_RUN


@dataclass(frozen=True)
class ReleaseOptions(AsOfOptions):
    """Gates the candidates and publishes a release, or refuses it and says why. Exit 3: refused.

    Example: sayagain release --lake ./lake
    """

    dry_run: bool = DRY_RUN
    shadow: bool = opt(False, "release to nobody: gate, build, and keep everything in runs/, outside releases/ and the queue")


@dataclass(frozen=True)
class GateOptions(AsOfOptions):
    """Shows what the gates say about the candidates, without releasing anything. Exit 3: they would be refused.

    Example: sayagain gate --lake ./lake --candidates as_of=2026-01-14
    """

    RUNS_BEAM: ClassVar[bool] = False
    candidates: str = opt("", "partition of the candidates, or its date; default: that of --as-of", metavar="PARTITION")


@dataclass(frozen=True)
class VetoOptions(JobOptions):
    """Never releases a rewrite, or a text in any role, again. It is logged with the reason, and holds from the next release on.

    Example: sayagain veto "play the beetles" --reason "a song title" --lake ./lake
    """

    RUNS_BEAM: ClassVar[bool] = False
    what: str = opt("", "a rewrite's id (16 hex digits), or a text", metavar="REWRITE_ID|TEXT")
    reason: str = opt("", "why; kept with the veto", metavar="TEXT")

    def validate(self) -> None:
        super().validate()
        if not self.reason.strip():
            raise UsageError("--reason is missing: say why, for those who find the veto in a year")


@dataclass(frozen=True)
class MineOptions(IngestOptions):
    """The main job: ingest, fit (if there is no model), detect, embed, link, aggregate, release. Skips what is finished.

    Example: sayagain mine --logs logs.parquet --lake ./lake
    """

    window: str | None = opt(
        None, "how many days of votes choose candidates, or all; default: evidence.window of the configuration", metavar="DAYS|all"
    )
    profile: str | None = opt(None, "how much evidence a rewrite needs; default: evidence.profile of the configuration", choices=PROFILES)
    refit: bool = opt(False, "fit a new model even though there is one; rebuilds the daily tables of the window")
    each_day: bool = opt(False, "one release a day, instead of one as of the last day")

    def validate(self) -> None:
        super().validate()
        AsOfOptions(lake=self.lake, window=self.window).validate()


@dataclass(frozen=True)
class VerifyOptions(JobOptions):
    """Checks every file of a release against its manifest and counts its rows. Exit 1: a file is gone or was changed.

    Example: sayagain verify --lake ./lake
    """

    RUNS_BEAM: ClassVar[bool] = False
    release: str = opt("LATEST", "release id", metavar="ID")


@dataclass(frozen=True)
class DemoOptions:
    """Makes a multilingual log, mines it, and ends with the release and its report.

    Example: sayagain demo --out ./demo
    """

    out: str = opt("demo", "folder for the log and the lake", metavar="DIR")
    seed: int = opt(0, "another seed makes another world", kind=int, metavar="N")
    quiet: bool = opt(False, "no progress on the terminal")

    def validate(self) -> None:
        """Nothing can be wrong."""


THRESHOLDS = {
    "k": (2.0, 10_000.0, "distinct users behind both sides"),
    "served": (0.0, 1.0, "a source that is served this often is left alone"),
    "probability": (0.0, 1.0, "least probability that the target serves"),
    "lift": (0.0, 1.0, "least probability that the target does better"),
    "label": (0.0, 1.0, "least confidence of a label"),
}
"""Settings that `explain --at-threshold` can change: their range, and what they are (rewrite.evidence.Options)."""


@dataclass(frozen=True)
class ExplainOptions(AsOfOptions):
    """What was mined for a text and on what evidence, or why nothing was released. Shows only texts that k users share.

    Example: sayagain explain "play the beetles" --lake ./lake
    """

    RUNS_BEAM: ClassVar[bool] = False
    text: str | None = opt(None, "what a user said; may be left out with --at-threshold", metavar="TEXT")
    locale: str | None = opt(None, "only this locale", metavar="LOCALE")
    private: bool = opt(False, "also show texts that fewer than k users share")
    at_threshold: tuple[str, ...] = opt(
        (),
        f"what another setting would decide, from the figures kept: {', '.join(THRESHOLDS)}; may be repeated, and without TEXT counts all",
        metavar="NAME=NUMBER",
        many=True,
    )

    def validate(self) -> None:
        super().validate()
        if self.text is None and not self.at_threshold:
            raise UsageError('name a text, such as sayagain explain "play the beetles" --lake ./lake')


JOBS: dict[str, type[JobOptions]] = {
    "ingest": IngestOptions,
    "fit": FitOptions,
    "detect": DetectOptions,
    "embed": EmbedOptions,
    "link": LinkOptions,
    "aggregate": AggregateOptions,
    "release": ReleaseOptions,
}
"""The jobs in the order of the data's way."""
