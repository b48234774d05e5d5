"""Texts of strangers in HTML: escaped, cut, with nothing invisible in them."""

from __future__ import annotations

import unicodedata
from html import escape
from typing import Final

MAX_TEXT: Final = 200
"""Characters of a text that are shown."""
_BIDI: Final = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def clean(text: object, limit: int = MAX_TEXT) -> str:
    """A text that can be shown: control and direction characters become visible, long ones are cut."""
    seen = "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs") or c in _BIDI else c for c in str(text)[: limit + 1])
    return seen if len(seen) <= limit else seen[:limit] + "…"


def html(text: object, limit: int = MAX_TEXT) -> str:
    """`clean`, escaped: safe in element content and in quoted attributes."""
    return escape(clean(text, limit))
