"""The lake's store: published by manifest, never half-written, one holder per lease."""

import json
import multiprocessing
import os
import socket
import time
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.errors import LakeError
from pipelines.store import Manifest, Store, parquet_bytes

DAY = "date=2026-01-01"


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "lake"))


def write(store, attempt, *values, bucket=0):
    entry = store.attempt(attempt, "turns", DAY, pa.table({"x": list(values)}), bucket)
    store.publish(attempt, Manifest("turns", DAY, "test", attempt, (entry,)))
    return entry


def test_same_table_same_bytes():
    assert parquet_bytes(pa.table({"x": [1, 2]})) == parquet_bytes(pa.table({"x": [1, 2]}))


def test_an_attempt_is_invisible_until_it_is_published(store):
    entry = store.attempt("a", "turns", DAY, pa.table({"x": [1]}), 3)
    assert store.read("turns", DAY) is None
    assert store.list("turns") == []
    store.publish("a", Manifest("turns", DAY, "test", "f", (entry,)))
    assert store.read("turns", DAY).to_pydict() == {"x": [1]}
    assert store.list("turns") == [f"turns/{DAY}/bucket=03/{entry.sha256[:16]}.parquet"]


def test_a_new_generation_replaces_the_old_one_and_a_glob_is_right(store):
    write(store, "a", 1)
    write(store, "b", 2)
    assert store.read("turns", DAY).to_pydict() == {"x": [2]}
    assert len(store.list("turns")) == 1


def test_publishing_the_same_content_twice_keeps_it(store):
    write(store, "a", 1)
    write(store, "b", 1)
    assert store.read("turns", DAY).to_pydict() == {"x": [1]}


def test_a_run_that_died_between_move_and_manifest_is_finished_by_the_next(store):
    entry = store.attempt("a", "turns", DAY, pa.table({"x": [1]}), 0)
    store.move(f"_attempts/a/{entry.path}", entry.path)  # ... and then it died
    assert store.read("turns", DAY) is None
    write(store, "b", 1)
    assert store.read("turns", DAY).to_pydict() == {"x": [1]}


def test_a_file_that_is_not_what_its_manifest_says_is_refused(store):
    entry = write(store, "a", 1)
    for data in (b"short", bytes(entry.bytes)):
        store.put(entry.path, data)
        with pytest.raises(LakeError, match="not what the manifest says"):
            store.read("turns", DAY)
    store.delete([entry.path])
    with pytest.raises(LakeError, match="gone"):
        store.read("turns", DAY)


def test_reading_chosen_buckets_and_columns(store):
    entries = tuple(store.attempt("a", "turns", DAY, pa.table({"x": [b], "y": [0]}), b) for b in range(3))
    store.publish("a", Manifest("turns", DAY, "test", "f", entries))
    assert store.read("turns", DAY, columns=["x"], buckets=[0, 2]).to_pydict() == {"x": [0, 2]}


def test_put_new_never_replaces(store):
    assert store.put_new("a/b", b"1")
    assert not store.put_new("a/b", b"2")
    assert store.get("a/b") == b"1"
    assert store.find("a/c") is None
    with pytest.raises(FileNotFoundError, match="a/c"):
        store.get("a/c")


def test_a_lease_says_who_holds_it_and_is_free_when_its_holder_died(store):
    with store.lease("x"), pytest.raises(LakeError, match=f"process {os.getpid()}"), store.lease("x"):
        pass
    with store.lease("x"):
        pass
    child = multiprocessing.get_context("spawn").Process(target=print)
    child.start()
    child.join()
    held = json.loads(store.get("_leases/x.json")) if store.exists("_leases/x.json") else {}
    store.put("_leases/x.json", json.dumps(held | {"host": socket.gethostname(), "pid": child.pid, "since": int(time.time())}).encode())
    with store.lease("x"):
        pass


def test_empty_folders_go_with_their_last_file(store):
    store.put("a/b/c", b"1")
    store.delete(["a/b/c"])
    assert store.list() == []
    assert not any(Path(store.root).iterdir())
