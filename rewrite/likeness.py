"""How alike texts look, and what their slot values are: content, where the votes are silent."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
from scipy import sparse

from rewrite.ngrams import ngram_counts


class Likeness:
    """Character n-gram cosine, n-grams weighted by how rare they are among the texts given."""

    def __init__(self, texts: pl.Series):
        counts = sparse.csr_matrix(ngram_counts(texts.to_list()), dtype=np.float64)
        seen = np.bincount(counts.indices, minlength=counts.shape[1])
        counts.data = (1 + np.log(counts.data)) * np.log((1 + len(texts)) / (1 + seen[counts.indices]))
        norm = np.sqrt(np.asarray(counts.multiply(counts).sum(axis=1)).ravel())
        self.vectors = sparse.csr_matrix(sparse.diags(1 / np.maximum(norm, 1e-12)) @ counts)

    def cosine(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Cosine of the texts at rows a and b, pair by pair."""
        if len(a) == 0:
            return np.zeros(0)
        return np.asarray(self.vectors[a].multiply(self.vectors[b]).sum(axis=1)).ravel()


def slot_values(slots: pl.Series) -> pl.Series:
    """The distinct values of canonical slots, sorted, per row; empty where there are none."""
    known = slots.drop_nulls().unique().sort()
    parsed = [sorted({str(v) for v in json.loads(s).values() if str(v)}) for s in known]
    values = pl.DataFrame({"slots": known, "values": pl.Series(parsed, dtype=pl.List(pl.String))})
    found = slots.to_frame("slots").join(values, on="slots", how="left", maintain_order="left")["values"]
    return found.fill_null(pl.Series([[]], dtype=pl.List(pl.String)))
