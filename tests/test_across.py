"""Goals across languages: the right ones meet, wrong ones do not, and nothing moves inside a locale."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from pipelines import models
from pipelines.embed import Current
from pipelines.link import untaught
from rewrite.across import join_locales, meaning_name
from rewrite.goals import build_goals

LINKS = {"locale": pl.String, "source": pl.String, "target": pl.String, "users": pl.Int64, "weight": pl.Float64}
SERVED = {"locale": pl.String, "utterance": pl.String, "intent": pl.String, "slots": pl.String, "users": pl.Int64, "weight": pl.Float64}
TOPICS = 300
MEANINGS = [f"m{i}" for i in range(TOPICS)] * 2


def two_languages(noise=0.15, seed=0):
    """One wording of each topic in two locales that lie apart in the model's space, `noise` away from each other."""
    rng = np.random.default_rng(seed)
    topics = rng.normal(size=(TOPICS, 32))
    vectors = np.concatenate([topics + noise * rng.normal(size=topics.shape) + 3 * np.eye(32)[side] for side in (0, 1)])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    locale = np.array(["de"] * TOPICS + ["en"] * TOPICS, dtype=object)
    return locale, np.arange(2 * TOPICS), np.full(2 * TOPICS, 3), vectors.astype(np.float32)


def joined(result):
    cluster, _ = result
    return [(int(a), int(b) - TOPICS) for b, a in enumerate(cluster) if b >= TOPICS and a != b]


def test_the_same_topics_meet():
    found = joined(join_locales(*two_languages(), ["m"] * 600, MEANINGS))
    assert len(found) > 0.9 * TOPICS
    assert all(a == b for a, b in found)


def test_other_models_and_unrelated_texts_do_not_meet():
    locale, cluster, weight, vectors = two_languages()
    assert joined(join_locales(locale, cluster, weight, vectors, ["m"] * 300 + ["n"] * 300, MEANINGS)) == []
    noise = np.random.default_rng(1).normal(size=vectors.shape).astype(np.float32)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    assert len(joined(join_locales(locale, cluster, weight, noise, ["m"] * 600, MEANINGS))) < 0.05 * TOPICS
    assert joined(join_locales(locale, cluster, weight, 0 * vectors, ["m"] * 600, MEANINGS)) == []


def test_what_was_served_something_else_does_not_meet():
    meanings = [f"m{i}" for i in range(TOPICS)] + [f"m{i}" if i % 8 else "other" for i in range(TOPICS)]
    found = joined(join_locales(*two_languages(), ["m"] * 600, meanings))
    assert found
    assert all(a == b and a % 8 for a, b in found)


def test_without_anything_served_no_locales_meet():
    assert joined(join_locales(*two_languages(), ["m"] * 600, [None] * 600)) == []


def test_a_goal_holds_one_cluster_of_a_locale_at_most():
    """Three locales, two clusters of the first near to one of the second: never the two of one locale in one goal."""
    locale, _, _, vectors = two_languages(noise=0.6)
    third = np.array(["ja"] * TOPICS, dtype=object)
    order = np.concatenate([locale, third])
    more = np.concatenate([vectors, vectors[np.random.default_rng(2).permutation(TOPICS)]])
    got, links = join_locales(order, np.arange(900), np.full(900, 3), more, ["m"] * 900, MEANINGS + MEANINGS[:TOPICS])
    held = pl.DataFrame({"goal": got, "locale": order.astype(str)}).group_by("goal", "locale").len()
    assert held["len"].max() == 1
    assert (links["i"] < links["j"]).all()


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        (("on", '{"room":"küche"}'), ("on", '{"room":"kitchen"}'), True),
        (("on", '{"room":"kitchen"}'), ("off", '{"room":"kitchen"}'), False),
        (("alarm", '{"time":"7 uhr"}'), ("alarm", '{"time":"８ o\'clock"}'), False),
        (("alarm", '{"time":"7 uhr"}'), ("alarm", '{"time":"７時"}'), True),
        (("alarm", "{}"), ("alarm", '{"time":"7"}'), False),
    ],
)
def test_meanings_without_words(one, two, same):
    assert (meaning_name(*one) == meaning_name(*two)) is same


def test_nothing_moves_inside_a_locale():
    locale, _, _, vectors = two_languages()
    texts = pl.DataFrame(
        {"locale": locale.astype(str), "utterance": [f"{x} text {chr(97 + i // 26)}{chr(97 + i % 26)}" for i, x in enumerate(locale)]}
    )
    texts = texts.with_columns(users=pl.lit(3), served=pl.lit(None, pl.Float64))
    texts = texts.with_columns(served=pl.lit(0.9))
    links = pl.DataFrame(schema=LINKS)
    said = texts.with_columns(intent=pl.Series(MEANINGS), slots=pl.lit('{"a":"b"}'), weight=pl.lit(3.0))
    served = said.select(list(SERVED))
    whole = build_goals(texts, vectors, links, served)
    rows = np.random.default_rng(5).permutation(len(texts))
    assert build_goals(texts[rows], vectors[rows], links, served).goals.equals(whole.goals)
    both = whole.goals.group_by("goal_id").agg(pl.col("locale").n_unique())
    assert (both["locale"] == 2).sum() > 0.8 * TOPICS
    assert whole.goals.group_by("goal_id").agg(pl.col("is_exemplar").sum())["is_exemplar"].unique().to_list() == [1]
    across = whole.edges.filter(pl.col("locale_a") != pl.col("locale_b"))
    assert across["probability"].min() >= 0.7
    for side in ("de", "en"):
        own = build_goals(texts.filter(locale=side), vectors[locale == side], links, served).goals
        mine = whole.goals.filter(locale=side)
        pairs = own.select("utterance", a="goal_id").join(mine.select("utterance", b="goal_id"), on="utterance")
        assert pairs["a"].n_unique() == pairs["b"].n_unique() == pairs.select("a", "b").unique().height


def test_a_language_just_launched_meets_by_its_wordings():
    """The second locale has no intents, but two wordings of each topic that agree on what they are near to."""
    locale, _, _, vectors = two_languages()
    _, _, _, again = two_languages(seed=0, noise=0.2)
    order = np.concatenate([locale, np.array(["en"] * TOPICS, dtype=object)])
    cluster = np.concatenate([np.arange(2 * TOPICS), np.arange(TOPICS, 2 * TOPICS)])
    known = [f"m{i}" for i in range(TOPICS)] + [None] * (2 * TOPICS)

    def meet(second: np.ndarray, untaught: tuple[str, ...] = ()) -> list[tuple[int, int]]:
        every = np.concatenate([vectors, second])
        got, links = join_locales(order, cluster, np.full(900, 3), every, ["m"] * 900, known, untaught=untaught)
        assert (links["probability"] >= 0.7).all()
        return [(int(a), b) for b, a in enumerate(got[TOPICS : 2 * TOPICS]) if a < TOPICS]

    found = meet(again[TOPICS:])
    assert len(found) > TOPICS / 2 and np.mean([a == b for a, b in found]) > 0.95
    assert meet(again[TOPICS:], ("en",)) == [], "its model cannot read it: what its wordings agree on may be names alone"
    noise = np.random.default_rng(5).normal(size=(TOPICS, 32)).astype(np.float32)
    assert meet(noise / np.linalg.norm(noise, axis=1, keepdims=True)) == []  # wordings that agree on nothing


def test_which_locales_a_model_was_not_taught():
    have = Current(models.AUTO, "", {}, {"sw-KE": {"model": models.FAST}, "hi-IN": {"model": models.WIDE}, "ja-JP": {"model": models.FAST}})
    assert untaught(have, ["hi-IN", "ja-JP", "sw-KE"]) == ["sw-KE"]
    assert untaught(Current(models.FAST, "", {}, {}), ["fi-FI", "pt-BR", "und"]) == ["fi-FI"]
    assert untaught(Current("a/model", "", {}, {}), ["fi-FI"]) == [] == untaught(None, ["fi-FI"])
