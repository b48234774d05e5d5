"""What the report shows of the model, safe whatever is in it; `detect --explain` and `fit --compare` from the command line."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from test_report import HOSTILE, Page, browse

from pipelines import explain_turn, modelstore, seeing
from pipelines.cli import main
from pipelines.errors import LakeError, UsageError
from pipelines.options import DetectOptions, FitOptions
from pipelines.store import Store
from quality.report import render_report
from quality.reportdata import ReportData
from tests.running import run, simulate


def row(name: str, weight: float | None, locale: str = "en-US") -> dict[str, Any]:
    shares = dict.fromkeys(("fires", "overlap", "conflict", "failed", "accuracy"), 0.25 if weight is not None else None)
    return {"locale": locale, "signal": name, "turns": 900, "logged": 1.0, "weight": weight, **shares}


def view(name: str, locale: str = "en-US") -> dict[str, Any]:
    return {"locale": locale, "view": name, "pairs": 77, "coverage": 1.0, "conflict": 0.2, "accuracy": 0.9, "turns": 0.1, "weight": 2.0}


def pair(text: str, users: int = 3) -> dict[str, Any]:
    more = {
        "gap_s": 12.0,
        "probability": 0.5,
        "p_text": 0.4,
        "p_gap": 0.6,
        "p_friction": 0.5,
        "p_same_topic": 0.3,
        "decided_by": "combined",
    }
    return {"locale": "en-US", "text": text, "next_text": "b", "source_users": users, "target_users": 5, **more}


def picture(said: str = "x", **more: Any) -> dict[str, Any]:
    """All that `pipelines.seeing.gather` gives, with `said` wherever a string of a log may be."""
    diagram = {"kind": "feedback", "locale": said, "n": 120, "ece": 0.031, "mean": 0.3, "bins": [[0.1, 0.12, 80], [0.9, 0.8, 40]]}
    curve = {"locale": said, "pairs": 5000, "base": 0.3, "edges": [1.0, 10.0, 100.0], "values": [2.0, 1.0, -1.0, -2.0]}
    return {
        "model": {"fingerprint": "abc", "through": "2026-01-09"},
        "comparison": {"verdict": said, "flipped": 0.01, "moved": 0.02, "psi": 0.003},
        "meanings": {"refused": said},
        "signals": [row("refused", 2.0), row("thumbs up", -3.0, said), row("cancelled", None)],
        "views": [view("text"), view("gap", said)],
        "decided": [{"locale": "en-US", "step": said, "pairs": 5, "share": 0.5}],
        "gaps": [{**curve, "channel": "*"}, {**curve, "channel": said}],
        "reliability": [diagram, {**diagram, "kind": "later"}],
        "feedback_turns": 120,
        "split": {"day": "2026-01-08", "unseen": False},
        "sampled": {"turns": 900, "from": "2026-01-01", "to": "2026-01-09"},
        "borderline": [pair(said)],
        **more,
    }


def test_the_report_shows_the_model():
    text = render_report(ReportData("released", seeing=picture()))
    page = Page(text)
    for said in (
        "refused",
        "+2.00",
        "-3.00",
        "all three do",
        "5,000 pairs",
        "ECE 0.031",
        "learned from turns through 2026-01-09",
        "0.0030",
    ):
        assert said in page.text, said
    assert "a day that the model's parameters were learned from too" in page.text
    assert page.tables["borderline"]["rows"][0][:3] == ["en-US", "x", "b"]
    assert text.count('<svg class="plot"') == 3 and text.count('class="c1"') == 1, "a line per channel"
    assert [t for t, a in page.tags if t == "details" and "open" in a] == ["details"], "the first locale is open"


def test_hostile_texts_stay_texts_and_rare_ones_stay_away():
    text = render_report(ReportData("released", seeing=picture(HOSTILE)))
    page, plain = Page(text), Page(render_report(ReportData("released", seeing=picture())))
    assert {t for t, _ in page.tags} == {t for t, _ in plain.tags}
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs) and "<!--" not in text
    rare = render_report(ReportData("released", seeing=picture(borderline=[pair("a secret", users=2), pair("no secret")])))
    assert "no secret" in rare and "a secret" not in rare


@pytest.mark.parametrize("seen", [{}, {"model": {"fingerprint": "abc"}, "deep": False}, picture(reliability=[], feedback_turns=0, gaps=[])])
def test_little_or_nothing_to_see(seen: dict[str, Any]):
    page = Page(render_report(ReportData("empty", seeing=seen)))
    assert ("The log has no feedback" in page.text) == bool(seen.get("signals"))
    assert ("in the report of the run that made the last release" in page.text) == (seen.get("deep") is False)


def test_many_locales_keep_the_page_small():
    names = [f"x{n:03}" for n in range(300)]
    many = {n: [{**r, "locale": name} for name in names for r in picture()[n]] for n in ("signals", "views", "gaps", "reliability")}
    many["borderline"] = [{**pair("<" * 900), "locale": name} for name in names for _ in range(20)]
    text = render_report(ReportData("released", seeing=picture(**many)))
    assert len(text.encode()) < 5_000_000 and "250 more locales are not shown" in text


def test_in_a_browser(chromium: str, tmp_path: Path):
    dom = browse(chromium, tmp_path, render_report(ReportData("released", seeing=picture(HOSTILE))))
    assert "1 of 1 rows" in dom and dom.count("<polyline") == 4


def test_an_explanation_sends_no_control_character():
    evil = "\x1b[31mred\u202e"
    turn = {"offset": 0, "seconds": 0.0, "text": {"text": evil, "number": 1}, "channel": evil, "status": "completed", "barge_in": False}
    shared = {
        "gap_s": 3.0,
        "probability": 0.7,
        "p_same_topic": 0.1,
        "decided_by": "text",
        "edit": 0.5,
        "jaccard": 0.2,
        "change": "substitute",
        "sound": 0.5,
        "base": 0.3,
        "lag": 1,
    }
    views = dict.fromkeys(explain_turn.VIEWS, 0.5)
    told = {"first": turn["text"], "second": {"text": None, "number": 2}, "is_retry": False, "says": views, "alone": views, **shared}
    outcome = dict.fromkeys(("prior", "p_failed_seen", "p_failed", "session_says", "text_says", "p_mixed", "cause_probability"), 0.5)
    outcome |= {"cause": "asr", "came_next": "nothing", "retry": False, "without": {"barge_in": 0.9}}
    head = {"turn_id": evil, "date": "2026-01-01", "locale": "en-US", "k": 3, "model": "abc", "stale": "never scored"}
    said = "\n".join(explain_turn.lines({**head, "session": [turn], "pairs": [told], "outcome": outcome}))
    assert "\x1b" not in said and "\u202e" not in said and "\\u001b[31mred" in said
    assert "(text 2)" in said and "without barge in: 0.900" in said and "never scored" in said


def test_options_are_checked_before_anything_starts():
    for options, said in [
        (DetectOptions(lake="x", explain=" "), "give a turn_id"),
        (DetectOptions(lake="x", private=True), "--explain TURN_ID"),
        (FitOptions(lake="x", compare=True, if_missing=True), "give one of them"),
    ]:
        with pytest.raises(UsageError, match=said):
            options.validate()


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small log through detect."""
    folder = tmp_path_factory.mktemp("seeing")
    logs = simulate(folder, 6000, 6)
    for job, more in (("ingest", [f"--logs={logs}"]), ("fit", []), ("detect", [])):
        run(job, *more, f"--lake={folder / 'lake'}", "--quiet")
    return folder / "lake"


@pytest.mark.slow
def test_counts_lie_in_the_manifests_and_the_sample_reads_them_all(lake: Path):
    store = Store(str(lake))
    days = [p.removeprefix("date=") for p in store.manifests("turns")]
    texts = pl.concat([pl.DataFrame(pl.from_arrow(store.read("turns", f"date={d}"))) for d in days])  # type: ignore[arg-type]
    goals = texts.group_by("locale", utterance="key").agg(users=pl.col("user_key").n_unique())
    seen = seeing.gather(store, days, 600.0, goals, 3)
    assert seen == seeing.gather(store, days, 600.0, goals.reverse(), 3) and json.loads(json.dumps(seen)) == seen
    assert {r["locale"] for r in seen["signals"]} == {"en-US"} and len(seen["views"]) == 3
    assert seen["sampled"]["turns"] == texts.height and seen["gaps"] and seen["model"]["through"] == days[-1]
    assert {d["kind"] for d in seen["reliability"]} >= {"later"} and seen["split"]["unseen"] is False
    known = {(r["locale"], r["utterance"]) for r in goals.filter(pl.col("users") >= 3).to_dicts()}
    assert 0 < len(seen["borderline"]) <= 20
    assert all((b["locale"], b[t]) in known for b in seen["borderline"] for t in ("text", "next_text"))
    assert len(Page(render_report(ReportData("released", seeing=seen))).tables["borderline"]["rows"]) == len(seen["borderline"])
    small = seeing.gather(store, days[:0], 600.0, goals, 3)
    assert small == {} and "borderline" not in seeing.gather(store, days, 600.0, None, 3, deep=False)


@pytest.mark.slow
def test_a_day_that_is_too_big_is_thinned_to_whole_sessions(lake: Path, monkeypatch: pytest.MonkeyPatch):
    store = Store(str(lake))
    days = [p.removeprefix("date=") for p in store.manifests("turns")]
    monkeypatch.setattr(seeing, "MAX_TURNS", 300)
    seen = seeing.gather(store, days, 600.0, None, 3)
    assert 100 < seen["sampled"]["turns"] < 600 and seen["sampled"]["from"] == days[-1] and "split" not in seen


@pytest.mark.slow
def test_a_turn_is_explained_as_the_tables_say(lake: Path, capsys: pytest.CaptureFixture[str]):
    pairs = pl.read_parquet(lake / "rephrases" / "**" / "*.parquet").filter(lag=1).sort("turn_id")
    judged = pl.read_parquet(lake / "outcomes" / "**" / "*.parquet")
    for one in pairs.gather_every(max(1, pairs.height // 5)).head(5).to_dicts():
        assert main(["detect", "--explain", one["turn_id"], "--lake", str(lake), "--json"]) == 0
        (story,) = json.loads(capsys.readouterr().out)["turns"]
        told = next(p for p in story["pairs"] if p["lag"] == 1 and p["this_is"] == "first")
        assert told["probability"] == pytest.approx(one["probability"]) and story["stale"] is None
        expected = judged.filter(turn_id=one["turn_id"])
        assert story["outcome"]["p_failed"] == pytest.approx(expected["p_failed"][0]) and story["outcome"]["cause"] == expected["cause"][0]
    users = pl.read_parquet(lake / "turns" / "**" / "*.parquet").group_by("key").agg(pl.col("user_key").n_unique(), pl.col("turn_id").min())
    rare = users.filter(user_key=1).sort("key").row(0, named=True)
    command = ["detect", "--explain", rare["turn_id"], "--lake", str(lake)]
    assert main(command) == 0
    assert f'"{rare["key"]}"' not in (hidden := capsys.readouterr().out) and "--private shows them" in hidden
    assert main([*command, "--private"]) == 0 and "(text " not in (open_ := capsys.readouterr().out) and rare["key"] in open_.lower()
    assert main(["detect", "--explain", "no\x1bpe", "--lake", str(lake)]) == 1
    said = capsys.readouterr().err
    assert "no turn has this id" in said and "\x1b" not in said and "rejects" in said


@pytest.mark.slow
def test_compare_moves_nothing_and_fit_keeps_what_it_said(lake: Path, tmp_path: Path):
    store = Store(str(lake))
    before, files = modelstore.current(store), store.list("models")
    assert before is not None
    assert "number for number" in run("fit", "--compare", f"--lake={lake}").stdout
    seed = tmp_path / "seed.toml"
    seed.write_text("[run]\nseed = 7\n")
    said = run("fit", "--compare", f"--lake={lake}", f"--config={seed}").stdout
    assert re.search(r"A refit is (not )?worth it: \d+\.\d % of [\d,]+ pairs", said) and f"{before[:12]} stays in use" in said
    assert modelstore.current(store) == before and store.list("models") == files
    assert "is in use now" in run("fit", f"--lake={lake}", f"--config={seed}").stdout
    after = modelstore.current(store)
    assert after and after != before and modelstore.comparison(store, after)["old"] == before
    store.put("models/CURRENT", f"{before}\n".encode())
    store.put(f"models/{after}/model.json", b"{}")
    store.put("models/CURRENT", f"{after}\n".encode())
    assert "the model in use cannot be read" in run("fit", "--compare", f"--lake={lake}").stdout
    empty = tmp_path / "empty"
    assert main(["ingest", "--quiet", "--lake", str(empty), "--logs", str(simulate(tmp_path / "s", 300, 2))]) == 0
    assert "no model to compare with" in run("fit", "--compare", f"--lake={empty}", codes=(1,)).stderr


def test_a_model_of_another_version_is_an_error_with_the_fix(tmp_path):
    files = {"model.json": b'{"version": 1}'}
    store = Store(str(tmp_path))
    hashes = {n: hashlib.sha256(d).hexdigest() for n, d in files.items()}
    for name, data in (files | {"manifest.json": json.dumps({"files": hashes}).encode()}).items():
        store.put(f"models/f/{name}", data)
    with pytest.raises(LakeError, match=r"model f: .*run `sayagain fit` again"):
        modelstore.load(str(tmp_path), "f")
