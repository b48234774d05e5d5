"""Texts as hashed sparse vectors, all at once: character n-grams and words, in any script.

Two scripts of writing need two sizes. Where words stand apart, n-grams of 3 to 5 characters inside a word (white space
only at their ends) are the usual choice; where they do not (Chinese, Japanese, Thai ...), 1 to 3 characters carry as
much, and pairs of characters stand in for words. Which it is, is decided character by character from the script, so a
text means the same in every locale, sample and shard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse as sp

BITS = 18
"""Vectors have 2**BITS columns: some 260,000 buckets for the 10,000s of n-grams of one locale."""

AT_ONCE = 20_000
"""Texts that are cut up together: some 150 MB."""
_P = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xFF51AFD7ED558CCD)
_NEWLINE, _SPACE = 10, 32

# Scripts written without spaces between words (line breaking classes SA, ID and CJ of Unicode Annex 14, Hangul excepted).
UNSPACED = np.array(
    [
        (0x0E00, 0x0EFF),  # Thai, Lao
        (0x0F00, 0x0FFF),  # Tibetan
        (0x1000, 0x109F),  # Myanmar
        (0x1780, 0x17FF),  # Khmer
        (0x1950, 0x19DF),  # Tai Le, New Tai Lue
        (0x2E80, 0x312F),  # CJK radicals, kana, bopomofo
        (0x31A0, 0xA4CF),  # bopomofo extended, CJK, Yi
        (0xAA60, 0xAADF),  # Myanmar extended, Tai Viet
        (0xF900, 0xFAFF),  # CJK compatibility
        (0xFF66, 0xFF9F),  # half-width kana
        (0x1B000, 0x1B2FF),  # kana supplement
        (0x20000, 0x3FFFF),  # CJK extensions
    ],
    dtype=np.uint32,
)


def hash_texts(texts: Sequence[str]) -> np.ndarray:
    """One stable 64-bit hash per text, shape (n,): the name of a text in a saved model."""
    codes, starts = _codes(texts)
    return _mix(_span_hashes(codes, starts, np.append(starts[1:] - 1, len(codes))))


def ngram_counts(texts: Sequence[str]) -> sp.csr_matrix:
    """Character n-gram counts, shape (n, 2**BITS), float32."""
    return _in_parts(_ngram_counts, texts)


def words(texts: Sequence[str]) -> sp.csr_matrix:
    """Which words (pairs of characters where the script has none) are in each text: 0/1, shape (n, 2**BITS), float32."""
    return _in_parts(_words, texts)


def _in_parts(count: Callable[[Sequence[str]], sp.csr_matrix], texts: Sequence[str]) -> sp.csr_matrix:
    parts = [count(texts[start : start + AT_ONCE]) for start in range(0, max(1, len(texts)), AT_ONCE)]
    return parts[0] if len(parts) == 1 else sp.csr_matrix(sp.vstack(parts))


def _ngram_counts(texts: Sequence[str]) -> sp.csr_matrix:
    codes, starts = _codes(texts)
    if not len(texts):
        return _counts(np.zeros(0, np.int64), np.zeros(0, np.uint64), 0)
    # White space around each text, so that the ends of words are seen.
    row = np.repeat(np.arange(len(texts)), np.diff(np.append(starts, len(codes) + 1)))
    padded = np.full(len(codes) + 1 + len(texts), _SPACE, np.uint32)
    at = np.arange(len(codes) + 1) + row  # the separator after text i becomes a space; one more space before it
    padded[at[: len(codes)] + 1] = np.where(codes == _NEWLINE, _SPACE, codes)
    row = np.repeat(np.arange(len(texts)), np.diff(np.append(starts, len(codes) + 1)) + 1)
    dense, space = _dense(padded), padded == _SPACE
    hashes = np.zeros(len(padded), np.uint64)
    all_dense, inner_space = np.ones(len(padded), bool), np.zeros(len(padded), bool)
    rows, found = [], []
    for n in range(1, 6):
        m = len(padded) - n + 1
        if m <= 0:
            break
        if n > 2:
            inner_space[:m] |= space[n - 2 : n - 2 + m]
        hashes = hashes[:m] * _P + padded[n - 1 :].astype(np.uint64) + np.uint64(1)
        all_dense[:m] &= dense[n - 1 :]
        ok = row[:m] == row[n - 1 :]
        words = ok & ~inner_space[:m] & ~all_dense[:m] if n >= 3 else np.zeros(m, bool)
        keep = np.flatnonzero(words | (ok & all_dense[:m])) if n <= 3 else np.flatnonzero(words)
        rows.append(row[keep])
        found.append(_mix(hashes[keep] + np.uint64(n)))
    return _counts(np.concatenate(rows), np.concatenate(found), len(texts))


def _words(texts: Sequence[str]) -> sp.csr_matrix:
    codes, starts = _codes(texts)
    if not len(codes):
        return _counts(np.zeros(0, np.int64), np.zeros(0, np.uint64), len(texts))
    row = np.repeat(np.arange(len(texts)), np.diff(np.append(starts, len(codes) + 1)))[: len(codes)]
    letter = (codes != _SPACE) & (codes != _NEWLINE)
    edge = np.diff(np.concatenate([[0], letter.astype(np.int8), [0]]))
    first, end = np.flatnonzero(edge == 1), np.flatnonzero(edge == -1)
    dense = _dense(codes)
    has_dense = np.add.reduceat(dense.astype(np.int64), first) if len(first) else np.zeros(0, np.int64)
    # reduceat sums up to the next word's start; white space is never dense, so the sum is the word's own.
    whole = (has_dense == 0) | (end - first == 1)
    h = _span_hashes(codes, first[whole], end[whole])
    inside = np.repeat(~whole, end - first)
    at = np.flatnonzero(letter)[inside]
    at = at[(at + 1 < len(codes))]
    at = at[letter[at + 1]]
    pair = codes[at].astype(np.uint64) * _P + codes[at + 1].astype(np.uint64)
    counts = _counts(np.concatenate([row[first[whole]], row[at]]), np.concatenate([_mix(h), _mix(pair + np.uint64(7))]), len(texts))
    counts.data[:] = 1.0
    return counts


def _codes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Code points of all texts with a newline between them, and where each text starts. Keys hold no newline."""
    if not len(texts):
        return np.zeros(0, np.uint32), np.zeros(0, np.int64)
    codes = np.frombuffer("\n".join(texts).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    starts = np.concatenate([[0], np.flatnonzero(codes == _NEWLINE) + 1])
    if len(starts) != len(texts):
        raise ValueError("texts must not hold a line feed; pass keys (rewrite.text.key) instead")
    return codes, starts


def _dense(codes: np.ndarray) -> np.ndarray:
    at = np.searchsorted(UNSPACED[:, 0], codes, side="right") - 1
    return (at >= 0) & (codes <= UNSPACED[np.maximum(at, 0), 1])


def _span_hashes(codes: np.ndarray, first: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Polynomial hash of codes[first:end] per span, modulo 2**64; spans in order, not overlapping, may be empty."""
    if not len(first):
        return np.zeros(0, np.uint64)
    length = end - first
    powers = np.cumprod(np.full(int(length.max(initial=0)) + 1, _P))
    position = np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)
    values = (codes[np.repeat(first, length) + position].astype(np.uint64) + np.uint64(1)) * powers[position]
    sums = np.concatenate([[np.uint64(0)], np.cumsum(values)])
    stop = np.cumsum(length)
    return sums[stop] - sums[stop - length]


def _mix(h: np.ndarray) -> np.ndarray:
    h = (h ^ (h >> np.uint64(33))) * _MIX
    return h ^ (h >> np.uint64(29))


def _counts(rows: np.ndarray, hashes: np.ndarray, n: int) -> sp.csr_matrix:
    cell = (rows.astype(np.uint64) << np.uint64(BITS)) | (hashes >> np.uint64(64 - BITS))
    cell, count = np.unique(cell, return_counts=True)
    indptr = np.searchsorted(cell, np.arange(n + 1, dtype=np.uint64) << np.uint64(BITS))
    columns = (cell & np.uint64((1 << BITS) - 1)).astype(np.int32)
    return sp.csr_matrix((count.astype(np.float32), columns, indptr), shape=(n, 1 << BITS))
