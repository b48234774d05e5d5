"""How alike texts look, and what their slot values are: content, where the votes are silent."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
from scipy import sparse

from rewrite.ngrams import AT_ONCE, ngram_counts


class Likeness:
    """Character n-gram cosine, n-grams weighted by how rare they are among the texts given.

    rows: of the texts that are asked about, sorted (None: all); `vectors` has a row for each.
    """

    def __init__(self, texts: pl.Series, rows: np.ndarray | None = None):
        self._rows = np.arange(len(texts)) if rows is None else rows
        every = ngram_counts(texts.to_list())
        seen = np.bincount(every.indices, minlength=every.shape[1])
        counts = sparse.csr_matrix(every[self._rows], dtype=np.float64)
        counts.data = (1 + np.log(counts.data)) * np.log((1 + len(texts)) / (1 + seen[counts.indices]))
        norm = np.sqrt(np.asarray(counts.multiply(counts).sum(axis=1)).ravel())
        self.vectors = sparse.csr_matrix(sparse.diags(1 / np.maximum(norm, 1e-12)) @ counts)

    def cosine(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Cosine of the texts at rows a and b of those given, pair by pair."""
        a, b = np.searchsorted(self._rows, a), np.searchsorted(self._rows, b)
        parts = [slice(start, start + AT_ONCE) for start in range(0, len(a), AT_ONCE)]
        each = [np.asarray(self.vectors[a[p]].multiply(self.vectors[b[p]]).sum(axis=1)).ravel() for p in parts]
        return np.concatenate([np.zeros(0), *each])


def slot_values(slots: pl.Series) -> pl.Series:
    """The distinct values of canonical slots, sorted, per row; empty where there are none."""
    known = slots.drop_nulls().unique().sort()
    parsed = [sorted({str(v) for v in json.loads(s).values() if str(v)}) for s in known]
    values = pl.DataFrame({"slots": known, "values": pl.Series(parsed, dtype=pl.List(pl.String))})
    found = slots.to_frame("slots").join(values, on="slots", how="left", maintain_order="left")["values"]
    return found.fill_null(pl.Series([[]], dtype=pl.List(pl.String)))
