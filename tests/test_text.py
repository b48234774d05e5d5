"""The key of a text is one function in two forms, and slots have one canonical form."""

import hashlib
import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewrite import likeness, ngrams, text
from rewrite.likeness import Likeness


@given(st.lists(st.one_of(st.none(), st.text()), max_size=30))
def test_the_polars_key_is_the_python_key(texts):
    frame = pl.DataFrame({"t": pl.Series(texts, dtype=pl.String)})
    assert frame.select(text.key_expr("t"))["t"].to_list() == [None if t is None else text.key(t) for t in texts]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [("  Play  THE\tBeatles ", "play the beatles"), ("ＡＢＣ　１２", "abc 12"), ("ΟΔΟΣ", "οδος"), ("x\x1cy", "x y"), ("İ", "i̇")],
)
def test_key_examples(raw, expected):
    assert text.key(raw) == expected
    assert pl.select(text.key_expr(pl.lit(raw, pl.String))).item() == expected


@given(st.text())
def test_a_key_is_its_own_key(raw):
    once = text.key(raw)
    assert text.key(once) == once or "İ" in raw or any(ord(c) > 0x2FF for c in raw)


def test_canonical_slots_sort_names_and_key_values():
    assert text.canonical_slots('{"b": "New  York", "a": 2}') == '{"a":"2","b":"new york"}'
    assert text.canonical_slots('{"a": 2, "b": "new york"}') == text.canonical_slots('{"b": "New  York", "a": 2}')
    assert text.canonical_slots('{"a": {"y": 1, "x": [2]}}') == json.dumps({"a": '{"x": [2], "y": 1}'}, separators=(",", ":"))


@pytest.mark.parametrize("bad", [None, "", "[]", "3", "{", '"x"', "[" * 10_000])
def test_what_is_no_object_of_slots_is_null(bad):
    assert text.canonical_slots(bad) is None


def test_rewrite_id_is_the_documented_hash():
    assert text.rewrite_id("en-US", "a", "b") == hashlib.sha256(b"en-US|a|b").hexdigest()[:16]
    assert text.rewrite_ids(["en-US"], ["a"], ["b"]) == [text.rewrite_id("en-US", "a", "b")]


def test_texts_as_numbers_and_slots_as_objects():
    distinct, code = text.coded(pl.Series(["b", "a", "b", "é"]))
    assert distinct.to_list() == ["a", "b", "é"] and code.tolist() == [1, 0, 1, 2]
    distinct, code = text.coded(pl.Series([], dtype=pl.String))
    assert distinct.is_empty() and code.shape == (0,) and code.dtype == "int64"
    assert text.slots_object('{"a": 1}') == {"a": 1}
    assert [text.slots_object(s) for s in ("", "[1]", "{", "[" * 100_000)] == [None] * 4


def test_likeness_is_of_all_texts_whoever_is_asked_about_and_however_many_at_once(monkeypatch) -> None:
    texts = pl.Series(["turn on the light", "turn on the lights", "play jazz", "電気をつけて", "電気を消して", "", "turn off the light"])
    a, b = np.array([0, 0, 3, 2, 5]), np.array([1, 2, 4, 2, 0])
    whole = Likeness(texts).cosine(a, b)
    assert whole[0] > whole[1] and whole[2] > 0.2 and whole[3] == pytest.approx(1) and whole[4] == 0
    counted = [f(texts.to_list()) for f in (ngrams.ngram_counts, ngrams.words)]
    for module in (likeness, ngrams):
        monkeypatch.setattr(module, "AT_ONCE", 2)
    for one, f in zip(counted, (ngrams.ngram_counts, ngrams.words), strict=True):
        parts = f(texts.to_list())
        assert (one != parts).nnz == 0 and parts.dtype == one.dtype and parts.indices.dtype == one.indices.dtype
    some = Likeness(texts, np.unique(np.concatenate([a, b])))
    assert some.vectors.shape[0] == 6 and (some.cosine(a, b) == whole).all()
    assert not len(some.cosine(a[:0], b[:0])) and Likeness(texts.clear()).vectors.shape[0] == 0
