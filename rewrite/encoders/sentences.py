"""A sentence-transformers model behind the `Encoder` interface."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from rewrite.encoders import fingerprint, unit_rows


class SentenceEncoder:
    """`Encoder` over a `sentence_transformers.SentenceTransformer`.

    `identity`: the fingerprint when the caller knows it; by default a hash of the model's structure, tokenizer and weights.
    `batch`: texts per forward pass (texts of similar length go together).
    """

    def __init__(self, model: Any, spec: str, identity: str | None = None, batch: int = 64) -> None:
        self.model = model
        self._spec = spec
        self.batch = batch
        self._fingerprint = identity or _fingerprint(model)
        self._dimension = int(model.get_embedding_dimension())

    @property
    def spec(self) -> str:
        return self._spec

    @property
    def dimension(self) -> int:
        return self._dimension

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """See `Encoder.encode`."""
        if not len(texts):
            return np.zeros((0, self.dimension), dtype=np.float32)
        vectors = self.model.encode(list(texts), batch_size=self.batch, convert_to_numpy=True, show_progress_bar=False)
        return unit_rows(vectors)

    def readable(self, texts: Sequence[str]) -> np.ndarray:
        """See `Encoder.readable`. A model whose tokenizer has no unknown token reads everything."""
        if not len(texts):
            return np.zeros(0, dtype=np.float32)
        first = self.model[0]
        if hasattr(first, "unknown_share"):
            return 1.0 - first.unknown_share(texts)
        tokenizer = getattr(first, "tokenizer", None)
        unknown = getattr(tokenizer, "unk_token_id", None)
        if tokenizer is None or unknown is None:
            return np.ones(len(texts), dtype=np.float32)
        ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        share = [np.mean(np.asarray(i) == unknown) if len(i) else 0.0 for i in ids]
        return (1.0 - np.asarray(share)).astype(np.float32)


def _fingerprint(model: Any) -> str:
    """Of structure, prompts, tokenizer and every weight: a folder that moves keeps it, other weights under one name do not."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    tokenizer = getattr(model[0], "tokenizer", None)
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    words = str(backend.to_str()) if backend is not None and hasattr(backend, "to_str") else type(backend).__name__
    prompts = f"{sorted(getattr(model, 'prompts', {}).items())} {getattr(model, 'default_prompt_name', None)}"
    return fingerprint("sentence-transformers", repr(model), digest.digest(), words, prompts)
