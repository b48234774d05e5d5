"""The bundled multilingual-e5-small as an ordinary BERT of sentence-transformers: slower than `E5`, but it can learn and be saved."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rewrite.encoders.e5 import _Q4_BYTES, MAX_TOKENS, PROMPT, dequantised, make_tokenizer, read_model
from rewrite.encoders.use import BadModelFile


def trainable(data: bytes, folder: str) -> Any:
    """A SentenceTransformer of the same vectors (cosine > .999) as `E5`, with weights of its own.

    `data`: the bytes of the model's file; `folder`: an empty folder for its parts, which is not needed afterwards. The token
    table (250,000 rows, 92 million of 113 million weights) is frozen: a release names few of its rows. Raises `BadModelFile`.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()  # of reading and writing the parts

    file = read_model(data)
    h, wide = file.hidden, file.wide

    def matrix(name: str, rows: int, columns: int) -> torch.Tensor:
        blocks = np.frombuffer(file.tensors[name], dtype=np.uint8).reshape(-1, _Q4_BYTES)
        return torch.from_numpy(dequantised(blocks).reshape(rows, columns))

    def vector(name: str) -> torch.Tensor:
        return torch.from_numpy(np.frombuffer(file.tensors[name], dtype="<f4").copy())

    try:
        places, types = vector("emb.pos").view(-1, h), vector("emb.type").view(-1, h)
        state = {
            "embeddings.word_embeddings.weight": matrix("emb.word", file.vocabulary, h),
            "embeddings.position_embeddings.weight": places,
            "embeddings.token_type_embeddings.weight": types,
            "embeddings.LayerNorm.weight": vector("emb.ln.w"),
            "embeddings.LayerNorm.bias": vector("emb.ln.b"),
        }
        parts = {"q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value"}
        parts |= {"ao": "attention.output.dense", "fi": "intermediate.dense", "fo": "output.dense"}
        norms = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}
        for layer in range(file.layers):
            mine, theirs = f"l{layer}.", f"encoder.layer.{layer}."
            for short, long in parts.items():
                rows, columns = (wide, h) if short == "fi" else (h, wide) if short == "fo" else (h, h)
                state[f"{theirs}{long}.weight"] = matrix(f"{mine}{short}.w", rows, columns)
                state[f"{theirs}{long}.bias"] = vector(f"{mine}{short}.b")
            for short, long in norms.items():
                state[f"{theirs}{long}.weight"], state[f"{theirs}{long}.bias"] = vector(f"{mine}{short}.w"), vector(f"{mine}{short}.b")
        config = BertConfig(
            vocab_size=file.vocabulary,
            hidden_size=h,
            num_hidden_layers=file.layers,
            num_attention_heads=file.heads,
            intermediate_size=wide,
            max_position_embeddings=len(places),
            type_vocab_size=len(types),
            layer_norm_eps=file.eps,
        )
        bert = BertModel(config, add_pooling_layer=False)
        bert.load_state_dict(state, strict=False)
    except (KeyError, ValueError, RuntimeError) as error:
        raise BadModelFile(f"the weights are not those of multilingual-e5-small: {error}") from error
    pad = next((i for i, (piece, _) in enumerate(file.pieces) if piece == "<pad>"), file.end)
    names = [p for p, _ in file.pieces]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer(file),
        bos_token=names[file.begin],
        cls_token=names[file.begin],
        eos_token=names[file.end],
        sep_token=names[file.end],
        unk_token=names[file.unknown],
        pad_token=names[pad],
        model_max_length=MAX_TOKENS,
    )
    bert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformer = Transformer(folder, max_seq_length=MAX_TOKENS, model_kwargs={"add_pooling_layer": False})
    next(p for n, p in transformer.named_parameters() if n.endswith("word_embeddings.weight")).requires_grad = False
    modules = [transformer, Pooling(h, pooling_mode="mean"), Normalize()]
    return SentenceTransformer(modules=modules, prompts={"query": PROMPT}, default_prompt_name="query", device="cpu")
