"""A lexicon: rows that are wrong are named, synonyms join texts, translations bring locales nearer, and nothing is believed blindly."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from pipelines import lexicon as files
from pipelines.errors import InputError
from rewrite.across import join_locales
from rewrite.goals import build_goals
from rewrite.lexicon import exchangeable, phrases_in, translations
from tests.test_goals import goal_of, links, served, texts


def test_rows_are_read_as_keys(tmp_path):
    path = tmp_path / "words.tsv"
    path.write_text("# en de\nen_us\tLamp\tde-DE\tLampe\n\nen-US\tturn  on\ten-US\tswitch on\r\n", encoding="utf-8-sig")
    assert files.read(str(path)) == (("en-US", "lamp", "de-DE", "lampe"), ("en-US", "turn on", "en-US", "switch on"))
    assert files.read("") == ()


def test_bad_rows_are_named(tmp_path):
    path = tmp_path / "words.tsv"
    path.write_text("en\tlamp\tde\tlampe\nlamp\tlampe\nen\t\tde\tlampe\nen\tx\ten\tX\nnot a locale\tx\tde\ty\n", encoding="utf-8")
    with pytest.raises(InputError) as error:
        files.read(str(path))
    for told in (
        str(path),
        "line 2 has 2 columns, not 4",
        "line 3: column 2 is empty",
        "line 4: 'x' stands",
        "line 5: 'not a locale' is no",
    ):
        assert told in str(error.value)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as UTF-8"):
        files.read(str(path))
    with pytest.raises(InputError, match="there is no such file"):
        files.read(str(tmp_path / "none.tsv"))


def test_phrases_with_and_without_spaces():
    assert phrases_in("turn on the lamp", {"turn on", "lamp", "urn", "on the lamp now"}, 15) == ["lamp", "turn on"]
    assert phrases_in("電気をつけて", {"電気", "つけて", "電"}, 3) == ["つけて", "電気"]


def test_translations_go_both_ways():
    rows = [("en", "light", "de", "licht"), ("de", "lampe", "en", "light")]
    assert translations(rows, "en", "de") == {"light": ("lampe", "licht")}
    assert translations(rows, "de", "en") == {"lampe": ("light",), "licht": ("light",)}


def test_synonyms_join_texts_unless_the_log_says_otherwise():
    rows = [("en", "lamp", "en", "light"), ("en", "turn on", "en", "switch on")]
    said = ["lamp off", "light off", "switch on the light", "turn on the lamp", "turn on the radio"]
    assert exchangeable(said, rows, "en") == [(0, 1), (2, 3)]
    assert exchangeable(said, rows, "de") == []
    t = texts([(u, 3, 0.9) for u in said])
    graph = build_goals(t, None, links(), served(), lexicon=rows)
    assert goal_of(graph, "switch on the light") == goal_of(graph, "turn on the lamp") != goal_of(graph, "turn on the radio")
    assert graph.edges.select("utterance_a", "lexicon").rows() == [("lamp off", 0.9), ("switch on the light", 0.9)]
    other = served([("lamp off", "off", '{"what":"lamp"}', 3, 3.0), ("light off", "off", '{"what":"light"}', 3, 3.0)])
    graph = build_goals(t, None, links(), other, lexicon=rows)
    assert goal_of(graph, "lamp off") != goal_of(graph, "light off")
    assert graph.edges["lexicon"].to_list() == [pytest.approx(9 / 11, abs=1e-6)]  # one of the eleven told against it


def two_locales(noise):
    """Topics whose wordings lie `noise` apart, each with a word of its own that the lexicon knows."""
    topics, rng = 300, np.random.default_rng(0)
    name = [f"{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(topics)]
    points = rng.normal(size=(topics, 24))
    vectors = np.vstack([points + noise * rng.normal(size=points.shape) for _ in (0, 1)])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    locale = np.array(["de"] * topics + ["en"] * topics, dtype=object)
    said = [f"bitte wort{x}" for x in name] + [f"word{x} please" for x in name]
    rows = [("en", f"word{x}", "de", f"wort{x}") for x in name]
    return (locale, np.arange(2 * topics), np.full(2 * topics, 3), vectors.astype(np.float32), ["m"] * (2 * topics)), name * 2, said, rows


def test_translated_words_bring_locales_nearer():
    args, meaning, said, rows = two_locales(noise=1.0)
    plain, _ = join_locales(*args, meaning)
    _, found = join_locales(*args, meaning, said, rows)
    right = found.filter(pl.col("j") - pl.col("i") == 300).height
    assert right == found.height > 280 > 2 * (plain[300:] < 300).sum()


def test_a_lexicon_that_is_wrong_changes_nothing():
    args, meaning, said, rows = two_locales(noise=0.1)
    wrong = [(a, x, b, rows[(i + 7) % len(rows)][3]) for i, (a, x, b, _) in enumerate(rows)]
    plain, links_plain = join_locales(*args, meaning)
    same, links_same = join_locales(*args, meaning, said, wrong)
    np.testing.assert_array_equal(plain, same)
    assert links_plain.equals(links_same)
