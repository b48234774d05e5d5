"""The demo's generator: as hard as the evaluation worlds, the same bytes every time, rewrites live, meanings that flip."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cpdist

from pipelines.errors import InputError, UsageError
from pipelines.simulate import world
from pipelines.simulate.job import read_rewrites, run
from pipelines.simulate.judge import languages, replay
from pipelines.simulate.options import LOCALES, SimulateOptions
from rewrite.contracts import LOG
from rewrite.text import key, key_expr, rewrite_id


def read(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    return pl.read_parquet(folder / "log.parquet"), pl.read_parquet(folder / "truth.parquet")


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """The world of `sayagain demo`: all defaults."""
    out = tmp_path_factory.mktemp("world") / "demo"
    run(SimulateOptions(out=str(out)))
    return out


def neighbours(log: pl.DataFrame) -> pl.DataFrame:
    """Consecutive turns of a user that are not the same text: what a miner has to judge."""
    by = ["locale", "user_id"]
    after = lambda c: pl.col(c).shift(-1).over(by)  # noqa: E731
    t = log.unique("turn_id").with_columns(u=key_expr("utterance")).sort(*by, "timestamp", "turn_id")
    t = t.with_columns(v=after("u"), next_turn_id=after("turn_id"), gap=(after("timestamp") - pl.col("timestamp")).dt.total_seconds())
    t = t.with_columns(status2=after("status"), barge_in2=after("barge_in"))
    return t.filter(pl.col("gap") <= 600, pl.col("u") != pl.col("v"))


def edit_distance_ap(log: pl.DataFrame, truth: pl.DataFrame) -> float:
    """Average precision of edit distance as a ranker of neighbours for "asked again", as the evaluation's scorer counts it."""
    p = neighbours(log)
    yes = truth.filter("rephrase").select(turn_id="again_of", next_turn_id="turn_id", y=True)
    goal = truth.select("turn_id", "goal")
    p = p.join(goal, on="turn_id").join(goal.rename({"turn_id": "next_turn_id", "goal": "goal2"}), on="next_turn_id")
    p = p.join(yes, on=["turn_id", "next_turn_id"], how="left").with_columns(pl.col("y").fill_null(False))
    p = p.filter(pl.col("y") | (pl.col("goal") != pl.col("goal2")))
    s = cpdist(p["u"].to_list(), p["v"].to_list(), scorer=Levenshtein.normalized_similarity)
    order = np.argsort(-s, kind="stable")
    y, s = p["y"].to_numpy()[order], s[order]
    last = np.append(s[1:] != s[:-1], True)
    hit = np.cumsum(y)[last]
    precision, recall = hit / (np.arange(1, y.size + 1)[last]), hit / yes.height
    return float((np.diff(np.append(0.0, recall)) * precision).sum())


def pair_counting(log: pl.DataFrame) -> pl.DataFrame:
    """The naive miner: what three users said within 45 seconds, and was served, is the rewrite."""
    p = neighbours(log).filter(pl.col("gap") <= 45, pl.col("status2") == "completed", ~pl.col("barge_in2"))
    r = p.group_by("locale", "u", "v").agg(n=pl.col("user_id").n_unique()).filter(pl.col("n") >= 3)
    r = r.sort(["n", "v"], descending=[True, False]).unique(["locale", "u"], keep="first", maintain_order=True)
    return r.select("locale", source="u", target="v", probability=pl.col("n") / (pl.col("n") + 2.0))


def check_hardness(folder: Path, locale: str) -> None:
    log, truth = read(folder)
    log = log.filter(pl.col("locale") == locale)
    ap = edit_distance_ap(log, truth.filter(pl.col("turn_id").is_in(log["turn_id"].implode())))
    judged = replay(folder, pair_counting(log))[locale]
    figures = f"{locale}: edit distance {ap:.3f}, pair counting {judged}"
    assert 0.5 <= ap <= 0.85, figures
    assert judged["triggered"] >= 300, figures
    assert 0 < judged["win_loss"] <= 5, figures


@pytest.mark.parametrize("locale", ["en-US", "de-DE", "sw-KE"])
def test_as_hard_as_the_evaluation_worlds(demo, locale):
    check_hardness(demo, locale)


@pytest.mark.slow
def test_as_hard_without_spaces(tmp_path):
    run(SimulateOptions(out=str(tmp_path / "w"), locales="ja-JP", turns=20_000))
    check_hardness(tmp_path / "w", "ja-JP")


def test_defects_and_repairs_are_as_in_the_evaluation_worlds(demo):
    log, truth = read(demo)
    by = log.unique("turn_id").join(truth, on="turn_id")
    for (locale,), t in by.partition_by("locale", as_dict=True).items():
        assert 0.33 <= 1 - t["success"].mean() <= 0.46, locale
        assert 0.08 <= t["misheard"].mean() <= 0.18, locale
        failed = t.filter(~pl.col("success"))
        asked = failed.join(truth.select(turn_id="again_of", y=True), on="turn_id", how="semi").height / failed.height
        assert 0.4 <= asked <= 0.65, (locale, asked)
        assert 0.3 <= failed["barge_in"].mean() <= 0.55
        assert t.filter("success")["barge_in"].mean() <= 0.08


@pytest.mark.parametrize("locale", LOCALES)
def test_goals_and_wordings(locale):
    x, english = world.build(locale, 1, 0.2), world.wordings("en-US")
    assert len(x.goals) >= 150
    assert x.goals == world.build("en-US", 1, 0.2).goals, "goals are the same in every language"
    for g, i in enumerate(x.goal_intent):
        n = len(x.spec["intents"][x.intents[i]]["wordings"])
        assert n >= 6
        assert len({x.texts[t] for t in x.said[g, :n]}) == n, x.goals[g]
    for name, intent in x.spec["intents"].items():
        assert intent["slots"] == english["intents"][name]["slots"]
        for w in intent["wordings"]:
            assert all(w.count("{" + s + "}") == 1 for s in intent["slots"]), w
            assert w == key(w)
    assert len(set(x.texts)) == len(x.texts) and all(t == key(t) for t in x.texts)
    meant = x.works[x.said] & (x.meaning[x.said] == np.arange(len(x.goals))[:, None])
    assert meant.any(1).mean() > 0.85, "nearly every goal can be reached in some words"


def test_log_keeps_the_contract(demo):
    assert pq.read_schema(demo / "log.parquet").equals(LOG)
    log, truth = read(demo)
    assert log.select("turn_id", "timestamp", "user_id", "utterance", "locale").null_count().sum_horizontal()[0] == 0
    once = log.unique()
    assert once["turn_id"].n_unique() == once.height < log.height, "duplicates are whole rows"
    assert log["utterance"].str.len_chars().max() <= 1000
    assert log.filter(~pl.col("slots").str.starts_with("{")).height == 0
    assert log["timestamp"].dt.date().n_unique() == 14
    for c in ("asr_confidence", "intent_confidence"):
        assert log[c].drop_nulls().is_between(0, 1).all()
    assert 0 < log["session_id"].null_count() < log.height * 0.1
    assert set(truth["turn_id"]) <= set(log["turn_id"])


def test_truth_agrees_with_the_log_and_the_assistant(demo):
    log, truth = read(demo)
    t = log.unique("turn_id").join(truth, on="turn_id").with_columns(u=key_expr("utterance"))
    for name, language in languages(demo).items():
        x = t.filter(pl.col("locale") == name)
        served = pl.Series(language.serves(x["u"].to_list(), x["goal"].to_list()))
        assert (x["success"] & ~served).sum() == 0
        assert (served & ~x["success"]).sum() / x.height < 0.01, "only passing errors"
    before = t.select(again_of="turn_id", user="user_id", session="session_id", g="goal", v="u", at="timestamp")
    pair = t.filter(pl.col("again_of").is_not_null()).join(before, on="again_of")
    assert pair.height >= 0.99 * t["again_of"].count()
    assert (pair["user"] == pair["user_id"]).all() and (pair["g"] == pair["goal"]).all() and (pair["at"] <= pair["timestamp"]).all()
    assert ((pair["u"] != pair["v"]) == pair["rephrase"]).all()


def test_sessions_of_a_user_are_apart(demo):
    log, truth = read(demo)
    s = log.join(truth, on="turn_id", how="semi").drop_nulls("session_id").filter(pl.col("timestamp").dt.day() == 3)
    s = s.group_by("user_id", "session_id").agg(a=pl.col("timestamp").min(), z=pl.col("timestamp").max()).sort("user_id", "a")
    gap = s.select((pl.col("a").shift(-1).over("user_id") - pl.col("z")).dt.total_minutes()).to_series().drop_nulls()
    assert gap.len() > 50 and (gap >= 30).mean() > 0.99  # those that began the day before may lie closer


def digest(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.rglob("*")) if f.is_file()}


SMALL = {"locales": "en-US,sw-KE", "turns": 4_000, "days": 3}


def test_same_options_same_bytes(tmp_path, monkeypatch):
    run(SimulateOptions(out=str(tmp_path / "a"), **SMALL))
    monkeypatch.setattr("pipelines.simulate.job.THREADS", 1)
    run(SimulateOptions(out=str(tmp_path / "b"), **SMALL))
    run(SimulateOptions(out=str(tmp_path / "c"), seed=2, **SMALL))
    a, b, c = (digest(tmp_path / n) for n in "abc")
    assert a == b
    assert all(a[n] != c[n] for n in a)


def test_epochs_and_days_can_be_played_one_by_one(tmp_path):
    run(SimulateOptions(out=str(tmp_path / "both"), epochs=2, **SMALL))
    run(SimulateOptions(out=str(tmp_path / "second"), first_epoch=1, by_day=True, **SMALL))
    both, second = pl.read_parquet(tmp_path / "both" / "log.parquet"), pl.read_parquet(tmp_path / "second" / "log" / "*.parquet")
    assert [f.name for f in sorted((tmp_path / "second" / "log").iterdir())] == [f"2026-01-0{d}.parquet" for d in (4, 5, 6)]
    later = both.filter(pl.col("timestamp").dt.day() >= 4)
    carried = later.join(second, on="turn_id", how="anti")  # sessions from before midnight of the epoch
    assert carried.height < 0.01 * later.height
    assert_frame_equal(later.join(carried, on="turn_id", how="anti"), second)


def truth_rewrites(folder: Path, through_day: int = 31) -> pl.DataFrame:
    """What an oracle would release: failing texts of one goal -> the usual wording that serves it."""
    log, truth = read(folder)
    log = log.filter(pl.col("timestamp").dt.day() <= through_day)
    t = log.unique("turn_id").join(truth, on="turn_id").with_columns(u=key_expr("utterance"))
    target = t.filter("success").group_by("locale", "goal").agg(target=pl.col("u").mode().sort().first())
    source = t.group_by("locale", "u").agg(goal=pl.col("goal").mode().sort().first(), served=pl.col("success").mean(), n=pl.len())
    r = source.filter(pl.col("served") < 0.2, pl.col("n") >= 3).join(target, on=["locale", "goal"]).filter(pl.col("u") != pl.col("target"))
    return r.select("locale", source="u", target="target").sort("locale", "source")


@pytest.fixture(scope="module")
def closed_loop(tmp_path_factory) -> tuple[Path, Path, pl.DataFrame]:
    """An epoch without rewrites, and the next with those that the truth suggests."""
    tmp = tmp_path_factory.mktemp("loop")
    options = {"locales": "en-US,de-DE", "turns": 30_000, "days": 5, "holdout": 0.2}
    run(SimulateOptions(out=str(tmp / "first"), **options))
    rewrites = truth_rewrites(tmp / "first")
    (tmp / "release").mkdir()
    rewrites.write_parquet(tmp / "release" / "rewrites.parquet")
    run(SimulateOptions(out=str(tmp / "second"), first_epoch=1, rewrites=str(tmp / "release"), **options))
    return tmp / "first", tmp / "second", rewrites


def test_rewrites_are_live_but_not_for_the_held_out(closed_loop):
    first, second, rewrites = closed_loop
    before, _ = read(first)
    assert before["served_utterance"].null_count() == before.height and before["rewrite_id"].null_count() == before.height
    log, truth = read(second)
    t = log.unique("turn_id").join(truth, on="turn_id").with_columns(source=key_expr("utterance"))
    t = t.join(rewrites, on=["locale", "source"], how="left")
    rewritten = t.filter(pl.col("rewrite_id").is_not_null())
    assert rewritten.height > 500 and (rewritten["served_utterance"] == rewritten["target"]).all()
    assert rewritten.filter("holdout").height == 0
    due = t.filter(pl.col("target").is_not_null(), ~pl.col("holdout"))
    assert due["rewrite_id"].null_count() == 0 and due.height == rewritten.height
    r = rewritten.row(0, named=True)
    assert r["rewrite_id"] == rewrite_id(r["locale"], r["source"], key(r["target"]))
    spared, held = t.filter(~pl.col("holdout")), t.filter("holdout")
    assert spared["success"].mean() > held["success"].mean() + 0.05
    assert 0.1 < held["user_id"].n_unique() / t["user_id"].n_unique() < 0.3
    assert json.loads((second / "world.json").read_text())["rewrites_live"] > 100


def test_replay_of_what_the_truth_suggests(closed_loop):
    first, _, rewrites = closed_loop
    judged = replay(first, rewrites)["all"]
    assert judged["precision"] > 0.9 and judged["win_loss"] > 20 and judged["defect_reduction"] > 0.15
    nothing = replay(first, rewrites.with_columns(target="source"))["all"]
    assert nothing["triggered"] == 0 and nothing["wins"] == nothing["losses"] == 0


def test_foreign_targets_and_sources(tmp_path):
    table = pl.DataFrame(
        {"locale": ["en-US", "en-US", "xx"], "source": ["Play some JAZZ", "nobody says this", "a"], "target": ["<b>\x1b shop", "x", "b"]}
    )
    table.write_parquet(tmp_path / "r.parquet")
    summary = run(SimulateOptions(out=str(tmp_path / "w"), rewrites=str(tmp_path / "r.parquet"), live_from=1, epochs=2, **SMALL))
    assert (summary["rewrites_given"], summary["rewrites_live"]) == (3, 1)
    log, truth = read(tmp_path / "w")
    live = log.filter(pl.col("served_utterance").is_not_null()).join(truth, on="turn_id")
    assert set(live["served_utterance"]) == {"<b>\x1b shop"} and not live["success"].any()
    assert live["timestamp"].dt.day().min() > 3, "live from the second epoch"
    pl.DataFrame({"locale": ["en-US"]}).write_parquet(tmp_path / "bad.parquet")
    with pytest.raises(InputError, match=r"bad\.parquet.*source, target"):
        read_rewrites(str(tmp_path / "bad.parquet"))
    with pytest.raises(InputError, match="no such file"):
        read_rewrites(str(tmp_path / "none"))


@pytest.mark.slow
def test_meanings_flip_on_the_day(tmp_path):
    options = {"locales": "en-US", "turns": 60_000, "days": 6}
    run(SimulateOptions(out=str(tmp_path / "a"), **options))
    run(SimulateOptions(out=str(tmp_path / "b"), flip_day=3, flip_share=0.5, **options))
    (a, ta), (b, tb) = read(tmp_path / "a"), read(tmp_path / "b")
    early = pl.col("timestamp").dt.day() <= 3
    assert_frame_equal(a.filter(early), b.filter(early))
    t = b.unique("turn_id").join(tb, on="turn_id").filter("misheard").with_columns(early=early, u=key_expr("utterance"))
    goal = t.group_by("u", "early").agg(goal=pl.col("goal").mode().sort().first(), n=pl.len()).filter(pl.col("n") >= 3)
    both = goal.filter("early").join(goal.filter(~pl.col("early")), on="u")
    changed = (both["goal"] != both["goal_right"]).mean()
    assert both.height > 50 and 0.12 < changed < 0.6, (both.height, changed)
    stale = truth_rewrites(tmp_path / "b", through_day=3)
    kept, spoilt = (replay(tmp_path / n, stale)["all"]["precision"] for n in "ab")
    assert spoilt < kept - 0.02, "what was right before the day is wrong after it"
    assert abs(ta["success"].mean() - tb["success"].mean()) < 0.02, "as many failures as before, but of other goals"


def test_planted_rows_are_in_the_log_and_not_in_the_truth(demo, tmp_path):
    log, truth = read(demo)
    planted = log.join(truth, on="turn_id", how="anti")
    assert planted.filter(pl.col("utterance").str.contains("totally legit shop")).height > 50
    assert planted.filter(pl.col("utterance").str.contains(r"ana\.maria\d+@|415 555 \d{4}|4111 1111 1111")).height > 50
    assert planted.filter(pl.col("user_id").str.ends_with("-bot")).height > 500
    listed = json.loads((demo / "world.json").read_text())["planted"]["sybil"]
    assert len(listed) == 9
    summary = run(SimulateOptions(out=str(tmp_path / "w"), no_planted=True, no_truth=True, **SMALL))
    assert summary["rows"] <= summary["turns"] and not (tmp_path / "w" / "truth.parquet").exists()


def test_future_is_of_users_the_log_never_saw(demo):
    log, _ = read(demo)
    future = pl.read_parquet(demo / "future.parquet")
    assert future.height > 5_000 and not set(future["user_id"]) & set(log["user_id"])
    assert set(future["locale"]) == set(log["locale"]) and future["served_utterance"].null_count() == future.height


def test_all_wrong_options_are_named_at_once(tmp_path):
    with pytest.raises(UsageError) as error:
        run(SimulateOptions(out="", locales="en-US,xx", days=0, holdout=2, turns=10**9, users=5))
    for part in ("--out", "'en-US,xx'", "--days 0", "--holdout 2", "--turns 1000000000"):
        assert part in str(error.value)
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        run(SimulateOptions(out=str(tmp_path)))
    assert (tmp_path / "kept").read_text() == "mine"


def test_an_unfinished_world_is_made_anew(tmp_path, monkeypatch):
    options = SimulateOptions(out=str(tmp_path / "w"), locales="sw-KE", turns=500, days=1)
    with monkeypatch.context() as m:
        m.setattr("pipelines.simulate.job.Game.future", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(options)
    assert not (tmp_path / "w" / "world.json").exists()
    run(options)
    assert not (tmp_path / "w" / "UNFINISHED").exists() and (tmp_path / "w" / "world.json").exists()


def test_tiny_worlds(tmp_path):
    for i, more in enumerate(({"turns": 1}, {"turns": 50, "users": 3}, {"turns": 5_000, "users": 40, "days": 10})):
        summary = run(SimulateOptions(out=str(tmp_path / str(i)), **{"days": 1, "locales": "de-DE,sw-KE"} | more))
        assert pq.read_table(tmp_path / str(i) / "log.parquet").schema.equals(LOG), summary


def bench(folder: str, turns: int) -> None:
    """Turns per second of wall clock and of processor time, and peak memory: python tests/test_simulate.py DIR [TURNS]."""
    import resource
    import time

    wall, cpu = time.perf_counter(), time.process_time()
    made = run(SimulateOptions(out=folder, turns=turns))["turns"]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{made} turns: {made / wall:.0f} a second, {made / cpu:.0f} a processor second, peak {peak:.0f} MiB")


if __name__ == "__main__":
    import sys

    bench(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10_000_000)
