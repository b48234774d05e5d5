"""Slot spans projected by alignment: where a text says what another text of the same goal was understood to say.

Projection of annotations along an alignment is Yarowsky & Ngai's (2001); here the two texts are of one language and alike,
so the alignment is that of the least edits (Levenshtein), letter by letter, in any script.
"""

from __future__ import annotations

import json

from rapidfuzz.distance import Levenshtein

ALIKE = 0.5
"""Least similarity (1 - edits / length) of a value and its span: with more than half of the letters changed the alignment
found whatever stood in that place (a misheard name keeps most of its letters)."""


def project(slots: str, target: str, source: str) -> str:
    """Slots (JSON object) of `target` as they stand in `source`: both are text keys, so are the values.

    A value that the source says stays. One that only the target says becomes the words of the source that are aligned with
    it, or goes when those are another thing. One that neither says (a date, an id) was never a span: it stays.
    """
    found = {}
    for name, value in json.loads(slots).items():
        if not isinstance(value, str) or not value or value in source or value not in target:
            found[name] = value
        elif (said := aligned(value, target, source)) is not None:
            found[name] = said
    return json.dumps(found, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def aligned(value: str, target: str, source: str) -> str | None:
    """The words of `source` in the place that `value` has in `target`; None when there are none, or unlike ones."""
    first = target.index(value)
    last = first + len(value)
    start = end = None
    for step in Levenshtein.opcodes(target, source):
        if step.src_end > first and start is None:
            start = _place(first, step)
        if step.src_end >= last:
            end = _place(last, step)
            break
    if start is None or end is None:
        return None
    start, end = _whole_words(source, start, end)
    said = source[start:end].strip()
    return said if said and Levenshtein.normalized_similarity(value, said) >= ALIKE else None


def _place(at: int, step: Levenshtein.Opcode) -> int:  # type: ignore[name-defined]
    """Where a position of the target lies in the source, inside one step of the alignment."""
    return min(step.dest_start + max(at - step.src_start, 0), step.dest_end)


def _whole_words(text: str, start: int, end: int) -> tuple[int, int]:
    """The span, grown to the words that it touches; scripts without spaces keep it as it is."""
    if " " not in text:
        return start, end
    while start < end and text[start] == " ":
        start += 1
    while end > start and text[end - 1] == " ":
        end -= 1
    while start > 0 and text[start - 1] != " ":
        start -= 1
    while end < len(text) and text[end] != " ":
        end += 1
    return start, end
