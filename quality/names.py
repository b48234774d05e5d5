"""Names and street addresses out of texts, as the assistant itself found them: the values of slots that the configuration names.

No model is shipped: those that know names in many languages are hundreds of megabytes, and lists of names take half of the
ordinary words with them. The assistant's own reading knows which words of *this* turn are a person. What it did not
understand stays (3 to 14 % of the turns that name somebody, in five worlds): there, as everywhere, k users are the guard,
and 2 to 12 % of the texts with a name that k users share keep it. Hiding what k users' turns were understood to name wherever
it is said would leave .1 to .7 % of such turns and take .2 to 1.3 % of the other shared texts along (most of them name
singers); a lake would have to keep the names for that, so it is not done. Off by default.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable

import polars as pl

from quality.scrub import _NO_SPACES
from rewrite.text import slots_object

NAME = "<name>"
_UNSPACED = re.compile(f"[{_NO_SPACES}]")


def hide_names(texts: pl.DataFrame, slots: pl.Series, names: Iterable[str]) -> tuple[pl.DataFrame, pl.Series, pl.Series]:
    """Text columns and slots without the values of the slots that `names` lists (`person`, `address*`: all that begin so).

    Row by row: a value is hidden in the texts of its own row, as a whole word (anywhere in scripts without spaces), whatever
    its case. Returns texts, slots, and how many placeholders each row has (Int16). What is not a JSON object stays.
    """
    exact = {n for n in names if not n.endswith("*")}
    starts = tuple(n[:-1] for n in names if n.endswith("*"))
    values = {s: found for s in slots.drop_nulls().unique() if (found := _values(s, exact, starts))}
    none = pl.zeros(texts.height, pl.Int16, eager=True)
    if not values:
        return texts, slots, none
    rows = texts.with_columns(_slots=slots)
    some = rows.filter(pl.col("_slots").is_in(list(values))).unique()
    done = []
    for row in some.iter_rows(named=True):
        hidden, patterns = values[row["_slots"]][1], values[row["_slots"]][0]
        clean, n = {}, 0
        for column in texts.columns:
            clean[f"_c_{column}"], hidden_here = _without(row[column], patterns)
            n += hidden_here
        done.append(row | clean | {"_c__slots": hidden, "_n": n})
    schema = dict.fromkeys([*rows.columns, *(f"_c_{c}" for c in rows.columns)], pl.String) | {"_n": pl.Int16}
    table = pl.DataFrame([{c: d.get(c) for c in schema} for d in done], schema=schema, orient="row")
    joined = rows.join(table, on=rows.columns, how="left", nulls_equal=True, maintain_order="left")
    hit = pl.col("_n").is_not_null()
    out = joined.select(pl.when(hit).then(f"_c_{c}").otherwise(c).alias(c) for c in texts.columns)
    clean_slots = joined.select(pl.when(hit).then("_c__slots").otherwise("_slots")).to_series().alias(slots.name)
    return out, clean_slots, joined["_n"].fill_null(0)


def _values(slots: str, exact: set[str], starts: tuple[str, ...]) -> tuple[list[re.Pattern[str]], str] | None:
    """Patterns of the values to hide, the longest first, and the slots without them."""
    if (parsed := slots_object(slots)) is None:
        return None
    found: list[str] = []
    clean = dict(parsed)
    for name, value in parsed.items():
        if name in exact or name.startswith(starts or ("\0",)):
            found += [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str) and v.strip()]
            clean[name] = NAME
    if clean == parsed:
        return None
    return [_pattern(v) for v in sorted(set(found), key=lambda v: (-len(v), v))], json.dumps(clean, ensure_ascii=False)


def _pattern(value: str) -> re.Pattern[str]:
    plain = r"\s+".join(re.escape(w) for w in unicodedata.normalize("NFKC", value).split())
    return re.compile(plain if _UNSPACED.search(value) else rf"(?<!\w){plain}(?!\w)", re.IGNORECASE)


def _without(text: str | None, patterns: list[re.Pattern[str]]) -> tuple[str | None, int]:
    if text is None:
        return None, 0
    out, n = unicodedata.normalize("NFKC", text), 0
    for pattern in patterns:
        out, found = pattern.subn(NAME, out)
        n += found
    return (out, n) if n else (text, 0)
