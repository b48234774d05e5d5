"""`sayagain adapt`: contrast, distillation, and what counts as better."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import release_lake

from pipelines.adapt import lines, load_trainable
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
    texts = texts.with_columns(means=pl.coalesce("goal_id", "text"))
    vectors = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.6, 0.4]])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = adaptation.nearest(texts, vectors)
    assert found["hit"].to_list() == [True, True, False, None]  # y lies nearest to z, a negative
    assert found["across"].to_list() == [False, False, True, None]  # of y alone the nearest of another locale is of its goal
    assert adaptation.nearest(texts.clear(), np.zeros((0, 2))).height == 0
    alone = adaptation.nearest(texts.with_columns(locale=pl.lit("a")), vectors)
    assert alone["across"].null_count() == 4 and adaptation.gain(alone, alone, "across", 0) is None
    unknown = adaptation.nearest(texts.with_columns(means=pl.Series([None, "m", "m", None])), vectors)
    assert unknown["hit"].equals(found["hit"]) and unknown["across"].to_list() == [None, True, True, None], (
        "only what is known is in the way"
    )


LABELS = pl.DataFrame(
    [
        ("en", "lamp on", "g1", "light"),
        ("en", "play a song", "g2", "music"),
        ("sw", "washa taa", "g3", "light"),
        ("sw", "zima taa", "g4", "light"),
        ("sw", "cheza wimbo", None, "music"),
        ("sw", "saa ngapi", "g5", "time"),  # of one language alone
    ],
    ["locale", "utterance", "goal_id", "intent"],
    orient="row",
)


def test_pairs_across_languages_are_of_one_label_and_rare_intents_are_not_lost() -> None:
    found = adaptation.across_pairs(LABELS, 200, 0)
    both = {frozenset(r) for r in found.select("anchor", "positive", "goal_id").iter_rows()}
    assert both == {
        frozenset(x) for x in [("lamp on", "washa taa", "light"), ("lamp on", "zima taa", "light"), ("play a song", "cheza wimbo", "music")]
    }
    assert found.height == 6 and found["negative"].null_count() == 6, "each once, in both directions"
    assert found.equals(adaptation.across_pairs(LABELS.reverse(), 200, 0))
    assert adaptation.across_pairs(LABELS.filter(locale="sw"), 200, 0).is_empty()
    many = pl.DataFrame({"locale": ["en", "sw"] * 100, "utterance": [f"t{i}" for i in range(200)], "goal_id": "g", "intent": "often"})
    drawn = adaptation.across_pairs(pl.concat([many, LABELS]), 2_000, 0)
    assert drawn.filter(goal_id="music").height == 2 and drawn.filter(goal_id="often").height > 1_000


def test_across_languages_is_judged_by_labels_and_not_by_the_goals_that_the_encoder_joined() -> None:
    said = pairs("test").filter(pl.col("goal_id").is_in(["lights", "music"]))
    by_goal = adaptation.retrieval_texts(said, LABELS.clear())
    assert by_goal.filter(pl.col("means") != pl.col("goal_id")).is_empty()
    labels = pl.DataFrame(
        [("en-US", "lamp on", "lights", "light"), ("sw", "washa taa", "g3", "light"), ("sw", "bado", "g9", None)],
        LABELS.columns,
        orient="row",
    )
    texts = adaptation.retrieval_texts(said, labels)
    assert texts.filter(locale="sw").rows() == [("sw", "washa taa", "g3", "light")], "what has a label is asked, in no pair or in one"
    assert set(texts.filter(goal_id="lights")["means"]) == {"light"}, "a goal means what its labelled texts do"
    assert texts.filter(goal_id="music")["means"].null_count() == texts.filter(goal_id="music").height > 0
    one = adaptation.retrieval_texts(said, labels.filter(locale="en-US"))
    assert one.equals(by_goal), "labels of one language say nothing about two"


def test_a_goal_is_right_or_wrong_as_a_whole() -> None:
    """Forty texts got better: of twenty goals, or all of one."""
    before = pl.DataFrame({"goal_id": [f"g{i // 2}" for i in range(80)], "means": "m", "hit": [i % 4 > 1 for i in range(80)]})
    after = before.with_columns(hit=pl.lit(True))
    many = adaptation.gain(before, after, "hit", 0)
    whole = pl.when(before["hit"]).then("goal_id").otherwise(pl.lit("g"))
    one = adaptation.gain(before.with_columns(goal_id=whole), after.with_columns(goal_id=whole), "hit", 0)
    assert many is not None and one is not None and many[0] == one[0] == 0.5
    assert many[1] > 0.3 and one[1] == 0 and one[2] > many[2]


def test_texts_of_the_test_split_come_once_and_negatives_are_in_the_way() -> None:
    texts = adaptation.retrieval_texts(pairs(), LABELS.clear())
    assert not texts.select("locale", "text").is_duplicated().any()
    more = pairs().with_columns(negative=pl.lit("never said"))
    assert adaptation.retrieval_texts(more, LABELS.clear()).filter(pl.col("goal_id").is_null())["text"].to_list() == ["never said"]


def test_kept_is_what_is_surely_better_and_nowhere_surely_worse() -> None:
    up, level, down = (0.1, 0.02, 0.2), (0.05, -0.01, 0.1), (-0.1, -0.2, -0.01)
    assert adaptation.verdict(up, level) == (True, "surely better: same goal")
    assert adaptation.verdict(up, None) == (True, "surely better: same goal")
    assert adaptation.verdict(level, up) == (True, "surely better: across languages")
    assert adaptation.verdict(up, up)[1].endswith("same goal and across languages")
    assert adaptation.verdict(level, level) == (False, "no difference that could not be chance")
    assert adaptation.verdict(up, down) == (False, "surely worse: across languages")


@pytest.mark.slow  # loads torch
def test_a_small_model_says_what_its_teacher_says_and_learns(tmp_path: Path) -> None:
    texts = [t for group in WORDS.values() for t in group]
    teacher = np.random.default_rng(0).normal(size=(len(texts), 16))
    teacher /= np.linalg.norm(teacher, axis=1, keepdims=True)
    known = dict(zip(texts, teacher, strict=True))

    def encode(said: list[str]) -> np.ndarray:
        return np.stack([known.get(t, np.zeros(16)) for t in said])

    import torch

    small = adaptation.distil(texts, encode)
    said = small.encode(texts, show_progress_bar=False)
    assert (said * teacher).sum(axis=1).min() > 0.8
    assert np.array_equal(said, adaptation.distil(texts, encode).encode(texts, show_progress_bar=False))
    assert sum(b.height for b in adaptation._batches(pairs(), np.random.default_rng(0), 4)) <= 4 < pairs().height
    for model, dtype in ((copy.deepcopy(small), torch.bfloat16), (small, None)):
        losses = adaptation.fine_tune(model, pairs(), 8, 0, 1e-2, dtype=dtype)
        assert losses[-1] < losses[0] * 0.8
    goals = pl.DataFrame(
        [("en", t, g, g) for g, group in WORDS.items() for t in group], ["locale", "text", "goal_id", "means"], orient="row"
    )
    before, after = (adaptation.nearest(goals, np.asarray(v, np.float64))["hit"].sum() for v in (said, small.encode(texts)))
    assert after > before
    answers, learned = iter([1.0, 5.0, 2.0]), small.encode(texts)
    adaptation.fine_tune(small, pairs(), 2, 1, 1e-2, score=lambda: next(answers))
    first, again = small.encode(texts), iter([5.0, 5.0])
    adaptation.fine_tune(small, pairs(), 1, 1, 1e-2, score=lambda: next(again))
    assert not np.allclose(first, learned) and np.array_equal(small.encode(texts), first), "the best epoch stays, none if none is better"
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
        "why": "",
        "nearest": 0.5,
        "nearest_across": None,
        "asked": 38,
        "asked_across": 0,
        "gain": None,
        "gain_across": None,
        "texts_per_second": 200.0,
    }
    new = base | {"name": "encoder", "kept": True, "why": "surely better: same goal", "nearest": 0.7, "gain": [0.2, 0.1, 0.3]}
    small = new | {"name": "small", "kept": False, "why": "no difference that could not be chance", "gain_across": [-0.1, -0.2, 0.1]}
    found = {"release_id": "r1", "model": "m", "pairs": 5, "texts": 40, "models": [base, new, small]}
    shown = "\n".join(lines(found, "out"))
    assert "+20.0 [+10.0, +30.0]" in shown and "-10.0 [-20.0, +10.0]" in shown and "Asked of 38, across languages of 0" in shown
    assert "encoder: surely better: same goal; kept in out/encoder" in shown
    assert "small: no difference that could not be chance; thrown away" in shown
    older = [{k: v for k, v in m.items() if k not in ("why", "asked", "asked_across", "gain_across")} for m in found["models"]]
    assert "70.0%" in part({"adapt": found | {"models": older}}), "figures that an older version kept"
    page = part({"adapt": found})
    assert "70.0%" in page and "surely better: same goal" in page and "thrown away" in page and part({}) == ""


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

    said = pl.concat([goals_of("train", 0, 40), goals_of("test", 40, 12), goals_of("dev", 60, 12)])
    texts = pl.concat([said["anchor"], said["positive"]]).unique().sort()
    goals = pl.DataFrame({"locale": "en-US", "utterance": texts, "users": 5})
    rng = np.random.default_rng(0)
    base = adaptation.distil(texts.to_list(), lambda said: rng.normal(size=(len(said), 24)))
    base.save(str(tmp_path / "base"), safe_serialization=True)
    options = AdaptOptions(lake="-", out=str(tmp_path / "out"), model=str(tmp_path / "base"), json=True)
    (tmp_path / "out" / "encoder").mkdir(parents=True)
    (tmp_path / "out" / "encoder" / "old.safetensors").write_bytes(b"")
    verdicts = iter([(False, "worse"), (True, "better")])  # of the encoder, of the small one
    monkeypatch.setattr(adaptation, "verdict", lambda *_: next(verdicts))
    found = job.adapt(said, LABELS.with_columns(split=pl.lit("train")), goals, options, "r1")
    assert [m["name"] for m in found["models"]] == ["as it was", "encoder", "small"] and found["texts"] >= 30
    for m in found["models"][1:]:
        folder = tmp_path / "out" / m["name"]
        assert folder.exists() is m["kept"] and not (folder / "old.safetensors").exists()
        if m["kept"]:
            assert load_encoder(str(folder)).encode(["please word1 now"]).shape == (1, 24)
    assert [(m["kept"], m["why"]) for m in found["models"]] == [(False, ""), (False, "worse"), (True, "better")]
    assert found["across_pairs"] == 6 and "6 of two languages, by their labels" in "\n".join(lines(found | {"release_id": "r1"}, "out"))
    assert found["dev_texts"] >= 30 and len(found["small_rates"]) == len(job.SMALL_RATES), "the dev split chooses the rate"


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
