"""Casting: from whatever types a log has to the types of the log contract, column by column.

A value that cannot be cast becomes null; how many were lost is counted by the caller (non-null before, null after).
"""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any, Final

import langcodes
import polars as pl
import pyarrow as pa

EARLIEST: Final = datetime(1990, 1, 1, tzinfo=UTC)
LATEST: Final = datetime(2100, 1, 1, tzinfo=UTC)
"""A timestamp before EARLIEST, or at or after LATEST, is impossible: clocks that were never set read 1970 or 1980."""

_EPOCH_US = {"s": 1_000_000, "ms": 1_000, "us": 1}  # microseconds per unit; nanoseconds are divided
_LOW_US, _HIGH_US = (int(t.timestamp()) * 1_000_000 for t in (EARLIEST, LATEST))

_ISO_8601 = (
    r"^\s*(?P<date>\d{4}-\d{2}-\d{2}|\d{8})"
    r"(?:[Tt ]\s*(?P<hour>\d{2}):?(?P<minute>\d{2})(?::?(?P<second>\d{2})(?:[.,](?P<fraction>\d{1,9})\d*)?)?)?"
    r"\s*(?:(?P<utc>[Zz]|UTC|GMT)|(?P<sign>[+\-\x{2212}])(?P<zone_hour>\d{2})(?::?(?P<zone_minute>\d{2}))?)?\s*$"
)
_NUMBER = r"^\s*[+-]?\d+(?:\.\d*)?\s*$"


# from Arrow and Python values to plain Polars columns: String, Boolean, integers, floats, Datetime, Date


def from_arrow(column: pa.ChunkedArray, *, as_json: bool = False) -> pl.Series:
    """A column of any Arrow type as a plain Polars column.

    Dictionaries and views are decoded; bytes that are not UTF-8 get replacement characters; structs, maps and lists
    become JSON with `as_json`, else null.
    """
    kind = column.type
    if isinstance(kind, pa.ExtensionType):
        return pl.Series([None if v is None else str(v) for v in column.to_pylist()], dtype=pl.String)
    if pa.types.is_dictionary(kind):
        return from_arrow(column.cast(kind.value_type), as_json=as_json)
    if pa.types.is_nested(kind):
        if not as_json:
            return pl.Series([None] * len(column), dtype=pl.String)
        return pl.Series([_json(_object(v)) for v in column.to_pylist()], dtype=pl.String)
    if pa.types.is_null(kind):
        return pl.Series([None] * len(column), dtype=pl.String)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or _is_binary(kind) or str(kind).endswith("_view"):
        return _utf8(column)
    if pa.types.is_timestamp(kind) and kind.tz:
        column = column.cast(pa.timestamp(kind.unit, "UTC"))
    elif pa.types.is_float16(kind):
        column = column.cast(pa.float32())
    elif pa.types.is_time(kind) or pa.types.is_duration(kind) or pa.types.is_interval(kind):
        return pl.Series([None if v is None else str(v) for v in column.to_pylist()], dtype=pl.String)
    return pl.Series(pl.from_arrow(column))


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


def _utf8(column: pa.ChunkedArray) -> pl.Series:
    """Files may call bytes a string that are none, and Polars trusts Arrow; so they are checked first."""
    try:
        text = column.cast(pa.large_string())
        text.validate(full=True)
        return pl.Series(pl.from_arrow(text))
    except pa.ArrowInvalid:
        values = column.cast(pa.large_binary()).to_pylist()
        return pl.Series([None if v is None else v.decode("utf-8", "replace") for v in values], dtype=pl.String)


def from_values(values: list[Any], *, as_json: bool = False) -> pl.Series:
    """Parsed JSON values, of one type or of many, as a plain Polars column: what is mixed becomes strings."""
    kinds = set(map(type, values)) - {type(None)}
    if kinds <= {str}:
        return pl.Series(values, dtype=pl.String)
    if kinds == {bool}:
        return pl.Series(values, dtype=pl.Boolean)
    if kinds == {float}:
        return pl.Series(values, dtype=pl.Float64)
    if kinds == {int} and all(v is None or -(2**63) <= v < 2**63 for v in values):
        return pl.Series(values, dtype=pl.Int64)
    return pl.Series([_text(v, as_json) for v in values], dtype=pl.String)


def _text(value: Any, as_json: bool) -> str | None:
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, (dict, list)):
        return _json(value) if as_json and value is not None else None
    if isinstance(value, float):
        return _number_text(value)
    return json.dumps(value)


def _number_text(value: float) -> str | None:
    if math.isnan(value):
        return None
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)


def _object(value: Any) -> Any:
    """An Arrow struct has all the fields of its type: those that are null are not there. A map comes as pairs."""
    if isinstance(value, dict):
        return {k: _object(v) for k, v in value.items() if v is not None}
    if isinstance(value, list) and value and all(isinstance(v, tuple) and len(v) == 2 for v in value):
        return {str(k): _object(v) for k, v in value if v is not None}
    if isinstance(value, list):
        return [_object(v) for v in value]
    return value


def _json(value: Any) -> str | None:
    if value is None:
        return None
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        return None
    return text.encode("utf-8", "replace").decode()


# from plain columns to the types of the contract


def to_string(column: pl.Series) -> pl.Series:
    """Whole floats lose their `.0` (a table with gaps turns ids into floats); NaN is null."""
    if column.dtype == pl.String:
        return column
    if column.dtype.is_float():
        return pl.Series(column.name, [None if v is None else _number_text(v) for v in column.to_list()], dtype=pl.String)
    return column.cast(pl.String)


def to_bool(column: pl.Series) -> pl.Series:
    """true, false, 1 and 0, as booleans, numbers or strings."""
    if column.dtype == pl.Boolean:
        return column
    words = to_string(column).str.strip_chars().str.to_lowercase()
    return words.replace_strict({"true": True, "1": True, "false": False, "0": False}, default=None, return_dtype=pl.Boolean)


def to_float(column: pl.Series) -> pl.Series:
    """Numbers, also as strings; NaN and infinities are null."""
    if column.dtype.is_temporal():
        return pl.Series(column.name, [None] * len(column), dtype=pl.Float64)
    text = column.str.strip_chars() if column.dtype == pl.String else column
    number = text.cast(pl.Float64, strict=False).rename("v")
    return number.to_frame().select(pl.when(pl.col("v").is_finite()).then("v").alias(column.name)).to_series()


def to_timestamp(column: pl.Series, unit: str = "") -> tuple[pl.Series, int]:
    """Microseconds in UTC, and how many values had no time zone (taken as UTC). Unreadable and impossible ones are null.

    Strings are ISO 8601; numbers count from 1970 in `unit` (s, ms, us, ns), and are null without one.
    """
    naive = 0
    if isinstance(column.dtype, pl.Datetime):
        naive = 0 if column.dtype.time_zone else column.len() - column.null_count()
        micros = _epoch(column.to_physical(), column.dtype.time_unit)
    elif column.dtype == pl.Date:
        naive = column.len() - column.null_count()
        micros = _epoch(column.to_physical().cast(pl.Int64) * 86_400, "s")
    elif column.dtype.is_numeric():
        micros = _epoch(column.cast(pl.Float64) if column.dtype.is_decimal() else column, unit)
    elif column.dtype == pl.String:
        micros, naive = _iso_8601(column.rename("t"))
        if unit:
            number = column.to_frame("t").select(pl.when(pl.col("t").str.contains(_NUMBER)).then("t")).to_series().str.strip_chars()
            whole = _epoch(number.cast(pl.Int64, strict=False), unit)
            micros = micros.zip_with(number.is_null(), whole.zip_with(whole.is_not_null(), _epoch(number.cast(pl.Float64), unit)))
    else:
        micros = pl.Series([None] * len(column), dtype=pl.Int64)
    stamps = micros.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    return stamps.rename(column.name), naive


def _epoch(numbers: pl.Series, unit: str) -> pl.Series:
    """Microseconds since 1970, null outside the possible range: bounds come first, so that nothing overflows."""
    if not unit:
        return pl.Series([None] * len(numbers), dtype=pl.Int64)
    v = pl.col("v")
    low, high = (_LOW_US * 1_000, _HIGH_US * 1_000) if unit == "ns" else (_LOW_US // _EPOCH_US[unit], _HIGH_US // _EPOCH_US[unit])
    if numbers.dtype.is_integer():
        scaled = v.cast(pl.Int64) // 1_000 if unit == "ns" else v.cast(pl.Int64) * _EPOCH_US[unit]
    else:
        scaled = (v / 1_000 if unit == "ns" else v * _EPOCH_US[unit]).floor().cast(pl.Int64)
    possible = numbers.to_frame("v").select(pl.when((v >= low) & (v < high)).then(v))
    return possible.select(scaled).to_series()


def _iso_8601(text: pl.Series) -> tuple[pl.Series, int]:
    t = pl.col("t")
    parts = text.to_frame("t").select(pl.when(~t.str.contains(_NUMBER)).then(t).str.extract_groups(_ISO_8601)).unnest("t")
    clock = pl.format(
        "{} {}:{}:{}.{}",
        pl.col("date").str.replace_all("-", ""),
        pl.col("hour").fill_null("00"),
        pl.col("minute").fill_null("00"),
        pl.col("second").fill_null("00"),
        (pl.col("fraction").fill_null("") + "000000").str.slice(0, 6),
    )
    hours, minutes = (pl.col(c).cast(pl.Int64).fill_null(0) for c in ("zone_hour", "zone_minute"))
    offset = pl.when(pl.col("sign").is_null()).then(0).when(pl.col("sign") == "+").then(1).otherwise(-1) * (hours * 60 + minutes)
    local = (
        pl.when(pl.col("date").is_not_null() & (hours < 24) & (minutes < 60))
        .then(clock)
        .str.to_datetime("%Y%m%d %H:%M:%S%.6f", time_unit="us", strict=False)
    )
    done = parts.select(
        micros=local.dt.timestamp("us") - offset * 60_000_000,
        naive=local.is_not_null() & pl.col("utc").is_null() & pl.col("sign").is_null(),
    )
    micros = _epoch(done["micros"], "us")
    return micros, int((done["naive"] & micros.is_not_null()).sum())


def to_locale(column: pl.Series) -> pl.Series:
    """BCP 47, canonical (`en_us` is `en-US`); null where it is no language tag."""
    text = to_string(column)
    distinct = text.drop_nulls().unique()
    tags = pl.Series([_locale(v) for v in distinct], dtype=pl.String)
    return text.replace_strict(distinct, tags, default=None, return_dtype=pl.String)


def _locale(text: str) -> str | None:
    tag = text.strip().split(".")[0].split("@")[0]  # en_US.UTF-8, de_DE@euro
    if not 2 <= len(tag) <= 35:  # RFC 5646, section 4.4.1
        return None
    try:
        tag = langcodes.standardize_tag(tag)
        return tag if langcodes.tag_is_valid(tag) else None
    except (ValueError, LookupError):
        return None
