"""An example trainer: takes a release off the queue, trains on it, and says what it was worth on a test set of yours.

    python -m pipelines.examples.trainer --lake ./lake --test test.parquet --assistant-version v42 --out ./trained

1. `pairs` fine-tune a sentence-transformers model by contrast (multiple negatives ranking: van den Oord et al. 2018,
   Henderson et al. 2017): texts of one goal come closer, the pair's own negative and the rest of the batch go further.
   The bundled model's weights are frozen: it gets a linear layer on top, which starts as the identity.
2. `labels` train an intent classifier on the vectors (logistic regression), each row with its `sample_weight`.
3. Both are judged on the test set (columns `utterance` and `intent`; `locale` if there is one): the most frequent intent,
   the classifier on the model as it was, the classifier on the fine-tuned model. Training rows whose text is in the test
   set are left out. The better of the two is kept; one that knows no more than the most frequent intent is given back.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipelines.client import Client, Job
from pipelines.errors import SayagainError, UsageError
from pipelines.models import BUNDLED, load_encoder
from rewrite.adaptation import fine_tune
from rewrite.text import key_expr

MODEL_RATE = 2e-5  # the usual one for a whole transformer
LAYER_RATE = 2e-4  # of one linear layer from the identity; at 1e-3 a small release bent it out of shape (83.3 % -> 80.9 %)


def main(argv: list[str] | None = None) -> int:
    """Train on one release. 0: trained, or nothing to do; 1: error; 3: what was trained is worse, and was given back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", required=True)
    parser.add_argument("--test", required=True, help="Parquet or JSON Lines with utterance and intent, labelled by people", metavar="FILE")
    parser.add_argument("--assistant-version", required=True, help="what the trained build will be called in the log", metavar="VERSION")
    parser.add_argument("--model", default=BUNDLED, help="bundled, a folder, or a hub name (default: %(default)s)")
    parser.add_argument("--out", help="folder for the trained model", metavar="DIR")
    parser.add_argument("--epochs", type=int, default=2, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--json", action="store_true", help="end with a one-line JSON summary, for scripts")
    options = parser.parse_args(argv)
    try:
        test = read_test(options.test)
        with Client(options.lake) as client:
            job = client.claim(lease="2h", key=options.assistant_version)
            if job is None:
                print("nothing to do: every release is trained, held, superseded or retracted")
                _say(options, status="nothing")
                return 0
            with job:
                return _train(job, test, options)
    except SayagainError as error:
        print(f"trainer: {error}", file=sys.stderr)
        return error.exit_code


def read_test(path: str) -> pl.DataFrame:
    """utterance, intent, key. Raises UsageError naming the file and what it lacks."""
    try:
        table = pl.read_parquet(path) if path.endswith(".parquet") else pl.read_ndjson(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UsageError(f"--test {path}: {error}") from None
    table = table.rename({"utt": "utterance"}, strict=False)
    missing = {"utterance", "intent"} - set(table.columns)
    if missing or table.is_empty():
        raise UsageError(
            f"--test {path}: it has no {' and no '.join(sorted(missing)) or 'rows'}; it has columns {', '.join(table.columns)}"
        )
    return table.select("utterance", "intent").drop_nulls().with_columns(key=key_expr("utterance"))


def _train(job: Job, test: pl.DataFrame, options: argparse.Namespace) -> int:
    if job.kind == "retract":
        print(f"{job.release_id} was retracted: take {job.assistant_version} out of service")
        job.ack(job.assistant_version)
        _say(options, status="retracted", release_id=job.release_id, assistant_version=job.assistant_version)
        return 0
    pairs = job.load("pairs").filter(pl.col("split") == "train")
    labels = job.load("labels").filter(pl.col("split") == "train")
    labels, seen = (labels.join(test, left_on="utterance", right_on="key", how=how) for how in ("anti", "semi"))  # type: ignore[arg-type]
    for side in ("anchor", "positive", "negative"):
        pairs = pairs.join(test, left_on=side, right_on="key", how="anti")
    print(f"{job.release_id}: {pairs.height:,} pairs, {labels.height:,} labels ({seen.height:,} more are in the test set: left out)")
    if labels["intent"].n_unique() < 2:
        raise UsageError(f"{job.release_id}: its labels have fewer than two intents outside of the test set: there is nothing to learn")

    model = load_model(options.model, options.seed)
    unseen = job.load("pairs").filter(pl.col("split").is_in(["dev", "test"]))
    before, near_before = accuracy(model, labels, test), nearest(model, unseen)
    rate = LAYER_RATE if options.model == BUNDLED else MODEL_RATE
    for epoch, loss in enumerate(fine_tune(model, pairs, options.epochs, options.seed, rate)):
        print(f"  epoch {epoch + 1}: loss {loss:.3f}", flush=True)
    after, near_after = accuracy(model, labels, test), nearest(model, unseen)
    common = labels.group_by("intent").agg(pl.col("sample_weight").sum()).sort("sample_weight", "intent")["intent"][-1]
    known = share(test["intent"].is_in(labels["intent"].unique().implode()))
    frequent = share(test["intent"] == common)
    print(f"test set of {test.height:,}: {known:.1%} of it has an intent that the labels know")
    print(f"  most frequent intent          {frequent:.1%}")
    print(f"  labels, the model as it was   {before:.1%}")
    print(f"  labels, fine-tuned on pairs   {after:.1%}")
    print(f"goals that it was not trained on: nearest text is of the same goal {near_before:.1%} -> {near_after:.1%}")
    found = {"release_id": job.release_id, "test_rows": test.height, "known": known, "most_frequent": frequent}
    found |= {"accuracy_before": before, "accuracy": max(before, after), "fine_tuned": after > before}
    found |= {"nearest_before": near_before, "nearest": near_after, "pairs": pairs.height, "labels": labels.height}
    if max(before, after) <= frequent:
        _say(options, status="given back", **found)
        print("no better than the most frequent intent: given back")
        job.nack()
        return 3
    print(f"kept: the model {'fine-tuned on pairs' if after > before else 'as it was, with the labels alone'}")
    if options.out and after > before:
        save(model, Path(options.out))
    why = job.renew()
    if why == "retracted":
        print(f"{job.release_id} was retracted meanwhile: thrown away")
        return 3
    job.ack(options.assistant_version)
    print(f"acknowledged as {options.assistant_version}")
    _say(options, status="trained", assistant_version=options.assistant_version, **found)
    return 0


def _say(options: argparse.Namespace, **found: Any) -> None:
    """The summary of --json."""
    if options.json:
        print(json.dumps(found))


def load_model(spec: str, seed: int) -> Any:
    """A SentenceTransformer with something to train in it."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense

    torch.manual_seed(seed)
    if spec != BUNDLED:
        return SentenceTransformer(spec, trust_remote_code=False, model_kwargs={"use_safetensors": True})
    encoder: Any = load_encoder(spec)
    width = encoder.dimension
    dense = Dense(width, width, bias=False, activation_function=torch.nn.Identity(), init_weight=torch.eye(width))
    return SentenceTransformer(modules=[*encoder.model, dense], device=encoder.model.device)


def accuracy(model: Any, labels: pl.DataFrame, test: pl.DataFrame) -> float:
    """Share of the test set that a weighted logistic regression on the model's vectors gets right."""
    from sklearn.linear_model import LogisticRegression

    def vectors(texts: pl.Series) -> np.ndarray:
        return np.asarray(model.encode(texts.to_list(), batch_size=256, normalize_embeddings=True, show_progress_bar=False), np.float32)

    weight = labels["sample_weight"].fill_null(0.0).to_numpy()
    classifier = LogisticRegression(C=20.0, max_iter=500).fit(vectors(labels["utterance"]), labels["intent"].to_numpy(), weight)
    return float((classifier.predict(vectors(test["key"])) == test["intent"].to_numpy()).mean())


def share(hits: pl.Series) -> float:
    """Of true values."""
    return float(hits.to_numpy().mean())


def nearest(model: Any, pairs: pl.DataFrame) -> float:
    """Share of the pairs' texts whose nearest other text is of their own goal; 0 when there are none."""
    sides = [pairs.select("goal_id", text=side) for side in ("anchor", "positive")]
    texts = pl.concat(sides).unique().unique("text", keep="none").sort("text")
    if texts.height < 2:
        return 0.0
    vectors = np.asarray(model.encode(texts["text"].to_list(), normalize_embeddings=True, show_progress_bar=False), np.float32)
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, -1)
    goals = texts["goal_id"].to_numpy()
    return float((goals[likeness.argmax(axis=1)] == goals).mean())


def save(model: Any, folder: Path) -> None:
    """The whole model, or, of the bundled one, the layer that was trained."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    if any(p.requires_grad for p in model[0].parameters()):
        model.save(str(folder), safe_serialization=True)
    else:
        save_file({k: v.detach().cpu().contiguous() for k, v in model[-1].state_dict().items()}, str(folder / "layer.safetensors"))


if __name__ == "__main__":
    sys.exit(main())
