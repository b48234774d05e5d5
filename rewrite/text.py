"""The key of a text, the canonical form of slots, and the id of a rewrite: what a server imports to look rewrites up."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl
import polars.selectors as cs

KEY_VERSION = 1

PLACEHOLDER = r"<(mail|phone|card|iban|ip|url|number|name)>"
"""What the scrubber puts in place of personal data; a text that holds one is counted, never released."""


def key(text: str) -> str:
    """The key of a text: NFKC, lower case, white space folded; nothing more, in every language."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text).lower()).strip()


def key_expr(column: str | pl.Expr) -> pl.Expr:
    """`key` over a string column, row for row the same (a test holds the two together).

    Python's lower() and ``\\s`` differ from Rust's on a handful of code points (final sigma, dotted capital I, the
    separators U+001C to U+001F), so distinct texts go through the Python function itself: one call per distinct
    text, not per turn.
    """
    expr = pl.col(column) if isinstance(column, str) else column
    return expr.map_batches(_key_series, return_dtype=pl.String)


def _key_series(texts: pl.Series) -> pl.Series:
    distinct = texts.drop_nulls().unique()
    keys = pl.Series([key(t) for t in distinct], dtype=pl.String)
    return texts.replace_strict(distinct, keys, default=None, return_dtype=pl.String)


def coded(texts: pl.Series) -> tuple[pl.Series, np.ndarray]:
    """The distinct texts, sorted, and which of them each row is: int64 (n,). No text is null."""
    distinct = texts.unique().sort()
    return distinct, texts.cast(pl.Enum(distinct)).to_physical().cast(pl.Int64).to_numpy()


def numbered(texts: pl.Series) -> np.ndarray:
    """float64 (n,): the same number for the same text, NaN where there is none; which number, means nothing."""
    codes = texts.cast(pl.Enum(texts.drop_nulls().unique())).to_physical()
    return codes.cast(pl.Float64).fill_null(np.nan).to_numpy()


def as_enums(frame: pl.DataFrame) -> pl.DataFrame:
    """`frame` with string columns as Enums of their sorted values: grouped and sorted by whole numbers, in the same order as the strings.

    Worth it where rows are many more than texts; `as_strings` undoes it.
    """
    strings = [name for name, dtype in frame.schema.items() if dtype == pl.String]
    return frame.with_columns(pl.col(n).cast(pl.Enum(frame[n].drop_nulls().unique().sort())) for n in strings)


def as_categories(frame: pl.DataFrame) -> pl.DataFrame:
    """`frame` with string columns as Categoricals: grouped and joined by whole numbers, sorted (more slowly) as the strings.

    For many rows of few texts, as `as_enums`, where tables meet: the numbers are those of the process. So are hashes: cast to String
    first where they must last.
    """
    return frame.with_columns(pl.col(pl.String).cast(pl.Categorical))


def as_strings(frame: pl.DataFrame) -> pl.DataFrame:
    """`frame` without Enums and Categoricals."""
    return frame.with_columns(cs.by_dtype(pl.Enum, pl.Categorical).cast(pl.String))


def slots_object(slots: str) -> dict[str, Any] | None:
    """The JSON object that slots are; None when they are none, however deep or broken."""
    try:
        parsed = json.loads(slots)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def canonical_slots(slots: str | None) -> str | None:
    """Slots as JSON with sorted names, and values under the text key; None when it is null or not a JSON object.

    >>> canonical_slots('{"b": "New  York", "a": 2}')
    '{"a":"2","b":"new york"}'
    """
    if slots is None or (parsed := slots_object(slots)) is None:
        return None
    values = {k: key(v if isinstance(v, str) else json.dumps(v, sort_keys=True, ensure_ascii=False)) for k, v in parsed.items()}
    return json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def rewrite_id(locale: str, source: str, target: str) -> str:
    """First 16 hex digits of sha256(`locale|source key|target key`)."""
    return hashlib.sha256(f"{locale}|{source}|{target}".encode()).hexdigest()[:16]


def rewrite_ids(locales: Iterable[str], sources: Iterable[str], targets: Iterable[str]) -> list[str]:
    """`rewrite_id`, row by row."""
    return [rewrite_id(*row) for row in zip(locales, sources, targets, strict=True)]
