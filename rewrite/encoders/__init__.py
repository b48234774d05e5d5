"""Text encoders: texts in, unit vectors out.

An encoder is anything with the four members of `Encoder`. `rewrite.encoders.ngrams` needs numpy and scipy alone;
`rewrite.encoders.use` (the bundled model) and `rewrite.encoders.sentences` (any SentenceTransformer) need torch and are
imported by who uses them. Files are found and checked by the caller (`pipelines.models`), never here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

FINGERPRINT_VERSION = 1
"""Raised when the same weights give other vectors because our code changed."""


@runtime_checkable
class Encoder(Protocol):
    """What the pipeline asks of a model of texts."""

    @property
    def spec(self) -> str:
        """The configuration value the encoder was made from."""

    @property
    def dimension(self) -> int:
        """Columns of `encode`."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits: changes when a text may get another vector. Device and precision, which move cosines by 1e-4, are left out."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (len(texts), dimension), rows of length 1, in the order of `texts`. A text's vector does not depend on the others."""

    def readable(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (len(texts),): share of the tokens of each text that the model knows, in [0, 1]; 1 for a blank text."""


def fingerprint(*parts: str | bytes) -> str:
    """16 hex digits of the sha256 of the parts, each with its length, and of `FINGERPRINT_VERSION`."""
    digest = hashlib.sha256(f"encoder {FINGERPRINT_VERSION}".encode())
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """float32 rows of length 1; a zero or non-finite row becomes the first axis (it says nothing, but it is a vector)."""
    out = np.nan_to_num(np.asarray(vectors, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    norms = np.sqrt(np.einsum("ij,ij->i", out, out, dtype=np.float64))
    dead = norms < 1e-12
    if dead.any():
        out[dead] = 0.0
        out[dead, 0] = 1.0
        norms[dead] = 1.0
    return (out / norms[:, None]).astype(np.float32)
