"""Words that turn meanings, learned without a list; the one rewrite that adds, drops or exchanges one is dropped."""

from __future__ import annotations

import polars as pl
import pytest
from test_evidence import Log, failing, mine, row

from rewrite.meaning import kept, serving, turned, turning

ADDED = {
    "en-US": ("{}", "don't {}", ["wake me up", "play jazz", "call anna", "buy milk"]),
    "sw-KE": ("{}", "{} hapana", ["niamshe sasa", "cheza muziki", "piga simu", "nunua maziwa"]),
    "ja-JP": ("{}", "{}ないで", ["起こさ", "流さ", "話さ", "買わ"]),
}
EXCHANGED = {
    "hi-IN": ("{} चालू करें", "{} बंद करें", ["प्लग", "लाइट", "पंखा", "कृपया हीटर"]),
    "zh-CN": ("{}打开", "{}关上", ["电灯", "窗户", "空调", "收音机"]),
}
TEXT = {"served": 0.9, "known": 5, "slots": None}


def texts(locale: str, plain: str, other: str, things: list[str], filler: str = "") -> pl.DataFrame:
    rows = [{"locale": locale, "utterance": f.format(t), "intent": i} for t in things for i, f in (("do", plain), ("do_not", other))]
    rows += [{"locale": locale, "utterance": f"{filler}{t}", "intent": "do"} for t in things if filler]
    return pl.DataFrame([r | TEXT for r in rows])


def judged(locale: str, words: pl.DataFrame, *pairs: tuple[str, str]) -> list[bool]:
    return turned(pl.DataFrame([{"locale": locale, "source": s, "target": t} for s, t in pairs]), words).to_list()


@pytest.mark.parametrize("locale", ADDED)
def test_a_word_that_is_added(locale: str) -> None:
    _, negated, _ = ADDED[locale]
    filler = "alexa " if locale != "ja-JP" else "ねえ"
    words = turning(texts(locale, *ADDED[locale], filler=filler))
    found = set(words.filter(pl.col("a") == "")["b"])
    assert negated.format("").strip() in found and not found & {filler, filler.strip()}, "a filler turns nothing"
    x, other = ("zz yy", "nn mm") if locale != "ja-JP" else ("ざざ", "ねね")
    pairs = [(negated.format(x), x), (x, negated.format(x)), (f"{filler}{x}", x), (negated.format(x), negated.format(other))]
    assert judged(locale, words, *pairs) == [True, True, False, False]
    assert judged("fr-FR", words, (negated.format(x), x)) == [False], "another language has words of its own"


@pytest.mark.parametrize("locale", EXCHANGED)
def test_words_that_are_exchanged(locale: str) -> None:
    on, off, _ = EXCHANGED[locale]
    words = turning(texts(locale, *EXCHANGED[locale]))
    assert words.filter(pl.col("a") != "").height and words["turned"].min() >= 3
    assert judged(locale, words, (on.format("x"), off.format("x")), (off.format("x"), on.format("x"))) == [True, True]
    assert judged(locale, words, (on.format("x"), on.format("y")), (on.format("x"), "x"), ("x", "y")) == [False] * 3


def test_another_word_of_the_same_form_is_no_exchange() -> None:
    words = turning(texts("en-US", "{} on", "{} off", ["the plug", "the fan", "my lamp", "her radio"]))
    near = [("turn the lights off", "turn on the lights"), ("the tv off please", "the tv on")]
    far = [("turn off the six am alarm for tuesday", "i need to delete the alarm for church on tuesday at six am")]
    assert judged("en-US", words, *near, *far) == [True, True, False]


def test_two_words_for_no_are_one_meaning() -> None:
    things = ["wake me up", "play jazz", "call anna", "buy milk"]
    words = turning(pl.concat([texts("en-US", "{}", "don't {}", things), texts("en-US", "{}", "never {}", things)]).unique())
    assert judged("en-US", words, ("don't do it", "never do it"), ("don't do it", "do it now")) == [False, True]


def test_a_few_wrong_readings_and_values_turn_nothing() -> None:
    few = texts("en-US", "{}", "don't {}", ["wake me up", "play jazz"])
    assert turning(few).is_empty(), "two may well be wrong labels"
    often = texts("en-US", "{}", "{} now", [f"play song{n}" for n in range(9)]).with_columns(
        intent=pl.when(pl.col("utterance").str.contains("song[0-3] now")).then(pl.lit("other")).otherwise(pl.lit("do"))
    )
    assert turning(often).is_empty(), "less than half of its twins"
    slot = pl.DataFrame([{"locale": "en-US", "utterance": f"call n{n}", "intent": f"i{n}"} | TEXT for n in range(60)])
    assert turning(slot).is_empty(), "what fills an open place is a value"
    heard = texts("en-US", "get me a taxi to {}", "get me a tgi to {}", ["my house", "the mall", "work", "the station"])
    assert turning(heard).height == 1
    value = pl.when(pl.col("utterance").str.contains("tgi")).then(pl.lit('{"place":"the tgi"}')).alias("slots")
    assert turning(heard.with_columns(value)).is_empty(), "a value is no word"
    untaught = pl.concat(
        [few.with_columns(served=0.3), few.with_columns(known=pl.lit(0, pl.Int64)), few.with_columns(intent=pl.lit(None, pl.String))]
    )
    assert serving(untaught).is_empty() and turning(serving(untaught)).is_empty()


def test_long_and_empty_input() -> None:
    none = texts("en-US", "{}", "no {}", ["a b"]).clear()
    assert turning(none).is_empty() and turned(pl.DataFrame(schema={"locale": str, "source": str, "target": str}), turning(none)).is_empty()
    long = texts("en-US", "{}", "no {}", [f"{n} " + "very " * 40 + "long" for n in range(5)])
    assert turning(long).is_empty()


def twins() -> Log:
    """Users of `lights of` go on to `lights off`; "off" against "on" is known from other things."""
    log = failing(source="kitchen lights on please", target="kitchen lights off")
    for thing in ("the fan", "my heater", "the radio", "the plug"):
        for u in range(3):
            log.says(f"{thing}{u}", f"{thing} on", 0.95, "start").says(f"{thing}{u}", f"{thing} off", 0.95, "stop")
    return log


def test_one_rewrite_is_dropped_and_the_others_stay() -> None:
    log = twins()
    for i in range(6):
        log.retry(f"x{i}", "kitchen lights of", "kitchen lights off")
    found = mine(log).rewrites
    assert row(found, source="kitchen lights on please", target="kitchen lights off")["reason"] == "meaning_turned"
    assert row(found, source="kitchen lights of", target="kitchen lights off")["decision"] == "proposed"
    untaught = mine(failing(source="kitchen lights on please", target="kitchen lights off")).rewrites
    assert row(untaught, source="kitchen lights on please")["decision"] == "proposed", "the users' votes alone would have let it pass"


def test_what_serves_live_users_is_spared() -> None:
    rows = [{"locale": "hi-IN", "source": "x चालू करें", "target": "x बंद करें", "decision": "proposed", "reason": r} for r in ("live", "goal")]
    found = kept(pl.DataFrame(rows), texts("hi-IN", *EXCHANGED["hi-IN"]))
    assert found.select("decision", "reason").rows() == [("proposed", "live"), ("rejected", "meaning_turned")]
