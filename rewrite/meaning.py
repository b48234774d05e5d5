"""Words that turn a meaning around, learned without a word list, and the rewrites that add, drop or exchange one.

"wake me up" and "don't wake me up" both serve their users, by different intents; so do "plug on" and "plug off". Texts that
differ in one place only are twins, and a word, or an exchange of two, that makes another intent of nearly every twin turns
meanings. A rewrite whose sides differ by it is dropped, whatever its votes say: they were cast by people who were not served.
In scripts without spaces a word is a span of up to `SPAN` characters. Numbers and slot values have guards of their own.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl
from scipy import special

SERVES: Final = 0.75
"""A text that serves its users this often is understood as it was meant: what a target must be, too."""
SPAN: Final = 3
"""Characters of a span in a text without spaces: negations of Chinese, Japanese and Thai have one to three."""
MAX_WORDS, MAX_CHARS = 16, 48
"""Longer texts have no twin; a word of a script without spaces has up to `SPAN` characters."""
OPEN: Final = 50
"""A place that more than 50 words fill is a slot: what stands there is a value, and says nothing of words."""
SURE: Final = 0.05
"""The lower bound (5 %) of the share of twins that a word turns must be above half: three of three, five of six."""
SPACED: Final = 0.5
"""A locale in which half of the texts have a space writes words apart."""

_PLACE: Final = ["locale", "place"]
"""A place is a hash of what stands left and right of a word."""


def kept(rewrites: pl.DataFrame, texts: pl.DataFrame) -> pl.DataFrame:
    """Candidate rewrites, of which those proposed that turn a meaning are `meaning_turned`. What serves live users is spared.

    texts: `locale, utterance, intent, served, known`, one row per text; words are learned from those that serve.
    """
    mined = (pl.col("decision") == "proposed") & (pl.col("reason") != "live")
    over = mined & turned(rewrites, turning(serving(texts)))
    decided = {"decision": "rejected", "reason": "meaning_turned"}
    return rewrites.with_columns(pl.when(over).then(pl.lit(v)).otherwise(pl.col(c)).alias(c) for c, v in decided.items())


def serving(texts: pl.DataFrame) -> pl.DataFrame:
    """Those of `texts` that tell what a word means: understood, and serving users who are not new."""
    return texts.filter(pl.col("served") >= SERVES, pl.col("known") > 0, pl.col("intent").is_not_null())


def turning(texts: pl.DataFrame) -> pl.DataFrame:
    """`locale, spaced, a, b, pairs, turned`: exchanges of the words a and b (a < b; a may be empty: b is added or dropped)
    that turn meanings, and by how many twins this is known.

    texts: `locale, utterance, intent, slots` of texts that serve their users, each once; keys (rewrite.text.key). What is a
    value of the text that it stands in is no word.
    """
    spaced = texts.group_by("locale").agg(spaced=pl.col("utterance").str.contains(" ", literal=True).mean() >= SPACED)
    values = pl.col("slots").fill_null("").str.replace_all(r'["{}:,]+', " ")
    texts = texts.select("locale", "utterance", "intent", values=values).join(spaced, on="locale")
    filled = pl.concat([_words(texts.filter("spaced")), _spans(texts.filter(~pl.col("spaced")))])
    rests = texts.select("locale", "intent", rest=pl.col("utterance").hash())
    left_out = filled.select(*_PLACE, "spaced", "rest").unique().join(rests, on=["locale", "rest"])
    filled = pl.concat([filled.drop("rest"), left_out.select(*_PLACE, pl.lit("").alias("word"), "spaced", "intent")])
    filled = filled.filter(pl.len().over(_PLACE).is_between(2, OPEN))
    twins = filled.join(filled.drop("spaced"), on=_PLACE, suffix="_b").filter(pl.col("word") < pl.col("word_b"))
    ends = [pl.col("word").str.slice(at, 1) == pl.col("word_b").str.slice(at, 1) for at in (0, -1)]
    shorter = ~pl.col("spaced") & (pl.col("word") != "") & (ends[0] | ends[1])  # a part of the two spans says the same
    counts = (
        twins.filter(~shorter)
        .group_by("locale", "spaced", a="word", b="word_b")
        .agg(pairs=pl.len().cast(pl.Int64), turned=(pl.col("intent") != pl.col("intent_b")).sum().cast(pl.Int64))
        .sort("locale", "a", "b")
    )
    n, hit = counts["pairs"].to_numpy(), counts["turned"].to_numpy()
    low = special.betaincinv(hit + 0.5, n - hit + 0.5, SURE) if len(n) else np.zeros(0)
    return counts.filter(pl.Series(low > 0.5, dtype=pl.Boolean))


def _words(texts: pl.DataFrame) -> pl.DataFrame:
    """One row per word of texts with spaces: the place (what stands left and right of it), the rest of the text, the word."""
    long = texts.with_columns(w=pl.col("utterance").str.split(" ")).with_columns(n=pl.col("w").list.len())
    long = long.filter(pl.col("n").is_between(2, MAX_WORDS)).with_columns(i=pl.int_ranges(pl.col("n"))).explode("i")
    left, right = pl.col("w").list.head("i"), pl.col("w").list.slice(pl.col("i") + 1)
    return _filled(long, left.list.join(" "), right.list.join(" "), left.list.concat(right).list.join(" "), pl.col("w").list.get("i"))


def _spans(texts: pl.DataFrame) -> pl.DataFrame:
    """The same of texts without spaces, for every span of up to `SPAN` characters."""
    u = pl.col("utterance")
    long = texts.with_columns(n=u.str.len_chars().cast(pl.Int64)).filter(pl.col("n").is_between(2, MAX_CHARS))
    long = long.with_columns(i=pl.int_ranges(pl.col("n")), of=pl.lit(list(range(1, SPAN + 1)))).explode("i").explode("of")
    long = long.filter(pl.col("i") + pl.col("of") <= pl.col("n"), pl.col("of") < pl.col("n"))
    left, right = u.str.slice(0, pl.col("i")), u.str.slice(pl.col("i") + pl.col("of"))
    return _filled(long, left, right, pl.concat_str(left, right), u.str.slice(pl.col("i"), pl.col("of")))


def _filled(long: pl.DataFrame, left: pl.Expr, right: pl.Expr, rest: pl.Expr, word: pl.Expr) -> pl.DataFrame:
    bound = pl.when("spaced").then(pl.lit(" ")).otherwise(pl.lit(""))
    long = long.filter(~pl.col("values").str.contains(pl.concat_str(bound, word, bound), literal=True))
    return long.select(
        "locale", place=pl.struct(left.alias("l"), right.alias("r")).hash(), rest=rest.hash(), word=word, spaced="spaced", intent="intent"
    )


def turned(rewrites: pl.DataFrame, words: pl.DataFrame) -> pl.Series:
    """Boolean per row of `rewrites` (locale, source, target): do its sides differ by a word of `turning`?

    A word that turns on either side ("don't" for "do not") leaves the meaning as it was.
    """
    rows = rewrites.select("locale", "source", "target").with_row_index("row")
    at = words.select("locale", "a", "b", "spaced")
    hit = pl.concat([_by_words(rows, at.filter("spaced")), _by_spans(rows, at.filter(~pl.col("spaced")))])
    alone = pl.col("a") == ""
    sides = hit.group_by("row").agg(
        exchanged=(~alone).any(), source=(alone & pl.col("in_source")).any(), target=(alone & ~pl.col("in_source")).any()
    )
    found = sides.filter(pl.col("exchanged") | (pl.col("source") != pl.col("target"))).select("row", turned=pl.lit(True))
    return rows.join(found, on="row", how="left", maintain_order="left")["turned"].fill_null(False)


def _by_words(rows: pl.DataFrame, words: pl.DataFrame) -> pl.DataFrame:
    """`row, a, b, in_source`: words of either side alone; an exchange has one of them on each side.

    Sides that share fewer words than one of them has alone say it in other words, where "on" may be that of "on monday": there
    nothing was exchanged.
    """
    rows = rows.join(words.select("locale").unique(), on="locale", how="semi")
    s, t = pl.col("source").str.split(" "), pl.col("target").str.split(" ")
    rows = rows.select("row", "locale", s=s.list.set_difference(t), t=t.list.set_difference(s), n=s.list.set_intersection(t).list.len())
    s_long, t_long = (rows.select("row", "locale", w=c).explode("w").drop_nulls("w") for c in ("s", "t"))
    added = words.filter(pl.col("a") == "")
    one = [
        side.join(added, left_on=["locale", "w"], right_on=["locale", "b"]).select("row", "a", b="w", in_source=pl.lit(here))
        for side, here in ((s_long, True), (t_long, False))
    ]
    near = rows.filter(pl.max_horizontal(pl.col("s", "t").list.len()) <= pl.col("n")).select("row")
    pairs = s_long.join(near, on="row", how="semi").join(t_long.drop("locale"), on="row", suffix="_t")
    pairs = pairs.with_columns(a=pl.min_horizontal("w", "w_t"), b=pl.max_horizontal("w", "w_t"), in_source=pl.lit(True))
    return pl.concat([*one, pairs.join(words, on=["locale", "a", "b"], how="semi").select("row", "a", "b", "in_source")])


def _by_spans(rows: pl.DataFrame, words: pl.DataFrame) -> pl.DataFrame:
    """The same for texts without spaces."""
    has = {f"{w}_{side[0]}": pl.col(side).str.contains(pl.col(w), literal=True) for w in ("a", "b") for side in ("source", "target")}
    both = rows.join(words, on="locale").with_columns(**has)
    added = (pl.col("a") == "") & (pl.col("b_s") != pl.col("b_t"))
    a_there = pl.col("a_s") & ~pl.col("a_t") & pl.col("b_t") & ~pl.col("b_s")
    b_there = pl.col("b_s") & ~pl.col("b_t") & pl.col("a_t") & ~pl.col("a_s")
    kept = both.filter(added | ((pl.col("a") != "") & (a_there | b_there)))
    return kept.select("row", "a", "b", in_source="b_s")
