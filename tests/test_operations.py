"""What an operator sees: structured lines, Prometheus text, the doctor."""

from __future__ import annotations

import dataclasses
import json
import re

import pyarrow as pa
import pytest

from pipelines import doctor, metrics
from pipelines import models as bundled
from pipelines.admin_options import DoctorOptions
from pipelines.cli import main
from pipelines.context import Context
from pipelines.options import FitOptions, IngestOptions
from pipelines.store import Manifest


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


# the doctor


@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    """Runs the doctor on a lake with one table; the models, which take a second, are looked at by a test of their own."""
    c = context(tmp_path, quiet=True)
    entry = c.store.attempt("a", "turns", "date=2026-01-01", pa.table({"x": [1]}), 0)
    c.store.publish("a", Manifest("turns", "date=2026-01-01", "t", "f", (entry,)))
    monkeypatch.setattr(doctor, "models", lambda options: iter(()))

    def run(*flags):
        code = main(["doctor", f"--lake={tmp_path}/lake", "--json", *flags])
        found = json.loads(capsys.readouterr().out)
        assert found["healthy"] is (code == 0)
        return c.store, entry, {f["about"]: f for f in found["findings"] if f["state"] != "ok"}

    return run


def test_a_whole_lake_is_healthy(told):
    *_, found = told()
    assert set(found) <= {"disk"}
    *_, found = told("--deep")
    assert set(found) <= {"disk"}


def test_a_file_that_is_gone_short_or_changed_is_broken_with_its_fix(told):
    store, entry, _ = told()
    store.put(entry.path, bytes(entry.bytes))
    assert "turns" not in told()[2]
    assert "not what the manifest says" in told("--deep")[2]["turns"]["what"]
    store.put(entry.path, b"x")
    assert "1 bytes, and its manifest says" in told()[2]["turns"]["what"]
    store.delete([entry.path])
    found = told()[2]["turns"]
    assert found["state"] == "broken" and "_manifests/turns/date=2026-01-01.json and run again" in found["fix"]
    store.put("_manifests/turns/date=2026-01-01.json", b"{")
    assert "not a manifest" in told("--deep")[2]["manifest"]["what"]


def test_what_dead_runs_left_is_found_and_removed(told):
    store, entry, _ = told()
    store.put("turns/date=2026-01-01/bucket=03/0.parquet", b"x")
    store.put("_attempts/old/turns/x.parquet", b"x")
    store.put("_leases/fit.json", json.dumps({"host": "nowhere", "pid": 1, "since": 0}).encode())
    assert "1 files without a manifest, 1 attempts, 1 leases" in told()[2]["leftovers"]["what"]
    assert "leftovers" not in told("--rebuild")[2]
    assert "leftovers" not in told()[2]
    assert store.list("turns") == [entry.path] and not store.list("_leases") and not store.list("_attempts")


def test_another_key_and_a_wrong_latest_are_named(told, monkeypatch):
    store, *_ = told()
    store.put("releases/LATEST", b"r2026-01-01-none\n")
    assert "the newest release is None" in told()[2]["LATEST"]["what"]
    assert "LATEST" not in told("--rebuild")[2] and not store.exists("releases/LATEST")
    monkeypatch.setenv("SAYAGAIN_USER_KEY", "11" * 32)
    assert "not the one this lake was made with" in told()[2]["key"]["what"]


def test_a_wrong_engine_and_a_wrong_configuration_are_findings(told, tmp_path):
    (tmp_path / "c.toml").write_text("[privacy]\nk = 1\n")
    *_, found = told("--runner=spark", "--spark-job-server=/no.jar", f"--config={tmp_path}/c.toml")
    assert "/no.jar" in found["engine"]["what"] and "privacy.k = 1" in found["environment"]["what"]


def test_model_files_are_held_to_their_sha256(monkeypatch):
    found = list(doctor.models(DoctorOptions()))
    assert {f.state for f in found} <= {"ok", "warning"}
    name = next(iter(bundled.DATA))
    data = bundled.DATA[name]
    monkeypatch.setitem(bundled.DATA, name, dataclasses.replace(data, sha256=dict.fromkeys(data.sha256, "0" * 64)))
    wrong = next(f for f in doctor.models(DoctorOptions()) if name in f.what)
    assert wrong.state == "broken" and "force-reinstall" in wrong.fix
