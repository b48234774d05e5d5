"""The configuration: one TOML file, every key with a default, a unit and a range; all errors are reported at once.

Imports neither Beam nor Polars, so that `--help` stays instant.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pipelines.errors import UsageError


def key(
    default: Any, help: str, *, unit: str = "", low: float | None = None, high: float | None = None, choices: tuple[str, ...] = ()
) -> Any:
    """A configuration key: its default, what it means, its unit and its range."""
    metadata = {"help": help, "unit": unit, "low": low, "high": high, "choices": choices}
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Log:
    """How the log is read."""

    columns: dict[str, Any] = key({}, "contract column = name in your log; or {from = NAME, values = {theirs = ours}}")
    timestamp_unit: str = key("", "unit of integer timestamps; without it they are refused", choices=("", "s", "ms", "us", "ns"))
    locale: str = key("und", "locale of rows that have none (BCP 47)")
    channel: str = key("", "channel of rows that have none", choices=("", "voice", "text"))
    treatment: str = key(
        "auto",
        "was a live rewrite applied? auto: a rewrite_id column means it is logged, no column means unknown",
        choices=("auto", "logged", "untouched", "unknown"),
    )
    names: list[str] = key(
        [],
        "slots that hold names or street addresses, such as person or address* (all that begin so): their values are hidden in the "
        "row's texts. Off by default: such texts teach nothing then, which costs 7 to 14 % of the rewrites of five locales (person)",
    )


@dataclass(frozen=True)
class Sessions:
    """Where a session ends."""

    gap: float = key(600.0, "a longer silence cuts a session", unit="seconds", low=1, high=86_400)


@dataclass(frozen=True)
class Privacy:
    """Who must have said a text before it may be released, and which accounts are believed."""

    k: int = key(3, "distinct users behind every released string, per locale", unit="users", low=2, high=10_000)
    least_texts: int = key(
        4,
        "an account that said fewer texts links none; never more than what is usual in the log (less than 1 % of honest rewrites are lost)",
        unit="texts",
        low=0,
        high=1_000,
    )
    few_texts: int = key(
        6,
        "three pairs: an account with at most so many texts, all of them asked again, is there for the pairs",
        unit="texts",
        low=0,
        high=1_000,
    )
    copies: bool = key(True, "accounts with one and the same history count once")
    burst: float = key(
        1e-5, "users of a source who came together on one day by less chance than this are left out", unit="probability", low=0, high=1
    )
    scarce: float = key(
        2.0,
        "a target with fewer users besides, per user who went to it, must be wanted in other wordings too (costs .3 % of honest rewrites)",
        unit="users",
        low=0,
        high=1_000,
    )
    links_per_day: int = key(
        100, "links of one user on one day, the strongest; busy people have a fifth", unit="links", low=1, high=100_000
    )
    links_per_window: int = key(500, "links of one user in the window, the strongest", unit="links", low=1, high=1_000_000)


@dataclass(frozen=True)
class AskedAgain:
    """The model of asked-again pairs and of served turns."""

    sample_pairs: int = key(30_000, "pairs that a fit learns from", unit="pairs", low=100, high=10_000_000)


@dataclass(frozen=True)
class Embedding:
    """The text encoder."""

    model: str = key(
        "auto",
        "auto: measured per locale among bundled:use-multilingual, bundled:multilingual-e5-small and ngrams; or one of these; or a folder, or a hub name",
    )
    device: str = key("auto", "auto takes CUDA, then MPS, then the CPU", choices=("auto", "cuda", "mps", "cpu"))
    chunk: int = key(2_048, "texts of similar length that one worker encodes at a time", unit="texts", low=1, high=1_000_000)


@dataclass(frozen=True)
class Goals:
    """What counts as one goal."""

    lexicon: str = key("", "TSV file of words that say the same, in two locales or in one: locale, phrase, locale, phrase; empty: none")


@dataclass(frozen=True)
class Evidence:
    """From votes to candidates."""

    window: int = key(
        30, "votes of so many days, up to the as-of date, choose candidates; 0 is all of them", unit="days", low=0, high=36_500
    )
    evidence_days: int = key(400, "votes older than this are gone from evidence too", unit="days", low=1, high=36_500)
    profile: str = key(
        "balanced",
        "balanced: a rewrite must be more likely right than not; careful: evidence over evidence_days that holds however often one looks (about half as many)",
        choices=("balanced", "careful"),
    )
    false_discovery: float = key(
        0.1, "the share of a locale's rewrites that may be expected to be wrong; with careful at any look", unit="share", low=1e-6, high=0.5
    )
    grace: int = key(
        14,
        "careful: a new assistant version lives so long on what the one before it proved (half of release.expires)",
        unit="days",
        low=0,
        high=3_650,
    )


@dataclass(frozen=True)
class Release:
    """What a release promises, and what it must not touch."""

    protected_intents: list[str] = key([], "intents that no rewrite and no label touches; prefix* takes all that begin so")
    protected_texts: list[str] = key([], "texts, as users say them, that are never rewritten, served instead, or labelled")
    test_set: str = key(
        "", "your held-out test set (Parquet, CSV or JSON Lines with a column utterance, utt or text): none of it is released"
    )

    expires: int = key(28, "a released rewrite ends after this, unless evidence renews it", unit="days", low=1, high=3_650)
    renew: int = key(7, "a rewrite this near its end is renewed", unit="days", low=0, high=3_650)


def limits(warn: float, refuse: float, help: str) -> Any:
    """A gate's two limits: [warning, refusal]."""
    return key([warn, refuse], help + "; [warns above, refuses above]", unit="", low=0, high=1e9)


@dataclass(frozen=True)
class Gates:
    """What may be more or less bad. Above the first number a release carries a warning, above the second it is refused."""

    psi: list[float] = limits(
        0.25,
        2.0,
        "drift of intents against the parent, population stability index (.25 is a usual alarm; 2: hardly an intent is as it was)",
    )
    jensen_shannon: list[float] = limits(0.1, 0.5, "the same as Jensen-Shannon divergence, 0 to 1 (.5: half of all rows are elsewhere)")
    label_flips: list[float] = limits(
        0.05, 0.3, "labels with another intent than in the parent (labels are right for 96 % in six worlds: more flips are no correction)"
    )
    rewrite_flips: list[float] = limits(0.2, 0.6, "sources with another target than in the parent (equally good targets change places)")
    changes: list[float] = limits(
        0.5, 0.9, "change budget: labels of one domain that the new evidence contradicts (half of it is a rebuild; all of it is a fault)"
    )
    live_damage: list[float] = limits(0.1, 1e9, "rewrites of the parent that failed live (refusing would keep them live, so it only warns)")
    near_duplicates: list[float] = limits(
        0.02, 0.5, "texts of dev and test that are in train but for marks and spaces (goals keep them together: 2 % is chance)"
    )
    top_class: list[float] = limits(0.5, 1e9, "share of a locale's labels that one intent has (half: a model may learn to say it always)")
    lost_locales: list[float] = limits(
        0.0, 1e9, "locales with evidence and without a label (any is worth a look, none worth refusing the others)"
    )
    numbers: list[float] = limits(0.0, 0.2, "rewrites that change a number (mined ones cannot; live ones that serve may)")
    entities: list[float] = limits(
        0.02,
        0.2,
        "rewrites that lose a value of the source's own label which serves elsewhere (0 to .005 in six worlds; a fifth is a broken log)",
    )
    turned: list[float] = limits(
        0.0, 0.2, "rewrites that differ by a word which turns meanings, as a negation does (mined ones cannot; live ones that serve may)"
    )
    canary: list[float] = limits(0.0, 0.01, "accuracy on the window's last fifth lost by learning the candidates (a point; less is noise)")
    calibration: list[float] = limits(
        0.05, 0.2, "calibration error of labels on the window's last fifth (.01 to .03 in three worlds; each tenth of wrong labels adds .1)"
    )
    canary_votes: int = key(
        2_000_000,
        "votes that the canary reads, in buckets of whole users, the last one to its end; 0: no canary",
        unit="votes",
        low=0,
        high=1_000_000_000,
    )


@dataclass(frozen=True)
class Queue:
    """The retraining queue."""

    tries: int = key(
        3, "claims without an ack before a release is a dead letter: a crash or two are no proof that it is bad", low=1, high=100
    )
    database: str = key(
        "", "SQLAlchemy URL; SAYAGAIN_DATABASE if it has a password. Default: SQLite beside a local lake; a remote lake needs one"
    )


@dataclass(frozen=True)
class Run:
    """The run itself."""

    seed: int = key(0, "every draw comes from this", low=0, high=2**31 - 1)
    shard_turns: int = key(
        60_000, "turns that one worker holds at a time; changes memory, never results", unit="turns", low=1, high=10_000_000
    )


@dataclass(frozen=True)
class Config:
    """All of it, section by section."""

    log: Log = Log()
    sessions: Sessions = Sessions()
    privacy: Privacy = Privacy()
    asked_again: AskedAgain = AskedAgain()
    embedding: Embedding = Embedding()
    goals: Goals = Goals()
    evidence: Evidence = Evidence()
    release: Release = Release()
    gates: Gates = Gates()
    queue: Queue = Queue()
    run: Run = Run()

    def fingerprint(self, *sections: str) -> str:
        """A hash of the sections that a table depends on (`"log"`), or of single keys (`"evidence.window"`)."""
        chosen = {}
        for name in sections:
            section, _, one = name.partition(".")
            value = getattr(self, section)
            chosen[name] = getattr(value, one) if one else dataclasses.asdict(value)
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def load(path: str | None) -> Config:
    """The configuration in `path`, or the defaults. Raises UsageError with every error that the file has."""
    if not path:
        return Config()
    try:
        raw = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"--config {path}: there is no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: not valid TOML: {error}") from None
    return from_dict(raw, path)


def from_dict(raw: dict[str, Any], where: str = "configuration") -> Config:
    """A Config from parsed TOML. Raises UsageError with every error at once."""
    errors: list[str] = []
    sections: dict[str, Any] = {f.name: type(f.default) for f in fields(Config)}
    built: dict[str, Any] = {}
    for name, values in raw.items():
        if name not in sections:
            errors.append(f"[{name}] is not a section; there are {', '.join(sections)}")
            continue
        if not isinstance(values, dict):
            errors.append(f"{name} = {values!r} should be a section: [{name}]")
            continue
        known = {f.name: f for f in fields(sections[name])}
        good = {}
        for k, v in values.items():
            if k not in known:
                errors.append(f"{name}.{k} is not a key; [{name}] has {', '.join(known)}")
                continue
            problem, value = _check(known[k], v)
            if problem:
                errors.append(f"{name}.{k} = {v!r}: {problem}")
            else:
                good[k] = value
        built[name] = sections[name](**good)
    if errors:
        raise UsageError(f"{where} has {len(errors)} error(s):\n  " + "\n  ".join(errors))
    return Config(**built)


def _check(f: dataclasses.Field[Any], value: Any) -> tuple[str, Any]:
    default = _default(f)
    want = type(default)
    if want is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, want) or (want is not bool and isinstance(value, bool)):
        return f"should be {_TYPES[want]}, is {_TYPES.get(type(value), type(value).__name__)}", None
    low, high, choices = f.metadata["low"], f.metadata["high"], f.metadata["choices"]
    if isinstance(value, list):
        if low is None:
            return ("", value) if all(isinstance(v, str) for v in value) else ("should be a list of strings", None)
        numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)
        if not numbers or len(value) != len(default) or not all(low <= v <= high for v in value) or value != sorted(value):
            return f"should be {len(default)} numbers between {low:g} and {high:g}, the smaller first", None
        return "", [float(v) for v in value]
    if low is not None and not low <= value <= high:
        return f"should be between {low} and {high} {f.metadata['unit']}".rstrip(), None
    if choices and value not in choices:
        return f"should be one of {', '.join(repr(c) for c in choices)}", None
    return "", value


def _default(f: dataclasses.Field[Any]) -> Any:
    if f.default_factory is not dataclasses.MISSING:
        return f.default_factory()
    return f.default


_TYPES = {int: "a whole number", float: "a number", str: "a string", dict: "a table", bool: "true or false", list: "a list"}


def describe() -> str:
    """Every key with its default, unit, range and meaning, as TOML that can be saved and edited."""
    lines = []
    for section in fields(Config):
        made: Any = section.default
        lines += [f"[{section.name}]  # {type(made).__doc__}"]
        for f in fields(made):
            m = f.metadata
            default = _default(f)
            rng = f"{m['low']} to {m['high']}" if m["low"] is not None else " | ".join(repr(c) for c in m["choices"])
            notes = ", ".join(x for x in (rng, m["unit"]) if x)
            value = "{}" if default == {} else json.dumps(default)
            lines.append(f"{f.name} = {value}  # {m['help']}" + (f" ({notes})" if notes else ""))
        lines.append("")
    return "\n".join(lines)
