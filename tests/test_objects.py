"""The lake and the log in an S3 store: published by conditional writes, leases of the dead are taken over, the same bytes as in a folder."""

from __future__ import annotations

import hashlib
import json
import time
from itertools import count
from pathlib import Path

import obstore
import pyarrow as pa
import pytest
from objects import s3
from obstore.store import from_url

from pipelines import leases
from pipelines.errors import LakeError, UsageError
from pipelines.store import Manifest, Store

pytestmark = pytest.mark.slow  # the server takes seconds to start
DAY = "date=2026-01-01"
NUMBER = count()


@pytest.fixture(scope="module")
def endpoint():
    with s3("lake") as url:
        yield url


@pytest.fixture
def root(endpoint):
    return f"s3://lake/some where/{next(NUMBER)}"


def write(store, attempt, *values, bucket=0):
    entry = store.attempt(attempt, "turns", DAY, pa.table({"x": list(values)}), bucket)
    store.publish(attempt, Manifest("turns", DAY, "test", attempt, (entry,)))
    return entry


def test_objects_conditional_writes_and_tables(root):
    store = Store(root)
    assert store.put_new("a/b", b"1") and not store.put_new("a/b", b"2")
    data, version = store.find_version("a/b")
    newer = store.put_if("a/b", b"3", version)
    assert data == b"1" and newer and store.put_if("a/b", b"4", version) is None and store.get("a/b") == b"3"
    assert store.put_if("a/none", b"x", version) is None and store.find("a/none") is None
    write(store, "one", 1)
    write(store, "two", 2)
    assert store.read("turns", DAY).to_pydict() == {"x": [2]}
    assert len(store.list("turns")) == 1 and not store.list("_attempts")
    store.delete(["a/b", "a/none"])
    assert not store.exists("a/b")


def test_of_two_runs_that_publish_one_partition_the_slower_fails(root, monkeypatch):
    fast, slow = Store(root), Store(root)
    entry = slow.attempt("slow", "turns", DAY, pa.table({"x": [1]}), 0)
    check = slow.leases.still_held
    monkeypatch.setattr(slow.leases, "still_held", lambda: (write(fast, "fast", 2), check()))
    with pytest.raises(LakeError, match="another run published it meanwhile"):
        slow.publish("slow", Manifest("turns", DAY, "test", "slow", (entry,)))
    assert fast.read("turns", DAY).to_pydict() == {"x": [2]}


def test_a_silent_holder_loses_its_lease_and_publishes_nothing(root, monkeypatch):
    zombie, heir = Store(root), Store(root)
    with zombie.lease("day"):
        with pytest.raises(LakeError, match="day is held by process"), heir.lease("day"):
            pass
        monkeypatch.setattr(leases, "LOST_SECONDS", -1)
        with heir.lease("day"), pytest.raises(LakeError, match="lost it; nothing was published"):
            write(zombie, "z", 1)
        assert heir.manifest("turns", DAY) is None


def test_a_live_holder_renews_its_lease(root, monkeypatch):
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.05)
    store = Store(root)
    with store.lease("day"):
        before, deadline = json.loads(store.get("_leases/day.json")), time.monotonic() + 60
        while json.loads(store.get("_leases/day.json"))["renewed"] == before["renewed"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        write(store, "a", 1)
    assert not store.exists("_leases/day.json")


def test_a_store_without_conditional_writes_is_refused_and_a_missing_bucket_is_named(endpoint):
    with pytest.raises(UsageError, match=r"--lake hdfs://h/lake: a lake needs conditional writes; name a local folder, or one of s3, gs"):
        Store("hdfs://h/lake")
    with pytest.raises(LakeError, match="s3://nowhere/lake/a: there is no such bucket"):
        Store("s3://nowhere/lake").put("a", b"1")


def tree(root: str) -> dict[str, str]:
    """What a lake keeps, and the hash of its bytes."""
    from running import PRIVATE

    store = Store(root)
    return {p: hashlib.sha256(store.get(p)).hexdigest() for p in store.list() if not p.startswith(PRIVATE)}


@pytest.mark.e2e
def test_a_whole_run_on_s3_gives_the_bytes_of_a_local_one(root, tmp_path):
    """The log is read from S3 by Beam's file system, the lake is there too, two worker processes write its first tables."""
    from running import run, simulate

    log = simulate(tmp_path / "world", 3_000, 2)
    config = tmp_path / "c.toml"
    config.write_text('[embedding]\nmodel = "ngrams"\n')  # without torch, which has no say here
    bucket = from_url(root)
    for file in sorted(Path(log).iterdir()):
        obstore.put(bucket, f"log/{file.name}", file.read_bytes())
    days = ["--from=2026-01-01", "--to=2026-01-02", "--quiet", f"--config={config}"]
    run("mine", f"--logs={log}/{{date}}.parquet", f"--lake={tmp_path}/lake", *days)
    logs = f"--logs={root}/log/{{date}}.parquet"
    run("ingest", logs, f"--lake={root}/lake", *days, "--workers=2")
    run("mine", logs, f"--lake={root}/lake", *days)
    ours, theirs = tree(f"{root}/lake"), tree(str(tmp_path / "lake"))
    # what a manifest or a note says of its input names where the log lies
    same = [p for p in theirs if p.startswith(("rephrases/", "outcomes/", "votes/", "goals/", "candidates/", "splits/", "releases/LATEST"))]
    assert len(same) > 20 and [p for p in same if ours.get(p) != theirs[p]] == []
    run("mine", logs, f"--lake={root}/lake", *days)
    assert tree(f"{root}/lake") == ours
