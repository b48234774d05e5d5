"""Candidate labels and training pairs."""

from __future__ import annotations

import polars as pl
import pytest
from test_evidence import NO_GOALS, Log, background, failing, mine, row

from rewrite import contracts, majority
from rewrite.evidence import Candidates, Options, bucket_evidence, merge_evidence
from rewrite.pool import build


def test_a_served_text_keeps_its_own_interpretation() -> None:
    found = row(mine(failing()).labels, utterance="lights off")
    assert (found["intent"], found["origin"], found["decision"], found["slots"]) == ("lights", "own", "proposed", "{}")
    assert found["confidence"] > 0.85 and found["confidence"] == found["sample_weight"]


def test_a_failed_text_is_labelled_by_what_served_its_users() -> None:
    found = row(mine(failing(users=9)).labels, utterance="lights of")
    assert (found["intent"], found["origin"], found["decision"]) == ("lights", "projected", "proposed")
    assert found["majority_intent"] == "lights" and found["served"] < 0.3


def test_who_gave_up_on_the_same_meaning_is_no_witness() -> None:
    log = background(Log())
    for i in range(8):  # understood as before, and left at that
        log.says(f"u{i}", "vacuum the room", 0.05, "calendar_set").says(f"u{i}", "let the robot do the room", 0.9, "calendar_set")
        log.asks(f"u{i}", "vacuum the room", "let the robot do the room")
    for i in range(3):
        log.retry(f"v{i}", "vacuum the room", "start the vacuum cleaner", "cleaning").says(
            f"w{i}", "start the vacuum cleaner", 0.95, "cleaning"
        )
    said = row(mine(log).labels, utterance="vacuum the room")
    assert (said["intent"], said["origin"]) == ("cleaning", "projected")


def test_a_goal_speaks_where_nobody_asked_again() -> None:
    log = failing()
    for i in range(5):
        log.says(f"q{i}", "turn them lights off", 0.05, None)
    found = row(mine(log, goals_of(("turn them lights off", "lights off"))).labels, utterance="turn them lights off")
    assert (found["intent"], found["origin"]) == ("lights", "goal")
    assert found["decision"] == "rejected"  # content alone does not release


def test_unsure_and_below_k_are_kept_with_reasons() -> None:
    log = background(Log())
    for i in range(5):
        log.says(f"u{i}", "hm", 0.05, "wrong").says(f"u{i % 2}", "rare", 0.95, "music")
    found = mine(log).labels
    assert row(found, utterance="hm")["reason"] == "unsure"
    assert row(found, utterance="rare")["reason"] == "below_k"


def goals_of(*groups: tuple[str, ...]) -> pl.DataFrame:
    rows = [
        {"locale": "en-US", "utterance": u, "goal_id": f"g{i}", "membership": 1.0, "users": 5, "is_exemplar": False}
        for i, group in enumerate(groups)
        for u in group
    ]
    return pl.DataFrame(rows, schema=pl.DataFrame(contracts.GOALS.empty_table()).schema)


def pairs_log() -> Log:
    log = background(Log())
    for i in range(5):
        log.says(f"a{i}", "lights off please", 0.95, "off").says(f"b{i}", "switch off the light", 0.95, "off")
        log.says(f"c{i}", "lights on please", 0.95, "on").says(f"d{i}", "lights off please 5", 0.95, "off", '{"room":"5"}')
        log.says(f"e{i % 2}", "lights out", 0.95, "off")
    return log


def test_pairs_mean_the_same_and_negatives_look_alike() -> None:
    goals = goals_of(("lights off please", "switch off the light", "lights out"), ("lights on please",), ("lights off please 5",))
    found = mine(pairs_log(), goals).pairs.filter(pl.col("decision") == "proposed")
    assert {tuple(r) for r in found.select("anchor", "positive").rows()} == {("lights off please", "switch off the light")}
    origins = dict(found.select("negative", "negative_origin").rows())
    assert origins == {"lights on please": "other_intent", "lights off please 5": "other_value"}
    strings = set(found["anchor"]) | set(found["positive"]) | set(found["negative"])
    assert "lights out" not in strings  # two users only


@pytest.mark.parametrize("most", [1, 3])
def test_pairs_per_goal_are_bounded(most: int) -> None:
    log = background(Log())
    words = [f"lights {a} {b}" for a in ("off", "out", "down") for b in ("please", "now", "here")]
    for w in words:
        for i in range(4):
            log.says(f"{w}{i}", w, 0.95, "off").says(f"{w}{i}", "lights on", 0.95, "on")
    found = mine(log, goals_of(tuple(words)), pairs_per_goal=most).pairs.filter(pl.col("decision") == "proposed")
    assert found.select("anchor", "positive").unique().height == most


def many_failing() -> Log:
    log = background(Log())
    for n in range(25):
        for i in range(8):
            log.retry(f"u{i}", f"lights of {n}", f"lights off {n}")
    return log


def test_held_out_users_side_with_the_vote_or_against_it() -> None:
    pool = build(merge_evidence([bucket_evidence(many_failing().votes())]), NO_GOALS, Options())
    wrong = majority.contest(pool, lambda half: majority.votes(half).select("id", intent=pl.lit("wrong")), 3).row(0, named=True)
    assert wrong["vote_wins"] and wrong["texts"] >= 25 and wrong["lead"] < -0.5
    right = majority.contest(pool, lambda half: majority.votes(half).select("id", intent="majority_intent"), 3)
    assert right.is_empty()  # they never disagree


def test_the_vote_takes_over_where_it_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    log = many_failing()
    for n in range(25):
        for i in range(30):
            log.says(f"w{i}", f"lights of {n}", 0.3, "wrong")
    assert set(failed(mine(log))["intent"]) == {"lights"}
    found = pl.DataFrame({"locale": ["en-US"], "vote_wins": [True]})
    monkeypatch.setattr(majority, "contest", lambda *_: found)
    taken = failed(mine(log))
    assert taken["intent"].equals(taken["majority_intent"].rename("intent")) and set(taken["intent"]) == {"wrong"}
    assert taken["confidence"].equals(taken["majority_share"].rename("confidence"))


def failed(found: Candidates) -> pl.DataFrame:
    return found.labels.filter(pl.col("utterance").str.starts_with("lights of "))


def test_slots_of_a_projected_label_are_words_of_its_text() -> None:
    log = background(Log())
    for i in range(9):
        log.retry(f"u{i}", "play elton jon", "play elton john", "music", slots='{"artist":"elton john"}')
    found = row(mine(log).labels, utterance="play elton jon")
    assert (found["intent"], found["origin"], found["slots"]) == ("music", "projected", '{"artist":"elton jon"}')
    assert row(mine(log).labels, utterance="play elton john")["slots"] == '{"artist":"elton john"}'


def test_a_language_without_intents_is_labelled_by_goals_of_another() -> None:
    log = failing()
    for i in range(6):
        log.says(f"s{i}", "zima taa", 0.95, None, locale="sw-KE").says(f"s{i}", "habari gani", 0.95, None, locale="sw-KE")
    shared = pl.concat([goals_of(("lights off", "zima taa")), goals_of(("lights off", "zima taa")).with_columns(locale=pl.lit("sw-KE"))])
    shared = shared.filter((pl.col("utterance") == "zima taa") == (pl.col("locale") == "sw-KE"))
    found = mine(log, shared).labels.filter(pl.col("locale") == "sw-KE")
    said = row(found, utterance="zima taa")
    assert (said["intent"], said["origin"], said["decision"], said["slots"], said["majority_intent"]) == (
        "lights",
        "goal",
        "proposed",
        None,
        None,
    )
    assert said["confidence"] == pytest.approx(0.85)
    assert "habari gani" not in set(found["utterance"])  # of no shared goal
    log.says("s9", "habari gani", 0.95, "weather", locale="sw-KE")  # it has intents of its own now: they speak
    assert "zima taa" not in set(
        mine(log, shared).labels.filter(pl.col("locale") == "sw-KE", pl.col("decision") == "proposed")["utterance"]
    )


def test_positives_across_languages_and_no_text_with_itself() -> None:
    log = background(Log())
    texts = {"en-US": ["lights off", "switch off the light", "lamp off", "ok"], "de-DE": ["licht aus", "lampe aus", "ok"]}
    for locale, said in texts.items():
        for i, text in enumerate(said):
            for u in range(4):
                log.says(f"{locale}{i}{u}", text, 0.95, "off", locale=locale).says(
                    f"{locale}{i}{u}", f"{text} not", 0.95, "on", locale=locale
                )
    rows = [
        {"locale": lo, "utterance": u, "goal_id": "g", "membership": 1.0, "users": 4, "is_exemplar": False}
        for lo, t in texts.items()
        for u in t
    ]
    goals = pl.DataFrame(rows, schema=pl.DataFrame(contracts.GOALS.empty_table()).schema)
    found = mine(log, goals).pairs.filter(pl.col("decision") == "proposed")
    across = found.filter(pl.col("locale_anchor") != pl.col("locale_positive"))
    assert across.select("anchor", "positive").unique().height == 11  # 4 x 3, less ok - ok
    assert found.height > across.height and not (found["anchor"] == found["positive"]).any()
    few = mine(log, goals, pairs_per_goal=1).pairs.filter(pl.col("decision") == "proposed", pl.col("goal_id") == "g")
    assert set(few["locale_anchor"]) != set(few["locale_positive"])  # locales take turns
    said_there = {(lo, n) for lo, n in found.select("locale_anchor", "negative").rows()}
    assert said_there and all(n.removesuffix(" not") in texts[lo] for lo, n in said_there)  # negatives are the anchor's locale's
