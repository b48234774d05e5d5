"""ingest again: rows in any order, files at once or one by one, changed, late, lost, or read by two runs, make the same lake."""

from __future__ import annotations

import dataclasses
import random
from datetime import date, timedelta

import polars as pl
import pytest
from ingest_world import START, balances, content, jsonl, parquet, row, run, table

from pipelines import ingest, inputs
from pipelines.errors import InputError, LakeError
from pipelines.store import Store


def mixed_rows(seed, n=60):
    """Rows over two days with duplicates, conflicts and faults."""
    rng = random.Random(seed)
    rows = []
    for _ in range(n):
        i = rng.randrange(25)
        r = row(i * 60, user=f"u{i % 4}", text=rng.choice(["a", "b", "call 555 123 456 789"]))
        if rng.random() < 0.2:
            r[rng.choice(list(r))] = None
        rows.append(r)
    return rows


@pytest.mark.slow
def test_row_order_files_shards_and_workers_change_nothing(tmp_path):
    rows = mixed_rows(1)
    run(tmp_path / "one", parquet(tmp_path / "one.parquet", rows))
    shuffled = random.Random(2).sample(rows, len(rows))
    run(tmp_path / "two", parquet(tmp_path / "elsewhere" / "one.parquet", shuffled, row_group_size=7), config="[run]\nshard_turns = 5")
    for i in range(3):
        jsonl(tmp_path / "split" / f"{i}.jsonl", rows[i::3])
    run(tmp_path / "split_lake", tmp_path / "split")
    one, two, split = (table(tmp_path / x, "turns", ["input"]) for x in ("one", "two", "split_lake"))
    assert one.equals(two)
    assert one.equals(split)
    rejects = [table(tmp_path / x, "rejects", ["input", "row"]).sort(pl.all()) for x in ("one", "two", "split_lake")]
    assert rejects[0].equals(rejects[1])
    assert rejects[0].equals(rejects[2])


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_order_or_shards(tmp_path):
    rows = mixed_rows(3)
    log = tmp_path / "log.parquet"
    run(tmp_path / "a", parquet(log, rows))
    run(tmp_path / "b", parquet(log, rows[::-1], row_group_size=5), config="[run]\nshard_turns = 3")
    assert content(tmp_path / "a") == content(tmp_path / "b")


@pytest.mark.slow
def test_worker_processes_change_nothing(tmp_path):
    log = parquet(tmp_path / "log.parquet", mixed_rows(4), row_group_size=9)
    run(tmp_path / "a", log)
    run(tmp_path / "b", log, workers=2, config="[run]\nshard_turns = 9")
    assert content(tmp_path / "a") == content(tmp_path / "b")


@pytest.mark.prism
def test_prism_runs_the_same_job(tmp_path, prism, monkeypatch):
    monkeypatch.setenv("SAYAGAIN_PRISM", prism)
    log = parquet(tmp_path / "log.parquet", mixed_rows(4))
    run(tmp_path / "a", log)
    run(tmp_path / "b", log, runner="prism")
    assert content(tmp_path / "a") == content(tmp_path / "b")


@pytest.mark.slow
def test_files_one_by_one_are_files_at_once(tmp_path):
    rows = mixed_rows(5, 90)
    files = [parquet(tmp_path / "logs" / f"{i}.parquet", rows[i::3]) for i in range(3)]
    run(tmp_path / "once", tmp_path / "logs")
    for order in ((2, 0, 1),):
        lake = tmp_path / f"step{order[0]}"
        for i in order:
            assert balances(run(lake, files[i]).counts)
        assert content(lake) == content(tmp_path / "once")
        want, got = (table(x, "rejects", ["row"]).sort(pl.all()) for x in (tmp_path / "once", lake))
        assert got.equals(want)


@pytest.mark.slow
def test_a_changed_file_replaces_its_rows_only(tmp_path):
    logs = tmp_path / "logs"
    parquet(logs / "a.parquet", [row(1, text="shared"), row(2, text="only a"), row(60 * 24, text="another day")])
    parquet(logs / "b.parquet", [row(1, text="shared"), row(3, text="only b"), row(2, text="held back")])
    run(tmp_path / "lake", logs)
    untouched = parquet(logs / "c.parquet", [row(60 * 24 * 9, user="u9")])
    run(tmp_path / "lake", untouched)
    before = (tmp_path / "lake" / "_manifests" / "turns" / "date=2026-01-10.json").stat().st_mtime_ns
    parquet(logs / "a.parquet", [row(5, text="new in a")])
    report = run(tmp_path / "lake", logs)
    assert report.counts["current"] == 1
    run(tmp_path / "fresh", logs)
    assert content(tmp_path / "lake") == content(tmp_path / "fresh")
    texts = set(table(tmp_path / "lake", "turns")["utterance"])
    assert texts == {"shared", "only b", "held back", "new in a", "play jazz"}
    assert (tmp_path / "lake" / "_manifests" / "turns" / "date=2026-01-10.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_changed_file_given_alone_makes_its_neighbours_be_read_again(tmp_path):
    a = parquet(tmp_path / "a.parquet", [row(1, text="first")])
    b = parquet(tmp_path / "b.parquet", [row(1, text="held back") | {"timestamp": START + timedelta(minutes=2)}])
    run(tmp_path / "lake", a, b)
    assert table(tmp_path / "lake", "turns")["utterance"].to_list() == ["first"]
    parquet(a, [row(2, user="u2", text="other")])
    run(tmp_path / "lake", a)
    run(tmp_path / "lake", b)
    assert set(table(tmp_path / "lake", "turns")["utterance"]) == {"other", "held back"}
    assert table(tmp_path / "lake", "rejects") is None
    assert "in the lake already" in run(tmp_path / "lake", a, b).skipped


@pytest.mark.slow
def test_values_without_a_plain_form_are_counted(tmp_path):
    rows = [row(1, intent=["a", "b"], channel="smoke signal", asr_confidence=7.0, status="OK"), row(2, intent=None)]
    for log in (parquet(tmp_path / "a.parquet", rows), jsonl(tmp_path / "b.jsonl", rows)):
        report = run(tmp_path / log.stem, log)
        assert report.counts["turns"] == 2
        assert report.counts["warnings"] == {"bad_asr_confidence": 1, "bad_channel": 1, "bad_intent": 1, "bad_status": 1}
    with pytest.raises(InputError, match="column utterance is list"):
        run(tmp_path / "lake", parquet(tmp_path / "c.parquet", [row(1, text=["a"])]))


@pytest.mark.slow
@pytest.mark.parametrize("ranges", [[(1, 1), (2, 2), (1, 2)], [(1, 2), (2, 3)], [(1, 3), (2, 2)], [(2, 3), (1, 2), (3, 3)]])
def test_days_that_are_read_again_in_another_range_are_counted_once(tmp_path, ranges):
    """In reports, rows without a date included, whatever ranges one file was read in."""
    undated = row(3) | {"timestamp": None}
    log = parquet(tmp_path / "log.parquet", [row(1), row(60 * 24, text="mail a@b.org"), row(60 * 48), row(60 * 48), undated])
    for first, last in ranges:
        run(tmp_path / "lake", log, start=date(2026, 1, first), end=date(2026, 1, last))
    days = {day for first, last in ranges for day in range(first, last + 1)}
    read = inputs.counted(Store(str(tmp_path / "lake")))
    assert (read["turns"], read["duplicates"], read["reject:missing_timestamp"]) == (len(days), int(3 in days), 1)
    assert read["scrubbed:mail"] == 1


def test_days_whose_log_is_gone_stay_as_they_are_where_that_is_said(tmp_path):
    log = parquet(tmp_path / "2026-01-01.parquet", [row(1)])
    day = {"start": date(2026, 1, 1), "end": date(2026, 1, 1)}
    pattern = tmp_path / "{date}.parquet"
    assert run(tmp_path / "lake", pattern, **day, if_there=True).counts["turns"] == 1
    before = content(tmp_path / "lake")
    log.unlink()
    with pytest.raises(InputError, match="no file for 2026-01-01;"):
        run(tmp_path / "lake", pattern, **day)
    skipped = run(tmp_path / "lake", pattern, **day, if_there=True).skipped
    assert "no file for 2026-01-01:" in skipped and skipped.endswith("what the lake has of it stays as it is")
    assert content(tmp_path / "lake") == before


@pytest.mark.slow
def test_late_rows_rebuild_only_their_day(tmp_path):
    run(tmp_path / "lake", parquet(tmp_path / "a.parquet", [row(n * 60 * 24, user=f"u{n}") for n in range(3)]))
    before = content(tmp_path / "lake")
    run(tmp_path / "lake", parquet(tmp_path / "b.parquet", [row(1, user="u1")]))
    after = content(tmp_path / "lake")
    assert {d for d in after if after[d] != before[d]} == {"date=2026-01-01"}


@pytest.mark.slow
def test_two_runs_on_one_day_do_not_lose_rows(tmp_path, monkeypatch):
    a, b = (parquet(tmp_path / f"{x}.parquet", [row(n, user=x)]) for n, x in enumerate("ab"))
    publish = ingest._publish

    def meanwhile(context, made, receipts):
        monkeypatch.setattr(ingest, "_publish", publish)
        day = {"start": date(2026, 1, 1), "end": date(2026, 1, 1)}
        run(tmp_path / "lake", b, **day)  # holds another lease than a run without a range
        return publish(context, made, receipts)

    monkeypatch.setattr(ingest, "_publish", meanwhile)
    with pytest.raises(LakeError, match="run again"):
        run(tmp_path / "lake", a)
    run(tmp_path / "lake", a)
    assert table(tmp_path / "lake", "turns").height == 2


def test_rows_that_a_runner_loses_stop_the_run(tmp_path, monkeypatch):
    log = parquet(tmp_path / "a.parquet", [row(n, user=f"u{n}") for n in range(50)])
    convert = ingest.convert

    def losing(*arguments):
        rows = convert(*arguments)
        return dataclasses.replace(rows, turns=rows.turns.head(-3))

    monkeypatch.setattr(ingest, "convert", losing)
    with pytest.raises(LakeError, match=r"50 were sent and 47 arrived"):
        run(tmp_path / "lake", log)
    assert not content(tmp_path / "lake")


def test_another_runs_lease_is_respected(tmp_path):
    log = parquet(tmp_path / "a.parquet", [row(1)])
    run(tmp_path / "lake", log)
    with Store(str(tmp_path / "lake")).lease("date=2026-01-01"), pytest.raises(LakeError, match="held by"):
        run(tmp_path / "lake", log, start=date(2026, 1, 1), end=date(2026, 1, 2))


@pytest.mark.slow
def test_a_run_that_died_while_publishing_is_made_good(tmp_path, monkeypatch):
    log = parquet(tmp_path / "a.parquet", [row(n * 60 * 24, user=f"u{n}") for n in range(4)])
    publish = Store.publish
    done: list[object] = []

    def dies(self, attempt, manifest):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(manifest)
        publish(self, attempt, manifest)

    monkeypatch.setattr(Store, "publish", dies)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "lake", log)
    monkeypatch.setattr(Store, "publish", publish)
    run(tmp_path / "lake", log)
    run(tmp_path / "fresh", log)
    assert content(tmp_path / "lake") == content(tmp_path / "fresh")
