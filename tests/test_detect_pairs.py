"""Hashed vectors, order of turns, retries and candidate pairs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewrite import ngrams, pairs
from rewrite.curves import fit_curve, monotone
from rewrite.model import TextStats
from rewrite.text import key
from tests.detect_world import frame

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
texts = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=25).map(key)


def said(*asks: tuple[str, float], user: str = "u", **more) -> list[dict]:
    """(text, seconds after noon) of one session."""
    return [
        {"turn_id": f"{user}{n}", "timestamp": NOON + timedelta(seconds=s), "user_key": user, "locale": "en", "session": 0, "utterance": t}
        | more
        for n, (t, s) in enumerate(asks)
    ]


def naive_ngrams(text: str) -> list[str]:
    dense = [bool(ngrams._dense(np.array([ord(c)], np.uint32))[0]) for c in f" {text} "]
    padded, out = f" {text} ", []
    for n in range(1, 6):
        for i in range(len(padded) - n + 1):
            piece, all_dense = padded[i : i + n], all(dense[i : i + n])
            if (n <= 3 and all_dense) or (n >= 3 and not all_dense and " " not in piece[1:-1]):
                out.append(piece)
    return out


@settings(deadline=None, max_examples=60)
@given(st.lists(texts, max_size=6))
def test_vectors_equal_the_naive_count_and_do_not_depend_on_company(some: list[str]):
    counts, words, hashes = ngrams.ngram_counts(some), ngrams.words(some), ngrams.hash_texts(some)
    assert counts.shape == words.shape == (len(some), 1 << ngrams.BITS)
    for n, text in enumerate(some):
        expected = naive_ngrams(text)
        assert counts[n].sum() == len(expected)
        assert counts[n].nnz <= len(set(expected))  # fewer only when two n-grams meet in one bucket
        assert (counts[n] != ngrams.ngram_counts([text])).nnz == 0
        assert (words[n] != ngrams.words([text])).nnz == 0
        assert hashes[n] == ngrams.hash_texts([text])[0]
    assert len(set(hashes.tolist())) == len(set(some))


def test_words_in_scripts_with_and_without_spaces():
    count = [int(n) for n in np.asarray(ngrams.words(["turn on the light", "今日の天気", "今日 ok", "天", ""]).sum(axis=1)).ravel()]
    assert count == [4, 4, 2, 1, 0]


def test_a_line_feed_is_refused_with_the_fix():
    with pytest.raises(ValueError, match=r"rewrite\.text\.key"):
        ngrams.ngram_counts(["a\nb"])


def test_candidates_stay_in_one_user_date_session_and_locale():
    turns = frame(
        said(("a", 0), ("b", 10), ("c", 20), ("d", 30), ("e", 40))
        + said(("x", 5), ("y", 15), user="v")
        + [r | {"locale": "de", "turn_id": f"g{r['turn_id']}"} for r in said(("p", 1), ("q", 11))]
        + [r | {"session": 1, "turn_id": f"s{r['turn_id']}"} for r in said(("r", 5000))]
    )
    got = pairs.candidate_pairs(turns)
    found = set(zip(got["turn_id"], got["next_turn_id"], got["lag"], strict=True))
    assert found == {(f"u{i}", f"u{i + g}", g) for i in range(5) for g in (1, 2, 3) if i + g < 5} | {("v0", "v1", 1), ("gu0", "gu1", 1)}
    assert got.filter(turn_id="u0", next_turn_id="u2")["gap_s"].item() == 20.0


def test_midnight_ends_a_session():
    late = NOON.replace(hour=23, minute=59, second=58)
    rows = [r | {"timestamp": late + timedelta(seconds=5 * n)} for n, r in enumerate(said(("a", 0), ("b", 1)))]
    assert pairs.candidate_pairs(frame(rows)).height == 0


def test_retries_are_flagged_and_do_not_count_as_turns():
    got = pairs.candidate_pairs(frame(said(("play it", 0), ("Play  it", 1.5), ("play it", 3), ("play that", 20), ("play that", 30))))
    rows = set(zip(got["turn_id"], got["next_turn_id"], got["lag"], got["is_retry"], got["same_text"], strict=True))
    assert rows == {
        ("u0", "u1", 0, True, True),
        ("u1", "u2", 0, True, True),
        ("u2", "u3", 1, False, False),
        ("u3", "u4", 1, False, True),  # ten seconds later: a person
        ("u2", "u4", 2, False, False),
    }


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match="session"):
        pairs.ordered(frame(said(("a", 0))).drop("session"))


def test_text_features_of_equal_texts_are_the_extremes():
    keys = ["turn on the light", "turn off the light", "今日の天気", "", "<b>\x00'; drop"]
    n = np.arange(len(keys))
    names = [*pairs.TEXT_FEATURES, *pairs.FREQUENCIES]
    x = dict(zip(names, pairs.Texts(keys, TextStats()).features(n, n).T, strict=True))
    assert np.allclose(x["edit"], 1) and np.allclose(x["cosine"][[0, 1, 2, 4]], 1, atol=1e-5)
    y = pairs.Texts(keys, TextStats()).features(np.array([0, 1]), np.array([1, 0]))
    assert np.allclose(y[0], y[1], equal_nan=True)  # without a log both directions are alike


def test_curves_are_monotone_and_recover_a_step():
    assert monotone(np.array([1.0, 3, 2, 4]), np.ones(4)).tolist() == [1, 2.5, 2.5, 4]
    x = np.linspace(0, 1, 1000)
    curve = fit_curve(x, (x > 0.5).astype(float), rising=True)
    assert curve(np.array([0.1])) < -3 < 3 < curve(np.array([0.9])) and curve(np.array([np.nan])) == 0
    assert (np.diff(fit_curve(x, np.sin(9 * x) ** 2, rising=False)(x)) <= 1e-12).all()


def test_pair_columns_of_an_empty_log():
    assert pairs.candidate_pairs(frame([])).columns == pairs.candidate_pairs(frame(said(("a", 0), ("b", 1)))).columns
    assert isinstance(pairs.ordered(frame([])), pl.DataFrame)
