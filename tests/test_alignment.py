"""What was changed between two texts, in several scripts."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from rewrite.alignment import ALIGNMENT, KINDS, align

ROWS = [
    # left, right, kind, frame
    ("play jaz music", "play jazz music", "substitute", 2 / 3),
    ("find chinese food", "find thai food", "substitute", 2 / 3),
    ("lights on", "lights on please", "add", 2 / 3),
    ("please stop", "stop", "drop", 1 / 2),
    ("stop", "stop", "same", 1.0),
    ("go go go", "go go", "drop", 2 / 3),
    ("ライト付けて", "ライト消けて", "substitute", 5 / 6),
    ("संगित बजाओ", "संगीत बजाओ", "substitute", 1 / 2),
    ("", "stop", "add", 0.0),
    ("", "", "same", 0.0),
]


def _columns(left: list[str], right: list[str]) -> dict[str, np.ndarray]:
    return dict(zip(ALIGNMENT, align(pl.Series(left, dtype=pl.String), pl.Series(right, dtype=pl.String)).T, strict=True))


def test_kind_and_frame_of_a_change() -> None:
    found = _columns([r[0] for r in ROWS], [r[1] for r in ROWS])
    assert [KINDS[int(k)] for k in found["kind"]] == [r[2] for r in ROWS]
    assert found["frame"].tolist() == pytest.approx([r[3] for r in ROWS])


def test_a_word_that_was_corrected_sounds_alike_and_a_value_that_was_replaced_does_not() -> None:
    found = _columns([ROWS[n][0] for n in (0, 1, 7)], [ROWS[n][1] for n in (0, 1, 7)])
    assert found["span_sound"].tolist() == [1.0, 0.0, 1.0]
    assert found["span_edit"][0] >= 0.75
    assert found["span_edit"][1] < 0.5


def test_sound_ignores_where_words_end() -> None:
    found = _columns(["call ice cream shop"], ["call i scream shop"])
    assert found["sound"].tolist() == [1.0] and found["span_sound"].tolist() == [1.0]


def test_no_pairs_long_texts_and_the_order_of_rows() -> None:
    assert align(pl.Series([], dtype=pl.String), pl.Series([], dtype=pl.String)).shape == (0, len(ALIGNMENT))
    long = " ".join(f"w{n}" for n in range(1000))
    assert align(pl.Series([long]), pl.Series([long + " x"])).shape == (1, len(ALIGNMENT))
    left, right = pl.Series([r[0] for r in ROWS]), pl.Series([r[1] for r in ROWS])
    assert np.array_equal(align(left, right)[::-1], align(left.reverse(), right.reverse()))
