"""`link --texts`: goals of a list of texts, nothing lost, errors that name the file."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from pipelines import cli, link_texts
from pipelines.errors import InputError, UsageError
from rewrite.contracts import GOALS

ROWS = [
    ("en", "Turn on  the light"),
    ("en", "turn on the light"),
    (None, "licht an"),
    ("en", ""),
    ("en", None),
    ("en", "x" * 1001),
    ("ja", "😀"),
]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_every_row_is_a_text_or_has_a_reason(tmp_path, kind):
    frame = pl.DataFrame(ROWS, schema=["locale", "text"], orient="row")
    path = tmp_path / f"t.{kind}"
    getattr(frame, {"csv": "write_csv", "jsonl": "write_ndjson", "parquet": "write_parquet"}[kind])(path)
    texts, rejects = link_texts.read_texts(str(path))
    assert texts.rows() == [("en", "turn on the light", 2, None), ("ja", "😀", 1, None), ("und", "licht an", 1, None)]
    assert rejects.rows() == [(3, "text_empty"), (4, "text_empty"), (5, "text_too_long")]


def test_errors_name_the_file_and_the_fix(tmp_path):
    with pytest.raises(UsageError, match=r"t\.xls: should end in one of \.parquet"):
        link_texts.read_texts("t.xls")
    with pytest.raises(InputError, match="there is no such file"):
        link_texts.read_texts(str(tmp_path / "none.csv"))
    (tmp_path / "a.csv").write_text("phrase\nhello\n")
    with pytest.raises(InputError, match="has columns phrase; one must be named text"):
        link_texts.read_texts(str(tmp_path / "a.csv"))
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="cannot be read as parquet"):
        link_texts.read_texts(str(tmp_path / "b.parquet"))


@pytest.mark.slow
def test_texts_alone_become_goals(tmp_path, capsys):
    topics = ["light kitchen lamp on", "weather tomorrow rain cloud", "song music play loud", "alarm wake morning clock"]
    rng = np.random.default_rng(0)
    texts = sorted({" ".join(rng.permutation(t.split())) for t in topics for _ in range(60)})
    pl.DataFrame({"locale": "en", "text": texts}).write_csv(tmp_path / "t.csv")
    (tmp_path / "c.toml").write_text('[embedding]\nmodel = "ngrams"\n')
    args = ["link", "--texts", str(tmp_path / "t.csv"), "--out", str(tmp_path / "out"), "--config", str(tmp_path / "c.toml"), "--json"]
    assert cli.main(args) == 0
    told = json.loads(capsys.readouterr().out)
    goals = pl.read_parquet(tmp_path / "out" / "goals.parquet")
    assert goals.columns[: len(GOALS.names)] == GOALS.names
    assert goals.height == told["texts"] == len(texts)
    topic = pl.col("utterance").str.split(" ").list.sort().list.join(" ")
    assert goals.group_by("goal_id").agg(topic.n_unique().alias("n"))["n"].max() == 1
    assert goals["goal_id"].n_unique() < goals.height
