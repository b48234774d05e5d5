"""Rows into turns, without an engine: casts, checks, pseudonyms, conflicts, sessions."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime, timedelta

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quality.scrub import scrub
from rewrite import casts
from rewrite import turns as t
from rewrite.contracts import BUCKETS, LOG

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def contract(treatment_logged=False, rules=None, **columns):
    n = len(next(iter(columns.values())))
    base = {"turn_id": [str(i) for i in range(n)], "timestamp": [NOON] * n, "user_id": ["u"] * n, "utterance": ["hi"] * n}
    raw = pl.DataFrame(base | columns, strict=False).with_columns(row=pl.int_range(n, dtype=pl.Int64))
    return t.contract(raw, rules or t.Rules(), treatment_logged=treatment_logged)


# casts


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("2026-01-08T05:28:29Z", "2026-01-08 05:28:29"),
        ("2026-01-08 05:28:29.123456789+02:00", "2026-01-08 03:28:29.123456"),
        ("20260108T052829-0530", "2026-01-08 10:58:29"),
        ("2026-01-08T05:28", "2026-01-08 05:28:00"),
        ("2026-01-08", "2026-01-08 00:00:00"),
        ("2100-01-01T00:30:00+01:00", "2099-12-31 23:30:00"),
        ("1990-01-01T00:00:00Z", "1990-01-01 00:00:00"),
        ("1989-12-31T23:59:59Z", None),
        ("2100-01-01T00:00:00Z", None),
        ("2026-02-30T00:00:00Z", None),
        ("2026-01-08T05:28:29+99:00", None),
        ("20260108", None),
        ("1767849600", None),
        ("noon", None),
        ("", None),
    ],
)
def test_timestamps_as_strings(text, want):
    got = casts.to_timestamp(pl.Series([text]))[0][0]
    assert got == (datetime.fromisoformat(want).replace(tzinfo=UTC) if want else None)


@given(st.datetimes(datetime(1990, 1, 2), datetime(2099, 12, 30)), st.integers(-23 * 60, 23 * 60))
def test_iso_8601_agrees_with_python(moment, minutes):
    sign, offset = "-" if minutes < 0 else "+", abs(minutes)
    text = f"{moment.isoformat()}{sign}{offset // 60:02d}:{offset % 60:02d}"
    assert casts.to_timestamp(pl.Series([text]))[0][0] == datetime.fromisoformat(text)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_timestamps_as_numbers_need_a_unit(unit):
    scale = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    numbers = [int(NOON.timestamp()) * scale, None, -5, 2**62 if unit != "ns" else 2**63 - 1]
    want = [NOON, None, None, None]
    assert casts.to_timestamp(pl.Series(numbers), unit)[0].to_list() == want
    assert casts.to_timestamp(pl.Series([None if n is None else str(n) for n in numbers]), unit)[0].to_list() == want
    assert casts.to_timestamp(pl.Series([float(numbers[0])]), unit)[0].to_list() == [NOON]
    assert casts.to_timestamp(pl.Series(numbers))[0].null_count() == 4


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_timestamps_of_arrow(unit):
    naive = pa.chunked_array([pa.array([NOON.replace(tzinfo=None), None], pa.timestamp(unit))])
    zoned = pa.chunked_array([pa.array([NOON, None], pa.timestamp(unit, "+02:00"))])
    assert casts.to_timestamp(casts.from_arrow(naive))[0].to_list() == [NOON, None]
    assert casts.to_timestamp(casts.from_arrow(naive))[1] == 1
    assert casts.to_timestamp(casts.from_arrow(zoned))[0].to_list() == [NOON, None]
    assert casts.to_timestamp(casts.from_arrow(zoned))[1] == 0


def test_locales():
    given_ = ["en_us", "EN", "zh_hans_cn", "iw", "en_US.UTF-8", "und", "klingon", "", "x" * 99, None, "\x00"]
    want = ["en-US", "en", "zh-Hans-CN", "he", "en-US", "und", None, None, None, None, None]
    assert casts.to_locale(pl.Series(given_)).to_list() == want


def test_bytes_that_are_no_text_do_not_crash():
    broken = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\3\0\0\0"), pa.py_buffer(b"\xff\xfea")])
    assert casts.from_arrow(pa.chunked_array([broken])).to_list() == ["\ufffd\ufffda"]
    assert casts.from_arrow(pa.chunked_array([pa.array([b"caf\xc3\xa9", b"\xff"])])).to_list() == ["café", "\ufffd"]


@pytest.mark.parametrize(
    "array",
    [
        pa.array(["a", None]).dictionary_encode(),
        pa.array(["a", None], pa.large_string()),
        pa.array(["a", None], pa.string_view()),
        pa.array([b"a", None], pa.binary(1)),
        pa.array([b"a", None], pa.binary_view()),
    ],
    ids=lambda a: str(a.type),
)
def test_strings_of_every_arrow_type(array):
    assert casts.from_arrow(pa.chunked_array([array])).to_list() == ["a", None]


def test_slots_of_every_shape():
    struct = pa.chunked_array([pa.array([{"a": None, "b": [1, None]}, None])])
    pairs = pa.chunked_array([pa.array([[("a", "x")], None], pa.map_(pa.string(), pa.string()))])
    assert casts.from_arrow(struct, as_json=True).to_list() == ['{"b": [1, null]}', None]
    assert casts.from_arrow(pairs, as_json=True).to_list() == ['{"a": "x"}', None]
    assert casts.from_values([{"a": "\ud800"}, "{}", None], as_json=True).to_list() == ['{"a": "?"}', "{}", None]


# the contract


def test_optional_columns_may_be_absent_and_bad_values_become_null():
    rows, warnings = contract(
        asr_confidence=["0.5", "1.5", "x", None],
        barge_in=["TRUE", "0", "maybe", None],
        feedback=[-7, 0, 3, None],
        status=[" Completed ", "done", "", None],
        channel=["VOICE", "smoke", "", None],
        locale=["en_us", "???", " ", None],
    )
    assert set(LOG.names) <= set(rows.columns)
    assert rows["asr_confidence"].to_list() == [0.5, None, None, None]
    assert rows["barge_in"].to_list() == [True, False, None, None]
    assert rows["feedback"].to_list() == [-1, None, 1, None]
    assert rows["status"].to_list() == ["completed", None, None, None]
    assert rows["channel"].to_list() == ["voice", None, None, None]
    assert rows["locale"].to_list() == ["en-US", "und", "und", "und"]
    assert rows["reason"].null_count() == 4
    assert warnings == {"bad_asr_confidence": 2, "bad_barge_in": 1, "bad_status": 1, "bad_channel": 1, "bad_locale": 1}


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"turn_id": [""]}, "missing_turn_id"),
        ({"user_id": [None], "timestamp": [None]}, "missing_user"),
        ({"timestamp": ["  "]}, "missing_timestamp"),
        ({"timestamp": ["1970-01-01T00:00:00Z"]}, "bad_timestamp"),
        ({"utterance": ["\x1c\u3000\u200b\ufeff"]}, "blank_utterance"),
        ({"utterance": ["x" * 1001]}, "too_long"),
        ({"utterance": ["語" * 1000]}, None),
        ({"utterance": ["?"]}, None),
        ({"turn_id": [7.0], "user_id": [True], "utterance": [5]}, None),
    ],
)
def test_reasons(columns, reason):
    assert contract(**columns)[0]["reason"].to_list() == [reason]


def test_slots_that_would_hurt_a_parser_are_dropped():
    deep = '{"a":' + "[" * 900 + "]" * 900 + "}"
    rows, warnings = contract(slots=[deep, '{"a": "' + "x" * 30_000 + '"}', "{}"])
    assert rows["slots"].to_list() == [None, None, "{}"]
    assert warnings == {"bad_slots": 2}


@pytest.mark.parametrize(
    ("logged", "setting", "plain"),
    [(True, "auto", "untouched"), (False, "auto", "unknown"), (True, "unknown", "unknown"), (False, "logged", "untouched")],
)
def test_treatment(logged, setting, plain):
    rows, _ = contract(
        logged,
        t.Rules(treatment=setting),
        rewrite_id=[None, "ab", None, None, ""],
        served_utterance=[None, None, " HI ", "bye", ""],
    )
    done, _ = t.canonical(rows)
    assert done["treatment"].to_list() == [plain, "rewritten", plain, "rewritten", plain]


def test_missing_columns_are_told_with_the_lines_to_add():
    assert t.missing_columns(LOG.names, t.Rules()) is None
    told = t.missing_columns(["Text", "userid", "ts", "x\ny"], t.Rules(t.parse_columns({"turn_id": "conversation"})))
    assert "turn_id (mapped from 'conversation')" in told
    assert 'timestamp = "ts"\nuser_id = "userid"\nutterance = "Text"' in told


def test_all_errors_of_a_mapping_at_once():
    with pytest.raises(ValueError, match=r"(?s)utterance meant.*single values"):
        t.parse_columns({"uterance": "x", "status": {"values": {"a": ["b"]}}})


# pseudonyms and excerpts


def test_pseudonyms_are_hmacs_and_do_not_link():
    ids = pl.Series(["a", None, "b", "a", "\x00é"])
    keys = t.pseudonyms(ids, b"k" * 32)
    assert keys[0] == keys[3] != keys[2]
    assert keys[1] is None
    assert keys.drop_nulls().str.contains("^[0-9a-f]{32}$").all()
    assert not set(keys.drop_nulls()) & set(t.pseudonyms(ids, b"k" * 32, "session").drop_nulls())
    assert not set(keys.drop_nulls()) & set(t.pseudonyms(ids, b"l" * 32).drop_nulls())
    buckets = pl.DataFrame({"user_key": keys}).select(t.bucket_expr()).to_series()
    assert buckets.drop_nulls().is_between(0, BUCKETS - 1).all()


def test_an_excerpt_never_holds_half_a_number():
    texts = pl.Series([None, "a\x1b[31m\u2028b", *("word " * n + "4111 1111 1111 1111 " * 80 for n in range(20))])
    done = t.excerpts(texts, lambda s: scrub(s)[0])
    assert done[0] is None
    assert done[1] == "a [31m b"
    assert done.str.len_chars().max() <= t.EXCERPT
    assert not done[2:].str.contains(r"\d").any()


# duplicates and conflicts


def row(turn="1", user="u", at=0, input="a", number=0, fresh=True, **more):
    base = dict.fromkeys(t.IDENTITY) | {"turn_id": turn, "user_key": user, "timestamp": NOON + timedelta(seconds=at)}
    return base | {"utterance": "hi", "treatment": "unknown", "input": input, "row": number, "fresh": fresh} | more


SCHEMA = {"holdout": pl.Boolean, "barge_in": pl.Boolean, "feedback": pl.Int8, "timestamp": pl.Datetime("us", "UTC"), "row": pl.Int64} | {
    "asr_confidence": pl.Float64,
    "intent_confidence": pl.Float64,
    "fresh": pl.Boolean,
}
REJECT = {"input": pl.String, "row": pl.Int64, "reason": pl.String, "user_key": pl.String, "excerpt": pl.String} | {
    "row_hash": pl.String,
    "fresh": pl.Boolean,
}


def merge(rows, rejects=None):
    names = list(row())
    frame = pl.DataFrame([[r[n] for n in names] for r in rows], schema={n: SCHEMA.get(n, pl.String) for n in names}, orient="row")
    return t.merge(frame, rejects if rejects is not None else pl.DataFrame(schema=REJECT))


def test_identical_rows_are_duplicates_and_different_ones_conflict():
    rows = [row(number=2), row(number=1), row(number=0, at=-1, utterance="earlier"), row("2"), row(user="v")]
    turns, rejects, duplicates = merge(rows)
    assert set(turns.select("user_key", "turn_id", "utterance").rows()) == {("u", "1", "earlier"), ("u", "2", "hi"), ("v", "1", "hi")}
    assert rejects.select("reason", "row", "excerpt").rows() == [("turn_id_conflict", 1, "hi")]
    assert duplicates == {"a": 1}


def test_of_different_rows_the_earliest_stays():
    rows = [row(str(n), at=(3 * k + n) % 5, utterance=f"{n} {k}", number=5 * n + k) for n in range(20) for k in range(5)]
    turns, rejects, _ = merge(rows)
    assert turns["timestamp"].unique().to_list() == [NOON]
    assert rejects.height == 80


def test_identical_losers_are_rejected_once():
    rows = [row(at=-1), row(number=1, utterance="late"), row(number=2, utterance="late")]
    for order in (rows, rows[::-1]):
        _, rejects, duplicates = merge(order)
        assert (rejects["row"].to_list(), duplicates) == ([1], {"a": 1})
    _, stored, _ = merge(rows[:2])
    _, rejects, duplicates = merge([rows[0] | {"fresh": False}, rows[2]], stored.with_columns(fresh=pl.lit(False)))
    assert (rejects["row"].to_list(), duplicates) == ([1], {"a": 1})


CHOICES = st.tuples(st.sampled_from("123"), st.sampled_from("uv"), st.integers(0, 2), st.sampled_from("ab"), st.sampled_from(["x", "y"]))


@pytest.mark.slow
@given(st.lists(CHOICES, max_size=14), st.randoms(use_true_random=False), st.integers(0, 14))
def test_merging_in_steps_and_any_order_is_merging_at_once(choices, rng, cut):
    rows = [row(c[0], c[1], c[2], c[3], n, utterance=c[4]) for n, c in enumerate(choices)]
    once, lost, duplicates = merge(rows)
    assert once.height + lost.height + sum(duplicates.values()) == len(rows)
    shuffled = rng.sample(rows, len(rows))
    assert merge(shuffled)[0].sort(pl.all()).equals(once.sort(pl.all()))
    first, rejects, _ = merge(shuffled[:cut])
    stored = [r | {"fresh": False} for r in first.to_dicts()]  # the lake keeps row numbers of rejects only
    second, rejects, _ = merge(stored + shuffled[cut:], rejects)
    assert second.drop("fresh").sort(pl.all()).equals(once.drop("fresh").sort(pl.all()))
    assert rejects.drop("fresh").equals(lost.drop("fresh"))


# sessions


def cut(rows, gap=600):
    return t.cut_sessions(pl.DataFrame(rows, schema=["user_key", "timestamp", "turn_id", "session_id"], orient="row"), gap)


def test_sessions_are_cut_by_gap_by_id_and_by_user():
    def at(s):
        return NOON + timedelta(seconds=s)

    rows = [
        ("u", at(0), "1", None),
        ("u", at(600), "2", None),  # a gap of exactly the limit does not cut
        ("u", at(1200.000001), "3", None),
        ("u", at(1300), "4", "s"),  # one id alone does not cut
        ("u", at(1400), "5", "s"),
        ("u", at(1500), "6", "t"),
        ("v", at(1501), "1", None),
    ]
    assert cut(rows)["session"].to_list() == [0, 0, 1, 1, 1, 2, 0]
    assert cut(random.Random(0).sample(rows, 7)).equals(cut(rows))


def test_sessions_go_on_side_by_side():
    rows = [("u", NOON + timedelta(seconds=n), str(n), "st"[n % 2]) for n in range(6)]
    assert cut(rows)["session"].to_list() == [0, 1, 0, 1, 0, 1]


@given(st.lists(st.tuples(st.sampled_from("uvw"), st.integers(0, 3000), st.sampled_from([None, "s", "t"])), max_size=20))
def test_sessions_agree_with_a_plain_loop(rows):
    rows = [(u, NOON + timedelta(seconds=s), str(i), sid) for i, (u, s, sid) in enumerate(rows)]
    if not rows:
        return
    ordered = sorted(rows, key=lambda r: r[:3])
    ids: dict[str, str] = {}
    for user, _, _, sid in reversed(ordered):  # before a user's first id: that id
        ids[user] = sid or ids.get(user)
    last: dict[tuple, tuple] = {}  # (user, id) -> its last turn's time and session
    number, want = Counter(), []
    for user, at, _, sid in ordered:
        ids[user] = stream = sid or ids[user]
        before = last.get((user, stream))
        if before is None or (at - before[0]).total_seconds() > 600:
            session, number[user] = number[user], number[user] + 1
        else:
            session = before[1]
        last[user, stream] = (at, session)
        want.append(session)
    frame = pl.DataFrame(
        rows,
        schema={"user_key": pl.String, "timestamp": pl.Datetime("us", "UTC"), "turn_id": pl.String, "session_id": pl.String},
        orient="row",
    )
    assert t.cut_sessions(frame, 600)["session"].to_list() == want
