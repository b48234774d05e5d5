"""What was changed between two texts: their middle, once the words they begin and end with alike are taken away.

The middle tells a word that was corrected ("play jaz music" -> "play jazz music") from a value that was replaced ("chinese
food" -> "thai food"), where likeness of the whole text hardly does; and whether it was replaced by what sounds alike.
Costlier than `pairs.TEXT_FEATURES`, so only pairs that those leave undecided are aligned.

Sound is the sequence of consonant classes (Dolgopolsky 1964) of a text in Latin letters. anyascii knows the letters of
every script; of Han characters it knows the reading in Mandarin only, so in Japanese kana alone sound as they are said.
"""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
import polars as pl
import pyarrow as pa
from anyascii import anyascii

from rewrite.ngrams import UNSPACED
from rewrite.pairs import edit_similarity
from rewrite.text import coded

ALIGNMENT = {
    # name: sign of the monotone constraint on P(asked again)
    "sound": 1,  # similarity of the consonants of both texts
    "span_edit": 1,  # Levenshtein similarity of the middles; 1 where both are empty
    "span_sound": 1,  # of their consonants
    "frame": 1,  # share of words outside the middle
    "kind": 0,  # which of KINDS
}
KINDS = ("same", "add", "drop", "substitute")
_LONGEST = 64
"""Words compared from either end; a request has 5 to 20."""
_CLASSES = {"p": "pbfv", "t": "td", "s": "szj", "k": "kcgqx", "m": "m", "n": "n", "r": "rl", "w": "w", "": "aeiouyh"}
_SOUNDS = str.maketrans({letter: name for name, letters in _CLASSES.items() for letter in letters})
_SINGLE = "".join(f"{chr(first)}-{chr(last)}" for first, last in UNSPACED)
_WORD = f"[{_SINGLE}]|[^\\s{_SINGLE}]+"
"""A word, or one character of a script that is written without spaces."""


def align(left: pl.Series, right: pl.Series) -> np.ndarray:
    """ALIGNMENT of each text with the same row of the other: shape (n, len(ALIGNMENT)), float64. Texts are keys."""
    texts, code = coded(pl.concat([left.rename("text"), right.rename("text")]))
    distinct, row = np.unique(code[: len(left)] * len(texts) + code[len(left) :], return_inverse=True)
    return _Aligned(texts).features(distinct // max(len(texts), 1), distinct % max(len(texts), 1))[row]


class _Aligned:
    """Distinct texts cut into words, of which any pair can be aligned."""

    def __init__(self, keys: pl.Series):
        self.words = keys.str.extract_all(_WORD)
        self.count = self.words.list.len().cast(pl.Int64).to_numpy()
        self.start = np.cumsum(self.count) - self.count
        words, self.codes = coded(self.words.explode().drop_nulls())
        sounds = pl.Series([_sound(w) for w in words], dtype=pl.String).gather(self.codes)
        ends = pa.array(np.append(self.start, self.count.sum()))
        self.sounds = pl.Series(pl.from_arrow(pa.LargeListArray.from_arrays(ends, sounds.to_arrow())))
        self.sound = self.sounds.list.head(_LONGEST).list.join("")

    def features(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """ALIGNMENT of the pairs (keys[a], keys[b]): shape (n, len(ALIGNMENT)), float64."""
        x = np.empty((len(a), len(ALIGNMENT)))
        if not len(a):
            return x
        n, m = self.count[a], self.count[b]
        width = int(min(_LONGEST, max(1, n.max(), m.max())))
        head = _alike(self._ends(a, width, last=False), self._ends(b, width, last=False))
        tail = _alike(self._ends(a, width, last=True), self._ends(b, width, last=True))
        tail = np.minimum(tail, np.minimum(n, m) - head)
        dropped, added = n - head - tail, m - head - tail
        x[:, 0] = edit_similarity(*(self.sound.gather(rows).to_list() for rows in (a, b)))
        for c, names in ((1, self.words), (2, self.sounds)):
            x[:, c] = edit_similarity(self._join(names, a, head, dropped), self._join(names, b, head, added))
        x[:, 3] = (head + tail) / np.maximum(np.maximum(n, m), 1)
        x[:, 4] = (added > 0) + 2 * (dropped > 0)
        return x

    def _ends(self, rows: np.ndarray, width: int, *, last: bool) -> np.ndarray:
        """Codes of the first `width` words from one end, shape (n, width); no word is -1."""
        if not len(self.codes):
            return np.full((len(rows), width), -1)
        at, n = np.arange(width), self.count[rows][:, None]
        place = self.start[rows][:, None] + (n - 1 - at if last else at)
        return np.where(at < n, self.codes[np.clip(place, 0, len(self.codes) - 1)], -1)

    def _join(self, names: pl.Series, rows: np.ndarray, first: np.ndarray, n: np.ndarray) -> list[str]:
        """The `n` words from word `first` on of each text, as `names` has them, in one string."""
        part = pl.DataFrame({"said": names.gather(rows), "first": first, "n": np.minimum(n, _LONGEST)})
        return part.select(pl.col("said").list.slice("first", "n").list.join("")).to_series().to_list()


def _alike(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.cumprod((left == right) & (left >= 0), axis=1).sum(axis=1)


@lru_cache(maxsize=1 << 17)  # of all languages that a worker meets; shards repeat their words
def _sound(word: str) -> str:
    """Consonant classes of a word: "jazz" and "jaz" are "s", "music" is "msk".

    >>> _sound("jazz"), _sound("musik") == _sound("music"), _sound("संगीत") == _sound("संगित")
    ('s', True, True)
    """
    latin = re.sub(r"c(?=[eiy])|sh|ch", "s", anyascii(word).lower().replace("ph", "f"))
    return re.sub(r"([a-z])\1+", r"\1", latin.translate(_SOUNDS))
