"""Neighbours as Beam steps: the bytes of the one-machine function, whatever runs them."""

from __future__ import annotations

import pickle
import zlib

import apache_beam as beam
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from pipelines import cells, embed, engine
from pipelines.errors import LakeError
from pipelines.store import Manifest, Store
from rewrite.contracts import BUCKETS
from rewrite.neighbours import near_cosine

PLAN = cells.Plan(k=6, seed=3, exact=300, per_cell=40)


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """A store with the vectors of 900 English texts and 200 Swahili ones; one text in fifty has none."""
    store, rng = Store(str(tmp_path_factory.mktemp("lake"))), np.random.default_rng(0)
    keys = sorted([f"text {i}" for i in range(900)] + [f"nakala {i}" for i in range(200)])
    centres = rng.normal(size=(60, 24))
    vectors = centres[rng.integers(0, 60, len(keys))] + 0.5 * rng.normal(size=(len(keys), 24))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    vectors[7] = 0
    files = []
    for bucket in range(BUCKETS):
        at = [i for i, k in enumerate(keys) if zlib.crc32(k.encode()) % BUCKETS == bucket and i % 50 != 1]
        flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors[at].ravel()), 24)
        files.append(store.attempt("a", "embeddings", "model=m", pa.table({"key": [keys[i] for i in at], "vector": flat}), bucket))
    store.publish("a", Manifest("embeddings", "model=m", "embed", "m", tuple(files)))
    texts = pl.DataFrame({"locale": ["en" if k.startswith("text") else "sw" for k in keys], "utterance": keys}).sort("locale", "utterance")
    return store, embed.Current("m", "", {"*": "model=m"}, {}), texts


def searched(lake, path, *options, plan=PLAN):
    store, have, texts = lake
    args = list(options) or ["--runner=FnApiRunner"]
    with beam.Pipeline(options=PipelineOptions(args)) as pipeline:
        found = pipeline | beam.Create([engine.to_ipc(texts)]) | cells.NearNeighbours(store, f"a-{path.name}", have, plan)
        # a function of its own, not of this module, which no worker can import
        _ = found | beam.combiners.ToList() | beam.Map(lambda rows: path.write_bytes(pickle.dumps(rows)))
    return cells.neighbours(pickle.loads(path.read_bytes()))


def expected(lake):
    store, have, texts = lake
    english = texts.filter(pl.col("locale") == "en")
    vectors, _ = embed.vectors(store, have, english["locale"], english["utterance"])
    return near_cosine(vectors[cells.there(vectors)], PLAN.k, PLAN.seed, PLAN.exact, PLAN.per_cell)


def same(near, want):
    assert list(near) == ["en"]  # the other locale is small enough to be searched by whoever needs it
    np.testing.assert_array_equal(near["en"].indices, want.indices)
    np.testing.assert_array_equal(near["en"].cosines, want.cosines)
    assert (near["en"].recall, near["en"].probes) == (want.recall, want.probes)


@pytest.mark.slow
def test_the_job_finds_what_one_machine_finds(lake, tmp_path):
    want = expected(lake)
    assert want.probes > 1
    assert len(want.indices) < 900  # texts without a vector are no rows
    near = searched(lake, tmp_path / "local")
    same(near, want)
    assert searched(lake, tmp_path / "none", plan=cells.Plan(6, exact=900)) == {}


def test_rows_that_a_runner_lost_are_an_error():
    part = pa.table([pa.array([0, 2]), cells._lists(np.zeros((2, 3), np.int64)), cells._lists(np.zeros((2, 3)))], ["row", "near", "cosine"])
    with pytest.raises(LakeError, match=r"3 were sent and 2 arrived"):
        cells.neighbours([("en", engine.to_ipc(part.replace_schema_metadata({"probes": "1", "recall": "1.0"})))])


@pytest.mark.slow
def test_two_workers_find_the_same(lake, tmp_path):
    two = ("--runner=FnApiRunner", "--direct_num_workers=2", "--direct_running_mode=multi_processing")
    same(searched(lake, tmp_path / "two", *two), expected(lake))


def test_prism_finds_the_same(lake, tmp_path, prism):
    same(searched(lake, tmp_path / "prism", "--runner=PrismRunner", f"--prism_location={prism}"), expected(lake))
