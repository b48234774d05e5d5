"""Corrective words are found in a language that nobody knows, and words of a topic are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from rewrite import corrective, ngrams
from rewrite.model import Model, Outcome

NOPE, TOPIC = "nåpe", "zorba"


def said(nope: str = NOPE, join: str = " ", chance: bool = False) -> tuple[corrective.Said, np.ndarray, np.ndarray, np.ndarray]:
    """400 turns of 40 texts by 20 users, each with a next one: after failed ones often `nope`, after failed ones of one topic `TOPIC`."""
    rng = np.random.default_rng(2)
    n = 400
    text, user = rng.integers(40, size=n), rng.integers(20, size=n)
    served = np.where(text < 20, 0.02, 0.98)
    keys, nexts = [], []
    for t, other in zip(text, rng.integers(40, size=n), strict=True):
        failed, of_topic = t < 20, t % 2 == 0
        keys.append(join.join([f"w{t}", "dada" if of_topic else f"v{t % 7}"]))
        corrects = rng.random() < (0.1 if chance else 0.6 if failed else 0.02)
        words = ([nope] if corrects else []) + ([TOPIC] if failed and of_topic else []) + [f"w{other}"]
        nexts.append(join.join(words))
    both = pl.DataFrame({"key": [x for pair in zip(keys, nexts, strict=True) for x in pair]})
    i = np.arange(0, 2 * n, 2)
    words = corrective.said(both)
    scored = pl.DataFrame({"i": i, "j": i + 1, "lag": np.ones(n, np.int64), "is_retry": np.zeros(n, bool)})
    return corrective.Said(words, corrective.new_words(words, scored)).at(i), text, user, served


def columns(word: str) -> set[int]:
    return {int(c) for c in ngrams.words([word]).indices}


@pytest.mark.parametrize(("nope", "join"), [(NOPE, " "), ("あれ", "")])
def test_what_follows_failures_of_any_text_is_corrective_and_what_follows_one_topic_is_not(nope: str, join: str):
    words, text, user, served = said(nope, join)
    found = corrective.learn(words, text, user, served, np.ones(len(text)), 3)
    assert columns(nope) <= set(found[0]) and not columns(TOPIC) & set(found[0])
    assert list(found[0]) == sorted(found[0]) and min(found[1]) > 0
    has = np.asarray(words.new[:, sorted(columns(nope))].sum(axis=1)).ravel() > 0
    signal = corrective.says(words.new, found)
    assert signal[has].min() > 1.0 and signal[~has].mean() < 0.1
    order = np.random.default_rng(0).permutation(len(text))
    again = corrective.learn(words.at(order), text[order], user[order], served[order], np.ones(len(text)), 3)
    assert again[0] == found[0] and again[1] == pytest.approx(found[1])


def test_chance_and_words_of_fewer_than_k_users_teach_nothing():
    words, text, user, served = said(chance=True)
    assert not columns(NOPE) & set(corrective.learn(words, text, user, served, np.ones(len(text)), 3)[0])
    words, text, user, served = said()
    assert corrective.learn(words, text, user % 2, served, np.ones(len(text)), 3) == ((), ())
    assert corrective.learn(words, text, user, served, np.zeros(len(text)), 3) == ((), ())


def test_a_word_that_both_turns_have_is_not_new_and_nothing_follows_the_last():
    words = corrective.said(pl.DataFrame({"key": ["play jazz", "no play jazz", ""]}))
    scored = pl.DataFrame({"i": [0], "j": [1], "lag": [1], "is_retry": [False]})
    new = corrective.new_words(words, scored)
    assert set(new.indices.tolist()) == columns("no") and new.sum() == 1
    assert corrective.says(new, ((next(iter(columns("no"))),), (1.5,))).tolist() == [1.5, 0.0, 0.0]
    assert corrective.says(new, ((), ())).tolist() == [0.0, 0.0, 0.0]


def test_the_model_keeps_hashes_and_numbers_of_them():
    words = ((3, 17), (0.5, 1.25))
    model = Model(3, {}, {}, {"*": replace(Outcome(0.7, 0.1, (0.5, 0.5), (0.5, 0.5)), corrective=words)})
    assert Model.from_files(model.to_files()).outcomes["*"].corrective == words
