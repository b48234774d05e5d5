"""Options of the commands that look after a lake: releases, queue, forgetting. Imports nothing heavy, so `--help` is instant."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipelines.engine_options import EngineOptions
from pipelines.errors import UsageError
from pipelines.flags import opt

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def seconds(text: str, flag: str) -> float:
    """Seconds of a duration as people write it: 90s, 30m, 2h, 1d. Raises UsageError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if not found or not float(found[1]):
        raise UsageError(f"{flag} {text!r}: should be a number and a unit (s, m, h, d), such as 2h")
    return float(found[1]) * _UNITS[found[2]]


@dataclass(frozen=True)
class LakeOptions:
    """What every command on a lake takes."""

    lake: str = opt("", "the lake: a folder, or s3://bucket/prefix, gs://bucket/prefix", metavar="DIR")
    config: str | None = opt(None, "TOML file; `sayagain config` prints one with every key", metavar="FILE")
    json: bool = opt(False, "print JSON on stdout, for scripts")
    quiet: bool = False

    def validate(self) -> None:
        """Raises UsageError before anything is started."""
        if not self.lake:
            raise UsageError("--lake is missing: name the folder that holds everything, such as --lake ./lake")


@dataclass(frozen=True)
class ReleasesListOptions(LakeOptions):
    """Lists the releases of a lake, oldest first: rows, parent, whether one was retracted, which one is LATEST.

    Example: sayagain releases list --lake ./lake
    """


@dataclass(frozen=True)
class ReleasesShowOptions(LakeOptions):
    """Shows one release: rows per table and locale, what changed since its parent, gates, what happened to it since.

    Example: sayagain releases show r2026-01-31 --lake ./lake
    The id may be shortened to a unique beginning; without one it is LATEST.
    """

    release: str = opt("LATEST", "release id, or its beginning", metavar="RELEASE")


@dataclass(frozen=True)
class ReleasesDiffOptions(LakeOptions):
    """Shows what changed between two releases: rows added, changed and retired, table by table.

    Example: sayagain releases diff r2026-01-24 r2026-01-31 --lake ./lake --table rewrites
    """

    old: str = opt("", "release id, or its beginning", metavar="OLD")
    new: str = opt("LATEST", "release id, or its beginning", metavar="NEW")
    table: str = opt("", "only this table", metavar="TABLE", choices=("rewrites", "labels", "goals", "pairs"))
    rows: int = opt(5, "how many rows of each kind are shown", metavar="N", kind=int)


@dataclass(frozen=True)
class ReleasesRollbackOptions(LakeOptions):
    """Goes back to an earlier release: every newer one is retracted, LATEST moves, the next release follows this one.

    Example: sayagain releases rollback --to r2026-01-24 --reason "lights rewritten to music" --lake ./lake
    Trainers that hold or trained a retracted release are told by the queue. A retraction is for ever.
    """

    to: str = opt("", "the release to go back to; default: the one before LATEST", metavar="RELEASE")
    reason: str = opt("", "why, for whoever reads it later", metavar="TEXT")

    def validate(self) -> None:
        super().validate()
        _reason(self.reason)


@dataclass(frozen=True)
class ReleasesRetractOptions(LakeOptions):
    """Takes one release back for ever: LATEST moves off it, nobody is given it, no later release has it as parent.

    Example: sayagain releases retract r2026-01-31 --reason "poisoned rewrites" --lake ./lake
    """

    release: str = opt("", "release id, or its beginning", metavar="RELEASE")
    reason: str = opt("", "why, for whoever reads it later", metavar="TEXT")

    def validate(self) -> None:
        super().validate()
        _reason(self.reason)


def _reason(reason: str) -> None:
    if not reason.strip():
        raise UsageError('--reason is missing: say why, such as --reason "poisoned rewrites"; it is kept with the release')


@dataclass(frozen=True)
class QueueListOptions(LakeOptions):
    """Lists what the retraining queue holds: ready, claimed (by whom, until when), acked, superseded, retracted, dead.

    Example: sayagain queue list --lake ./lake
    """


@dataclass(frozen=True)
class QueueClaimOptions(LakeOptions):
    """Takes the newest release that nobody has trained on, for as long as the lease; or a retraction of one that somebody did.

    Example: sayagain queue claim --lease 2h --consumer trainer-1 --lake ./lake
    Prints a receipt for renew, ack and nack. A lease that runs out gives the release to the next consumer; after
    queue.tries claims without an ack it is a dead letter. --json prints null when there is nothing to do.
    """

    lease: str = opt("2h", "how long it is yours: 90s, 30m, 2h, 1d", metavar="TIME")
    consumer: str = opt("", "your name, for whoever looks; default: USER@HOST", metavar="NAME")
    key: str = opt("", "asking again under the same key gives what you hold, not another", metavar="KEY")


@dataclass(frozen=True)
class QueueRenewOptions(LakeOptions):
    """Holds a claimed release longer, and says whether it was superseded or retracted meanwhile.

    Example: sayagain queue renew r2026-01-31-0123456789ab.train.1.89abcdef --lease 2h --lake ./lake
    """

    receipt: str = opt("", "what claim printed", metavar="RECEIPT")
    lease: str = opt("2h", "how long from now: 90s, 30m, 2h, 1d", metavar="TIME")


@dataclass(frozen=True)
class QueueAckOptions(LakeOptions):
    """Says that a release is trained, and as which version of the assistant; saying it twice is saying it once.

    Example: sayagain queue ack r2026-01-31-0123456789ab.train.1.89abcdef --assistant-version v42 --lake ./lake
    The version should be what the log calls assistant_version, so that reports can compare before and after.
    """

    receipt: str = opt("", "what claim printed", metavar="RECEIPT")
    assistant_version: str = opt("", "the build that was trained on it", metavar="VERSION")

    def validate(self) -> None:
        super().validate()
        if not self.assistant_version.strip():
            raise UsageError("--assistant-version is missing: name the build that was trained, as the log will name it")


@dataclass(frozen=True)
class QueueNackOptions(LakeOptions):
    """Gives a claimed release back at once, for another consumer to try.

    Example: sayagain queue nack r2026-01-31-0123456789ab.train.1.89abcdef --lake ./lake
    """

    receipt: str = opt("", "what claim printed", metavar="RECEIPT")


@dataclass(frozen=True)
class QueueRetryOptions(LakeOptions):
    """Puts a dead letter back into the queue, with fresh tries.

    Example: sayagain queue retry r2026-01-31 --lake ./lake
    """

    release: str = opt("", "release id, or its beginning", metavar="RELEASE")


@dataclass(frozen=True)
class QueueRetractOptions(ReleasesRetractOptions):
    """Takes a release back: no consumer is given it, who holds it is told at renew, who trained on it gets a message.

    Example: sayagain queue retract r2026-01-31 --reason "poisoned rewrites" --lake ./lake
    """


@dataclass(frozen=True)
class RegistryRebuildOptions(LakeOptions):
    """Rebuilds the queue's database from the lake: what was acknowledged stays so; leases are gone.

    Example: sayagain registry rebuild --lake ./lake
    """


@dataclass(frozen=True)
class ForgetOptions(LakeOptions):
    """Forgets users: their rows, what only they said, and whatever was made of it; their log rows never come in again.

    Example: sayagain forget --user u-12345 --lake ./lake
    Releases that were shipped do not change: it lists those that hold texts of theirs and what falls below k.
    """

    user: str = opt("", "the user id, as the log has it", metavar="ID")
    file: str = opt("", "a file of user ids, one a line", metavar="FILE")

    def validate(self) -> None:
        super().validate()
        if not self.user and not self.file:
            raise UsageError("--user or --file is missing: name a user id as the log has it, or a file of them, one a line")


@dataclass(frozen=True)
class GcOptions(LakeOptions):
    """Removes what is older than the retention: days of turns, what only they said, old as-of tables, runs and models.

    Example: sayagain gc --older-than 400d --lake ./lake
    Ages count back from the newest day in the lake, never from the clock. Releases stay.
    """

    older_than: str = opt("", "an age such as 400d, or a date: days before it go", metavar="DAYS|DATE")

    def validate(self) -> None:
        super().validate()
        if not re.fullmatch(r"\d+d|\d{4}-\d\d-\d\d", self.older_than):
            raise UsageError(f"--older-than {self.older_than!r}: should be a number of days such as 400d, or a date such as 2026-01-31")


@dataclass(frozen=True)
class DoctorOptions(EngineOptions, LakeOptions):
    """Looks whether a run would work: packages, models, engine, key; and whether the lake is what its manifests say. Exit 1: no.

    Example: sayagain doctor --lake ./lake
    Each finding has its fix. --rebuild makes anew what follows from the rest (queue, LATEST) and clears what dead runs left.
    """

    deep: bool = opt(False, "read every file of the lake and compare its sha256, instead of its size")
    rebuild: bool = opt(
        False, "make the queue's database and LATEST anew from the lake, and remove what dead runs left; while no run works"
    )

    def validate(self) -> None:
        """Nothing is refused here: what is wrong is a finding."""


@dataclass(frozen=True)
class TracesOptions:
    """Turns chat traces (OpenTelemetry GenAI or OpenInference spans as JSON lines) into a log that `ingest` reads.

    Example: sayagain traces --spans 'spans/*.jsonl' --out log.jsonl --map user_id=enduser.id
    One row per user message that was answered: what was asked, the tool that was called (intent, slots), the answer, the status.
    """

    spans: tuple[str, ...] = opt(
        (), "files of spans: OTLP/JSON, or one span a line (.jsonl, .gz, .zst); any Beam path", name="spans", metavar="PATH", many=True
    )
    out: str = opt("log.jsonl", "the log in the log contract, one row a line", metavar="FILE")
    map: tuple[str, ...] = opt(
        (), "where a column is in your spans, such as locale=app.locale; may be repeated", metavar="COLUMN=ATTRIBUTE", many=True
    )
    json: bool = opt(False, "print a one-line JSON summary on stdout, for scripts")

    def validate(self) -> None:
        """Raises UsageError before anything is read."""
        if not self.spans:
            raise UsageError("--spans is missing: name files of spans, such as --spans 'spans/*.jsonl'")
        for text in self.map:
            column, _, attribute = text.partition("=")
            if column not in TRACE_COLUMNS or not attribute:
                raise UsageError(f"--map {text}: should be COLUMN=ATTRIBUTE with a column of {', '.join(TRACE_COLUMNS)}")


TRACE_COLUMNS = ("user_id", "session_id", "locale", "assistant_version", "channel", "holdout", "feedback", "rewrite_id", "served_utterance")
"""Columns that an attribute of a span, or of its resource, may fill; the others come from the messages."""


@dataclass(frozen=True)
class OpenOptions(LakeOptions):
    """SQL over the finished tables of a lake, turn-level ones included (they are private), and what every column means.

    Example: sayagain open --lake ./lake --sql "SELECT locale, count(*) FROM turns GROUP BY 1"
    --columns prints the dictionary; on a terminal, without --sql, a Python prompt opens with `db` (DuckDB).
    """

    sql: str = opt("", "a query; tables of the newest release are released_rewrites, released_labels ...", metavar="QUERY")
    columns: bool = opt(False, "print every view, its columns and what they mean")
