"""Personal data out of texts before anything is written: mail addresses, phone numbers and long digit runs become placeholders.

A Polars prefilter (Rust regex over distinct texts) finds the few texts that may hold something; only those go through
`scrub_text`, the one definition of the rules. Matching is done on the NFKC form, because that is what a key is made of:
full-width, circled and superscript digits count as digits, and so do the digits of every script.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from typing import Any, Final

import polars as pl

from rewrite.text import PLACEHOLDER

KINDS: Final = ("mail", "phone", "card", "number")
"""What a placeholder stands for: `<mail>`, `<phone>`, `<card>` (checksum holds), `<number>` (nine or more digits)."""

MIN_RUN: Final = 9
"""A run of so many digits identifies someone or something; dates (8), times, prices and small numbers stay."""
MIN_PHONE: Final = 7
"""Digits of a number that is marked as a phone number by a leading + or an area code in parentheses."""
MAX_PHONE: Final = 15  # E.164
CARD_DIGITS: Final = range(12, 20)  # ISO/IEC 7812

# Dashes of Unicode (category Pd and the minus sign) and what shows nothing: zero-width, bidi, soft hyphen, keycaps.
DASHES: Final = r"\-\u058a\u05be\u1400\u1806\u2010-\u2015\u2212\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u2e5d\u301c\u3030\u30a0\U00010ead"
HIDDEN: Final = (
    r"\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufe00-\ufe0f\ufeff\u20e3\U000e0000-\U000e0fff"
)
_SEP = rf"[\s\x1c-\x1f{DASHES}{HIDDEN}]"
_LOOSE = rf"[\s\x1c-\x1f{DASHES}{HIDDEN}()./]"

# What cannot be part of an address. Scripts written without spaces end one too, so that the words around it survive.
_NOT_LOCAL = r"\s\x1c-\x1f@<>\"(),:;\[\]{}"
_NO_SPACES = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff"
_ATOM = rf"[^{_NOT_LOCAL}{_NO_SPACES}]"
_ANY = rf"[^{_NOT_LOCAL}]"
# An address starts where an atom starts (the look-behind also keeps the search linear in the length of a text).
_LOCAL = rf"(?:(?<!{_ATOM}){_ATOM}+|(?<!{_ANY}){_ANY}*[{_NO_SPACES}])"
_DOMAIN = rf"(?:{_ATOM}+|{_ANY}+)"
_HOST = rf"(?:(?![{_NO_SPACES}])[\w{DASHES}])"
_LETTER = rf"(?:(?![{_NO_SPACES}])[^\W\d_])"
_MAIL = re.compile(
    rf"{_LOCAL}\s*@+\s*{_HOST}+(?:\s?\.\s?{_HOST}+)*\s?\.\s?{_LETTER}{{2,}}"  # ana @ example . com
    rf"|{_LOCAL}(?:@+{_DOMAIN}?)+"  # ana@example.com, cut ones (ana@) too
)
_PRICE = re.compile(r"[\d.]*\d@[\d.]*\d[\d.]*")
_MARKED = re.compile(rf"\+{_SEP}*\(?\d(?:{_LOOSE}{{0,4}}\d)+|\(\+?\d{{2,5}}\){_SEP}{{0,3}}\d(?:{_LOOSE}{{0,3}}\d)+")
_DOTTED = re.compile(r"(?<![\d./])\d{2,5}(?:[./]\d{2,8}){1,5}(?![\d./]*\d)")
_RUN = re.compile(rf"\+?\d(?:{_SEP}*\d)+")
_DIGITS = re.compile(r"\d")
_MELTED = re.compile(r"(?<=[lder]>)\u0338+")
_DATE_HOUR = re.compile(r"(?:19|20)\d\d-(?:0[1-9]|1[0-2])-(?:[0-2]\d|3[01]) +(?:[01]\d|2[0-3])")

_SUSPECT = rf"@|\d(?:[+]?{_LOOSE}*\d){{{MIN_PHONE - 1}}}"
"""The prefilter (Rust syntax): an at sign, or seven digits with at most separators between them."""


def luhn(digits: str) -> bool:
    """Whether the last digit is the checksum of the others (ISO/IEC 7812-1, annex B)."""
    values = [int(d) for d in reversed(digits)]
    doubled = (2 * v - 9 * (v > 4) for v in values[1::2])
    return (sum(values[0::2]) + sum(doubled)) % 10 == 0


def scrub_text(text: str) -> tuple[str, dict[str, int]]:
    """One text without personal data, and how many placeholders of each kind were put in.

    When there is nothing to hide the text comes back as it was; otherwise its NFKC form with placeholders.

    >>> scrub_text("call +1 415 555 2671 or mail ana@example.com at 10:30")
    ('call <phone> or mail <mail> at 10:30', {'mail': 1, 'phone': 1})
    >>> scrub_text("card 4111-1111-1111-1111, order 123 456 789")[0]
    'card <card>, order <number>'
    """
    counts: dict[str, int] = {}

    def replace(kind_of: Callable[[re.Match[str]], str | None]) -> Callable[[re.Match[str]], str]:
        def put(match: re.Match[str]) -> str:
            kind = kind_of(match)
            if kind is None:
                return match[0]
            counts[kind] = counts.get(kind, 0) + 1
            return f"<{kind}>"

        return put

    out, found = unicodedata.normalize("NFKC", text), -1
    while found != (found := sum(counts.values())):  # what is taken out may lay open another: a@1送@
        if "@" in out:
            out = _MAIL.sub(replace(_mail_kind), out)
        out = _MARKED.sub(replace(_marked_kind), out)
        out = _DOTTED.sub(replace(_dotted_kind), out)
        out = _RUN.sub(replace(_run_kind), out)
        # U+0338 would melt with the closing ">" into one character and hide the placeholder
        out = _MELTED.sub("", out) if counts else out
    if not counts:
        return text, counts
    return out, counts


def _mail_kind(match: re.Match[str]) -> str | None:
    return None if _PRICE.fullmatch(match[0]) else "mail"  # 3@2.50


def _number_kind(digits: str) -> str:
    return "card" if len(digits) in CARD_DIGITS and luhn(digits) else "number"


def _marked_kind(match: re.Match[str]) -> str | None:
    digits = "".join(_DIGITS.findall(match[0]))
    before = match.string[: match.start()].rstrip()
    if match[0].startswith("+") and before and before[-1].isdigit():
        return None  # a sum, not a country code
    if MIN_PHONE <= len(digits) <= MAX_PHONE:
        return "phone"
    return _number_kind(digits) if len(digits) > MAX_PHONE else None


def _dotted_kind(match: re.Match[str]) -> str | None:
    """415.555.2671, 01223/308681 and 4111.1111.1111.1111; not 1.000.000.000, 192.168.1.1 or 22.11.2026."""
    groups = re.split(r"[./]", match[0])
    digits = "".join(groups)
    if len(digits) < MIN_RUN or all(len(g) == 3 for g in groups[1:]) or (len(groups) == 2 and "." in match[0]):
        return None
    if len(digits) in CARD_DIGITS and luhn(digits):
        return "card"
    return "phone" if len(digits) <= MAX_PHONE else "number"


def _run_kind(match: re.Match[str]) -> str | None:
    digits = "".join(_DIGITS.findall(match[0]))
    if len(digits) < MIN_RUN:
        return None
    if _DATE_HOUR.fullmatch(match[0]) and match.string[match.end() : match.end() + 1] == ":":
        return None  # 2026-11-22 10:30
    return _number_kind(digits)


def scrub(texts: pl.Series) -> tuple[pl.Series, pl.DataFrame]:
    """`scrub_text` over a string column (nulls stay).

    Returns the scrubbed column, and one row per text with the columns of `KINDS` (Int16): placeholders put in.
    """
    return _scrub_distinct(texts, _SUSPECT, scrub_text)


def scrub_slots(slots: pl.Series) -> tuple[pl.Series, pl.DataFrame]:
    """`scrub` over JSON objects: names, texts and long numbers at any depth; what is not JSON is scrubbed as a text."""
    return _scrub_distinct(slots, _SUSPECT + r"|\\u", _scrub_json)


def holds_personal_data(texts: pl.Series) -> pl.Series:
    """Boolean per text: would `scrub` change it? Nulls are False."""
    counts = scrub(texts)[1]
    return counts.select(pl.sum_horizontal(*KINDS) > 0).to_series()


def has_placeholder(column: str | pl.Expr) -> pl.Expr:
    """Boolean: does the text carry a typed placeholder?"""
    expr = pl.col(column) if isinstance(column, str) else column
    return expr.str.contains(PLACEHOLDER)


def _scrub_distinct(texts: pl.Series, suspect: str, one: Callable[[str], tuple[str, dict[str, int]]]) -> tuple[pl.Series, pl.DataFrame]:
    rows = pl.DataFrame({"text": texts.cast(pl.String)})
    found = rows.unique().filter(pl.col("text").str.normalize("NFKC").str.contains(suspect))["text"].to_list()
    hits: list[tuple[Any, ...]] = []
    for text in found:
        done, counts = one(text)
        if counts or done != text:
            hits.append((text, done, *(min(counts.get(kind, 0), 9999) for kind in KINDS)))
    if not hits:
        none = pl.DataFrame({kind: pl.zeros(len(texts), pl.Int16, eager=True) for kind in KINDS})
        return rows["text"].alias(texts.name), none
    table = pl.DataFrame(hits, schema={"text": pl.String, "clean": pl.String, **dict.fromkeys(KINDS, pl.Int16)}, orient="row")
    joined = rows.join(table, on="text", how="left", maintain_order="left")
    clean = joined.select(pl.coalesce("clean", "text")).to_series().alias(texts.name)
    return clean, joined.select(pl.col(*KINDS).fill_null(0))


def _scrub_json(slots: str) -> tuple[str, dict[str, int]]:
    try:
        parsed = json.loads(slots)
    except (ValueError, RecursionError):
        return scrub_text(slots)
    counts: dict[str, int] = {}

    def visit(value: Any) -> Any:
        if isinstance(value, dict):
            return {visit(name): visit(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [visit(inner) for inner in value]
        if isinstance(value, bool) or value is None:
            return value
        text = value if isinstance(value, str) else json.dumps(value)
        clean, found = scrub_text(text)
        for kind, n in found.items():
            counts[kind] = counts.get(kind, 0) + n
        return clean if found or isinstance(value, str) else value

    # written anew even without a hit: a name that comes twice may hide a value that the parser dropped
    clean = json.dumps(visit(parsed), ensure_ascii=False)
    return clean.encode("utf-8", "replace").decode("utf-8"), counts
