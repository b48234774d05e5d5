"""ingest: every row ends as a turn, a reject or a duplicate; files in any order, at once or one by one, make the same lake."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from datetime import date, datetime

import polars as pl
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from ingest_world import START, balances, content, jsonl, parquet, row, run, table

from pipelines import ingest, sources
from pipelines.context import Context
from pipelines.errors import InputError, UsageError
from pipelines.options import IngestOptions
from pipelines.store import Store
from rewrite import turns as t
from rewrite.contracts import BUCKETS, REJECTS, TURNS

# the line


def test_a_log_becomes_turns(tmp_path):
    rows = [row(n, user=f"u{n % 7}", session_id=f"s{n % 7}", locale="en_us", slots='{"b": "New  York", "a": 2}') for n in range(50)]
    report = run(tmp_path / "lake", parquet(tmp_path / "log.parquet", rows))
    assert report.counts["turns"] == 50
    turns = table(tmp_path / "lake", "turns")
    assert turns.columns == TURNS.names
    assert turns["key"].unique().to_list() == ["play jazz"]
    assert turns["locale"].unique().to_list() == ["en-US"]
    assert turns["slots"].unique().to_list() == ['{"a":"2","b":"new york"}']
    assert turns["treatment"].unique().to_list() == ["unknown"]
    assert turns["user_key"].n_unique() == 7
    assert turns["user_key"].str.contains("^[0-9a-f]{32}$").all()
    everything = b"".join(p.read_bytes() for p in (tmp_path / "lake").rglob("*") if p.is_file())
    assert not any(f'"u{n}"'.encode() in everything for n in range(7))
    store = Store(str(tmp_path / "lake"))
    for m in store.manifests("turns").values():
        for f in m.files:
            found = pl.DataFrame(pl.from_arrow(store.read_file(f)))
            assert {int(k[:2], 16) % BUCKETS for k in found["user_key"]} == {f.bucket}
            assert f.path.startswith(f"turns/{m.partition}/bucket={f.bucket:02d}/")


def test_a_second_run_does_nothing(tmp_path):
    log = parquet(tmp_path / "log.parquet", [row(n) for n in range(5)])
    run(tmp_path / "lake", log)
    assert table(tmp_path / "lake", "turns")["session"].max() == 0
    assert "1 file(s) are in the lake already" in run(tmp_path / "lake", log).skipped
    assert "already" in run(tmp_path / "lake", log, start=date(2026, 1, 1), end=date(2026, 1, 1)).skipped
    assert run(tmp_path / "lake", log, config="[sessions]\ngap = 30.0").counts["turns"] == 5
    assert table(tmp_path / "lake", "turns")["session"].max() == 4


def test_every_bad_row_has_its_reason(tmp_path):
    good = [row(n, user=f"u{n}") for n in range(3)]
    bad = [
        row(10) | {"turn_id": None},
        row(11) | {"user_id": " "},
        row(12) | {"timestamp": None},
        row(13) | {"timestamp": "1970-01-01T00:00:00Z"},
        row(14) | {"timestamp": "yesterday"},
        row(15, text=" \u200b "),
        row(16, text=None),
        row(17, text="mail ana@example.com " + "x" * 1000),
        row(0, user="u0", text="another"),
    ]
    lines = [*good, *bad, b'{"turn_id": "x", "user_id": "secret-user", oops ana@example.com', b"[1]", b"\xff\xfe", b"[" * 100_000]
    report = run(tmp_path / "lake", jsonl(tmp_path / "log.jsonl", lines))
    assert balances(report.counts)
    assert report.counts["turns"] == 3
    want = {"missing_turn_id": 1, "missing_user": 1, "missing_timestamp": 1, "bad_timestamp": 2, "blank_utterance": 2, "too_long": 1}
    assert report.counts["reasons"] == want | {"turn_id_conflict": 1, "bad_json": 4}
    rejects = table(tmp_path / "lake", "rejects")
    assert rejects.columns[: len(REJECTS)] == REJECTS.names
    assert rejects["excerpt"].str.len_chars().max() <= 200
    assert sorted(rejects["row"]) == [*range(3, 11), 11, 12, 13, 14, 15]
    assert rejects.filter(pl.col("user_key").is_null())["reason"].value_counts().height == 2  # bad_json, missing_user
    everything = " ".join(str(v) for v in rejects["excerpt"])
    assert "ana@" not in everything
    assert "secret-user" not in everything
    assert "<mail>" in everything


def test_nothing_personal_reaches_the_lake(tmp_path):
    mail, phone, card = "ana.maria@example.com", "+1 415 555 2671", "4111 1111 1111 1111"
    rows = [
        row(1, text=f"write to {mail}", served_utterance=f"call {phone}", response=f"paid with {card}", slots=json.dumps({"to": mail})),
        row(2, text="x" * 190 + " " + card + "y" * 1000),
        row(3, text=f"{mail} clash"),
        row(3, text=f"{phone} clash"),
    ]
    report = run(tmp_path / "lake", parquet(tmp_path / "log.parquet", rows))
    assert report.counts["scrubbed"] == {"card": 1, "mail": 3, "phone": 2}
    for name in ("turns", "rejects"):
        text = str(table(tmp_path / "lake", name).to_dicts())
        assert not any(secret in text for secret in ("ana.maria", "415 555", "4111", "2671"))
    assert table(tmp_path / "lake", "turns").sort("timestamp")["scrubbed"].to_list() == [4, 1]


# formats


@pytest.mark.parametrize("suffix", [".jsonl", ".json.gz", ".ndjson.zst", ".jsonl.gz"])
def test_json_lines_plain_and_compressed(tmp_path, suffix):
    data = jsonl(
        tmp_path / "raw", [row(n, slots={"a": [1]}, barge_in="true", feedback=5, asr_confidence="0.5") for n in range(9)]
    ).read_bytes()
    half = data.index(b"\n", len(data) // 2) + 1
    if suffix.endswith("gz"):
        data = gzip.compress(data[:half]) + gzip.compress(data[half:])
    elif suffix.endswith("zst"):
        data = zstandard.compress(data[:half]) + zstandard.compress(data[half:])
    log = tmp_path / f"log{suffix}"
    log.write_bytes(data)
    report = run(tmp_path / "lake", log)
    turns = table(tmp_path / "lake", "turns")
    assert report.counts["turns"] == 9
    first = turns.row(0, named=True)
    assert (first["slots"], first["barge_in"], first["feedback"], first["asr_confidence"]) == ('{"a":"[1]"}', True, 1, 0.5)


@pytest.mark.slow
def test_folders_globs_and_dates(tmp_path):
    logs = tmp_path / "logs"
    for n, day in enumerate(("2026-01-01", "2026-01-03")):
        parquet(logs / day / "a.parquet", [row(n, user=f"u{n}") | {"timestamp": datetime.fromisoformat(day + "T10:00:00Z")}])
    jsonl(logs / "deep" / "er" / "b.jsonl", [row(9)])
    (logs / "_SUCCESS").write_text("")
    (logs / ".hidden.parquet").write_text("rubbish")
    (logs / "_tmp").mkdir()
    (logs / "_tmp" / "c.parquet").write_text("rubbish")
    (logs / "README.md").write_text("about")
    assert run(tmp_path / "folder", logs).counts["turns"] == 3
    assert run(tmp_path / "glob", logs / "*" / "*.parquet").counts["turns"] == 2
    dated = run(tmp_path / "dated", f"{logs}/{{date}}/*.parquet", start=date(2026, 1, 1), end=date(2026, 1, 3))
    assert dated.counts["turns"] == 2
    assert any("no file for 1 of 3 days: 2026-01-02" in note for note in dated.counts["notes"])
    with pytest.raises(InputError, match="no file for any day from 2025-01-01"):
        run(tmp_path / "none", f"{logs}/{{date}}", start=date(2025, 1, 1), end=date(2025, 1, 2))


@pytest.mark.slow
def test_rows_outside_the_range_are_counted_apart(tmp_path):
    rows = [row(n * 60 * 24, user=f"u{n}") for n in range(5)] + [row(99) | {"timestamp": None}]
    log = parquet(tmp_path / "log.parquet", rows)
    report = run(tmp_path / "lake", log, start=date(2026, 1, 2), end=date(2026, 1, 3))
    assert (report.counts["turns"], report.counts["outside"], report.counts["rows"], report.counts["rejects"]) == (2, 3, 3, 1)
    assert list(content(tmp_path / "lake")) == ["date=2026-01-02", "date=2026-01-03"]
    assert list(content(tmp_path / "lake", "rejects")) == ["date=unknown"]
    run(tmp_path / "lake", log)
    run(tmp_path / "all", log)
    assert content(tmp_path / "lake") == content(tmp_path / "all")
    assert content(tmp_path / "lake", "rejects") == content(tmp_path / "all", "rejects")


def test_columns_and_values_are_mapped(tmp_path):
    rows = [{"id": 7, "ts": 1767268800 + n, "who": 12.0, "said": "hi", "ok": "NO", "when": n} for n in range(2)]
    rows[1]["id"] = 8
    config = """
    [log]
    timestamp_unit = "s"
    locale = "de"
    channel = "voice"
    treatment = "untouched"
    [log.columns]
    turn_id = "id"
    timestamp = "ts"
    user_id = "who"
    utterance = "said"
    status = {from = "ok", values = {NO = "no_match"}}
    """
    run(tmp_path / "lake", parquet(tmp_path / "log.parquet", rows), config=config)
    got = table(tmp_path / "lake", "turns").select("turn_id", "status", "locale", "channel", "treatment").rows()
    assert got == [("7", "no_match", "de", "voice", "untouched"), ("8", "no_match", "de", "voice", "untouched")]


@pytest.mark.parametrize(
    ("bad", "problem"),
    [("uterance = 'x'", "utterance meant"), ("status = 3", "should be a column name"), ("status = {fro = 'x'}", "column name")],
)
def test_a_wrong_mapping_is_wrong_usage(tmp_path, bad, problem):
    with pytest.raises(UsageError, match=problem):
        run(tmp_path / "lake", parquet(tmp_path / "log.parquet", [row(1)]), config=f"[log.columns]\n{bad}")


# files that are not what they claim


def rubbish(path, data):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("log.parquet", b"turn_id,timestamp\n1,2\n", "named as Parquet, but it begins with b'turn'"),
        ("log.parquet", b"", "it is empty"),
        ("log.parquet", b"PAR1" + b"x" * 50, "cannot be read as such"),
        ("log.jsonl", b"PAR1" + b"x" * 50, "named as JSON Lines, but it is Parquet"),
        ("log.jsonl", b"turn_id,timestamp\n1,2\n", "none of its first 2 line.s. is a JSON object"),
        ("log.json", b'[{"turn_id": 1}]', "one JSON array"),
        ("log.json", b'{\n "turn_id": 1\n}', "on one line"),
        ("log.jsonl", "é".encode("utf-16"), "UTF-16"),
        ("log.jsonl.gz", b"\x1f\x8bnope", "cannot be decompressed"),
        ("log.zip", b"PK\x03\x04....", "a zip archive"),
        (
            "log.jsonl",
            b'{"id": 1, "ts": 2, "user": 3, "text": "x"}',
            'turn_id = "id"\ntimestamp = "ts"\nuser_id = "user"\nutterance = "text"',
        ),
        ("log.jsonl", b'{"turn_id": 1, "timestamp": 2, "user_id": 3, "utterance": "x"}', "timestamp_unit"),
    ],
)
def test_a_bad_file_is_a_clear_error(tmp_path, name, data, problem):
    with pytest.raises(InputError, match=problem) as error:
        run(tmp_path / "lake", rubbish(tmp_path / name, data))
    assert str(tmp_path / name) in str(error.value)
    assert content(tmp_path / "lake") == {}


def test_a_damaged_file_stops_the_job_and_publishes_nothing(tmp_path):
    whole = gzip.compress(jsonl(tmp_path / "raw", [row(n, text=os.urandom(450).hex()) for n in range(6000)]).read_bytes())
    log = rubbish(tmp_path / "log.jsonl.gz", whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"log\.jsonl\.gz: damaged"):
        run(tmp_path / "lake", log)
    assert content(tmp_path / "lake") == {}
    assert not (tmp_path / "lake" / "_attempts").exists()


def test_missing_and_empty_inputs(tmp_path):
    with pytest.raises(InputError, match="no file there"):
        run(tmp_path / "lake", tmp_path / "nothing-*.parquet")
    with pytest.raises(InputError, match="no column for user_id, utterance; there are: turn_id, timestamp, text"):
        run(tmp_path / "lake", parquet(tmp_path / "a.parquet", [{"turn_id": "1", "timestamp": START, "text": "x"}]))
    nothing = parquet(tmp_path / "b.parquet", [row(1)])
    pq.write_table(pq.read_table(nothing).slice(0, 0), nothing)
    assert "nothing to do" in run(tmp_path / "lake", nothing, jsonl(tmp_path / "c.jsonl", [])).skipped


def test_a_byte_order_mark_is_no_fault(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_bytes(b"\xef\xbb\xbf" + encode(FIRST) + b"\r\n\r\n" + encode(FIRST | {"turn_id": "2"}))
    assert run(tmp_path / "lake", log).counts["turns"] == 2


# dry run


def test_preview_and_plan_write_nothing(tmp_path):
    log = parquet(tmp_path / "log.parquet", [row(n, text="mail ana@example.com", locale="en_us") for n in range(9)])
    context = Context(IngestOptions(lake=str(tmp_path / "lake"), logs=(str(log),), dry_run=True, quiet=True), dry=True)
    shown = ingest.preview(context)
    assert shown.height == 5
    assert shown["utterance"].unique().to_list() == ["mail <mail>"]
    assert "user_id" not in shown.columns
    assert [(x.partition, x.why) for x in ingest.plan(context).todo] == [(str(log), "new")]
    assert not (tmp_path / "lake").exists()


# fuzz: turns + rejects + duplicates = rows read

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(
        ["2026-01-01T10:00:00Z", "2026-01-02 11:00", "1800-01-01", "\ud800", "\x00", "a" * 1001, "true", "en-US", "{}", "<mail>"]
    ),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
)
GOOD = {
    "turn_id": st.sampled_from(["1", "2", "3"]),
    "timestamp": st.sampled_from(["2026-01-01T10:00:00Z", "2026-01-01T23:59:59.999999Z", "2026-01-02T00:00:00Z"]),
    "user_id": st.sampled_from(["a", "b"]),
    "utterance": st.sampled_from(["play jazz", "stop", "card 4111 1111 1111 1111"]),
}
OPTIONAL = ("locale", "session_id", "served_utterance", "rewrite_id", "slots", "status", "feedback", "barge_in", "odd")
ROW = st.fixed_dictionaries(
    {k: st.one_of(v, v, v, VALUES) for k, v in GOOD.items()},
    optional=dict.fromkeys(OPTIONAL, VALUES),
)
LINE = st.one_of(ROW, ROW, ROW, st.binary(max_size=30).filter(lambda b: b.strip() and b"\n" not in b), st.just(b'{"turn_id": '))
FIRST = {"turn_id": "0", "timestamp": "2026-01-01T09:00:00Z", "user_id": "a", "utterance": "x"}


def encode(line):
    return line if isinstance(line, bytes) else json.dumps(line).encode()


def write_lines(path, lines):
    path.write_bytes(b"\n".join(map(encode, [FIRST, *lines])))
    return path, 1 + len(lines)


@settings(max_examples=100)
@given(st.lists(LINE, max_size=12))
@pytest.mark.slow
def test_fuzzed_lines_all_end_somewhere(tmp_path_factory, lines):
    path, n = write_lines(tmp_path_factory.mktemp("f") / "log.jsonl", lines)
    rules = t.Rules()
    source = sources.inspect(sources.find((str(path),))[0][0], rules)
    total: Counter[str] = Counter()
    for block in sources.read(sources.Shard(source), rules, 1000):
        rows = ingest.convert(block, source, rules, b"k" * 32)
        assert rows.rejects["reason"].is_in(t.REASONS).all()
        for (_, _), part in rows.turns.partition_by("partition", "bucket", as_dict=True).items():
            fresh = part.with_columns(fresh=pl.lit(True))
            kept, lost, duplicates = t.merge(fresh, rows.rejects.clear().with_columns(fresh=pl.lit(True)))
            assert kept.select("user_key", "turn_id").is_unique().all()
            total += Counter(turns=kept.height, rejects=lost.height, duplicates=sum(duplicates.values()))
        total += Counter(rejects=rows.rejects.height)
    assert total["turns"] + total["rejects"] + total["duplicates"] == n


@pytest.mark.slow
@settings(max_examples=12)
@given(st.lists(LINE, max_size=8), st.lists(ROW, max_size=8), st.randoms(use_true_random=False))
def test_fuzzed_files_balance_through_the_job(tmp_path_factory, lines, more, rng):
    folder = tmp_path_factory.mktemp("fuzz")
    again = [*lines, *rng.choices(lines, k=3)] if lines else []
    rng.shuffle(again)
    a, n = write_lines(folder / "a.jsonl", lines)
    b, m = write_lines(folder / "b.jsonl", [*again, *more])
    report = run(folder / "lake", a, b)
    assert report.counts["rows"] == n + m
    assert balances(report.counts)
    turns, rejects = table(folder / "lake", "turns"), table(folder / "lake", "rejects")
    assert turns.height == report.counts["turns"]
    assert (rejects.height if rejects is not None else 0) == report.counts["rejects"]
    run(folder / "steps", b)
    run(folder / "steps", a)
    assert content(folder / "steps") == content(folder / "lake")


@pytest.mark.eval
@pytest.mark.slow
def test_a_real_log(tmp_path, eval_data):
    log = eval_data / "getgoing" / "log.parquet"
    report = run(tmp_path / "lake", log)
    assert report.counts["turns"] == pl.read_parquet(log).unique().height
    assert report.counts["days"] == 94
    assert balances(report.counts)
