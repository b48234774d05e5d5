"""Rows between the steps of a job lie in the lake, so that no runner has to hold them; what a daily run reads and writes."""

from __future__ import annotations

from datetime import date

import pytest
from running import run, simulate

from pipelines import aside, detect, ingest, sources
from pipelines.context import Context
from pipelines.errors import LakeError
from pipelines.options import DetectOptions, IngestOptions
from pipelines.store import Store

DAYS = 30
DAILY = ("turns", "rejects", "rephrases", "outcomes", "votes")


def test_buffers_lie_in_the_lake_and_come_back(tmp_path):
    store = Store(str(tmp_path))
    parts = [("a", b"one"), ("b", b"two"), ("a", b"three")]
    places = list(aside.put(store, "run/ingest", parts))
    assert [key for key, _ in places] == ["a", "b", "a"] and [aside.get(store, p) for _, p in places] == [b"one", b"two", b"three"]
    assert places == list(aside.put(store, "run/ingest", parts)), "a worker that does its work again leaves nothing else"
    assert list(aside.put(store, "run/ingest", [])) == []
    store.clear_attempt("run/ingest")
    with pytest.raises(LakeError, match="run again"):
        aside.get(store, places[0][1])


def test_what_ingest_shuffles_does_not_grow_with_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("SAYAGAIN_USER_KEY", "00" * 32)
    log = simulate(tmp_path / "world", 3_000, 1)
    context = Context(IngestOptions(lake=str(tmp_path / "lake"), logs=(str(log),), quiet=True), make=True)
    rules = ingest.rules_of(context.config)
    files = [sources.inspect(f, rules) for f in sources.find((str(log),))[0]]
    job = ingest.Job(context.store, "x/ingest", rules, frozenset(), 600.0, 60_000, 4)
    sent = [e for f in files for s in sources.shards(f, 60_000) for e in ingest._Read(job).process(s) if isinstance(e, tuple)]
    assert len(sent) >= 4 and sum(len(place) for _, place in sent) < 2_000
    merged = [r for key, place in sent for r in ingest._Merge(job).process((key, [place]))]
    assert sum(r["entry"]["rows"] for r in merged if r["table"] == "turns") >= 2_700


@pytest.fixture(scope="module")
def month(tmp_path_factory):
    """A lake of 30 days, and the log of the day after them."""
    folder = tmp_path_factory.mktemp("month")
    log = simulate(folder / "world", 6_000, DAYS + 1)
    last = max(log.iterdir())
    last.rename(folder / last.name)
    run("ingest", f"--logs={log}", f"--lake={folder}/lake", "--quiet")
    run("fit", f"--lake={folder}/lake", "--quiet")
    run("detect", f"--lake={folder}/lake", "--quiet")
    return folder / "lake", folder / last.name


@pytest.mark.slow
def test_a_daily_run_touches_one_day(month, monkeypatch):
    """Of a lake of 30 days: it reads and writes files of its own day alone."""
    lake, log = month
    day, store = date.fromisoformat(log.stem), Store(str(lake))
    before = {p: store.find_version(p)[1] for t in DAILY for p in store.list(t)}
    assert len({p.split("/")[1] for p in before}) == DAYS
    read = []
    kept = Store._bytes
    monkeypatch.setattr(Store, "_bytes", lambda self, entry: read.append(entry.path) or kept(self, entry))
    span = {"lake": str(lake), "start": day, "end": day, "quiet": True}
    for module, options, made in ((ingest, IngestOptions(logs=(str(log),), **span), True), (detect, DetectOptions(**span), False)):
        context = Context(options, make=made)
        with context.running(), context.stage(module.__name__) as report:
            module.run(context, report)
        assert not report.skipped
    assert read and {p.split("/")[1] for p in read} == {f"date={day}"}
    after = {p: store.find_version(p)[1] for t in DAILY for p in store.list(t)}
    assert {p: v for p, v in after.items() if f"date={day}" not in p} == before
    assert {p.split("/")[0] for p in after if f"date={day}" in p} >= {"turns", "outcomes", "votes"}
