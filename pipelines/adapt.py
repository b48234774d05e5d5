"""`sayagain adapt`: the text encoder, fine-tuned on a release's pairs and distilled into a small one; kept if it retrieves better."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tqdm import tqdm

from pipelines import evaluate, models, registry
from pipelines.errors import LakeError
from pipelines.releases import open_lake
from pipelines.worth_options import AdaptOptions

RATE = 2e-5
"""The usual rate of a whole transformer."""
SMALL_RATE = 2e-3
"""Of a table of vectors, which has no layers to upset: a hundred times that."""
SMALL_EPOCHS = 3
FEWEST = 30
"""Texts of the test split below which no difference could be told from chance."""


def main(options: AdaptOptions) -> int:
    """0: something is better, and was kept in --out; 3: nothing is."""
    context = open_lake(options)
    store = context.store
    release_id = registry.resolve(store, options.release)
    opened = registry.Opened(store, release_id)
    tables = opened.tables("pairs", "goals")
    found = adapt(tables["pairs"], tables["goals"], options, release_id)
    found |= {"release_id": release_id, "as_of": opened.manifest["as_of"]}
    evaluate.keep(store, release_id, "adapt", found)
    if options.json:
        print(json.dumps(found))
    else:
        print("\n".join(lines(found, options.out)))
        print(f"figures kept in {store.url(f'{evaluate.FOLDER}/{release_id}')} (adapt.json, report.html)")
    return 0 if any(m["kept"] for m in found["models"]) else 3


def adapt(pairs: pl.DataFrame, goals: pl.DataFrame, options: AdaptOptions, release_id: str) -> dict[str, Any]:
    """Train, distil, compare, save what is better. Raises LakeError when the release holds too little to learn or to judge by."""
    from rewrite import adaptation
    from rewrite.encoders.sentences import SentenceEncoder
    from rewrite.worth import paired

    train, test = (pairs.filter(pl.col("split") == s).sort(pairs.columns) for s in ("train", "test"))
    texts = adaptation.retrieval_texts(test)
    if train.is_empty() or texts.height < FEWEST:
        raise LakeError(
            f"{release_id}: {train.height:,} pairs of the train split and {texts.height:,} texts of the test split; {FEWEST} texts are the least "
            "that a difference shows on: adapt on a release of more days or users"
        )

    def progress(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
        # the estimate belongs in a file as well, without a line per batch
        return tqdm(items, total=total, desc=what, unit="batch", disable=options.json, mininterval=0.1 if sys.stderr.isatty() else 60)

    def judge(name: str, model: Any) -> dict[str, Any]:
        encoder = SentenceEncoder(model, name, identity=name)
        start = time.perf_counter()
        vectors = encoder.encode(texts["text"].to_list())
        took = time.perf_counter() - start
        hits, across = adaptation.nearest(texts, vectors)
        return {"name": name, "hits": hits, "across": across, "texts_per_second": round(texts.height / max(took, 1e-9), 1)}

    model = load_trainable(options.model, options.device)
    known = goals.filter(~pl.col("utterance").is_in(texts["text"].implode())).sort(
        "users", "locale", "utterance", descending=[True, False, False]
    )
    known_texts = known["utterance"].unique(maintain_order=True).to_list() or train["anchor"].unique().sort().to_list()
    before = judge("as it was", model)
    losses = adaptation.fine_tune(model, train, options.epochs, options.seed, RATE, progress, options.max_pairs)
    tuned = judge("encoder", model)
    tuned["better"] = better(before, tuned)
    teacher = model if tuned["better"] else load_trainable(options.model, options.device)
    small = adaptation.distil(known_texts, SentenceEncoder(teacher, "teacher", identity="teacher").encode)
    adaptation.fine_tune(small, train, SMALL_EPOCHS, options.seed, SMALL_RATE, progress)
    distilled = judge("small", small)
    distilled["better"] = better(before, distilled)
    for row, trained in ((tuned, model), (distilled, small)):
        folder = Path(options.out) / row["name"]
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier release: what is not kept must not be taken for it
        if row["better"]:
            folder.mkdir(parents=True)
            trained.save(str(folder), safe_serialization=True)

    def shown(row: dict[str, Any]) -> dict[str, Any]:
        return {
            "name": row["name"],
            "kept": bool(row.get("better")),
            "nearest": share(row["hits"]),
            "nearest_across": share(row["across"]),
            "gain": [round(x, 6) for x in paired(row["hits"].astype(float), before["hits"], options.seed)] if row is not before else None,
            "gain_across": [round(x, 6) for x in paired(row["across"].astype(float), before["across"], options.seed)]
            if row is not before
            else None,
            "texts_per_second": row["texts_per_second"],
        }

    return {
        "model": options.model,
        "pairs": train.height,
        "texts": texts.height,
        "losses": [round(x, 4) for x in losses],
        "models": [shown(r) for r in (before, tuned, distilled)],
    }


def better(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """More nearest texts of the same goal than before, and not fewer across languages (or more there, and not fewer in all)."""
    all_, across = (int(after[k].sum()) - int(before[k].sum()) for k in ("hits", "across"))
    return min(all_, across) >= 0 and max(all_, across) > 0


def share(hits: np.ndarray) -> float | None:
    """Of true values; None without any."""
    return round(float(hits.mean()), 6) if len(hits) else None


def load_trainable(spec: str, device: str) -> Any:
    """A SentenceTransformer with weights that can learn. Raises ModelError where there are none."""
    if spec == models.WIDE:
        from rewrite.encoders.e5_bert import trainable

        (data,) = models.read_checked(spec, models.bundled_folder(spec)).values()
        with tempfile.TemporaryDirectory() as folder:
            return trainable(data, folder).to(models.pick_device(device))
    if spec in (models.FAST, models.NGRAMS):
        raise models.ModelError(
            f"--model {spec!r} cannot be fine-tuned (its weights are frozen); use {models.WIDE!r}, a folder, or a hub name"
        )
    model = getattr(models.load_encoder(spec, device), "model", None)
    if model is None or not any(p.requires_grad for p in model.parameters()):
        raise models.ModelError(f"--model {spec!r} has no weights to learn; use {models.WIDE!r}, a folder, or a hub name")
    return model


def lines(found: dict[str, Any], out: str) -> list[str]:
    """The table for a terminal."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    rows = [
        f"{found['release_id']}: {found['model']} on {found['pairs']:,} pairs; judged by the nearest of {found['texts']:,} texts of the test split"
    ]
    rows.append(f"{'':<12}{'same goal':>12}{'across':>10}{'gain, 95 % interval':>28}{'texts/s':>12}")
    for m in found["models"]:
        gain = f"{100 * m['gain'][0]:+.1f} [{100 * m['gain'][1]:+.1f}, {100 * m['gain'][2]:+.1f}]" if m["gain"] else ""
        end = f"  kept in {Path(out) / m['name']}" if m["kept"] else "" if m["gain"] is None else "  not better: thrown away"
        rows.append(
            f"{m['name']:<12}{percent(m['nearest']):>12}{percent(m['nearest_across']):>10}{gain:>28}{m['texts_per_second']:>12,.0f}{end}"
        )
    return rows
