"""A lexicon that somebody gives: words of two locales, or of one, that say the same. Evidence for goals, never the last word.

Inside a locale two texts that become equal once synonyms are exchanged are near; between locales a text is also compared by
the words that the lexicon translates (`rewrite.across` learns from the log how much that is worth there).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from rewrite.ngrams import hash_texts

Rows = Sequence[tuple[str, str, str, str]]
"""(locale, phrase, locale, phrase): phrases are keys; the locales are equal for synonyms."""

WIDTH = 512
"""Dimensions that the phrases are hashed to: a text holds few, so that a chance meeting of two weighs about 1/22."""

_TOKENS = re.compile(r"\w+")


def translations(rows: Rows, source: str, target: str) -> dict[str, tuple[str, ...]]:
    """Phrase of `source` -> its phrases in `target`, whichever way round the rows are, sorted."""
    found: dict[str, set[str]] = {}
    for a, x, b, y in rows:
        if (a, b) == (source, target):
            found.setdefault(x, set()).add(y)
        if (b, a) == (source, target):
            found.setdefault(y, set()).add(x)
    return {x: tuple(sorted(ys)) for x, ys in sorted(found.items())}


def phrases_in(text: str, known: Iterable[str], longest: int) -> list[str]:
    """The known phrases in a text: whole words, and any part of a stretch without white space that is no ASCII (a script without
    spaces, a compound). `longest`: characters of the longest known phrase."""
    known = known if isinstance(known, (set, dict)) else set(known)
    words = [(m.start(), m.end()) for m in _TOKENS.finditer(text)]
    found = set()
    for n, (start, _) in enumerate(words):
        for _, end in words[n:]:
            if end - start > longest:
                break
            if text[start:end] in known:
                found.add(text[start:end])
    for start, end in words:
        if text[start:end].isascii():
            continue
        for i in range(start, end):
            for j in range(i + 2, min(end, i + longest) + 1):
                if text[i:j] in known:
                    found.add(text[i:j])
    return sorted(found)


def lexical(utterances: Sequence[str], phrases: dict[str, tuple[str, ...]]) -> np.ndarray:
    """float32 (n, WIDTH), unit rows or zeros: the phrases of each text, as what they translate to, rare ones heavier."""
    out = np.zeros((len(utterances), WIDTH), np.float32)
    longest = max(map(len, phrases), default=0)
    found = [phrases_in(u, phrases, longest) if phrases else [] for u in utterances]
    seen: dict[str, int] = {}
    for here in found:
        for phrase in here:
            seen[phrase] = seen.get(phrase, 0) + 1
    names = sorted({t for p in seen for t in phrases[p]})
    hashes = dict(zip(names, hash_texts(names), strict=True))
    for row, here in enumerate(found):
        for phrase in here:
            weight = np.log((1 + len(utterances)) / seen[phrase]) / np.sqrt(len(phrases[phrase]))
            for name in phrases[phrase]:
                h = int(hashes[name])
                out[row, h % WIDTH] += weight if h >> 63 else -weight
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)


def exchangeable(utterances: Sequence[str], rows: Rows, locale: str) -> list[tuple[int, int]]:
    """Pairs (i < j) of texts that are equal once every synonym of `locale` is written as the first of its group, each text with the
    first of its kind; sorted."""
    known = translations(rows, locale, locale)
    if not known:
        return []
    first: dict[str, str] = {}
    for phrase in known:  # groups are the components: small, so walking them is enough
        if phrase not in first:
            group, todo = {phrase}, [phrase]
            while todo:
                for other in known.get(todo.pop(), ()):
                    if other not in group:
                        group.add(other)
                        todo.append(other)
            first |= dict.fromkeys(group, min(group))
    longest = max(map(len, known))
    kind: dict[str, int] = {}
    pairs = []
    for row, text in enumerate(utterances):
        here = phrases_in(text, known, longest)
        if here:  # the longest phrase at each place, so that a part of it is not exchanged alone
            longer = sorted(here, key=lambda p: (-len(p), p))
            one = re.sub("|".join(map(re.escape, longer)), lambda m: first[m.group()], text)
        else:
            one = text
        at = kind.setdefault(one, row)
        if at != row:
            pairs.append((at, row))
    return pairs
