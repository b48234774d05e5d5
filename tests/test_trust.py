"""Who is believed: new accounts, copies and bursts teach nothing; honest users lose nothing by it; rings get nothing."""

from __future__ import annotations

import datetime as dt

import polars as pl
import pytest
from test_evidence import Log

from pipelines.link import goal_inputs
from pipelines.simulate.rings import KINDS, rings
from rewrite import trust
from rewrite.contracts import GOALS, LOG
from rewrite.evidence import Options, bucket_evidence, candidates, merge_evidence


def honest(users: int = 40, texts: int = 8) -> Log:
    """Users with histories of their own: some texts of their own, some that many say, one pair of asking again."""
    log = Log()
    for u in range(users):
        for t in range(texts):
            log.says(f"h{u}", f"own {u} {t}" if t % 2 else f"common {(u * t) % 11}", 0.95, "i")
        log.retry(f"h{u}", "lights of", "lights off")
    return log


def judged(log: Log, rules: trust.Rules | None = None) -> tuple[trust.Trust, pl.DataFrame]:
    votes = log.votes()
    parts = [votes.filter(pl.col("user_key").hash() % 3 == b) for b in range(3)]
    learned = trust.learn([trust.sketch(p) for p in parts], rules)
    return learned, pl.concat([trust.judge(p, learned) for p in parts]).sort("user_key")


def test_new_accounts_and_accounts_for_pairs_link_nothing() -> None:
    log = honest()
    log.retry("quiet", "play jazz", "open shop")
    for r in range(3):
        log.retry("pairs", f"source {r}", f"target {r}")
    log.says("newcomer", "own thing", 0.95, "i")
    learned, users = judged(log)
    assert learned.least_texts == 4
    assert set(users.filter(~pl.col("known"))["user_key"]) == {"quiet", "pairs", "newcomer"}
    asks = bucket_evidence(log.votes(), learned)["asks"]
    assert set(asks["source"]) == {"lights of"}
    texts = bucket_evidence(log.votes(), learned)["texts"].filter(utterance="open shop")
    assert texts.select("users", "known").row(0) == (1, 0), "who said a text still counts for privacy"


def test_what_new_accounts_alone_say_is_nobody_s() -> None:
    """A ring's own text is said by k accounts, understood and served: still no label, no goal, no text that k share."""
    log = honest()
    for r in range(6):
        log.retry(f"ring{r}", "play jazz", "open shop")
    learned, _ = judged(log)
    found = merge_evidence([bucket_evidence(log.votes(), learned)])
    goals = pl.DataFrame(GOALS.empty_table())
    mined = candidates(found, goals, as_of=dt.date(2026, 2, 1))
    labels = mined.labels.filter(utterance="open shop").select("decision", "reason", "users").rows()
    assert labels == [("rejected", "below_k", 0)] and "open shop" not in mined.pairs.filter(decision="proposed")["anchor"].to_list()
    assert mined.labels.filter(utterance="lights off")["decision"].to_list() == ["proposed"]
    texts, _, _ = goal_inputs(found, Options())
    assert texts.filter(pl.col("utterance") == "open shop", pl.col("users") > 0).is_empty()
    log.says("h1", "open shop", 0.95, "i")
    found = merge_evidence([bucket_evidence(log.votes(), judged(log)[0])])
    assert candidates(found, goals, as_of=dt.date(2026, 2, 1)).labels.filter(utterance="open shop")["users"].to_list() == [7]


def test_a_log_of_short_histories_doubts_nobody() -> None:
    log = Log()
    for u in range(9):
        log.says(f"u{u}", "one", 0.95).says(f"u{u}", "two", 0.95)
    learned, users = judged(log)
    assert learned.least_texts == 2 and users["known"].all()
    assert trust.judge(log.votes(), None)["known"].all()
    assert trust.learn([]).least_texts == 0


def test_copies_count_once_and_what_only_one_of_them_did_for_nothing() -> None:
    log = honest()
    for c in range(5):
        for row in [r for r in log.rows if r["user_key"] == f"h{c}"]:
            log.rows.append(row | {"user_key": f"copy{c}"})
        log.retry(f"copy{c}", "play jazz", "open shop")
    learned, users = judged(log)
    twins = {f"h{c}" for c in range(5)} | {f"copy{c}" for c in range(5)}
    assert set(users.filter(pl.col("copy").is_not_null())["user_key"]) == twins
    assert set(users.filter("spare")["user_key"]) == {f"copy{c}" for c in range(5)}, "they have more texts than whom they copy"
    found = merge_evidence([bucket_evidence(log.votes(), learned)])
    assert found["texts"].filter(utterance="lights of")["users"].to_list() == [40]
    assert found["texts"].filter(utterance="open shop").is_empty()
    asks = bucket_evidence(log.votes(), learned)["asks"].with_columns(s=pl.col("source"), t=pl.col("target"))
    kept = trust.shared_once(asks)
    assert "play jazz" in asks["source"] and "play jazz" not in kept["source"] and kept["ask"].n_unique() == 40


def test_histories_alike_by_chance_are_no_copies() -> None:
    _, users = judged(honest(users=200))
    assert users["copy"].is_null().all() and not users["spare"].any()


def test_rules_can_be_switched_off() -> None:
    log = honest()
    log.retry("quiet", "play jazz", "open shop")
    learned, users = judged(log, trust.Rules(least_texts=0, few_texts=0, copies=False))
    assert users["known"].all() and learned.least_texts == 0


def test_new_accounts_cannot_bury_a_text() -> None:
    votes = pl.DataFrame({"id": [1, 1, 2, 3], "users": [40, 20, 3, 2], "known": [0, 20, 3, 0]})
    assert trust.believed(votes).to_list() == pytest.approx([6.0, 20.0, 3.0, 1.0])


def test_who_comes_together_is_left_out() -> None:
    day = dt.date(2026, 1, 1)
    spread = [(s, 100 * s + n, day + dt.timedelta(n % 14)) for s in range(10) for n in range(14)]
    ring = [(99, 9_900 + n, day) for n in range(9)]
    asks = pl.DataFrame([*spread, *ring], schema={"s": pl.Int64, "ask": pl.Int64, "first": pl.Date}, orient="row")
    halves = [asks.filter(pl.col("s") % 2 == n) for n in (0, 1)]
    usual = trust.usual_days(halves).sort("day")
    assert usual.equals(trust.usual_days([asks]).sort("day")) and usual["share"].sum() == pytest.approx(1)
    mask = trust.synchronised(asks, usual, 1e-5)
    assert asks.filter(mask)["s"].unique().to_list() == [99] and mask.sum() == 9
    one_day = asks.with_columns(first=pl.lit(day))
    assert not trust.synchronised(one_day, trust.usual_days([one_day]), 1e-5).any(), "a log of one day has no bursts"
    assert not trust.synchronised(asks, usual, 0).any() and trust.synchronised(asks.clear(), usual, 1e-5).is_empty()


def test_caps_keep_the_strongest_links() -> None:
    log = honest()
    for n in range(6):
        log.asks("h0", f"source {n}", "target", 0.9 - n / 10)
    learned, _ = judged(log, trust.Rules(links_per_day=3))
    asks = bucket_evidence(log.votes(), learned)["asks"]
    assert set(asks.filter(pl.col("target") == "target")["source"]) == {"source 0", "source 1"}  # and "lights of", at .95


@pytest.mark.parametrize("kind", KINDS)
def test_rings_are_rows_of_the_log_contract(kind: str) -> None:
    rows = [
        {
            "turn_id": f"t{u}-{t}",
            "timestamp": dt.datetime(2026, 1, 1 + t, 9, u, tzinfo=dt.UTC),
            "user_id": f"u{u}",
            "utterance": f"text {t}",
        }
        | {"locale": "en-US", "intent": "i", "slots": "{}", "status": "completed", "channel": "voice"}
        for u in range(40)
        for t in range(6)
    ]
    types = pl.DataFrame(LOG.empty_table()).schema
    log = pl.DataFrame([dict.fromkeys(LOG.names) | r for r in rows], schema=types)
    made, attacks = rings(log, kind, 4, 3, seed=1)
    again = rings(log.sample(fraction=1, shuffle=True, seed=2), kind, 4, 3, seed=1)
    assert made.schema == types and made.equals(again[0]) and attacks.equals(again[1])
    assert attacks.height >= 1 and made["turn_id"].is_unique().all()
    assert made["user_id"].str.starts_with("ring-").all() and made["user_id"].n_unique() == 4 * attacks.height
    with pytest.raises(ValueError, match="loud"):
        rings(log, "shouting", 4, 3)
