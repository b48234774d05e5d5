"""`sayagain evaluate`: what a release's labels are worth to a small intent model, beside random and majority-vote labels."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import polars as pl
from tqdm import tqdm

from pipelines import registry, shards, testset
from pipelines.errors import LakeError, UsageError
from pipelines.releases import open_lake
from pipelines.store import Store
from pipelines.worth_options import EvaluateOptions
from rewrite.text import key_expr

SEED = 0
"""Of the bootstrap and of the random set: the same files give the same table."""
NAMES = {
    "before": "your training set alone",
    "labels": "+ the release's labels",
    "random": "+ as many random ones",
    "majority": "+ the same texts, majority vote",
}
FOLDER = "worth"


def main(options: EvaluateOptions) -> int:
    """Print the table, and keep it in the lake as JSON and HTML."""
    train, test = read_set(options.train, "--train"), read_set(options.test, "--test")
    context = open_lake(options)
    store = context.store
    release_id = registry.resolve(store, options.release)
    opened = registry.Opened(store, release_id)
    found = evaluate(store, opened, train, test, options, context.config.privacy.k)
    keep(store, release_id, "evaluate", found)
    print(json.dumps(found) if options.json else "\n".join(lines(found)))
    if not options.json:
        print(f"kept in {store.url(f'{FOLDER}/{release_id}')} (evaluate.json, report.html)")
    return 0


def read_set(path: str, flag: str) -> pl.DataFrame:
    """`text` (key), `intent`, and `locale` if the file has one. Raises UsageError naming the file and what it lacks."""
    table, column = testset.read(path, f"{flag} {path}", "intent")
    more = ["locale"] if "locale" in table.columns else []
    rows = table.select(*more, "intent", text=key_expr(column)).drop_nulls()
    if rows.is_empty():
        raise UsageError(f"{flag} {path}: it has {table.height} rows, none with both a text and an intent")
    return rows


def evaluate(
    store: Store, opened: registry.Opened, train: pl.DataFrame, test: pl.DataFrame, options: EvaluateOptions, k: int
) -> dict[str, Any]:
    """The figures, as JSON types. Raises LakeError when the release has no labels to teach with."""
    from rewrite.selection import select
    from rewrite.worth import head, hits, paired

    labels = _of_locales(opened.tables("labels")["labels"].filter(pl.col("intent").is_not_null()), test, options.locale)
    in_test = labels.height
    labels = labels.join(test, left_on="utterance", right_on="text", how="anti")
    in_test -= labels.height
    if labels.is_empty():
        raise LakeError(f"{opened.release_id} has no labels of these locales outside of the test set; see `sayagain releases show`")
    every = labels
    if options.budget:
        labels = select(labels, options.budget, train["text"].to_list(), SEED)
    candidates = shards.whole(store, "candidates", f"as_of={opened.manifest['as_of']}/labels")
    sets: dict[str, pl.DataFrame] = {"before": _taught(None), "labels": _taught(labels)}
    if options.budget:
        sets["random"] = _taught(every.sort("locale", "utterance").sample(labels.height, seed=SEED))
    if candidates is not None:
        voted = _of_locales(candidates.filter(pl.col("majority_intent").is_not_null(), pl.col("users") >= k), test, options.locale)
        voted = voted.filter(pl.col("reason") != "placeholder").join(test, left_on="utterance", right_on="text", how="anti")
        voted = voted.with_columns(intent="majority_intent", sample_weight="majority_share").sort("locale", "utterance")
        sets.setdefault("random", _taught(voted.sample(min(labels.height, voted.height), seed=SEED)))
        sets["majority"] = _taught(voted.join(labels, on=["locale", "utterance"], how="semi"))
    base = train.select("text", "intent", weight=pl.lit(1.0))
    right: dict[str, np.ndarray] = {}
    for name in tqdm(sets, desc="teaching", unit="set", disable=options.json or not sys.stderr.isatty()):
        right[name] = hits(pl.concat([base, sets[name]]), test, range(options.seeds))
    is_head = head(train["intent"], test["intent"])
    parts = {"all": np.ones(test.height, bool), "head": is_head, "tail": ~is_head}

    def gain(name: str, over: str) -> dict[str, list[float]]:
        return {p: [round(x, 6) for x in paired(right[name][at], right[over][at], SEED)] for p, at in parts.items()}

    return {
        "release_id": opened.release_id,
        "as_of": opened.manifest["as_of"],
        "train_rows": train.height,
        "test_rows": {p: int(at.sum()) for p, at in parts.items()},
        "labels_in_test": in_test,
        "budget": options.budget,
        "seeds": options.seeds,
        "sets": [
            {
                "name": name,
                "labels": sets[name].height,
                "accuracy": {p: round(float(right[name][at].mean()), 6) if at.any() else None for p, at in parts.items()},
                "gain": gain(name, "before"),
            }
            for name in sets
        ],
        "labels_over": {name: gain("labels", name) for name in ("random", "majority") if name in right},
    }


def _taught(labels: pl.DataFrame | None) -> pl.DataFrame:
    if labels is None:
        return pl.DataFrame(schema={"text": pl.String, "intent": pl.String, "weight": pl.Float64})
    return labels.select("intent", text="utterance", weight=pl.col("sample_weight").fill_null(0.0)).select("text", "intent", "weight")


def _of_locales(table: pl.DataFrame, test: pl.DataFrame, locale: str) -> pl.DataFrame:
    if locale:
        return table.filter(pl.col("locale") == locale)
    return table.join(test.select("locale").unique(), on="locale", how="semi") if "locale" in test.columns else table


def keep(store: Store, release_id: str, what: str, found: dict[str, Any]) -> None:
    """Write `worth/<release>/<what>.json`, and the page of all that is known of the release's worth."""
    from quality.report import render_report
    from quality.reportdata import ReportData

    store.put(f"{FOLDER}/{release_id}/{what}.json", (json.dumps(found, indent=1, sort_keys=True) + "\n").encode())
    data = ReportData(status="evaluated", release_id=release_id, as_of=str(found["as_of"]), worth=worth_of(store, release_id))
    store.put(f"{FOLDER}/{release_id}/report.html", render_report(data).encode())


def worth_of(store: Store, release_id: str | None) -> dict[str, Any]:
    """What is known of a release's worth: `evaluate`, `adapt`, each as it was written; empty when nobody asked."""
    found = {w: store.find(f"{FOLDER}/{release_id}/{w}.json") for w in ("evaluate", "adapt")} if release_id else {}
    return {name: json.loads(data) for name, data in found.items() if data is not None}


def lines(found: dict[str, Any]) -> list[str]:
    """The table for a terminal."""
    rows = found["test_rows"]
    head = f"{'':<34}{'labels':>8}" + "".join(f"{f'{part} ({rows[part]:,})':>29}" for part in rows)
    out = [
        f"{found['release_id']}: accuracy on {rows['all']:,} test rows, mean of {found['seeds']} models, and the gain with its 95 % interval"
    ]
    out += [f"({found['labels_in_test']:,} labels are in the test set: left out)"] if found["labels_in_test"] else []
    out.append(head)

    def interval(gain: list[float]) -> str:
        return f"{gain[0]:+.1%} [{gain[1]:+.1%}, {gain[2]:+.1%}]".replace("%", "")

    for s in found["sets"]:
        cells = [
            "-" if s["accuracy"][p] is None else f"{s['accuracy'][p]:.1%}" + ("" if s["name"] == "before" else f" {interval(s['gain'][p])}")
            for p in rows
        ]
        out.append(f"{NAMES[s['name']]:<34}{s['labels']:>8,}" + "".join(f"{c:>29}" for c in cells))
    for name, gain in found["labels_over"].items():
        words = {"random": "the labels over random ones", "majority": "the labels over the vote"}[name]
        out.append(f"{words:<42}" + "".join(f"{interval(gain[p]):>29}" for p in rows))
    return out
