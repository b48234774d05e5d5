"""News, work list, effect of releases: what the report shows of the votes of a window."""

from __future__ import annotations

import json
from datetime import date, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from release_lake import make
from test_report import Page, browse, whole

from pipelines import registry, watch
from pipelines.engine import conform
from pipelines.store import Manifest, Store
from quality.measures import movers
from quality.report import render_report
from rewrite import effect, news, trust
from rewrite.contracts import VOTES

DAY = date(2026, 3, 1)


def votes(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Outcome votes with what a row leaves out filled in."""
    types = pl.DataFrame(VOTES.empty_table()).schema | {"date": pl.Date}
    base = dict.fromkeys(types) | {
        "locale": "en-US",
        "kind": "outcome",
        "treatment": "untouched",
        "value": 1.0,
        "events": 1,
        "date": DAY,
    }
    return pl.DataFrame([base | r for r in rows], schema=types, orient="row")


def crowd(text: str, users: range, day: int, value: float = 1.0, **more: Any) -> list[dict[str, Any]]:
    return [{"user_key": f"u{n}", "source": text, "value": value, "date": DAY + timedelta(days=day), **more} for n in users]


def fortnight(**more: Any) -> list[dict[str, Any]]:
    """Ten days on which the same is said every day, and it is served."""
    return [r for d in range(10) for text in ("play jazz", "light on") for r in crowd(text, range(20 * d, 20 * d + 20), d, **more)]


def test_words_in_any_script() -> None:
    found = news.words(pl.Series(["don't play 'jazz'", "現在の曲", "नमस्ते दुनिया", "5 ok!", "?!"]))
    by = {t: sorted(w["word"]) for (t,), w in found.partition_by("text", as_dict=True).items()}
    assert by == {
        "don't play 'jazz'": ["don't", "jazz", "play"],
        "現在の曲": ["の曲", "在の", "現在"],
        "नमस्ते दुनिया": ["दुनिया", "नमस्ते"],
        "5 ok!": ["ok"],
    }


def test_what_comes_up_is_news_and_the_daily_round_is_none() -> None:
    rows = fortnight() + crowd("play zorp radio", range(300, 315), 9) + crowd("play rare thing", range(2), 9)
    counts = news.tally(votes(rows), DAY + timedelta(days=8))
    words = news.growing(counts, "words", 3)
    assert words["text"].to_list() == ["radio", "zorp"] and words["late"].to_list() == [15, 15] and words["factor"].null_count() == 2
    assert news.growing(counts, "texts", 3).is_empty(), "nothing fails"
    broken = fortnight() + crowd("light on", range(400, 430), 9, value=0.1)
    grown = news.growing(news.tally(votes(broken), DAY + timedelta(days=8)), "texts", 3)
    assert grown.select("text", "early", "late").rows() == [("light on", 0, 30)]


def test_one_loud_user_and_personal_data_make_no_news() -> None:
    rows = fortnight() + [r for _ in range(50) for r in crowd("buy zorp now", range(1), 9)] + crowd("mail <mail> today", range(300, 330), 9)
    assert news.growing(news.tally(votes(rows), DAY + timedelta(days=8)), "words", 3).is_empty()


@settings(max_examples=5)
@given(st.randoms(use_true_random=False))
def test_row_order_changes_nothing(random: Any) -> None:
    rows = fortnight() + crowd("play zorp", range(300, 320), 9, value=0.2)
    mixed = random.sample(rows, len(rows))
    one, two = (news.tally(votes(r), DAY + timedelta(days=8)) for r in (rows, mixed))
    assert all(one[n].equals(two[n]) for n in one)


def test_failing_texts_are_those_that_fail_most_of_their_users() -> None:
    rows = (
        crowd("a", range(10), 0, 0.0)
        + crowd("b", range(2), 0, 0.0)
        + crowd("c", range(10), 0)
        + crowd("d", range(9), 0, 0.0, treatment="rewritten")
    )
    found = news.failing(news.tally(votes(rows), DAY), 3)
    assert found.rows() == [("en-US", "a", 10, 10)]


def release(**more: Any) -> tuple[pl.DataFrame, pl.DataFrame]:
    rewrites = pl.DataFrame({"locale": ["en-US"], "source": ["bad"], "target": ["good"]})
    labels = pl.DataFrame({"locale": ["en-US"] * 2, "utterance": ["meant", "fine"], "origin": ["projected", "own"]})
    return rewrites, labels


def test_a_release_is_held_to_texts_that_it_did_not_touch() -> None:
    rows: list[dict[str, Any]] = []
    for text, before, after in (("bad", 0.1, 0.9), ("meant", 0.2, 0.7), ("fine", 0.9, 0.9), ("else", 0.5, 0.6)):
        rows += crowd(text, range(40), 0, before, assistant_version="v1") + crowd(text, range(40, 80), 5, after, assistant_version="v2")
    rows += crowd("bad", range(90, 99), 5, 0.0, assistant_version="v1")  # the old one, on a day of the new one: on no side
    table = votes(rows)
    assert dict(effect.versions(table).iter_rows()) == {"v1": DAY, "v2": DAY + timedelta(days=5)}
    found = {r["group"]: r for r in effect.compare(effect.tally(table, "v2", DAY + timedelta(days=5)), *release(), 3)}
    assert found["corrected"]["texts"] == 2 and found["corrected"]["change"] == pytest.approx(-0.65)
    assert found["confirmed"]["change"] == 0 and found["untouched"]["change"] == pytest.approx(-0.1)
    assert effect.compare(effect.tally(table, "v3", DAY), *release(), 3) == []


def test_before_and_after_are_the_same_texts_in_the_same_mix() -> None:
    """After, people say the easy text more often; neither text changed."""
    rows = crowd("hard", range(50), 0, 0.2) + crowd("easy", range(10), 0, 0.9) + crowd("gone", range(30), 0, 0.0)
    rows += crowd("hard", range(50, 60), 5, 0.2, assistant_version="v2") + crowd("easy", range(50, 90), 5, 0.9, assistant_version="v2")
    (row,) = effect.compare(effect.tally(votes(rows), "v2", DAY + timedelta(days=5)), *release(), 3)
    assert row["change"] == 0 and row["texts"] == 2 and row["error"] < 0.05


def lake(tmp_path: Any, rows: list[dict[str, Any]]) -> tuple[Store, list[str]]:
    store, ids = make(tmp_path / "lake", 1)
    table = votes(rows)
    for (day,), part in table.partition_by("date", as_dict=True).items():
        entry = store.attempt("t", "votes", f"date={day}", conform(part.drop("date"), VOTES), 0)
        store.publish("t", Manifest("votes", f"date={day}", "test", "f", (entry,)))
    return store, ids


def seen(store: Store, **more: Any) -> dict[str, Any]:
    return watch.gather(store, list(store.manifests("votes").values()), more, trust.Rules(), 3, 1e-5)


def test_the_report_shows_it_all(tmp_path: Any) -> None:
    old = [r for d in range(5) for r in crowd("turn on the lite", range(20 * d, 20 * d + 20), d, 0.1, assistant_version="v1")]
    new = [r for d in range(5, 10) for r in crowd("turn on the lite", range(20 * d, 20 * d + 20), d, 0.9, assistant_version="v2")]
    other = [
        r
        for d in range(10)
        for v in [{"assistant_version": "v2" if d > 4 else "v1"}]
        for r in crowd("be quiet", range(20 * d, 20 * d + 20), d, 0.3, **v)
    ]
    store, ids = lake(tmp_path, old + new + other + crowd("zorp <b>", range(500, 520), 9, 0.0))
    before = seen(store)
    assert before["effect"] == [], "nobody acknowledged anything"
    registry.record(store, ids[0], "ack", assistant_version="v2")
    store.put(
        watch.SIEGE,
        json.dumps(
            [{"kind": "loud", "size": n, "attacks": 9, "released": 0, "undefended": n, "rewrites_now": 1.0} for n in (3, 9)]
        ).encode(),
    )
    found = seen(store)
    (version,) = found["effect"]
    assert version["release_id"] == ids[0] and {r["group"]: round(r["change"], 2) for r in version["rows"]} == {
        "corrected": -0.8,
        "untouched": 0.0,
    }
    assert [w["text"] for w in found["words"]] == ["b", "zorp"] and [w["text"] for w in found["work"]] == [
        "be quiet",
        "turn on the lite",
        "zorp <b>",
    ]
    assert found["coverage"] == [{"locale": "en-US", "labelled": 0.0, "rewritten": 0.0}] and len(found["daily"]) == 10
    data, _ = whole()
    data.watch = json.loads(json.dumps(found)) | {
        "scrubbed": {"mail": 7},
        "movers": [{"locale": "en-US", "intent": "<i>", "before": 0.1, "now": 0.2, "psi": 0.1}],
    }
    text = render_report(data)
    page = Page(text)
    for said in [
        "80.0 points fewer",
        "v2, trained on",
        "Coverage",
        "Drift",
        "accounts with votes",
        "mail scrubbed",
        "Siege",
    ]:
        assert said in page.text, said
    assert (
        "no other wording of it is known" in text
        and page.tables["work"]["rows"][2][1] == "zorp <b>"
        and "<i>" not in text
        and text.count("<svg") >= 3
    )
    registry.retract(store, ids[0], "bad")
    assert seen(store)["effect"] == []


def test_hidden_below_k_and_without_votes(tmp_path: Any) -> None:
    store, _ = lake(tmp_path, crowd("my secret word", range(2), 0, 0.0) + crowd("play", range(9), 0) + crowd("play", range(9), 1))
    assert "secret" not in json.dumps(seen(store))
    assert watch.gather(store, [], {}, trust.Rules(), 3, 1e-5) == {}


def test_movers_are_the_classes_that_moved() -> None:
    def labels(**n: int) -> pl.DataFrame:
        return pl.DataFrame([("en-US", i) for i, c in n.items() for _ in range(c)], schema=["locale", "intent"], orient="row")

    found = movers(labels(a=10, b=30, c=20), labels(a=30, b=10, c=20))
    assert [r["intent"] for r in found] == ["a", "b"] and found[0]["before"] == 0.5 and movers(labels(a=5), labels(b=5)) == []


def test_in_a_browser(chromium: str, tmp_path: Any) -> None:
    rows = fortnight(assistant_version="v1") + crowd("zorp", range(500, 520), 9, 0.0)
    store, _ = lake(tmp_path, rows)
    data, _ = whole()
    data.watch = seen(store)
    dom = browse(chromium, tmp_path, render_report(data))
    assert "1 of 1 rows" in dom and 'id="work"' in dom
