"""The client that trainers use, and the example trainer on it."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from release_lake import fixtures

from pipelines import registry
from pipelines.client import Client
from pipelines.errors import LakeError
from pipelines.examples import trainer

made, lake = fixtures(2)


def test_claim_load_ack(lake, made):
    with Client(lake.root) as client, client.claim(lease="30m", consumer="t") as job:
        assert job.release_id == made[1][-1] and job.kind == "train" and job.where.endswith(job.release_id)
        assert job.load("rewrites").height == 3 and job.renew() == ""
        assert client.claim() is None
        assert job.ack("v1") and not job.ack("v1")
        assert client.claim() is None


def test_a_block_that_fails_gives_the_release_back(lake):
    with Client(lake.root) as client:
        with pytest.raises(ZeroDivisionError), client.claim(consumer="a"):
            _ = 1 / 0
        with client.claim(consumer="b", key="k") as job:
            assert client.claim(consumer="b", key="k").message.receipt == job.message.receipt
        assert client.claim(consumer="c").message.tries == 3  # left without an ack: given back too


def test_a_tampered_table_is_not_loaded(lake, made):
    store = lake
    path = f"releases/{made[1][-1]}/labels.parquet"
    store.put(path, store.get(f"releases/{made[1][-1]}/pairs.parquet"))
    with Client(lake.root) as client:
        job = client.claim()
        assert job.load("pairs").height
        with pytest.raises(LakeError, match=r"labels\.parquet"):
            job.load("labels")
        registry.retract(store, job.release_id, "tampered")
        assert job.renew() == "retracted"


class Letters:
    """A model without anything to train: a text is its letters."""

    def parameters(self):
        return []

    def encode(self, texts, **_):
        return np.array([[t.count(chr(c)) for c in range(97, 123)] for t in texts], np.float32)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(trainer, "load_model", lambda *_: Letters())


def train(root, tmp_path, rows, *words):
    test = tmp_path / "test.ndjson"
    pl.DataFrame(rows, schema=["utterance", "intent"], orient="row").write_ndjson(test)
    return trainer.main(["--lake", root, "--test", str(test), "--assistant-version", "v7", *words])


def all_train(monkeypatch):
    """The world is too small for splits: every row trains."""
    load = trainer.Job.load
    monkeypatch.setattr(trainer.Job, "load", lambda self, table: load(self, table).with_columns(split=pl.lit("train")))


@pytest.mark.slow
def test_the_example_trainer_trains_acks_and_obeys(lake, made, quick, tmp_path, monkeypatch, capsys):
    all_train(monkeypatch)
    rows = [("jazz play", "play"), ("Turn on the  light", "light_on"), ("on turn lights", "light_on"), ("jazzy plays", "play")]
    assert train(lake.root, tmp_path, rows) == 0
    out = capsys.readouterr().out
    assert "2 labels (1 more are in the test set: left out)" in out and "acknowledged as v7" in out
    assert registry.event(lake, made[1][-1], "ack")["assistant_version"] == "v7"
    assert train(lake.root, tmp_path, rows) == 0 and "nothing to do" in capsys.readouterr().out
    registry.retract(lake, made[1][-1], "bad")
    assert train(lake.root, tmp_path, rows) == 0 and "take v7 out of service" in capsys.readouterr().out


@pytest.mark.slow
def test_the_example_trainer_gives_back_what_is_no_good(lake, made, quick, tmp_path, monkeypatch, capsys):
    all_train(monkeypatch)
    assert train(lake.root, tmp_path, [("zzz", "unheard of")]) == 3
    assert "given back" in capsys.readouterr().out and registry.event(lake, made[1][-1], "ack") is None
    bad = tmp_path / "bad.ndjson"
    pl.DataFrame({"text": ["x"]}).write_ndjson(bad)
    assert trainer.main(["--lake", lake.root, "--test", str(bad), "--assistant-version", "v"]) == 2
    assert "has no intent and no utterance" in capsys.readouterr().err


@pytest.mark.slow
def test_pairs_bring_texts_of_a_goal_together(made):
    """A tiny static model, made here: after training on them, the two sides of a pair are nearer."""
    torch = pytest.importorskip("torch")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[UNK]", "lamp", "on", "light", "play", "jazz", "music", "some"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)], device="cpu")
    row = {"negative": None, "weight": 1.0}
    one, two = {"anchor": "lamp", "positive": "light", "goal_id": "a"}, {"anchor": "jazz", "positive": "music", "goal_id": "b"}
    pairs = pl.DataFrame([one | row, two | row] * 20, schema_overrides={"negative": pl.String})

    def near() -> float:
        lamp, light = model.encode(["lamp", "light"], normalize_embeddings=True)
        return float(lamp @ light)

    before = near()
    trainer.fine_tune(model, pairs, epochs=3, seed=0, rate=0.05)
    assert near() > before + 0.2
