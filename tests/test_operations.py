"""What an operator sees: structured lines, Prometheus text, the doctor."""

from __future__ import annotations

import json
import re

import pytest

from pipelines import metrics
from pipelines.context import Context
from pipelines.options import FitOptions, IngestOptions


def context(tmp_path, **given) -> Context:
    return Context(IngestOptions(lake=str(tmp_path / "lake"), **given), make=True)


def measured(c: Context) -> Context:
    with c.stage("ingest") as report:
        report.counts = {"turns": 12, "rejects": 2, "reasons": {'bad "id"\n': 2}, "asked again": 3, "notes": ["x"]}
    with c.stage("fit") as report:
        report.skipped = "a model is in use"
    return c


def test_a_stage_is_one_line_of_json_or_of_keys(tmp_path, capsys):
    measured(context(tmp_path, log="json"))
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["event"], first["stage"], first["outcome"], first["turns"]) == ("stage", "ingest", "done", 12)
    assert (second["outcome"], second["skipped"]) == ("skipped", "a model is in use")
    measured(context(tmp_path, log="lines"))
    first, _ = capsys.readouterr().err.splitlines()
    assert re.search(r'event="stage" stage="ingest" outcome="done" .*turns=12 .*asked_again=3', first)


def test_a_failed_stage_says_so_and_no_control_character_gets_through(tmp_path, capsys):
    c = context(tmp_path, log="json")
    with pytest.raises(RuntimeError), c.stage("fit\x1b[31m"):
        raise RuntimeError
    line = capsys.readouterr().err
    assert json.loads(line)["outcome"] == "failed"
    assert "\x1b" not in line


def test_metrics_are_prometheus_text(tmp_path):
    c = measured(context(tmp_path, metrics=str(tmp_path / "m.prom")))
    c.exit_code = 3
    with metrics.written(c, "mine"):
        pass
    text = (tmp_path / "m.prom").read_text()
    assert 'sayagain_stage_count{stage="ingest",what="asked_again"} 3' in text
    assert 'sayagain_rejects{reason="bad \\"id\\"\\n"} 2' in text
    assert 'sayagain_run_exit_code{command="mine"} 3' in text
    for line in text.splitlines():
        assert re.fullmatch(r'# (HELP|TYPE) sayagain_\w+ .+|sayagain_\w+\{(\w+="(\\.|[^"\\])*",?)+\} \d+(\.\d+)?', line), line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lake", "m.prom"]


def test_a_run_that_fails_leaves_its_metrics(tmp_path):
    c = Context(FitOptions(lake=str(tmp_path / "lake"), metrics=str(tmp_path / "m.prom")), make=True)
    with pytest.raises(KeyError), metrics.written(c, "fit"):
        raise KeyError
    assert 'sayagain_run_exit_code{command="fit"} 1' in (tmp_path / "m.prom").read_text()
