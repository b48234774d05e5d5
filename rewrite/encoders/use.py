"""Universal Sentence Encoder, multilingual, v3 (convolutional; 16 languages, 512 dimensions) as a sentence-transformers module.

Yang et al. 2019, arXiv 1907.04307. The arithmetic follows the published graph: token vectors, three convolutional
branches (2, 3 and 5 tokens wide), a mean over tokens, and a small residual network. What differs is the order of work:

- A batch is flat: the tokens of all texts in one long matrix, no padding, so cost follows the number of tokens.
- What depends on one token alone (its vector, its projection, and its share of the first convolution at each place of
  the window) is computed once per distinct token of the batch: that is about half of all arithmetic.
- Every matrix product runs over blocks of `BLOCK` rows, so that BLAS takes the same path for a row whatever comes
  before or after it: a text has the same vector alone and in a crowd.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sentence_transformers.base.modules import InputModule
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from rewrite.encoders import fingerprint

DIMENSION = 512
MAX_TOKENS = 256
"""Tokens of a text that are read; the model was trained on sentences, and more moves the mean little."""

BLOCK = 512
"""Rows per matrix product: large enough for full BLAS speed, small enough to stay in the cache."""

GROUP, GROUP_GPU = 1024, 65_536
"""Tokens that go through the convolutions together: on a CPU what stays in its cache."""

_CHUNKS = 17  # the token table is stored as 17 arrays, row i in array i % 17, each quantised to 8 bits by itself
_BRANCHES = ((2, 0), (3, 1), (5, 2))  # (tokens wide, tokens to the left of the centre)
_WIDTH = 256  # of a branch
_UNKNOWN, _BEGIN, _END = 0, 1, 2


class BadModelFile(ValueError):
    """The bytes are not the model they should be."""


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protocol buffer message; a nested message is its (start, end)."""
    while at < end:
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
        elif wire == 2:
            size, at = _varint(data, at)
            yield tag >> 3, (at, at + size)
            at += size
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            yield tag >> 3, data[at : at + size]
            at += size
        else:
            raise BadModelFile(f"not a sentencepiece model: wire type {wire} at byte {at}")


def read_tokenizer(proto: bytes) -> Tokenizer:
    """The tokenizer of a sentencepiece unigram model (a ModelProto in its older layout), as a `tokenizers.Tokenizer`.

    Raises `BadModelFile` when the bytes are no such model.
    """
    pieces: list[tuple[str, float]] = []
    charsmap = b""
    try:
        for field, span in _fields(proto, 0, len(proto)):
            if field == 1:
                piece, score = "", 0.0
                for name, value in _fields(proto, *span):
                    if name == 1:
                        piece = proto[slice(*value)].decode()
                    elif name == 2:
                        score = struct.unpack("<f", value)[0]
                pieces.append((piece, score))
            elif field == 3:
                for name, value in _fields(proto, *span):
                    if name == 2 and isinstance(value, tuple):
                        charsmap = proto[slice(*value)]
    except (IndexError, UnicodeDecodeError, struct.error, TypeError) as error:
        raise BadModelFile(f"not a sentencepiece model ({len(proto):,} bytes): {error}") from error
    if len(pieces) < 4:
        raise BadModelFile(f"not a sentencepiece model: {len(pieces)} pieces in {len(proto):,} bytes")
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=_UNKNOWN, byte_fallback=False))
    steps: list[Any] = [normalizers.Precompiled(charsmap)] if charsmap else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    begin, end = pieces[_BEGIN][0], pieces[_END][0]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A {end}", special_tokens=[(begin, _BEGIN), (end, _END)])
    return tokenizer


class UseMultilingual(InputModule):
    """The first (and only) module of a SentenceTransformer: texts to unit vectors.

    `weights`: name -> array, as in the bundled file; `proto`: the bytes of its sentencepiece model; `dtype`: of the large
    matrix products (sums, norms and the result are float32). Raises `BadModelFile` when an array is missing or misshapen.
    """

    save_in_root = True

    def __init__(self, weights: Mapping[str, np.ndarray], proto: bytes, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        self.tokenizer = read_tokenizer(proto)
        try:
            table = np.empty((_CHUNKS * len(weights["q1"]), DIMENSION), dtype=np.uint8)
            for i in range(_CHUNKS):
                table[i::_CHUNKS] = weights[f"q{i + 1}"]

            def tensor(name: str) -> torch.Tensor:
                return torch.from_numpy(np.asarray(weights[name], dtype=np.float32).copy())

            self.register_buffer("table", torch.from_numpy(table))
            self.register_buffer("table_scale", tensor("scale"))
            self.register_buffer("table_low", tensor("lo"))
            for ours, theirs in (("proj", "proj"), ("proj_bias", "proj_b"), ("proj_gain", "ln_g"), ("proj_shift", "ln_b")):
                self.register_buffer(ours, torch.cat([tensor(f"{theirs}{n}") for n, _ in _BRANCHES], dim=-1))
            for n, _ in _BRANCHES:
                # (n * width, width): the window's tokens side by side. For the first convolution one product per token
                # gives its share at every place of the window: (width, n * width).
                first = tensor(f"w1_{n}").reshape(n, _WIDTH, _WIDTH)
                self.register_buffer(f"first{n}", first.permute(1, 0, 2).reshape(_WIDTH, n * _WIDTH).contiguous())
                self.register_buffer(f"first_bias{n}", tensor(f"b1_{n}"))
                self.register_buffer(f"second{n}", tensor(f"w2_{n}"))
                self.register_buffer(f"second_bias{n}", tensor(f"b2_{n}"))
            for name in ("ln_g", "ln_b", "cnn_W", "cnn_b", "d0", "d1", "d2", "d3", "p1", "p3"):
                self.register_buffer(name, tensor(name))
            self.eps = float(weights["eps"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise BadModelFile(f"the weights are not those of USE multilingual v3: {error}") from error

    def get_embedding_dimension(self) -> int:
        """512."""
        return DIMENSION

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Not supported: the weights belong to the package they came in."""
        raise NotImplementedError("the bundled model is read from its package and is not saved again")

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, torch.Tensor]:
        """`tokens` (all texts end to end) and `lengths` (tokens per text), both int64."""
        texts = [(prompt or "") + str(text) for text in inputs]
        ids = [encoding.ids[:MAX_TOKENS] for encoding in self.tokenizer.encode_batch_fast(texts)]
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        flat = np.concatenate([np.asarray(i, dtype=np.int64) for i in ids]) if ids else np.zeros(0, np.int64)
        return {"tokens": torch.from_numpy(flat), "lengths": torch.from_numpy(lengths)}

    def unknown_share(self, texts: Sequence[str]) -> np.ndarray:
        """float32 per text: share of its tokens, the two marks at its ends left out, that are `<unk>`."""
        batch = self.preprocess(texts)
        lengths = batch["lengths"].numpy()
        rows = np.repeat(np.arange(len(lengths)), lengths)
        unknown = np.bincount(rows, weights=batch["tokens"].numpy() == _UNKNOWN, minlength=len(lengths))
        return (unknown / np.maximum(lengths - 2, 1)).astype(np.float32)

    def _product(self, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """`rows @ weight` in blocks of the same shape (see the head of this file): (n, k) and (k, m) -> float32 (n, m)."""
        n = len(rows)
        padded = F.pad(rows.to(self.dtype), (0, 0, 0, -n % BLOCK))
        weight = weight.to(self.dtype)
        return torch.cat([torch.mm(block, weight) for block in padded.split(BLOCK)])[:n].float()

    def _token_states(self, token: torch.Tensor, lengths: torch.Tensor, vectors: torch.Tensor, tables: list[Any]) -> torch.Tensor:
        """float32 (tokens, 1280): the vector and the three branches of each token, normed, for a group of whole texts."""
        starts = torch.cumsum(lengths, 0) - lengths
        start = torch.repeat_interleave(starts, lengths)
        end = torch.repeat_interleave(starts + lengths, lengths)
        place = torch.arange(len(token), device=token.device)
        outside = F.pad(token, (0, 1), value=len(vectors))
        states = [vectors.index_select(0, token)]
        for (width, left), (own, shares) in zip(_BRANCHES, tables, strict=True):
            places = []  # of the window's tokens; len(token), where a zero row lies, outside the text
            for offset in range(-left, width - left):
                at = place + offset
                places.append(torch.where((at >= start) & (at < end), at, len(token)))
            total = getattr(self, f"first_bias{width}").expand(len(token), _WIDTH).clone()
            for share, at in zip(shares, places, strict=True):
                total += share.index_select(0, outside[at])
            hidden = torch.relu_(total).add_(own.index_select(0, token))
            padded = F.pad(hidden, (0, 0, 0, 1))
            window = torch.cat([padded.index_select(0, at) for at in places], dim=-1)
            second = self._product(window, getattr(self, f"second{width}")) + getattr(self, f"second_bias{width}")
            states.append(torch.relu_(second).add_(hidden))
        return F.layer_norm(torch.cat(states, dim=-1), (DIMENSION + 3 * _WIDTH,), self.ln_g, self.ln_b, self.eps)

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `sentence_embedding`, float32 (texts, 512), rows of length 1."""
        tokens, lengths = features["tokens"], features["lengths"]
        distinct, token = torch.unique(tokens, return_inverse=True)
        chunk = distinct % _CHUNKS
        vectors = self.table[distinct].float() * self.table_scale[chunk, None] + self.table_low[chunk, None]
        projected = self._product(vectors, self.proj) + self.proj_bias
        projected = F.layer_norm(projected, (3 * _WIDTH,), self.proj_gain, self.proj_shift, self.eps)
        tables = []
        for i, (width, _) in enumerate(_BRANCHES):
            own = projected[:, i * _WIDTH : (i + 1) * _WIDTH].contiguous()
            shares = self._product(own, getattr(self, f"first{width}")).view(-1, width, _WIDTH)
            tables.append((own, [F.pad(s, (0, 0, 0, 1)) for s in shares.unbind(1)]))  # the last row is what lies outside a text: zeros

        ends = torch.cumsum(lengths, 0).cpu().numpy()
        budget = GROUP if tokens.device.type == "cpu" else GROUP_GPU
        sums, first, done = [], 0, 0
        while first < len(ends):
            last = max(int(np.searchsorted(ends, done + budget, side="right")), first + 1)
            part = slice(done, int(ends[last - 1]))
            states = self._token_states(token[part], lengths[first:last], vectors, tables)
            sums.append(torch.segment_reduce(states, "sum", lengths=lengths[first:last], axis=0))
            first, done = last, part.stop
        summed = torch.cat(sums)
        size = lengths[:, None].float()
        mean = (self._product(summed, self.cnn_W) + size * self.cnn_b) / size.sqrt()
        h0 = torch.relu(self._product(mean, self.d0))
        h1 = torch.relu(self._product(mean, self.p1) + self._product(h0, self.d1))
        h2 = torch.relu(self._product(h1, self.d2))
        features["sentence_embedding"] = F.normalize(torch.tanh(self._product(h1, self.p3) + self._product(h2, self.d3)), dim=-1)
        return features


def model_fingerprint(weights_sha256: str, proto_sha256: str) -> str:
    """The encoder's fingerprint, from the hashes of its two files."""
    return fingerprint("use-multilingual", weights_sha256, proto_sha256, str(MAX_TOKENS))
