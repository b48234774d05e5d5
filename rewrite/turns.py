"""Log rows into turns: mapping, checks, pseudonyms, duplicates and conflicts, sessions. Pure functions over Polars frames.

The way of a row: `contract` casts it and finds its fault, if any; (the caller scrubs texts;) `canonical` derives what
is computed from scrubbed texts; `merge` settles rows of one user, date and turn id; `cut_sessions` orders and numbers.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import polars as pl

from rewrite import casts
from rewrite.contracts import BUCKETS, LOG, LOG_REQUIRED, MAX_TEXT, STATUSES
from rewrite.text import canonical_slots, key_expr

REASONS: Final = (
    "bad_json",
    "missing_turn_id",
    "missing_user",
    "missing_timestamp",
    "bad_timestamp",
    "blank_utterance",
    "too_long",
    "turn_id_conflict",
)
"""Why a row is rejected; of several reasons the first in this order is given."""

EXCERPT: Final = 200
"""Characters of a rejected row that are kept, scrubbed."""

IDENTITY: Final = tuple("user_key" if n == "user_id" else n for n in LOG.names)
"""Rows that agree in all of these (texts scrubbed, ids replaced) are duplicates."""

MAX_SLOTS: Final = 20_000
MAX_BRACKETS: Final = 256
"""Slots longer or with more brackets than this are dropped with a warning: no parser is asked to follow them down."""

_BLANK = r"^[\s\p{Z}\p{Cc}\p{Cf}]*$"  # nothing that shows
_CONTROL = r"[\p{Cc}\u{2028}\u{2029}]"
_HEAD, _UNSAFE_TAIL = 1_000, 64  # characters, see `excerpts`

ALIASES: Final = {
    "turn_id": ("id", "turn", "event_id", "message_id", "request_id", "uuid"),
    "timestamp": ("ts", "time", "datetime", "created_at", "event_time", "date"),
    "user_id": ("user", "uid", "customer_id", "account_id", "device_id", "client_id"),
    "utterance": ("text", "query", "message", "transcript", "input", "content", "asr"),
}
"""Column names often met in logs, for the suggestion in an error; nothing is mapped by itself."""


@dataclass(frozen=True)
class Column:
    """Where a contract column comes from: a column of the log, and what its values are called there."""

    source: str
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Rules:
    """How log rows become turns: the `[log]` section."""

    columns: Mapping[str, Column] = field(default_factory=dict)
    timestamp_unit: str = ""
    locale: str = "und"
    channel: str = ""
    treatment: str = "auto"
    names: tuple[str, ...] = ()  # slots whose values are hidden in the row's texts

    def source(self, name: str) -> str:
        """The log's name for a contract column."""
        return self.columns[name].source if name in self.columns else name

    def sources(self) -> dict[str, str]:
        """Contract column -> the log's name, for all of them."""
        return {name: self.source(name) for name in LOG.names}


def parse_columns(raw: Mapping[str, Any]) -> dict[str, Column]:
    """`[log.columns]` as it stands in the configuration. Raises ValueError with every problem, one a line.

    >>> parse_columns({"utterance": "text"})["utterance"].source
    'text'
    """
    columns, errors = {}, []
    for name, value in raw.items():
        at = f"log.columns.{name} = {value!r}"
        spec = {"from": value} if isinstance(value, str) else value
        if name not in LOG.names:
            near = difflib.get_close_matches(name, LOG.names, 1)
            errors.append(f"{at}: {name} is not a contract column" + (f"; is {near[0]} meant?" if near else f" ({', '.join(LOG.names)})"))
        elif not isinstance(spec, dict) or set(spec) - {"from", "values"} or not isinstance(spec.get("from", name), str):
            errors.append(f"{at}: should be a column name, or {{from = NAME, values = {{theirs = ours}}}}")
        elif not isinstance(spec.get("values", {}), dict) or any(isinstance(v, (dict, list)) for v in spec.get("values", {}).values()):
            errors.append(f"{at}: values should be a table of single values, {{theirs = ours}}")
        else:
            values = {k: v if isinstance(v, str) else json.dumps(v) for k, v in spec.get("values", {}).items()}
            columns[name] = Column(spec.get("from", name), values)
    if errors:
        raise ValueError("\n".join(errors))
    return columns


def missing_columns(present: Iterable[str], rules: Rules) -> str | None:
    """What to tell the user when required columns are not there: their names, what is there, and the lines to add; else None."""
    there = list(present)
    missing = [name for name in LOG_REQUIRED if rules.source(name) not in there]
    if not missing:
        return None
    folded = {c.lower(): c for c in there if c not in rules.sources().values()}
    lines = []
    for name in missing:
        near = [folded[a] for a in ALIASES[name] if a in folded]
        near += [folded[c] for c in difflib.get_close_matches(name, list(folded), 3, 0.5)]
        lines.append(f"{name} = " + json.dumps(near[0] if near else "NAME", ensure_ascii=False))
    what = ", ".join(f"{n} (mapped from {rules.source(n)!r})" if rules.source(n) != n else n for n in missing)
    return (
        f"no column for {what}; there are: {', '.join(there) or 'none'}. Name the right ones in the configuration:\n[log.columns]\n"
        + "\n".join(lines)
    )


def contract(raw: pl.DataFrame, rules: Rules, *, treatment_logged: bool) -> tuple[pl.DataFrame, Counter[str]]:
    """Cast rows to the log contract.

    `raw`: columns named as in the contract, of any plain type (see `casts`), any optional one absent, and `row`.
    `treatment_logged`: the log has a rewrite_id column, so that null means untouched.
    Returns the contract's columns (texts as they are) with `row`, `base` (the treatment of a row that shows none) and
    `reason` (null for a good row); and counts of what was lost or assumed: `bad_<column>`, `naive_timestamp`.
    """
    warnings: Counter[str] = Counter()
    out: dict[str, pl.Series] = {"row": raw["row"]}
    for name in LOG.names:
        if name not in raw.columns:
            out[name] = pl.Series(name, [None] * raw.height, dtype=_DTYPES[name])
            continue
        column = raw[name]
        if name in rules.columns and rules.columns[name].values:
            column = casts.to_string(column).replace(dict(rules.columns[name].values))
        given = column.is_not_null()
        if column.dtype == pl.String and name not in ("utterance", "response", "served_utterance"):
            given &= ~column.str.contains(r"^\s*$").fill_null(False)
        if name == "timestamp":
            cast, naive = casts.to_timestamp(column, rules.timestamp_unit)
            warnings["naive_timestamp"] += naive
            out["_timestamp_given"] = given
        else:
            cast = _CASTS[name](column)
            if name not in LOG_REQUIRED:
                warnings[f"bad_{name}"] += int((given & cast.is_null()).sum())
        out[name] = cast
    given = out.pop("_timestamp_given", pl.Series([False] * raw.height, dtype=pl.Boolean))
    frame = pl.DataFrame(out)

    clean, more = _clean(frame, rules)
    warnings += more
    reason = (
        pl.when(pl.col("turn_id").is_null())
        .then(pl.lit("missing_turn_id"))
        .when(pl.col("user_id").is_null())
        .then(pl.lit("missing_user"))
        .when(pl.col("timestamp").is_null() & ~given)
        .then(pl.lit("missing_timestamp"))
        .when(pl.col("timestamp").is_null())
        .then(pl.lit("bad_timestamp"))
        .when(_blank("utterance"))
        .then(pl.lit("blank_utterance"))
        .when(pl.col("utterance").str.len_chars() > MAX_TEXT)
        .then(pl.lit("too_long"))
    )
    base = {"logged": "untouched", "untouched": "untouched", "unknown": "unknown"}
    silent = base.get(rules.treatment, "untouched" if treatment_logged else "unknown")
    done = clean.with_columns(reason=reason, base=pl.lit(silent))
    return done, Counter({k: v for k, v in warnings.items() if v})


def _blank(name: str) -> pl.Expr:
    return pl.col(name).is_null() | pl.col(name).str.contains(_BLANK)


def _clean(frame: pl.DataFrame, rules: Rules) -> tuple[pl.DataFrame, Counter[str]]:
    """Values of the right type that are not of the right range."""
    c = pl.col
    words = (
        "turn_id",
        "user_id",
        "locale",
        "session_id",
        "served_utterance",
        "rewrite_id",
        "assistant_version",
        "intent",
        "slots",
        "status",
        "channel",
    )
    tidy = frame.with_columns(pl.when(~_blank(n)).then(c(n)).alias(n) for n in (*words, "response")).with_columns(
        c("status", "channel").str.strip_chars().str.to_lowercase(), feedback=c("feedback").sign().cast(pl.Int8)
    )
    slots = c("slots")
    kept = {
        "served_utterance": c("served_utterance").str.len_chars() <= MAX_TEXT,
        "asr_confidence": c("asr_confidence").is_between(0, 1),
        "intent_confidence": c("intent_confidence").is_between(0, 1),
        "status": c("status").is_in(STATUSES),
        "channel": c("channel").is_in(("voice", "text")),
        "slots": (slots.str.len_chars() <= MAX_SLOTS) & (slots.str.count_matches(r"[\[{]") <= MAX_BRACKETS),
    }
    lost = tidy.select((~ok).sum().alias(f"bad_{n}") for n, ok in kept.items()).row(0, named=True)
    clean = tidy.with_columns(pl.when(ok).then(c(n)).alias(n) for n, ok in kept.items()).with_columns(
        c("locale").fill_null(rules.locale),
        pl.coalesce(c("channel"), pl.lit(rules.channel or None, pl.String)).alias("channel"),
        pl.when(c("feedback") != 0).then(c("feedback")).alias("feedback"),
    )
    return clean, Counter(lost)


_CASTS: dict[str, Any] = {
    n: {"double": casts.to_float, "int8": casts.to_float, "bool": casts.to_bool}.get(str(LOG.field(n).type), casts.to_string)
    for n in LOG.names
} | {"locale": casts.to_locale}
_DTYPES: dict[str, Any] = {
    n: {"double": pl.Float64, "int8": pl.Float64, "bool": pl.Boolean}.get(str(LOG.field(n).type), pl.String) for n in LOG.names
} | {"timestamp": pl.Datetime("us", "UTC")}


def pseudonyms(ids: pl.Series, secret: bytes, purpose: str = "") -> pl.Series:
    """HMAC-SHA256 of each id under the lake's key, first 128 bits as 32 hex digits; nulls stay.

    Ids of different purposes (`"session"`) have nothing in common, even when they are equal in the log.
    """
    distinct = ids.drop_nulls().unique()
    prefix = f"{purpose}\0".encode() if purpose else b""
    # RFC 2104 with the two states that the key leads to made once: twice as fast as an HMAC object per id
    block = (secret if len(secret) <= 64 else hashlib.sha256(secret).digest()).ljust(64, b"\0")
    inner, outer = (hashlib.sha256(bytes(b ^ pad for b in block)) for pad in (0x36, 0x5C))

    def pseudonym(text: str) -> str:
        first, second = inner.copy(), outer.copy()
        first.update(prefix + text.encode())
        second.update(first.digest())
        return second.hexdigest()[:32]

    keys = pl.Series(map(pseudonym, distinct), dtype=pl.String)
    return ids.replace_strict(distinct, keys, default=None, return_dtype=pl.String)


def bucket_expr(user_key: str = "user_key") -> pl.Expr:
    """The bucket of a user: the first byte of the user key, modulo `BUCKETS`."""
    return pl.col(user_key).str.slice(0, 2).str.to_integer(base=16, strict=False).cast(pl.Int32) % BUCKETS


def canonical(rows: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Add `key` and `treatment` to scrubbed rows and write slots in their canonical form (drops `base`).

    Returns the rows and how many slots were no JSON object (now null).
    """
    distinct = rows["slots"].drop_nulls().unique()
    forms = pl.Series([_slots(s) for s in distinct], dtype=pl.String)
    slots = rows["slots"].replace_strict(distinct, forms, default=None, return_dtype=pl.String)
    lost = int((rows["slots"].is_not_null() & slots.is_null()).sum())
    served_else = key_expr("served_utterance") != pl.col("key")
    rewritten = pl.col("rewrite_id").is_not_null() | served_else.fill_null(False)
    done = (
        rows.with_columns(slots.alias("slots"), key=key_expr("utterance"))
        .with_columns(treatment=pl.when(rewritten).then(pl.lit("rewritten")).otherwise("base"))
        .drop("base")
    )
    return done, lost


def _slots(text: str) -> str | None:
    try:
        form = canonical_slots(text)
    except RecursionError:
        return None
    return None if form is None else form.encode("utf-8", "replace").decode()


def excerpts(texts: pl.Series, scrub: Callable[[pl.Series], pl.Series]) -> pl.Series:
    """At most `EXCERPT` characters of each text, scrubbed, without control characters.

    Of a very long text only the head is scrubbed; its end may hold half a number, and goes.
    """
    long = texts.str.len_chars() > _HEAD
    head = scrub(texts.str.slice(0, _HEAD).str.replace_all(_CONTROL, " ")).rename("x")
    safe = head.to_frame().select(pl.when(long).then(pl.col("x").str.head(-_UNSAFE_TAIL)).otherwise("x")).to_series()
    return safe.str.slice(0, EXCERPT).alias("excerpt")


# rows of one date, from this run and from earlier ones


def row_hashes(rows: pl.DataFrame) -> pl.Series:
    """A hash of each row's identity: breaks ties between rows of one turn id. One Python call per row: for conflicts only."""
    columns = rows.select(*IDENTITY).with_columns(pl.col("timestamp").dt.timestamp("us"))
    digests = [hashlib.sha256(json.dumps(r, ensure_ascii=False).encode()).hexdigest()[:16] for r in columns.iter_rows()]
    return pl.Series("row_hash", digests, dtype=pl.String)


def merge(turns: pl.DataFrame, rejects: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, int]]:
    """Settle rows of one date: identical ones are duplicates; of different ones with one (user, turn id) the first stays.

    `turns`: the columns of IDENTITY and of TURNS but `session`, with `row` and `fresh` (read in this run).
    `rejects`: the columns of REJECTS with `row_hash` (of conflicts, else null) and `fresh`.
    Returns turns, rejects with the conflicts added, and input -> fresh rows dropped as duplicates. Which of several
    identical rows stays is decided by (treatment, input, row), so that neither order nor earlier runs matter.
    """
    before = _fresh(turns) + _fresh(rejects)
    clash = pl.struct("user_key", "turn_id").is_duplicated()
    several = turns.filter(clash)
    if several.height:
        alone = turns.filter(~clash)
        several = several.sort("treatment", "input", "row", nulls_last=True).unique(IDENTITY, keep="first", maintain_order=True)
        clash_now = several.select(clash.alias("c"))["c"]
        settled, different = several.filter(~clash_now), several.filter(clash_now)
        different = different.with_columns(row_hashes(different)).sort("user_key", "turn_id", "timestamp", "row_hash")
        first = pl.struct("user_key", "turn_id").is_first_distinct()
        losers = different.filter(~first).with_columns(
            reason=pl.lit("turn_id_conflict"), excerpt=pl.col("utterance").str.slice(0, EXCERPT).str.replace_all(_CONTROL, " ")
        )
        turns = pl.concat([alone, settled, different.filter(first).select(turns.columns)])
        rejects = pl.concat([rejects, losers.select(rejects.columns)])
    conflicts = rejects.filter(pl.col("row_hash").is_not_null()).sort("input", "row", nulls_last=True)
    conflicts = conflicts.unique(["user_key", "row_hash"], keep="first", maintain_order=True)
    rejects = pl.concat([rejects.filter(pl.col("row_hash").is_null()), conflicts])
    rejects = rejects.sort("input", "row", "reason", "user_key", "row_hash", nulls_last=True)
    return turns, rejects, dict(before - _fresh(turns) - _fresh(rejects))


def _fresh(rows: pl.DataFrame) -> Counter[str]:
    return Counter(dict(rows.filter("fresh").group_by("input").len().iter_rows()))


def cut_sessions(turns: pl.DataFrame, gap: float) -> pl.DataFrame:
    """Order the turns of one date by (user_key, timestamp, turn_id) and number each user's sessions from 0 (`session`),
    in the order of their first turns.

    A session ends after a silence of more than `gap` seconds. Turns of different session ids are of different sessions,
    also when these go on side by side (one account, two devices); a turn without an id goes with the one before it.
    """
    by_user = pl.col("session_id").forward_fill().over("user_key").backward_fill().over("user_key")
    ordered = turns.sort("user_key", "timestamp", "turn_id").with_columns(_stream=by_user).with_row_index("_row")
    streams = ordered.sort("user_key", "_stream", "_row")
    silence = pl.col("timestamp").diff().dt.total_microseconds() > round(gap * 1_000_000)
    other = pl.any_horizontal(pl.col(c).ne_missing(pl.col(c).shift()) for c in ("user_key", "_stream"))
    # a session is named by the row of its first turn, and numbered by its rank among the user's names
    first = pl.when(silence.fill_null(False) | other).then("_row").forward_fill()
    named = streams.with_columns(_first=first).sort("_row")
    numbered = named.with_columns(session=(pl.col("_first").rank("dense").over("user_key") - 1).cast(pl.Int32))
    return numbered.select(*turns.columns, "session")
