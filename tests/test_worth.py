"""`sayagain evaluate`: what labels are worth, to a model small enough for a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import release_lake

from pipelines.cli import main
from pipelines.errors import UsageError
from pipelines.evaluate import lines, read_set, worth_of
from quality.report import render_report
from quality.reportdata import ReportData
from rewrite.worth import head, hits, paired


def texts(intents: dict[str, str], n: int) -> pl.DataFrame:
    """n texts per intent: its word, and a number."""
    return pl.DataFrame(
        [(f"{word} number {i}", intent, 1.0) for intent, word in intents.items() for i in range(n)],
        ["text", "intent", "weight"],
        orient="row",
    )


@pytest.mark.slow  # scikit-learn takes seconds to import
def test_labels_of_an_unknown_intent_are_worth_its_share_of_the_test() -> None:
    known, new = {"music": "play something loud", "lights": "switch the lamp"}, {"weather": "is rain expected"}
    test = texts(known | new, 9).with_columns(text=pl.format("please {}", "text"))
    before, after = (hits(t, test, [0]) for t in (texts(known, 6), texts(known | new, 6)))
    gain = paired(after, before, 0)
    assert gain[0] == pytest.approx(1 / 3, abs=0.05) and gain[1] < gain[0] < gain[2] and gain[1] > 0
    shuffled = hits(texts(known | new, 6).sample(fraction=1, shuffle=True, seed=1), test, [0])
    assert np.array_equal(after, shuffled)


def test_intervals_are_seeded_and_cover_nothing_when_nothing_changed() -> None:
    rng = np.random.default_rng(0)
    a = (rng.random(300) < 0.7).astype(float)
    assert paired(a, a, 1) == (0.0, 0.0, 0.0) and paired(a[:0], a[:0], 1) == (0.0, 0.0, 0.0)
    b = np.where(rng.random(300) < 0.1, 1 - a, a)
    assert paired(b, a, 1) == paired(b, a, 1) and paired(b, a, 1)[1] < 0 < paired(b, a, 1)[2]


def test_head_is_half_of_the_training_rows() -> None:
    train = pl.Series("intent", ["a"] * 4 + ["b"] * 3 + ["c"] * 2 + ["d"])
    assert head(train, pl.Series("intent", ["a", "b", "c", "d", "new"])).tolist() == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("name", "table", "says"),
    [
        ("a.parquet", {"sentence": ["x"]}, "none for the intent"),
        ("b.csv", {"intent": ["x"], "other": ["y"]}, "none for the text"),
        ("c.jsonl", {"utt": ["x", None], "intent": [None, "y"]}, "none with both"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, name: str, table: dict[str, Any], says: str) -> None:
    write = {".parquet": "write_parquet", ".csv": "write_csv", ".jsonl": "write_ndjson"}[Path(name).suffix]
    getattr(pl.DataFrame(table), write)(tmp_path / name)
    with pytest.raises(UsageError, match=f"--test .*{says}"):
        read_set(str(tmp_path / name), "--test")
    with pytest.raises(UsageError, match="cannot be read"):
        read_set(str(tmp_path / "none.parquet"), "--test")


def files(tmp_path: Path) -> list[str]:
    known = {"music": "play something loud", "lights": "switch the lamp"}
    for name, n in (("train", 6), ("test", 4)):
        texts(known, n).with_columns(text=pl.format(f"{name} {{}}", "text")).rename({"text": "utt"}).write_parquet(
            tmp_path / f"{name}.parquet"
        )
    return ["--train", str(tmp_path / "train.parquet"), "--test", str(tmp_path / "test.parquet")]


@pytest.mark.slow
def test_a_release_is_evaluated_and_the_report_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, ids = release_lake.make(tmp_path / "lake", 1)
    command = ["evaluate", "--lake", str(tmp_path / "lake"), "--seeds", "1", *files(tmp_path)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert ids[0] in shown and "your training set alone" in shown and "tail" in shown
    found = worth_of(store, ids[0])["evaluate"]
    assert [s["name"] for s in found["sets"]][:2] == ["before", "labels"] and found["test_rows"]["all"] == 8
    assert main([*command, "--json"]) == 0 and json.loads(capsys.readouterr().out) == found
    assert main([*command, "--budget", "1", "--json"]) == 0
    small = json.loads(capsys.readouterr().out)
    assert {s["name"]: s["labels"] for s in small["sets"]} == {"before": 0, "labels": 1, "random": 1}
    page = render_report(ReportData(status="released", worth=worth_of(store, ids[0])))
    assert "What it is worth" in page and "the labels over random ones" in page
    assert "What it is worth" not in render_report(ReportData(status="released"))
    assert b"What it is worth" in store.get(f"worth/{ids[0]}/report.html")
    assert any("random" in line for line in lines(small))


@pytest.mark.parametrize(
    ("more", "says"), [(["--budget", "-1"], "--budget -1"), (["--seeds", "0"], "--seeds 0"), ([], "--train is missing")]
)
def test_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], says: str) -> None:
    sets = ["--train", "a", "--test", "b"] if more else []
    assert main(["evaluate", "--lake", str(tmp_path), *sets, *more]) == 2
    assert says in capsys.readouterr().err


def test_no_labels_is_an_error_that_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release_lake.make(tmp_path / "lake", 1)
    assert main(["evaluate", "--lake", str(tmp_path / "lake"), "--locale", "fr-FR", *files(tmp_path)]) == 1
    assert "has no labels of these locales" in capsys.readouterr().err


def test_hostile_names_are_inert() -> None:
    row = {"name": "<script>alert(1)</script>", "labels": 1, "accuracy": {"all": 0.5}, "gain": {"all": [0.0, 0.0, 0.0]}}
    found = {"test_rows": {"all": 3}, "seeds": 1, "sets": [row], "labels_over": {}}
    assert "<script>alert(1)" not in render_report(ReportData(status="released", worth={"evaluate": found}))
