"""The local runner loses nothing, however long a step takes and whichever way its workers are run."""

from __future__ import annotations

import time

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import worker_handlers

from pipelines import engine
from pipelines.context import Context
from pipelines.errors import LakeError
from pipelines.options import IngestOptions


class Slowly(beam.DoFn):
    """Writes all the while that Beam's timer would send what was written so far."""

    def process(self, n):
        until = time.monotonic() + 1.5
        sent = 0
        while time.monotonic() < until:
            for _ in range(20):
                yield f"{sent % 7}", b"x" * 200
                sent += 1
            time.sleep(0.0005)
        yield "sent", str(sent).encode()


class Count(beam.DoFn):
    def process(self, element):
        key, values = element
        values = list(values)
        yield {
            "table": "",
            "partition": key,
            "entry": {"bucket": None, "path": ""},
            "n": sum(map(int, values)) if key == "sent" else len(values),
        }


class Both(beam.PTransform):
    def expand(self, work):
        sent = work | beam.ParDo(Slowly()).with_output_types(tuple[str, bytes])
        return sent | beam.GroupByKey() | beam.ParDo(Count())


def test_nothing_is_lost_between_local_workers(tmp_path):
    context = Context(IngestOptions(lake=str(tmp_path / "lake"), quiet=True), make=True)
    with context.running():
        found = {r["partition"]: r["n"] for r in engine.execute(context, "slow", [1, 2], Both())}
    assert found.pop("sent") == sum(found.values())
    assert worker_handlers.DATA_BUFFER_TIME_LIMIT_MS == 0


def test_what_does_not_arrive_is_an_error():
    engine.accounted("rows", 3, 3)
    with pytest.raises(LakeError, match="rows: 1,000 were sent and 999 arrived"):
        engine.accounted("rows", 1000, 999)
