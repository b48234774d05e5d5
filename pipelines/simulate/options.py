"""What `sayagain simulate` takes. Imports neither Beam nor Polars nor NumPy, so that `--help` stays instant."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date

from pipelines.errors import UsageError
from pipelines.flags import opt
from pipelines.options import day

LOCALES = ("en-US", "de-DE", "sw-KE", "ja-JP")
MAX_USERS = 50_000_000
MOST_A_DAY = 20
"""Turns of a user in a day, in the mean: sessions are half an hour apart, and more than about forty do not fit."""


@dataclass(frozen=True)
class SimulateOptions:
    """Makes the log of a made-up assistant whose users ask again, give up and interrupt; the truth is written beside it.

    The same options give the same bytes. The first day is a fixed date, not today.

    Example: sayagain simulate --out ./world --turns 60000 --days 14
    """

    out: str = opt("", "folder to write: log, truth, future, taught, test (Parquet) and world.json; must be new or empty", metavar="DIR")
    locales: str = opt("en-US,de-DE,sw-KE", f"languages, separated by commas, of {', '.join(LOCALES)}", metavar="LIST")
    turns: int = opt(60_000, "turns per epoch over all languages, about; 1 or more", kind=int, metavar="N")
    users: int = opt(0, "users over all languages; 0: one per 15 turns", kind=int, metavar="N")
    days: int = opt(14, "days per epoch; 1 or more", kind=int, metavar="N")
    start: date = opt(date(2026, 1, 1), "first day of epoch 0, UTC", kind=day, metavar="DATE")
    seed: int = opt(1, "another seed: other users, other failures, other mishearings; 0 or more", kind=int, metavar="N")
    epochs: int = opt(1, "how many epochs to play, one after the other; 1 or more", kind=int, metavar="N")
    first_epoch: int = opt(0, "number of the first epoch to play; epoch e starts e * days after --start", kind=int, metavar="N")
    rewrites: str = opt(
        "", "rewrites that are live: a release folder, or a Parquet file (locale, source, target, rewrite_id)", metavar="PATH"
    )
    live_from: int = opt(0, "first epoch in which the rewrites are live", kind=int, metavar="N")
    holdout: float = opt(0.05, "share of users who are never rewritten; 0 to 1", kind=float, metavar="SHARE")
    flip_day: int = opt(-1, "day, counted from --start, from which misheard forms mean another goal; -1: never", kind=int, metavar="N")
    flip_share: float = opt(0.3, "share of the misheard forms whose meaning changes on that day; 0 to 1", kind=float, metavar="SHARE")
    mishear: float = opt(0.14, "share of spoken turns that are misheard; 0 to 1", kind=float, metavar="SHARE")
    unknown: float = opt(0.2, "share of wordings that the assistant does not understand; 0 to 0.9", kind=float, metavar="SHARE")
    assistant: str = opt("a1", "assistant_version that the log shows", metavar="NAME")
    no_planted: bool = opt(False, "leave out the bot, the ring of fake accounts, personal data and duplicate events")
    by_day: bool = opt(False, "write log/DATE.parquet and truth/DATE.parquet, instead of one file each")
    no_truth: bool = opt(False, "write no truth, for very large logs")
    quiet: bool = opt(False, "no progress on the terminal")

    @property
    def locale_list(self) -> tuple[str, ...]:
        """The languages, in the order given."""
        return tuple(x.strip() for x in self.locales.split(",") if x.strip())

    @property
    def user_count(self) -> int:
        """Users over all languages."""
        return self.users or max(len(self.locale_list), self.turns // 15)

    def validate(self) -> None:
        """Raises UsageError, with every option that is wrong, before anything is made."""
        wrong = []
        if not self.out:
            wrong.append("--out is missing: name a new folder, such as --out ./world")
        names = self.locale_list
        if not names or len(set(names)) < len(names) or any(n not in LOCALES for n in names):
            wrong.append(f"--locales {self.locales!r}: should name, once each, some of {', '.join(LOCALES)}")
        for name, low in (
            ("turns", 1),
            ("days", 1),
            ("epochs", 1),
            ("users", 0),
            ("seed", 0),
            ("first_epoch", 0),
            ("live_from", 0),
            ("flip_day", -1),
        ):
            if getattr(self, name) < low:
                wrong.append(f"--{name.replace('_', '-')} {getattr(self, name)}: should be {low} or more")
        for name, high in (("holdout", 1.0), ("flip_share", 1.0), ("mishear", 1.0), ("unknown", 0.9)):
            if not 0 <= getattr(self, name) <= high:
                wrong.append(f"--{name.replace('_', '-')} {getattr(self, name)}: should be from 0 to {high:g}")
        if 0 < self.users < len(names):
            wrong.append(f"--users {self.users}: should be at least one for each of {len(names)} languages")
        if self.user_count > MAX_USERS:
            wrong.append(f"--users {self.user_count}: should be at most {MAX_USERS}")
        if self.turns > MOST_A_DAY * self.user_count * max(self.days, 1):
            wrong.append(
                f"--turns {self.turns} of {self.user_count} users in {self.days} days: should be at most {MOST_A_DAY} per user and day"
            )
        if not re.fullmatch(r"[\w.-]{1,64}", self.assistant):
            wrong.append(f"--assistant {self.assistant!r}: should be 1 to 64 letters, digits, dots or dashes")
        if wrong:
            raise UsageError("\n".join(wrong))


@dataclass(frozen=True)
class SiegeOptions:
    """Attacks a log with rings of fake accounts of every kind and size, and shows how many of their rewrites would be released.

    No attack is written to a lake; with --lake its reports show the curve from then on.

    Example: sayagain siege --logs ./world/log.parquet --sizes 3,9,50
    """

    logs: str = opt("", "a Parquet file in the log contract", metavar="FILE")
    kinds: str = opt("", "kinds of rings, separated by commas; default: all", metavar="LIST")
    sizes: str = opt("3,5,9,20,50", "accounts per ring, separated by commas", metavar="LIST")
    rings: int = opt(60, "rings per kind and size, fewer where they would outnumber a seventh of the users", kind=int, metavar="N")
    seed: int = opt(0, "another seed: other sources and other accounts", kind=int, metavar="N")
    out: str = opt("", "also keep the figures here, as JSON", metavar="FILE")
    lake: str = opt("", "the lake of this log: keep the figures there, for its reports", metavar="DIR")
    quiet: bool = opt(False, "no progress on the terminal")

    def validate(self) -> None:
        """Raises UsageError before anything is read."""
        if not self.logs:
            raise UsageError("--logs is missing: name a Parquet file, such as the log.parquet of `sayagain simulate`")
        if not all(s.strip().isdigit() and int(s) > 0 for s in self.sizes.split(",")):
            raise UsageError(f"--sizes {self.sizes!r}: should be numbers of accounts, separated by commas")
        if self.rings < 1:
            raise UsageError(f"--rings {self.rings}: should be 1 or more")
