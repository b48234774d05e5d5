"""Personal data out of texts before anything is written: addresses, phone numbers, accounts and long digit runs become placeholders.

A Polars prefilter (Rust regex over distinct texts) finds the few texts that may hold something; only those go through
`scrub_text`, the one definition of the rules. Matching is done on the NFKC form, because that is what a key is made of:
full-width, circled and superscript digits count as digits, and so do the digits of every script. Checksums and numbering
plans are libraries' business: `stdnum` (cards, IBANs), `phonenumbers` (national numbers), `ipaddress`, `urllib`.

Names and street addresses are not looked for here: `quality.names` hides those that the assistant itself found, if it is told
to; without, a text said by k users is the guard.
"""

from __future__ import annotations

import functools
import ipaddress
import json
import re
import unicodedata
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

import polars as pl
from stdnum import iban
from stdnum import luhn as _luhn

from rewrite.text import PLACEHOLDER

KINDS: Final = ("mail", "phone", "card", "iban", "ip", "url", "number")
"""What a placeholder stands for: `<mail>`, `<phone>`, `<card>` and `<iban>` (their checksums hold), `<ip>` (v4 or v6),
`<url>` (with a user, a query, a fragment or a token), `<number>` (nine or more digits of no other kind)."""

MIN_RUN: Final = 9
"""A run of so many digits identifies someone or something; dates (8), times, prices and small numbers stay."""
MIN_PHONE: Final = 7
"""Digits of a number that is marked as a phone number by a leading + or an area code in parentheses."""
MAX_PHONE: Final = 15  # E.164
CARD_DIGITS: Final = range(12, 20)  # ISO/IEC 7812
MIN_TOKEN: Final = 16
"""A part of a URL's path with so many characters, letters and digits mixed, is a token (UUIDs have 32, session ids 20 and more)."""

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

# Whole URLs, with a scheme, www., or as host.tld/path?query; which of them hold user data is for `_url_kind` to say.
_URL = re.compile(
    r"(?i)(?<![\w.])(?:[a-z][a-z0-9+.]{1,15}://|www\.)[^\s<>\"]+|(?<![\w.-])[\w-]+(?:\.[\w-]+)+(?::\d+)?/[^\s<>\"?#]*[?#][^\s<>\"]+"
)
# Two letters, two digits, then letters and digits in groups; where it ends is for `_ibans` to say.
_IBAN = re.compile(rf"(?ai)(?<![a-z0-9])[a-z]{{2}}(?u:\d{{2}})(?:{_SEP}{{0,2}}(?u:[a-z\d])){{11,30}}")
_IPV4 = re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?!\d|\.\d)")
_IPV6 = re.compile(r"(?i)(?<![\w:.])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?:(?<=:)\d{1,3}(?:\.\d{1,3}){3})?(?![\w:])")

_SUSPECT = (
    rf"@|\d(?:[+]?{_LOOSE}*\d){{{MIN_PHONE - 1}}}|\d\.\d{{1,3}}\.\d{{1,3}}\.\d"
    rf"|::|(?:[0-9A-Fa-f]{{1,4}}:){{4}}|://|[wW]{{3}}\.|\.[\w\-]+(?::\d+)?/[^\s?#]*[?#]"
    rf"|(?i:[a-z]{{2}}\d\d{_SEP}?[a-z]{{4}}{_SEP}?\d)"
)
"""The prefilter (Rust syntax): an at sign; seven digits with at most separators between them; the marks of addresses and IBANs."""


def luhn(digits: str) -> bool:
    """Whether the last digit is the checksum of the others (ISO/IEC 7812-1, annex B)."""
    return bool(_luhn.is_valid(digits))


def scrub_text(text: str, region: str | None = None) -> tuple[str, dict[str, int]]:
    """One text without personal data, and how many placeholders of each kind were put in.

    `region` (ISO 3166, of the locale) tells national phone numbers from other numbers; without it they are `<number>`.

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
        if "://" in out or "/" in out or "www." in out.lower():
            out = _URL.sub(replace(_url_kind), out)
        if "@" in out:
            out = _MAIL.sub(replace(_mail_kind), out)
        out = _ibans(out, counts)
        if "." in out:
            out = _IPV4.sub(replace(_ip_kind), out)
        if out.count(":") > 1:
            out = _IPV6.sub(replace(_ip_kind), out)
        out = _MARKED.sub(replace(_marked_kind), out)
        out = _DOTTED.sub(replace(_dotted_kind), out)
        out = _RUN.sub(replace(functools.partial(_run_kind, region=region)), out)
        # U+0338 would melt with the closing ">" into one character and hide the placeholder
        out = _MELTED.sub("", out) if counts else out
    if not counts:
        return text, counts
    return out, counts


def _mail_kind(match: re.Match[str]) -> str | None:
    return None if _PRICE.fullmatch(match[0]) else "mail"  # 3@2.50


def _ascii(text: str) -> str:
    """Digits of every script as 0 to 9, for libraries that know no others."""
    return "".join(str(unicodedata.digit(c)) if c.isdecimal() else c for c in text)


def _url_kind(match: re.Match[str]) -> str | None:
    try:
        url = urlsplit(match[0] if "://" in match[0] else f"//{match[0]}")
    except ValueError:
        return "url"  # brackets that do not fit: nobody can say what is in it
    token = any(
        len(part) >= MIN_TOKEN and any(c.isdigit() for c in part) and any(c.isalpha() for c in part) for part in re.split(r"[/.]", url.path)
    )
    return "url" if "@" in match[0] or url.query or url.fragment or token else None


def _ibans(text: str, counts: dict[str, int]) -> str:
    """IBANs taken out, each at its own length: a match may run on into the words behind it."""

    def put(match: re.Match[str]) -> str:
        ends = [m.end() for m in re.finditer(r"\w", match[0])]
        for end in reversed(ends[14:]):  # the shortest has 15 characters (Norway)
            compact = _ascii(re.sub(rf"{_SEP}", "", match[0][:end])).upper()
            if len(compact) <= 34 and iban.is_valid(compact, check_country=False):
                counts["iban"] = counts.get("iban", 0) + 1
                return "<iban>" + match[0][end:]
        return match[0]

    return _IBAN.sub(put, text)


def _ip_kind(match: re.Match[str]) -> str | None:
    """An address of one machine: not 0.0.0.0 or ::1, which everybody has, and no time of day."""
    try:
        address = ipaddress.ip_address(_ascii(match[0]))
    except ValueError:
        return None
    groups = [g for g in match[0].split(":") if g]
    return None if address.is_unspecified or address.is_loopback or (address.version == 6 and len(groups) < 3) else "ip"


def _number_kind(digits: str) -> str:
    return "card" if len(digits) in CARD_DIGITS and luhn(_ascii(digits)) else "number"


@functools.lru_cache(maxsize=4096)
def _is_phone(digits: str, region: str) -> bool:
    import phonenumbers

    try:
        return bool(phonenumbers.is_valid_number(phonenumbers.parse(_ascii(digits), region)))
    except phonenumbers.NumberParseException:
        return False


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
    if len(digits) in CARD_DIGITS and luhn(_ascii(digits)):
        return "card"
    return "phone" if len(digits) <= MAX_PHONE else "number"


def _run_kind(match: re.Match[str], region: str | None = None) -> str | None:
    digits = "".join(_DIGITS.findall(match[0]))
    if len(digits) < MIN_RUN:
        return None
    if _DATE_HOUR.fullmatch(match[0]) and match.string[match.end() : match.end() + 1] == ":":
        return None  # 2026-11-22 10:30
    kind = _number_kind(digits)
    return "phone" if kind == "number" and region and _is_phone(digits, region) else kind


def scrub(texts: pl.Series, locales: pl.Series | None = None) -> tuple[pl.Series, pl.DataFrame]:
    """`scrub_text` over a string column (nulls stay); `locales` (BCP 47, may be null), row by row, tell the regions.

    Returns the scrubbed column, and one row per text with the columns of `KINDS` (Int16): placeholders put in.
    """
    return _scrub_distinct(texts, locales, _SUSPECT, scrub_text)


def scrub_slots(slots: pl.Series, locales: pl.Series | None = None) -> tuple[pl.Series, pl.DataFrame]:
    """`scrub` over JSON objects: names, texts and long numbers at any depth; what is not JSON is scrubbed as a text."""
    return _scrub_distinct(slots, locales, _SUSPECT + r"|\\u", _scrub_json)


def holds_personal_data(texts: pl.Series) -> pl.Series:
    """Boolean per text: would `scrub` change it? Nulls are False."""
    counts = scrub(texts)[1]
    return counts.select(pl.sum_horizontal(*KINDS) > 0).to_series()


def has_placeholder(column: str | pl.Expr) -> pl.Expr:
    """Boolean: does the text carry a typed placeholder?"""
    expr = pl.col(column) if isinstance(column, str) else column
    return expr.str.contains(PLACEHOLDER)


def _scrub_distinct(
    texts: pl.Series, locales: pl.Series | None, suspect: str, one: Callable[[str, str | None], tuple[str, dict[str, int]]]
) -> tuple[pl.Series, pl.DataFrame]:
    rows = pl.DataFrame({"text": texts.cast(pl.String)})
    suspects = rows.unique().filter(pl.col("text").str.normalize("NFKC").str.contains(suspect))
    none = pl.DataFrame({kind: pl.zeros(len(texts), pl.Int16, eager=True) for kind in KINDS})
    if suspects.is_empty():
        return rows["text"].alias(texts.name), none
    rows = rows.with_columns(region=_regions(locales) if locales is not None else pl.lit(None, pl.String))
    hits: list[tuple[Any, ...]] = []
    for text, region in rows.join(suspects, on="text", how="semi").unique().iter_rows():
        done, counts = one(text, region)
        if counts or done != text:
            hits.append((text, region, done, *(min(counts.get(kind, 0), 9999) for kind in KINDS)))
    if not hits:
        return rows["text"].alias(texts.name), none
    schema = {"text": pl.String, "region": pl.String, "clean": pl.String, **dict.fromkeys(KINDS, pl.Int16)}
    table = pl.DataFrame(hits, schema=schema, orient="row")
    joined = rows.join(table, on=["text", "region"], how="left", maintain_order="left", nulls_equal=True)
    clean = joined.select(pl.coalesce("clean", "text")).to_series().alias(texts.name)
    return clean, joined.select(pl.col(*KINDS).fill_null(0))


def _regions(locales: pl.Series) -> pl.Series:
    """The region subtag of each locale, else null: KE of sw-KE, TW of zh-Hant-TW."""
    return locales.cast(pl.String).str.extract(r"[-_]([A-Z]{2})(?:[-_]|$)", 1)


def _scrub_json(slots: str, region: str | None = None) -> tuple[str, dict[str, int]]:
    try:
        parsed = json.loads(slots)
    except (ValueError, RecursionError):
        return scrub_text(slots, region)
    counts: dict[str, int] = {}

    def visit(value: Any) -> Any:
        if isinstance(value, dict):
            return {visit(name): visit(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [visit(inner) for inner in value]
        if isinstance(value, bool) or value is None:
            return value
        text = value if isinstance(value, str) else json.dumps(value)
        clean, found = scrub_text(text, region)
        for kind, n in found.items():
            counts[kind] = counts.get(kind, 0) + n
        return clean if found or isinstance(value, str) else value

    # written anew even without a hit: a name that comes twice may hide a value that the parser dropped
    clean = json.dumps(visit(parsed), ensure_ascii=False)
    return clean.encode("utf-8", "replace").decode("utf-8"), counts
