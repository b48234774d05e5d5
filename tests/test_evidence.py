"""Votes to evidence to candidate rewrites: small logs whose right answer is plain."""

from __future__ import annotations

import datetime as dt

import numpy as np
import polars as pl
import pytest

from pipelines import engine
from rewrite import contracts, evidence, success, targets
from rewrite.blocks import Blocks
from rewrite.evidence import Options, bucket_evidence, candidates, empty_votes, in_blocks, merge_evidence

DAY = dt.date(2026, 1, 5)
AS_OF = dt.date(2026, 2, 1)
NO_GOALS = pl.DataFrame(contracts.GOALS.empty_table())


class Log:
    """Writes votes: `says` is an outcome, `asks` a link."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def _row(self, user: str, **more: object) -> None:
        row = {"user_key": user, "locale": "en-US", "treatment": "untouched", "events": 1, "date": DAY}
        self.rows.append(row | more)

    def says(self, user: str, text: str, served: float, intent: str | None = None, slots: str | None = "{}", **more: object) -> Log:
        slots = slots if intent else None
        form = {"text": text, "cause": "wording"}
        self._row(user, kind="outcome", source=text, value=served, intent=intent, slots=slots, **(form | more))
        return self

    def asks(self, user: str, source: str, target: str, p: float = 0.95, kind: str = "transition", **more: object) -> Log:
        self._row(user, kind=kind, source=source, target=target, value=p, **more)
        return self

    def retry(self, user: str, source: str, target: str, intent: str = "lights", **more: object) -> Log:
        return self.says(user, source, 0.05, "wrong").says(user, target, 0.95, intent, **more).asks(user, source, target)

    def votes(self) -> pl.DataFrame:
        return pl.DataFrame(self.rows, schema=empty_votes().schema)


def background(log: Log, users: int = 30) -> Log:
    for i in range(users):
        log.says(f"bg{i}", "play some music", 0.95, "music").says(f"bg{i}", "what time is it", 0.95, "time")
    return log


def mine(log: Log, goals: pl.DataFrame = NO_GOALS, **options: object) -> evidence.Candidates:
    return candidates(merge_evidence([bucket_evidence(log.votes())]), goals, as_of=AS_OF, options=Options(**options))


def row(frame: pl.DataFrame, **where: object) -> dict[str, object]:
    found = frame.filter(*(pl.col(k) == v for k, v in where.items()))
    assert found.height == 1, found
    return found.row(0, named=True)


def failing(users: int = 6, source: str = "lights of", target: str = "lights off") -> Log:
    log = background(Log())
    for i in range(users):
        log.retry(f"u{i}", source, target)
    for i in range(4):
        log.says(f"v{i}", target, 0.95, "lights")
    log.says("w", f"please {target}", 0.95, "lights")  # what honest users want has more than one wording
    return log


def test_a_failing_text_gets_the_text_that_serves_its_users() -> None:
    found = row(mine(failing()).rewrites, source="lights of")
    assert (found["decision"], found["target"], found["reason"]) == ("proposed", "lights off", "goal")
    assert found["source_users"] == 6 and found["target_users"] == 10 and found["users"] == 6 and found["pair_users"] == 6
    assert found["source_served"] < 0.3 and found["probability"] > 0.7
    assert found["lift_lower"] < found["lift"] and found["lift_lower"] > 0
    assert found["source_text"] == "lights of" and found["first_seen"] == DAY


def test_schemas_and_reasons() -> None:
    found = mine(failing())
    for name, schema in contracts.CANDIDATES.items():
        frame = getattr(found, name)
        assert frame.columns[: len(schema.names)] == schema.names
        assert not frame["reason"].has_nulls() and set(frame["decision"]) <= {"proposed", "rejected"}
    assert found.rewrites.filter(pl.col("decision") == "proposed").select("locale", "source").is_duplicated().sum() == 0


def test_below_k_is_kept_with_its_reason() -> None:
    found = row(mine(failing(users=2)).rewrites, source="lights of")
    assert (found["decision"], found["reason"], found["source_text"]) == ("rejected", "below_k", None)


def test_a_served_source_is_left_alone() -> None:
    log = failing()
    for i in range(30):
        log.says(f"w{i}", "lights of", 0.95, "lights")
    assert row(mine(log).rewrites, source="lights of")["reason"] == "source_served"


def test_chain_reaches_past_a_failing_middle() -> None:
    log = background(Log())
    for i in range(6):
        log.says(f"u{i}", "light of", 0.05, "wrong").says(f"u{i}", "lights of", 0.05, "wrong").asks(f"u{i}", "light of", "lights of")
        log.retry(f"x{i}", "lights of", "lights off")
    found = row(mine(log).rewrites, source="light of", target="lights off")
    assert found["score"] > 0.4 and found["pair_users"] == 0 and found["decision"] == "proposed"


@pytest.mark.parametrize("source", ["mail to <mail>", "call <phone>"])
def test_placeholders_never_leave(source: str) -> None:
    found = mine(failing(source=source))
    assert row(found.rewrites, source=source)["reason"] == "placeholder"
    assert row(found.labels, utterance=source)["reason"] == "placeholder"
    assert source not in found.pairs["anchor"].to_list() + found.pairs["positive"].to_list() + found.pairs["negative"].to_list()


@pytest.mark.parametrize(("source", "target"), [("alarm at 7", "set an alarm at 8"), ("अलार्म ७", "अलार्म ८ बजे"), ("alarm", "alarm at 8")])
def test_numbers_must_be_kept(source: str, target: str) -> None:
    assert row(mine(failing(source=source, target=target)).rewrites, source=source)["reason"] == "number_changed"


def test_same_number_in_another_script_is_kept() -> None:
    assert row(mine(failing(source="अलार्म ७", target="अलार्म 7 बजे")).rewrites, source="अलार्म ७")["decision"] == "proposed"


def test_slot_values_must_be_kept() -> None:
    log = background(Log())
    for i in range(6):
        log.says(f"u{i}", "play adele pls", 0.05, "wrong", '{"artist":"adele"}').asks(f"u{i}", "play adele pls", "play queen")
        for user in ("u", "v"):
            log.says(f"{user}{i}", "play queen", 0.95, "music", '{"artist":"queen"}')
    assert row(mine(log).rewrites, source="play adele pls")["reason"] == "value_lost"


def test_a_target_said_only_after_the_source_is_a_ring() -> None:
    log = background(Log())
    for i in range(6):
        log.retry(f"u{i}", "lights of", "open my shop", "shop")
    assert row(mine(log).rewrites, source="lights of")["reason"] == "no_outside_users"


def test_repeaters_prove_nothing() -> None:
    log = failing()
    for r in log.rows:
        if r["kind"] == "transition":
            r["events"] = 5
    assert row(mine(log).rewrites, source="lights of")["reason"] == "repeaters"


def test_two_goals_as_likely_is_ambiguous() -> None:
    log = failing()
    for i in range(6):
        log.retry(f"y{i}", "lights of", "lights on", "lights_on").says(f"z{i}", "lights on", 0.95, "lights_on")
    log.says("w", "please lights on", 0.95, "lights_on")
    found = mine(log).rewrites.filter(pl.col("source") == "lights of")
    assert set(found["reason"]) == {"ambiguous", "other_goal"}


def test_a_bot_and_a_loud_user_count_for_nothing() -> None:
    log = background(Log())
    for _ in range(30):
        log.retry("bot", "lights of", "lights off")
    log.retry("u0", "lights of", "lights off")
    texts = merge_evidence([bucket_evidence(log.votes())])["texts"]
    assert row(texts, utterance="lights of")["users"] == 1
    loud = background(Log())
    for day in range(20):
        loud.says("u0", "what time is it", 0.02, "time", date=DAY + dt.timedelta(day))
    outcomes = merge_evidence([bucket_evidence(loud.votes())])["outcomes"]
    assert outcomes.filter(pl.col("utterance") == "what time is it")["users"].sum() == 31


def treated(success_: float, users: int = 6) -> Log:
    log = failing()
    for i in range(users):
        log.says(f"t{i}", "lights of", success_, "lights", treatment="rewritten", target="lights off", rewrite_id="r")
    return log


def test_live_evidence_keeps_or_retires() -> None:
    kept = row(mine(treated(0.95)).rewrites, source="lights of", target="lights off")
    assert (kept["decision"], kept["reason"], kept["treated_users"]) == ("proposed", "live", 6)
    assert kept["source_served"] < 0.3  # what was served is no evidence about the source
    gone = row(mine(treated(0.02)).rewrites, source="lights of", target="lights off")
    assert (gone["decision"], gone["reason"]) == ("rejected", "treated_failed")


def test_rewritten_links_and_outcomes_are_not_evidence_about_texts() -> None:
    log = background(Log())
    for i in range(6):
        log.says(f"u{i}", "lights of", 0.95, "lights", treatment="rewritten", target="lights off", rewrite_id="r")
        log.asks(f"u{i}", "lights of", "lamp off", treatment="rewritten")
    found = merge_evidence([bucket_evidence(log.votes())])
    assert "lights of" not in found["outcomes"]["utterance"].to_list() + found["interpretations"]["utterance"].to_list()
    assert mine(log).rewrites.filter(pl.col("target") == "lamp off").is_empty()


def test_buckets_blocks_rows_and_order_change_nothing(monkeypatch) -> None:
    rng = np.random.default_rng(0)
    log = treated(0.9)
    for i in range(400):
        a, b = rng.integers(0, 25, 2)
        intent, day = f"i{a % 5}" if a < 20 else "same", DAY + dt.timedelta(int(rng.integers(0, 9)))
        log.says(f"r{i % 90}", f"text {chr(97 + a)}", float(rng.random()), intent, date=day)
        if a != b:
            log.asks(f"r{i % 90}", f"text {chr(97 + a)}", f"text {chr(97 + b)}", float(rng.random()))
    votes = log.votes()
    goals = pl.DataFrame({"locale": "en-US", "utterance": [f"text {chr(97 + i)}" for i in range(25)], "membership": 0.9})
    goals = goals.with_columns(goal_id=pl.format("g{}", pl.int_range(25) % 6))
    one = candidates(merge_evidence([bucket_evidence(votes)]), goals, as_of=AS_OF)
    shuffled = votes.sample(fraction=1, shuffle=True, seed=3).with_columns(bucket=pl.col("user_key").hash() % 16)
    parts = [bucket_evidence(p.drop("bucket")) for p in shuffled.partition_by("bucket")]
    many = candidates(merge_evidence(parts[::-1]), goals.reverse(), as_of=AS_OF)
    files: list[bytes] = []  # blocks of sources that are not held

    def write(block: pl.DataFrame) -> int:
        files.append(engine.to_ipc(block))
        return len(files) - 1

    merged = merge_evidence([in_blocks(part, 5) for part in parts], into=Blocks((), lambda n: engine.frame(files[n]), write))
    assert len(merged["asks"].parts) == 5 and all(block["s"].n_unique() > 1 for block in merged["asks"])
    monkeypatch.setattr(targets, "AT_ONCE", 3)
    blocks = candidates(merged, goals, as_of=AS_OF)
    for name in contracts.CANDIDATES:
        assert getattr(one, name).equals(getattr(many, name)), name
        assert getattr(one, name).equals(getattr(blocks, name)), name
        assert getattr(one, name).height > 10


def test_without_intents_slots_and_with_unknown_treatment() -> None:
    log = failing()
    for r in log.rows:
        r |= {"intent": None, "slots": None, "treatment": "unknown"}
    goals = pl.DataFrame(
        {"locale": "en-US", "utterance": ["lights of", "lights off"], "goal_id": "g", "membership": 0.9, "users": 6, "is_exemplar": False}
    )
    for given in (NO_GOALS, goals):
        found = mine(log, given)
        best = row(found.rewrites, source="lights of")
        assert (best["decision"], best["untouched_users"]) == ("proposed", 0)
        assert found.labels.is_empty()


def test_empty_and_late() -> None:
    found = candidates(merge_evidence([]), NO_GOALS, as_of=AS_OF)
    assert found.rewrites.is_empty() and found.labels.is_empty() and found.pairs.is_empty()
    with pytest.raises(ValueError, match="later than as_of"):
        candidates(merge_evidence([bucket_evidence(failing().votes())]), NO_GOALS, as_of=DAY - dt.timedelta(1))


def test_hostile_texts_pass_through() -> None:
    target = 'lights \x1f"off" <script>(.*[</script>'
    assert row(mine(failing(source="(lights [of", target=target)).rewrites, source="(lights [of")["decision"] == "proposed"


def test_success_recovers_planted_rates() -> None:
    """Weak single votes (60 % against 40 %) of 30 users; a tenth of the texts works half the time."""
    rng = np.random.default_rng(1)
    rate = rng.choice([0.03, 0.5, 0.97], 600, p=[0.4, 0.1, 0.5])
    served = rng.random((600, 30)) < rate[:, None]
    value = np.clip(np.where(served, 0.75, 0.25) + rng.normal(0, 0.15, served.shape), 0.02, 0.98)
    item = np.repeat(np.arange(600), 30)
    bins = pl.DataFrame({"v": value.ravel()}).select(success.vote_bin(pl.col("v"))).to_series().to_numpy()
    pooled = success.pool(item, bins, np.ones(len(item), np.int64), np.arange(600) % 2)
    assert np.abs(pooled.mean - rate).mean() < 0.06
    assert ((pooled.mean > 0.3) & (pooled.mean < 0.7))[rate == 0.5].mean() > 0.8
    assert pooled.posterior.sum(axis=1) == pytest.approx(np.ones(600))


def test_a_source_cannot_lose_a_value_that_it_does_not_say() -> None:
    """The slots of a misread text may be of another request; those that it says must be kept."""
    from rewrite.targets import _missing

    rows = [
        ("play blues", ["jazz"], "start blues", []),
        ("play blues", ["blues"], "start jazz", []),
        ("play blues", ["blues"], "start", ["blues"]),
    ]
    pairs = pl.DataFrame(rows, schema={"s": pl.String, "v": pl.List(pl.String), "t": pl.String, "w": pl.List(pl.String)}, orient="row")
    assert _missing(pairs, "v", "t", "w", said="s").to_list() == [0, 1, 0]
    assert _missing(pairs, "v", "t", "w").to_list() == [1, 1, 0]
