"""`sayagain adapt`: the text encoder, fine-tuned on a release's pairs and distilled into a small one; kept if it retrieves better.

The three splits of a release have a part each: `train` teaches, `dev` chooses (epoch, rate), `test` judges.
"""

from __future__ import annotations

import copy
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import polars as pl
from tqdm import tqdm

from pipelines import evaluate, models, registry
from pipelines.errors import LakeError
from pipelines.releases import open_lake
from pipelines.worth_options import AdaptOptions

RATE = 2e-5
"""The usual rate of a whole transformer."""
SMALL_RATES = (5e-4, 2e-3)
"""Of a table of vectors, which has no layers to upset: some hundred times that; the dev split takes one. More only harms (1e-2: no better than
not trained at all)."""
SMALL_EPOCHS = 4
"""At most: the dev split says which one stays. An epoch takes seconds."""
FEWEST = 30
"""Texts of the test split below which no difference could be told from chance."""

Gain = tuple[float, float, float] | None


def main(options: AdaptOptions) -> int:
    """0: something is better, and was kept in --out; 3: nothing is."""
    context = open_lake(options)
    store = context.store
    release_id = registry.resolve(store, options.release)
    opened = registry.Opened(store, release_id)
    tables = opened.tables("pairs", "labels", "goals")
    found = adapt(tables["pairs"], tables["labels"], tables["goals"], options, release_id)
    found |= {"release_id": release_id, "as_of": opened.manifest["as_of"]}
    evaluate.keep(store, release_id, "adapt", found)
    if options.json:
        print(json.dumps(found))
    else:
        print("\n".join(lines(found, options.out)))
        print(f"figures kept in {store.url(f'{evaluate.FOLDER}/{release_id}')} (adapt.json, report.html)")
    return 0 if any(m["kept"] for m in found["models"]) else 3


def adapt(pairs: pl.DataFrame, labels: pl.DataFrame, goals: pl.DataFrame, options: AdaptOptions, release_id: str) -> dict[str, Any]:
    """Train, distil, compare, save what is better. Raises LakeError when the release holds too little to learn or to judge by."""
    from rewrite import adaptation
    from rewrite.encoders.sentences import SentenceEncoder

    def of(table: pl.DataFrame, split: str) -> pl.DataFrame:
        return table.filter(pl.col("split") == split).sort(table.columns)

    train = of(pairs, "train")
    texts, chosen_on = (adaptation.retrieval_texts(of(pairs, split), of(labels, split)) for split in ("test", "dev"))
    across = adaptation.across_pairs(of(labels, "train"), train.height, options.seed)
    if train.is_empty() or texts.height < FEWEST:
        raise LakeError(
            f"{release_id}: {train.height:,} pairs of the train split and {texts.height:,} texts of the test split; {FEWEST} texts are the least "
            "that a difference shows on: adapt on a release of more days or users"
        )

    def progress(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
        # the estimate belongs in a file as well, without a line per batch
        return tqdm(items, total=total, desc=what, unit="batch", disable=options.json, mininterval=0.1 if sys.stderr.isatty() else 60)

    def look(model: Any, at: pl.DataFrame) -> tuple[pl.DataFrame, float]:
        start = time.perf_counter()
        vectors = SentenceEncoder(model, "adapted", identity="adapted").encode(at["text"].to_list())
        return adaptation.nearest(at, vectors), at.height / max(time.perf_counter() - start, 1e-9)

    def right(model: Any) -> float:
        found, _ = look(model, chosen_on)
        return float(found.select(pl.sum("hit") + pl.sum("across")).item())

    def score(model: Any, said: list[float]) -> Callable[[], float] | None:
        """Asks the dev split, and says so in `said`; None where it is too small to tell."""

        def ask() -> float:
            said.append(right(model))
            return said[-1]

        return ask if chosen_on.height >= FEWEST else None

    model = load_trainable(options.model, options.device)
    held_out = pl.concat([texts["text"], chosen_on["text"]])
    known = goals.filter(~pl.col("utterance").is_in(held_out.implode())).sort(
        "users", "locale", "utterance", descending=[True, False, False]
    )
    known_texts = known["utterance"].unique(maintain_order=True).to_list() or train["anchor"].unique().sort().to_list()
    before, speed = look(model, texts)
    rows = [row("as it was", before, speed)]

    def judge(name: str, model: Any) -> bool:
        """Whether the model is kept, which it then is in --out."""
        found, speed = look(model, texts)
        gains = [adaptation.gain(before, found, column, options.seed) for column in ("hit", "across")]
        kept, why = adaptation.verdict(*gains)
        rows.append(row(name, found, speed, kept, why, *gains))
        folder = Path(options.out) / name
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier release: what is not kept must not be taken for it
        if kept:
            folder.mkdir(parents=True)
            model.save(str(folder), safe_serialization=True)
        return kept

    dtype = models.matrix_type(str(model.device))
    ask = score(model, [])
    losses = adaptation.fine_tune(model, train, options.epochs, options.seed, RATE, progress, options.max_pairs, ask, dtype, across)
    teacher = model if judge("encoder", model) else load_trainable(options.model, options.device)
    start = adaptation.distil(known_texts, SentenceEncoder(teacher, "teacher", identity="teacher").encode)
    tried: list[tuple[float, int, float, Any]] = []
    for rate in SMALL_RATES if chosen_on.height >= FEWEST else SMALL_RATES[:1]:
        small, said = copy.deepcopy(start), list[float]()
        adaptation.fine_tune(small, train, SMALL_EPOCHS, options.seed, rate, progress, score=score(small, said), across=across)
        tried.append((max(said, default=0.0), -len(tried), rate, small))
    small = max(tried, key=lambda t: t[:2])[-1]  # of equals the first
    judge("small", small)
    return {
        "model": options.model,
        "pairs": train.height,
        "across_pairs": across.height,
        "texts": texts.height,
        "losses": [round(x, 4) for x in losses],
        "dev_texts": chosen_on.height,
        "small_rates": {f"{rate:g}": right_ones for right_ones, _, rate, _ in tried},
        "models": rows,
    }


def row(
    name: str, found: pl.DataFrame, speed: float, kept: bool = False, why: str = "", gain: Gain = None, gain_across: Gain = None
) -> dict[str, Any]:
    """What is kept of one model's figures. `found`: of `adaptation.nearest`."""

    def share(column: str) -> float | None:
        mean = found.select(pl.mean(column).round(6)).item()
        return None if mean is None else float(mean)

    return {
        "name": name,
        "kept": kept,
        "why": why,
        "nearest": share("hit"),
        "nearest_across": share("across"),
        "asked": found["hit"].count(),
        "asked_across": found["across"].count(),
        "gain": gain and [round(x, 6) for x in gain],
        "gain_across": gain_across and [round(x, 6) for x in gain_across],
        "texts_per_second": round(speed, 1),
    }


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
    """The table for a terminal, and what was kept and why."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    def interval(gain: list[float] | None) -> str:
        return f"{100 * gain[0]:+.1f} [{100 * gain[1]:+.1f}, {100 * gain[2]:+.1f}]" if gain else ""

    first = found["models"][0]
    more = f" and {found['across_pairs']:,} of two languages, by their labels" if found.get("across_pairs") else ""
    rows = [
        f"{found['release_id']}: {found['model']} on {found['pairs']:,} pairs{more}. Is the nearest of {found['texts']:,} texts of the test split one of "
        f"the same goal? Asked of {first['asked']:,}, across languages of {first['asked_across']:,}; gains with their 95 % intervals"
    ]
    rows.append(f"{'':<12}{'same goal':>12}{'gain':>22}{'across':>12}{'gain':>22}{'texts/s':>10}")
    for m in found["models"]:
        cells = f"{percent(m['nearest']):>12}{interval(m['gain']):>22}{percent(m['nearest_across']):>12}{interval(m['gain_across']):>22}"
        rows.append(f"{m['name']:<12}{cells}{m['texts_per_second']:>10,.0f}")
    for m in found["models"][1:]:
        rows.append(f"{m['name']}: {m['why']}; " + (f"kept in {Path(out) / m['name']}" if m["kept"] else "thrown away"))
    return rows
