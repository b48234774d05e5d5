"""multilingual-e5-small (a small BERT; about 100 languages, 384 dimensions) as a sentence-transformers module.

Wang et al. 2024, arXiv 2402.05672. The weights come as one file of 4-bit blocks, read here and never run: format `E5S1`
(header, vocabulary, tensor directory, tensors; blocks of 32 values of 4 bits with one half-precision scale, as in GGML's
Q4_0). The arithmetic is BERT's; what differs is the order of work:

- A batch is flat: the tokens of all texts in one long matrix, no padding. Attention runs over texts of equal length.
- Every matrix product runs over blocks of `BLOCK` rows, so that a text has the same vector alone and in a crowd.
- The token table (250,000 rows, 380 MB as floats) stays in 4 bits; only the rows that a batch needs are made.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sentence_transformers.base.modules import InputModule
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from rewrite.encoders import fingerprint
from rewrite.encoders.use import BLOCK, BadModelFile

PROMPT = "query: "
"""The model was trained with a prefix on every text; for texts compared with each other it is this one."""

MAX_TOKENS = 256
"""Tokens of a text that are read. Requests have about ten; the model would take 512."""

_Q4_ROWS, _Q4_BYTES = 32, 18


@dataclass(frozen=True)
class ModelFile:
    """What the file holds. `tensors`: name -> bytes; `pieces`: (token, log probability); marks: ids of begin, end, unknown."""

    hidden: int
    layers: int
    heads: int
    wide: int
    vocabulary: int
    eps: float
    pieces: list[tuple[str, float]]
    begin: int
    end: int
    unknown: int
    charsmap: bytes
    tensors: dict[str, memoryview]


def read_model(data: bytes) -> ModelFile:
    """Parse the file. Raises `BadModelFile` when the bytes are no such model."""
    view, at = memoryview(data), 8

    def take(form: str) -> tuple[Any, ...]:
        nonlocal at
        values = struct.unpack_from(form, view, at)
        at += struct.calcsize(form)
        return values

    def chunk(size: int) -> memoryview:
        nonlocal at
        if size < 0 or at + size > len(view):
            raise BadModelFile(f"not an E5S1 model: {size:,} bytes wanted at byte {at:,} of {len(view):,}")
        at += size
        return view[at - size : at]

    if bytes(view[:4]) != b"E5S1":
        raise BadModelFile(f"not an E5S1 model: it begins with {bytes(view[:4])!r}")
    try:
        hidden, layers, heads, wide, vocabulary, _, _ = take("<7i")
        (eps,), (_,) = take("<f"), take("<i")
        count, begin, end, _, unknown = take("<5i")
        (size,) = take("<Q")
        starts = np.frombuffer(chunk(4 * (count + 1)), dtype="<u4")
        scores = np.frombuffer(chunk(4 * count), dtype="<f4")
        text = bytes(chunk(size))
        pieces = [(text[a:b].decode("utf-8", "replace"), float(s)) for a, b, s in zip(starts[:-1], starts[1:], scores, strict=True)]
        _, size = take("<iI")
        charsmap = bytes(chunk(size))
        (entries,) = take("<i")
        tensors = {}
        for _ in range(entries):
            (length,) = take("<H")
            name = bytes(chunk(length)).decode()
            _, _, offset, size = take("<BIQQ")
            tensors[name] = view[offset : offset + size]
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise error if isinstance(error, BadModelFile) else BadModelFile(f"not an E5S1 model ({len(data):,} bytes): {error}") from error
    return ModelFile(hidden, layers, heads, wide, vocabulary, eps, pieces, begin, end, unknown, charsmap, tensors)


def dequantised(blocks: np.ndarray) -> np.ndarray:
    """uint8 (n, 18) blocks -> float32 (n, 32): a half-precision scale, then 16 bytes of two 4-bit values each, offset by 8."""
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
    low, high = blocks[:, 2:] & 15, blocks[:, 2:] >> 4
    return (np.concatenate([low, high], axis=1).astype(np.float32) - 8) * scale


def make_tokenizer(model: ModelFile) -> Tokenizer:
    """The model's sentencepiece unigram tokenizer, as a `tokenizers.Tokenizer`."""
    pieces = model.pieces + [(f"<unused {i}>", -1e4) for i in range(len(model.pieces), model.vocabulary)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=model.unknown, byte_fallback=False))
    steps: list[Any] = [normalizers.Nmt(), normalizers.NFKC()]
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    begin, end = pieces[model.begin][0], pieces[model.end][0]
    marks = [(begin, model.begin), (end, model.end)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A {end}", special_tokens=marks)
    return tokenizer


class E5(InputModule):
    """The first (and only) module of a SentenceTransformer: texts to unit vectors.

    `data`: the bytes of the file; `dtype`: of the large matrix products (sums, norms and the result are float32). Raises
    `BadModelFile` when a tensor is missing or misshapen.
    """

    save_in_root = True

    def __init__(self, data: bytes, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        model = read_model(data)
        self.dtype, self.hidden, self.layers, self.heads, self.eps = dtype, model.hidden, model.layers, model.heads, model.eps
        self.unknown = model.unknown
        self.tokenizer = make_tokenizer(model)

        def matrix(name: str, columns: int) -> torch.Tensor:
            blocks = np.frombuffer(model.tensors[name], dtype=np.uint8).reshape(-1, _Q4_BYTES)
            return torch.from_numpy(dequantised(blocks).reshape(-1, columns).T.copy()).to(dtype)  # (in, out)

        def vector(name: str, *shape: int) -> torch.Tensor:
            return torch.from_numpy(np.frombuffer(model.tensors[name], dtype="<f4").astype(np.float32).reshape(shape or (-1,)))

        h = model.hidden
        try:
            table = np.frombuffer(model.tensors["emb.word"], dtype=np.uint8).reshape(model.vocabulary, -1)
            if table.shape[1] != h // _Q4_ROWS * _Q4_BYTES:
                raise ValueError(f"token rows of {table.shape[1]} bytes for {h} dimensions")
            self.register_buffer("table", torch.from_numpy(table.copy()))
            self.register_buffer("place", vector("emb.pos", -1, h) + vector("emb.type", -1, h)[0])
            for name in ("emb.ln.w", "emb.ln.b"):
                self._keep(name, vector(name, h))
            for layer in range(model.layers):
                own = f"l{layer}."
                qkv = [matrix(f"{own}{x}.w", h) for x in "qkv"]
                self._keep(f"{own}qkv.w", torch.cat(qkv, dim=1))
                self._keep(f"{own}qkv.b", torch.cat([vector(f"{own}{x}.b", h) for x in "qkv"]))
                for name, columns in (("ao", h), ("fi", h), ("fo", model.wide)):
                    self._keep(f"{own}{name}.w", matrix(f"{own}{name}.w", columns))
                    self._keep(f"{own}{name}.b", vector(f"{own}{name}.b"))
                for name in ("aln.w", "aln.b", "oln.w", "oln.b"):
                    self._keep(own + name, vector(own + name, h))
        except (KeyError, ValueError, RuntimeError) as error:
            raise BadModelFile(f"the weights are not those of multilingual-e5-small: {error}") from error

    def _keep(self, name: str, tensor: torch.Tensor) -> None:
        self.register_buffer(name.replace(".", "_"), tensor)

    def _at(self, name: str) -> torch.Tensor:
        return getattr(self, name.replace(".", "_"))

    def get_embedding_dimension(self) -> int:
        """384."""
        return self.hidden

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Not supported: the weights belong to the package they came in."""
        raise NotImplementedError("the bundled model is read from its package and is not saved again")

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, torch.Tensor]:
        """`tokens` (all texts end to end) and `lengths` (tokens per text), both int64."""
        texts = [(PROMPT if prompt is None else prompt) + str(text) for text in inputs]
        ids = [encoding.ids[:MAX_TOKENS] for encoding in self.tokenizer.encode_batch_fast(texts)]
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        flat = np.concatenate([np.asarray(i, dtype=np.int64) for i in ids]) if ids else np.zeros(0, np.int64)
        return {"tokens": torch.from_numpy(flat), "lengths": torch.from_numpy(lengths)}

    def unknown_share(self, texts: Sequence[str]) -> np.ndarray:
        """float32 per text: share of its tokens, the two marks at its ends left out, that are `<unk>`."""
        batch = self.preprocess(texts, prompt="")
        lengths = batch["lengths"].numpy()
        rows = np.repeat(np.arange(len(lengths)), lengths)
        unknown = np.bincount(rows, weights=batch["tokens"].numpy() == self.unknown, minlength=len(lengths))
        return (unknown / np.maximum(lengths - 2, 1)).astype(np.float32)

    def _product(self, rows: torch.Tensor, name: str) -> torch.Tensor:
        """`rows @ weight + bias` in blocks of the same shape (see the head of this file), float32."""
        n, weight = len(rows), self._at(name + ".w")
        padded = F.pad(rows.to(self.dtype), (0, 0, 0, -n % BLOCK))
        return torch.cat([torch.mm(block, weight) for block in padded.split(BLOCK)])[:n].float() + self._at(name + ".b")

    def _norm(self, rows: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(rows, (self.hidden,), self._at(name + ".w"), self._at(name + ".b"), self.eps)

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `sentence_embedding`, float32 (texts, 384), rows of length 1."""
        tokens, lengths = features["tokens"], features["lengths"]
        # Texts of equal length lie together, so that attention needs no mask.
        order = torch.argsort(lengths, stable=True)
        starts = (torch.cumsum(lengths, 0) - lengths)[order]
        lengths = lengths[order]
        within = torch.arange(len(tokens), device=tokens.device) - torch.repeat_interleave(torch.cumsum(lengths, 0) - lengths, lengths)
        tokens = tokens[torch.repeat_interleave(starts, lengths) + within]
        distinct, token = torch.unique(tokens, return_inverse=True)
        blocks = self.table[distinct].cpu().numpy().reshape(-1, _Q4_BYTES)
        vectors = torch.from_numpy(dequantised(blocks).reshape(-1, self.hidden)).to(tokens.device)
        x = self._norm(vectors[token] + self.place[within], "emb.ln")
        groups = [(int(length), int(count)) for length, count in zip(*torch.unique_consecutive(lengths, return_counts=True), strict=True)]
        for layer in range(self.layers):
            own = f"l{layer}."
            x = self._norm(x + self._product(self._attention(self._product(x, own + "qkv"), groups), own + "ao"), own + "aln")
            x = self._norm(x + self._product(F.gelu(self._product(x, own + "fi")), own + "fo"), own + "oln")
        mean = torch.segment_reduce(x, "mean", lengths=lengths, axis=0)
        out = torch.empty_like(mean)
        out[order] = F.normalize(mean, dim=-1)
        features["sentence_embedding"] = out
        return features

    def _attention(self, qkv: torch.Tensor, groups: list[tuple[int, int]]) -> torch.Tensor:
        """(tokens, 3 h) -> (tokens, h): every text attends to itself."""
        done, out = 0, []
        for length, count in groups:
            part = qkv[done : done + length * count].view(count, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            q, k, v = part.unbind(0)
            mixed = F.scaled_dot_product_attention(q, k, v)
            out.append(mixed.transpose(1, 2).reshape(length * count, self.hidden))
            done += length * count
        return torch.cat(out)


def model_fingerprint(sha256: str) -> str:
    """The encoder's fingerprint, from the hash of its file."""
    return fingerprint("multilingual-e5-small", sha256, PROMPT, str(MAX_TOKENS))
