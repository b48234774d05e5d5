"""An encoder learned from nothing: hashed character n-grams. Any language, no weights, 30,000 texts a second."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from rewrite.encoders import fingerprint, unit_rows

DIMENSION = 1024
"""Wide enough that two unrelated texts differ from orthogonal by about 1/32."""

SIZES = (1, 2, 3, 4, 5)
"""Single characters carry meaning where a word has one or two of them (Chinese, Japanese); 5 is a word stem elsewhere."""

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, bits well spread (golden ratio): the usual choice for multiplicative hashing


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64, on uint64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class NgramEncoder:
    """Signed feature hashing (Weinberger et al. 2009) of character n-grams, sublinear counts, unit rows."""

    spec = "ngrams"
    dimension = DIMENSION
    fingerprint = fingerprint("ngrams", str(DIMENSION), str(SIZES))

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """See `Encoder.encode`. Texts are folded (NFKC, lower case) and set between blanks, so that n-grams know where a text ends."""
        out = np.empty((len(texts), DIMENSION), dtype=np.float32)
        step = 8_192  # texts at a time: about 100 MB of n-grams
        for start in range(0, len(texts), step):
            out[start : start + step] = self._block(texts[start : start + step])
        return out

    def readable(self, texts: Sequence[str]) -> np.ndarray:
        """All ones: there is no vocabulary to be outside of."""
        return np.ones(len(texts), dtype=np.float32)

    @staticmethod
    def _block(texts: Sequence[str]) -> np.ndarray:
        folded = [" " + " ".join(unicodedata.normalize("NFKC", t).lower().split()) + " " for t in texts]
        lengths = np.fromiter(map(len, folded), dtype=np.int64, count=len(folded))
        # Lone surrogates are possible in a Python string: "surrogatepass" keeps one code point each.
        codes = np.frombuffer("".join(folded).encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
        row = np.repeat(np.arange(len(folded)), lengths)
        left = np.repeat(np.cumsum(lengths), lengths) - np.arange(codes.size)  # characters from here to the end of the text
        rows, buckets, rolling = [], [], np.zeros(codes.size, dtype=np.uint64)
        with np.errstate(over="ignore"):
            for size in range(1, max(SIZES) + 1):
                shifted = np.zeros_like(codes)
                shifted[: codes.size - size + 1] = codes[size - 1 :]
                rolling = (rolling + shifted + np.uint64(1)) * _MULTIPLIER
                if size in SIZES:
                    whole = left >= size
                    rows.append(row[whole])
                    buckets.append(_mixed(rolling[whole] ^ np.uint64(size)))
        hashes, where = np.concatenate(buckets), np.concatenate(rows)
        column = (hashes % np.uint64(DIMENSION)).astype(np.int64)
        sign = np.where(hashes >> np.uint64(63), 1.0, -1.0).astype(np.float32)
        counts = sparse.csr_array((sign, (where, column)), shape=(len(folded), DIMENSION))
        counts.sum_duplicates()
        counts.data = np.sign(counts.data) * np.log1p(np.abs(counts.data))
        return unit_rows(counts.toarray())
