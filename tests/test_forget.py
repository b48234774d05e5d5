"""Forgetting: a user leaves every byte of the lake, others stay untouched, and nobody comes back by the same log."""

from __future__ import annotations

import io
import json
import shutil
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from running import run, simulate

from pipelines import erase, gone, registry
from pipelines.cli import main
from pipelines.context import _fingerprint
from pipelines.engine import conform
from pipelines.errors import UsageError
from pipelines.store import Manifest, Store
from rewrite import contracts
from rewrite.turns import pseudonyms

USERS = ["anna", "ben", "carl", "dora"]
KEYS = dict(zip(USERS, pseudonyms(pl.Series(USERS), bytes(32))))


def bytes_of(path: Path) -> bytes:
    """What a file says: its bytes, and the strings that Parquet compresses."""
    blob = path.read_bytes()
    if path.suffix == ".parquet":
        table = pq.read_table(io.BytesIO(blob))
        blob += "\n".join(
            str(v) for c in table.column_names if str(table.schema.field(c).type) == "string" for v in table[c].to_pylist()
        ).encode()
    return blob


def found(lake: str, *needles: str) -> list[str]:
    """Files of the lake that hold any of the strings, as LAKE-relative path: string."""
    out = []
    for path in sorted(p for p in Path(lake).rglob("*") if p.is_file()):
        blob = bytes_of(path)
        out += [f"{path.relative_to(lake)}: {n}" for n in needles if n.encode() in blob]
    return out


def put(store: Store, table: str, partition: str, rows: list[dict], schema, by_user: bool = True) -> None:
    """Publish rows, bucketed like the jobs do it."""
    frame = pl.DataFrame(
        [{n: r.get(n) for n in schema.names} for r in rows], schema=pl.from_arrow(schema.empty_table()).schema, orient="row"
    )
    users = [r.get("user") for r in rows]
    entries = []
    buckets = [int(KEYS[u][:2], 16) % 16 if u else None for u in users] if by_user else [None] * len(rows)
    for bucket in sorted(set(buckets), key=str):
        part = frame.filter(pl.Series([b == bucket for b in buckets]))
        entries.append(store.attempt("t", table, partition, conform(part, schema), bucket))
    store.publish("t", Manifest(table, partition, "test", "f", tuple(entries)))


SAYS = [("anna", "play jazz"), ("ben", "play jazz"), ("anna", "my diary please"), ("carl", "play jazz"), ("dora", "light on")]


@pytest.fixture
def lake(template, tmp_path):
    shutil.copytree(template, tmp_path / "lake")
    return Store(str(tmp_path / "lake"))


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Two days; everybody but dora says one text, anna one of her own; goals, candidates, vectors and a model of them."""
    store = Store(str(tmp_path_factory.mktemp("lakes") / "lake"))
    info = {"format": 1, "buckets": 16, "lake_id": "l", "key_fingerprint": _fingerprint(bytes(32))}
    store.put("lake.json", json.dumps(info).encode())
    for n, day in enumerate(("2026-01-01", "2026-01-02")):
        at = datetime(2026, 1, 1 + n, 12, tzinfo=UTC)
        turns, votes, outcomes = [], [], []
        for i, (user, text) in enumerate(SAYS[: 5 - n]):
            who = {"user": user, "user_key": KEYS[user], "locale": "en-US"}
            turn = f"{user}-{day}-{i}"
            turns.append(who | {"turn_id": turn, "timestamp": at, "key": text, "utterance": text.title()})
            votes.append(who | {"kind": "outcome", "source": text, "text": text.title(), "slots": f'{{"of":"{user}"}}', "value": 1.0})
            outcomes.append(who | {"turn_id": turn, "p_failed": 0.1})
        put(store, "turns", f"date={day}", turns, contracts.TURNS)
        put(store, "votes", f"date={day}", votes, contracts.VOTES)
        put(store, "outcomes", f"date={day}", outcomes, contracts.OUTCOMES)
    line = {"input": "log", "row": 3, "reason": "bad_json", "excerpt": '{"user_id": "anna", oops'}
    put(store, "rejects", "date=2026-01-01", [line, line | {"excerpt": "hannah"}], contracts.REJECTS, by_user=False)
    texts = sorted({t for _, t in SAYS})
    goals = [{"locale": "en-US", "utterance": t, "goal_id": "g", "users": 1} for t in texts]
    put(store, "goals", "as_of=2026-01-02", goals, contracts.GOALS, by_user=False)
    labels = [{"locale": "en-US", "utterance": t, "utterance_text": "My Diary Please", "slots": '{"of":"anna"}'} for t in texts]
    put(store, "candidates", "as_of=2026-01-02/labels", labels, contracts.CANDIDATES["labels"], by_user=False)
    store.put("models/CURRENT", b"m\n")
    store.put("models/m/model.json", json.dumps({"stats": [{"reference": ["play jazz"]}]}).encode())
    store.put("models/old/model.json", b"{}")
    return store.root


def forget(lake, *words, code=0):
    return main(["forget", "--lake", lake.root, *words]) == code


def test_a_user_is_gone_from_every_byte(lake, capsys):
    secrets = ["anna-", '"anna"', KEYS["anna"], "my diary please", "My Diary Please"]
    assert found(lake.root, *secrets)
    assert forget(lake, "--user", "anna", "--json")
    said = json.loads(capsys.readouterr().out)
    assert said["rows"]["turns"] == said["rows"]["votes"] == said["rows"]["outcomes"] == 4 and said["rows"]["rejects"] == 1
    assert said["texts"] == 1 and said["models"] == ["old"]
    assert found(lake.root, *secrets) == []
    assert found(lake.root, "play jazz") and found(lake.root, "hannah")  # what others said stays
    assert "anna" not in json.dumps(said) and "diary" not in json.dumps(said)


def test_counts_of_as_of_tables_are_lowered_to_who_stays(lake, capsys):
    goals = [
        {"locale": "en-US", "utterance": "play jazz", "goal_id": "g", "users": 3},
        {"locale": "en-US", "utterance": "light on", "goal_id": "g", "users": 1},
    ]
    put(lake, "goals", "as_of=2026-01-02", goals, contracts.GOALS, by_user=False)
    pair = {"locale": "en-US", "source": "light on", "target": "play jazz", "source_users": 1, "target_users": 3, "users": 1}
    put(
        lake,
        "candidates",
        "as_of=2026-01-02/rewrites",
        [pair, pair | {"source": "x", "users": 3}],
        contracts.CANDIDATES["rewrites"],
        by_user=False,
    )
    for _ in range(2):  # a run that dies and is done again lowers nothing twice
        assert forget(lake, "--user", "anna", "--json")
        users = pl.DataFrame(pl.from_arrow(lake.read("goals", "as_of=2026-01-02"))).select("utterance", "users").rows()
        assert dict(users) == {"play jazz": 2, "light on": 1}
        rows = pl.DataFrame(pl.from_arrow(lake.read("candidates", "as_of=2026-01-02/rewrites")))
        assert rows.select("source_users", "target_users", "users").rows() == [(1, 2, 1), (1, 2, 2)]
    assert json.loads(capsys.readouterr().out.splitlines()[0])["recounted"] == 3


def test_others_stay_byte_for_byte(lake):
    before = {u: found(lake.root, KEYS[u]) for u in ("ben", "carl", "dora")}
    buckets = {int(KEYS["anna"][:2], 16) % 16} & {int(KEYS[u][:2], 16) % 16 for u in before}
    assert forget(lake, "--user", "anna")
    assert buckets or {u: found(lake.root, KEYS[u]) for u in before} == before  # file names are hashes of their bytes
    assert lake.read("goals", "as_of=2026-01-02")["utterance"].to_pylist() == ["light on", "play jazz"]
    labels = lake.read("candidates", "as_of=2026-01-02/labels").to_pylist()
    assert [r["slots"] for r in labels] == [None, None] and [r["utterance_text"] for r in labels] == [None, None]


def test_twice_is_once_and_a_run_that_died_is_finished(lake, capsys, monkeypatch):
    monkeypatch.setattr(erase, "models", lambda *_: 1 / 0)  # after goals and candidates, before the rows
    with pytest.raises(ZeroDivisionError):
        forget(lake, "--user", "anna")
    monkeypatch.undo()
    assert forget(lake, "--user", "anna")
    assert found(lake.root, KEYS["anna"], "my diary please") == []
    assert forget(lake, "--user", "anna") and "the lake held nothing of theirs" in capsys.readouterr().out


def test_a_file_of_ids_and_bad_usage(lake, tmp_path, capsys):
    ids = tmp_path / "ids"
    ids.write_text("anna\n\n ben \nnobody\n")
    assert forget(lake, "--file", str(ids))
    assert found(lake.root, KEYS["anna"], KEYS["ben"]) == [] and found(lake.root, KEYS["carl"])
    assert forget(lake, code=2) and forget(lake, "--file", str(tmp_path / "none"), code=2)
    assert "one user id a line" in capsys.readouterr().err


def test_a_model_that_holds_a_text_of_nobody_is_collected(lake):
    lake.put("models/m/model.json", json.dumps({"stats": [{"reference": ["my diary please"]}]}).encode())
    assert forget(lake, "--user", "anna")
    assert not lake.list("models")


def test_turn_ids_that_two_users_share_make_the_day_stale(lake):
    at = datetime(2026, 1, 1, 12, tzinfo=UTC)
    bucket = int(KEYS["anna"][:2], 16) % 16
    rows = [{"turn_id": "same", "timestamp": at, "user_key": k, "key": "x"} for k in (KEYS["anna"], KEYS["ben"])]
    frame = pl.DataFrame(
        [{n: r.get(n) for n in contracts.TURNS.names} for r in rows], schema=pl.from_arrow(contracts.TURNS.empty_table()).schema
    )
    entry = lake.attempt("t", "turns", "date=2026-01-01", conform(frame, contracts.TURNS), bucket)
    lake.publish("t", Manifest("turns", "date=2026-01-01", "test", "f", (entry,)))
    from pipelines.config import Config
    from pipelines.detect import _fingerprint as print_of

    class Context:
        config = Config()

    outcomes = lake.manifest("outcomes", "date=2026-01-01")
    current = print_of(Context, lake.manifest("turns", "date=2026-01-01"), "")
    lake.publish("t", Manifest(**vars(outcomes) | {"fingerprint": current}))
    assert forget(lake, "--user", "anna")
    assert lake.manifest("outcomes", "date=2026-01-01").fingerprint == "some turn ids were shared"
    assert lake.read("turns", "date=2026-01-01")["user_key"].to_pylist() == [KEYS["ben"]]


def test_gc_removes_days_and_what_only_they_said(lake, capsys):
    assert main(["gc", "--older-than", "1d", "--lake", lake.root]) == 0
    assert "before 2026-01-02: 1 day(s)" in capsys.readouterr().out
    assert list(lake.manifests("turns")) == list(lake.manifests("votes")) == ["date=2026-01-02"]
    assert found(lake.root, "light on", "2026-01-01-") == [] and found(lake.root, "my diary please")
    assert gone.read(lake).before == date(2026, 1, 2)
    gone.keep_from(lake, date(2025, 1, 1))
    assert gone.read(lake).before == date(2026, 1, 2)  # never moves back
    for bad in ("1", "soon", "2026-1-1"):
        assert main(["gc", "--older-than", bad, "--lake", lake.root]) == UsageError.exit_code


def test_what_is_left_out_of_a_log(lake):
    gone.bury(lake, [KEYS["anna"]])
    left_out = gone.read(lake)
    rows = pl.DataFrame({"user_key": [KEYS["anna"], KEYS["ben"], None], "timestamp": [datetime(2026, 1, 1, tzinfo=UTC)] * 3})
    assert left_out.mask(rows).to_list() == [True, False, False]
    assert gone.Gone(before=date(2026, 1, 2)).mask(rows).to_list() == [True] * 3
    assert found(lake.root, gone.tombstone(KEYS["anna"])) == [] and KEYS["anna"] not in str(lake.list("tombstones"))


@pytest.mark.slow
@pytest.mark.e2e
def test_on_a_mined_lake(tmp_path):
    """The loudest of a simulated log's users; shipped releases are told of; the same rows under another name bring nobody back."""
    log = simulate(tmp_path / "w", 6000, 3)
    lake = tmp_path / "lake"
    run("mine", "--logs", str(log), "--lake", str(lake), "--quiet")
    rows = pl.concat([pl.read_parquet(f) for f in sorted(log.glob("*.parquet"))])
    user = rows.group_by("user_id").len().sort("len", "user_id").row(-1)[0]
    said = rows.with_columns(key=pl.col("utterance").str.to_lowercase().str.replace_all(r"\s+", " "))
    alone = said.group_by("key").agg(pl.col("user_id").unique()).filter(pl.col("user_id") == [user])["key"].to_list()
    key = pseudonyms(pl.Series([user]), bytes(32))[0]
    turn_ids = rows.filter(pl.col("user_id") == user)["turn_id"].to_list()
    secrets = [user, key, *(t for t in alone if len(t) > 12)]
    out = json.loads(run("forget", "--user", user, "--lake", str(lake), "--json").stdout)
    others = "\n".join(said.filter(pl.col("user_id") != user)["key"].unique())
    whole = [s for s in secrets if s == key or s not in others][:40]
    assert len(whole) > 5 and found(str(lake), *whole) == []
    kept = pl.concat([pl.DataFrame(pl.from_arrow(Store(str(lake)).read("turns", p))) for p in Store(str(lake)).manifests("turns")])
    assert key not in kept["user_key"].to_list() and turn_ids
    for manifest in Store(str(lake)).manifests("outcomes").values():  # what the report's funnel counts
        assert sum(c["turns"] for c in manifest.counts["by_locale"].values()) == manifest.rows
    assert out["releases"][0]["rows_with_their_texts"] > 0 and out["releases"][0]["rows_below_k"]

    again = tmp_path / "again"
    shutil.copytree(log, again)
    retracted = registry.resolve(Store(str(lake)), "LATEST")
    run("releases", "retract", retracted, "--reason", "below k", "--lake", str(lake))
    summary = run("mine", "--logs", str(again), "--lake", str(lake), "--quiet").stdout
    assert "Released" in summary and found(str(lake / "turns"), key) == [] and found(str(lake), *whole) == []
    second = json.loads(run("forget", "--user", user, "--lake", str(lake), "--json").stdout)
    assert not any(second["rows"].values())
