"""Words that turn a meaning around, found without a word list: texts of a release that differ by one word and mean another thing.

"wake me up" and "don't wake me up" are both labelled by their own users' success, with different intents: "don't" turns. A
rewrite that adds or drops such a word is suspect whatever its evidence. In scripts without spaces a word is a span of up to
SPAN characters. Numbers and slot values have checks of their own (quality.measures); this one knows neither language nor list.
"""

from __future__ import annotations

from typing import Final

import polars as pl

SPAN: Final = 3
"""Characters of a span in a text without spaces: negations of Chinese, Japanese and Thai have one to three."""
MIN_PAIRS: Final = 3
"""Fewer pairs of texts say nothing about a word: two may well be wrong labels."""
TURNS: Final = 0.5
"""A word turns meanings when at least half of the pairs that differ by it differ in intent."""
MAX_WORDS: Final = 16
"""Longer texts are not compared: they have no twin."""


def without_one(text: str) -> list[tuple[str, str]]:
    """(rest, what was taken out) for every word, or span of an unspaced text, that can be taken out."""
    words = text.split(" ")
    if len(words) > 1:
        taken = [(" ".join(words[:i] + words[i + 1 :]), w) for i, w in enumerate(words)] if len(words) <= MAX_WORDS else []
    else:
        taken = [(text[:i] + text[i + n :], text[i : i + n]) for n in range(1, SPAN + 1) for i in range(len(text) - n + 1) if len(text) > n]
    return sorted(set(taken))


def turning_words(labels: pl.DataFrame) -> pl.DataFrame:
    """locale, word, pairs, turned: words that make another intent of texts they are added to. Of labels that are the
    assistant's own reading, confirmed by its users: others rest on the very rewrites that are to be judged."""
    own = labels.filter(pl.col("origin") == "own").select("locale", "utterance", "intent")
    distinct = own["utterance"].unique()
    taken = pl.DataFrame({"utterance": distinct, "t": pl.Series([without_one(t) for t in distinct], dtype=pl.List(pl.List(pl.String)))})
    taken = taken.explode("t").drop_nulls("t").select("utterance", rest=pl.col("t").list.get(0), word=pl.col("t").list.get(1))
    pairs = own.join(taken, on="utterance").join(own.select("locale", rest="utterance", was="intent"), on=["locale", "rest"])
    counts = pairs.group_by("locale", "word").agg(pairs=pl.len(), turned=(pl.col("intent") != pl.col("was")).sum())
    return counts.filter(pl.col("pairs") >= MIN_PAIRS, pl.col("turned") >= TURNS * pl.col("pairs")).sort("locale", "word")


def turned(rewrites: pl.DataFrame, labels: pl.DataFrame) -> pl.Series:
    """Boolean per rewrite: does its target add or drop a word that turns meanings?"""
    words: dict[str, set[str]] = {}
    for locale, word in turning_words(labels).select("locale", "word").iter_rows():
        words.setdefault(locale, set()).add(word)
    rows = rewrites.select("locale", "source", "target").iter_rows()
    return pl.Series([_differs(s, t, words[at]) if at in words else False for at, s, t in rows], dtype=pl.Boolean)


def _differs(source: str, target: str, words: set[str]) -> bool:
    if " " in source or " " in target:
        return bool(words & (set(source.split(" ")) ^ set(target.split(" "))))
    return any((w in source) != (w in target) for w in words)
