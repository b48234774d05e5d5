"""`sayagain adapt`: contrast, distillation, and what counts as better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import release_lake

from pipelines.adapt import better, lines, load_trainable
from pipelines.cli import main
from pipelines.models import ModelError
from quality.worth import part
from rewrite import adaptation

WORDS = {"lights": ["lamp on", "switch the light on", "make it bright"], "music": ["play a song", "some tunes please", "start the band"]}
WORDS |= {
    "time": ["what time is it", "tell me the hour", "clock please"],
    "rain": ["will it rain", "is it wet outside", "need an umbrella"],
}


def pairs(split: str = "train") -> pl.DataFrame:
    rows = []
    for goal, texts in WORDS.items():
        other = next(t[0] for g, t in WORDS.items() if g != goal)
        rows += [(a, b, other, "other_goal", 1.0, "en-US", "en-GB", goal, split) for a in texts for b in texts if a < b]
    names = ["anchor", "positive", "negative", "negative_origin", "weight", "locale_anchor", "locale_positive", "goal_id", "split"]
    return pl.DataFrame(rows, schema=names, orient="row")


def test_nearest_in_all_and_across_locales() -> None:
    texts = pl.DataFrame({"locale": ["a", "a", "b", "b"], "text": list("wxyz"), "goal_id": ["1", "1", "1", None]})
    vectors = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.6, 0.4]])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    hits, across = adaptation.nearest(texts, vectors)
    assert hits.tolist() == [True, True, False]  # y lies nearest to z, a negative
    assert across.tolist() == [False, False, True]  # of y alone the nearest of another locale is of its goal
    assert [len(x) for x in adaptation.nearest(texts.clear(), np.zeros((0, 2)))] == [0, 0]


def test_texts_of_the_test_split_come_once_and_negatives_are_in_the_way() -> None:
    texts = adaptation.retrieval_texts(pairs())
    assert not texts.select("locale", "text").is_duplicated().any()
    more = pairs().with_columns(negative=pl.lit("never said"))
    assert adaptation.retrieval_texts(more).filter(pl.col("goal_id").is_null())["text"].to_list() == ["never said"]


@pytest.mark.parametrize(
    ("hits", "across", "is_better"), [((3, 3), (1, 1), False), ((3, 4), (1, 1), True), ((3, 4), (2, 1), False), ((3, 3), (1, 2), True)]
)
def test_better_means_better_and_nowhere_worse(hits: tuple[int, int], across: tuple[int, int], is_better: bool) -> None:
    rows = [{"hits": np.arange(5) < h, "across": np.arange(3) < a} for h, a in zip(hits, across, strict=True)]
    assert better(*rows) is is_better


@pytest.mark.slow  # loads torch
def test_a_small_model_says_what_its_teacher_says_and_learns(tmp_path: Path) -> None:
    texts = [t for group in WORDS.values() for t in group]
    teacher = np.random.default_rng(0).normal(size=(len(texts), 16))
    teacher /= np.linalg.norm(teacher, axis=1, keepdims=True)
    known = dict(zip(texts, teacher, strict=True))

    def encode(said: list[str]) -> np.ndarray:
        return np.stack([known.get(t, np.zeros(16)) for t in said])

    small = adaptation.distil(texts, encode)
    said = small.encode(texts, show_progress_bar=False)
    assert (said * teacher).sum(axis=1).min() > 0.8
    assert np.array_equal(said, adaptation.distil(texts, encode).encode(texts, show_progress_bar=False))
    assert sum(b.height for b in adaptation._batches(pairs(), np.random.default_rng(0), 4)) <= 4 < pairs().height
    losses = adaptation.fine_tune(small, pairs(), 8, 0, 1e-2)
    assert losses[-1] < losses[0] * 0.8
    goals = pl.DataFrame([("en", t, g) for g, group in WORDS.items() for t in group], ["locale", "text", "goal_id"], orient="row")
    before, after = (adaptation.nearest(goals, np.asarray(v, np.float64))[0].mean() for v in (said, small.encode(texts)))
    assert after > before
    small.save(str(tmp_path / "small"), safe_serialization=True)
    from pipelines.models import load_encoder

    again = load_encoder(str(tmp_path / "small"))
    assert list((tmp_path / "small").rglob("*.safetensors")) and np.allclose(again.encode(texts), small.encode(texts), atol=1e-6)
    with pytest.raises(ValueError, match="no texts"):
        adaptation.distil([], encode)


def test_what_cannot_learn_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"cannot be fine-tuned.*multilingual-e5-small"):
        load_trainable("bundled:use-multilingual", "cpu")


def test_too_small_a_release_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release_lake.make(tmp_path / "lake", 1)
    assert main(["adapt", "--lake", str(tmp_path / "lake"), "--out", str(tmp_path / "out")]) == 1
    assert "texts of the test split" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main(["adapt", "--lake", str(tmp_path / "lake"), "--epochs", "0"]) == 2


def test_figures_for_people() -> None:
    base: dict[str, Any] = {
        "name": "as it was",
        "kept": False,
        "nearest": 0.5,
        "nearest_across": None,
        "gain": None,
        "texts_per_second": 200.0,
    }
    new = base | {"name": "encoder", "kept": True, "nearest": 0.7, "gain": [0.2, 0.1, 0.3]}
    found = {"release_id": "r1", "model": "m", "pairs": 5, "texts": 40, "models": [base, new, new | {"name": "small", "kept": False}]}
    shown = "\n".join(lines(found, "out"))
    assert "+20.0 [+10.0, +30.0]" in shown and "kept in out/encoder" in shown and "thrown away" in shown
    assert "70.0%" in part({"adapt": found}) and part({}) == ""


def goals_of(split: str, first: int, n: int) -> pl.DataFrame:
    """n goals of three wordings each that share a rare word; the frequent words around it are the same for all goals."""
    forms = ("please {} now", "{} for me", "i want {}")
    rows = []
    for g in range(first, first + n):
        texts = [f.format(f"word{g} thing{g}") for f in forms]
        negative = forms[0].format(f"word{first + (g - first + 1) % n} thing{g}")
        rows += [(a, b, negative, "other_goal", 1.0, "en-US", "en-GB", f"g{g}", split) for a in texts for b in texts if a < b]
    return pl.DataFrame(rows, schema=pairs().columns, orient="row")


@pytest.mark.slow
def test_adapt_keeps_what_is_better_as_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines import adapt as job
    from pipelines.models import load_encoder
    from pipelines.worth_options import AdaptOptions

    said = pl.concat([goals_of("train", 0, 40), goals_of("test", 40, 12)])
    texts = pl.concat([said["anchor"], said["positive"]]).unique().sort()
    goals = pl.DataFrame({"locale": "en-US", "utterance": texts, "users": 5})
    rng = np.random.default_rng(0)
    base = adaptation.distil(texts.to_list(), lambda said: rng.normal(size=(len(said), 24)))
    base.save(str(tmp_path / "base"), safe_serialization=True)
    options = AdaptOptions(lake="-", out=str(tmp_path / "out"), model=str(tmp_path / "base"), json=True)
    (tmp_path / "out" / "encoder").mkdir(parents=True)
    (tmp_path / "out" / "encoder" / "old.safetensors").write_bytes(b"")
    verdicts = iter([False, True])  # of the encoder, of the small one
    monkeypatch.setattr(job, "better", lambda *_: next(verdicts))
    found = job.adapt(said, goals, options, "r1")
    assert [m["name"] for m in found["models"]] == ["as it was", "encoder", "small"] and found["texts"] >= 30
    for m in found["models"][1:]:
        folder = tmp_path / "out" / m["name"]
        assert folder.exists() is m["kept"] and not (folder / "old.safetensors").exists()
        if m["kept"]:
            assert load_encoder(str(folder)).encode(["please word1 now"]).shape == (1, 24)
    assert [m["kept"] for m in found["models"]] == [False, False, True]


@pytest.mark.slow  # builds the whole model twice
def test_the_model_that_learns_says_what_the_bundled_one_says(tmp_path: Path) -> None:
    from pipelines import models

    try:
        models.bundled_folder(models.WIDE)
    except ModelError as error:
        pytest.skip(str(error))
    texts = ["turn on the light", "schalte das licht ein", "明日の天気は", "washa taa", "कल का मौसम"]
    learns = load_trainable(models.WIDE, "cpu").encode(texts, normalize_embeddings=True)
    assert (models.load_encoder(models.WIDE, "cpu").encode(texts) * learns).sum(axis=1).min() > 0.999
