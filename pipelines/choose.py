"""`embedding.model = "auto"`: per locale the encoder that separates asked-again pairs best, measured once and then kept.

A language just launched has no intents of its own; its labels come through goals that other locales share, and locales meet only
where one model was taught both languages. Where such a locale would meet none, the wide model reads all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import date
from typing import Any

import apache_beam as beam
import polars as pl

from pipelines import engine, models, shards, window
from pipelines.context import Context
from pipelines.shards import Shard
from pipelines.store import FileEntry, Store
from rewrite.goal_evidence import SERVED
from rewrite.model_choice import FEWEST_PAIRS, READS, Separation, choose, separation

CHOICE = "embeddings/choice.json"
PAIRS = 200
"""Pairs measured per locale: 400 texts through every model, and a standard error of the partial AUC of .03."""

CONFIDENT = 0.9
"""P(asked again) of a pair that counts as true."""


class Sample(beam.DoFn):
    """Votes of whole users -> the pairs of each locale that come first by the hash of their texts; a file aside, never published."""

    def __init__(self, store: Store, attempt: str):
        self._store, self._attempt = store, attempt

    def process(self, shard: Shard) -> Iterable[dict[str, Any]]:
        votes = shards.read(self._store, shard, ["user_key", "locale", "kind", "source", "target", "value", "intent"])
        links = pl.col("kind") != "outcome"
        known = votes.filter(~links & (pl.col("value") >= SERVED) & pl.col("intent").is_not_null())["locale"].unique()
        pairs = votes.filter(links & (pl.col("value") >= CONFIDENT) & (pl.col("source") != pl.col("target")))
        alone = votes.select("locale", "source", target=pl.lit(None, pl.String))  # what a locale without pairs is judged by
        found = pl.concat([_first(pairs.select("locale", "source", "target")), _first(alone)])
        found = found.with_columns(intents=pl.col("locale").is_in(known.implode()))
        yield engine.receipt(
            "sample", "pairs", self._store.attempt(self._attempt, "sample", "pairs", found.to_arrow(), shard_number(shard))
        )


def shard_number(shard: Shard) -> int | None:
    return shard.files[0][1].bucket if shard.files else None


def _first(pairs: pl.DataFrame) -> pl.DataFrame:
    """`PAIRS` rows per locale whatever the order and the shards: the first by a hash; no text twice on one side."""
    order = pairs.unique().with_columns(h=pl.struct("source", "target").map_batches(_hashes, return_dtype=pl.UInt64))
    order = order.sort("locale", "h", "source", "target")
    for side in ("source", "target"):
        known = order.filter(pl.col(side).is_not_null()).unique(["locale", side], keep="first", maintain_order=True)
        order = pl.concat([known, order.filter(pl.col(side).is_null())])
    return order.sort("locale", "h").group_by("locale", maintain_order=True).head(PAIRS).select("locale", "source", "target")


def _hashes(pairs: pl.Series) -> pl.Series:
    from rewrite.ngrams import hash_texts

    texts = pairs.struct.field("source") + "\x1f" + pairs.struct.field("target").fill_null("")
    return pl.Series(hash_texts(texts.to_list()), dtype=pl.UInt64)


def run(context: Context, as_of: date) -> dict[str, dict[str, Any]]:
    """locale -> {model, why, pairs, auc, far_auc and reads per model}; measured for locales that are new or had too few pairs."""
    store = context.store
    kept: dict[str, dict[str, Any]] = json.loads(store.find(CHOICE) or b"{}")
    attempt = f"{context.attempt}/choose"
    work = shards.by_bucket(window.manifests(context, as_of))
    receipts = engine.execute(context, "choose", work, beam.ParDo(Sample(store, attempt)))
    parts = [store.frame(_aside(attempt, FileEntry(**r["entry"]))) for r in receipts]
    store.clear_attempt(attempt)
    columns = {"locale": pl.String, "source": pl.String, "target": pl.String, "intents": pl.Boolean}
    found = pl.concat(parts) if parts else pl.DataFrame(schema=columns)
    sides = found.drop("intents")
    pairs, alone = (_first(sides.filter(x)) for x in (pl.col("target").is_not_null(), pl.col("target").is_null()))
    device = context.config.embedding.device
    here = {str(lo): (pairs.filter(pl.col("locale") == lo), t["source"].to_list()) for (lo,), t in sorted(alone.group_by("locale"))}
    for locale, (of, texts) in here.items():
        before = kept.get(locale)
        if before is None or before["pairs"] < FEWEST_PAIRS <= of.height:
            kept[locale] = measure(locale, of, texts, device)
    known = set(found.filter("intents")["locale"])
    apart = strangers({lo: str(kept[lo]["model"]) for lo in here}, {lo for lo in here if len(here[lo][1]) >= PAIRS} - known, known)
    if apart:
        context.say(
            f"{models.WIDE} reads the texts of {', '.join(here)}: the log has no intents of {', '.join(apart)}, and labels reach it only where "
            "one model was taught both languages (some 90 texts a second and core, a tenth of what the fast one reads; each text once ever)"
        )
        for locale, (of, texts) in here.items():
            if models.WIDE not in kept[locale]["reads"]:
                look(kept[locale], models.WIDE, locale, of, texts, device)
            kept[locale] |= {
                "model": models.WIDE,
                "why": f"it was taught the language of {', '.join(apart)} too, of which the log has no intents",
            }
    kept = dict(sorted(kept.items()))
    store.put(CHOICE, (json.dumps(kept, indent=1) + "\n").encode())
    return kept


def _aside(attempt: str, entry: FileEntry) -> FileEntry:
    return FileEntry(f"_attempts/{attempt}/{entry.path}", entry.rows, entry.bytes, entry.sha256, entry.bucket)


def strangers(read_by: dict[str, str], launched: Iterable[str], known: Iterable[str]) -> list[str]:
    """Those of the `launched` locales (no intents) that no model reads together with one of the `known` (with intents), in order; none
    where there are no known ones. `read_by`: model per locale."""

    def tongue(locale: str) -> str | None:
        model = read_by[locale]
        return model if models.crosses(model, locale) else None

    shared = {tongue(lo) for lo in known} - {None}
    return sorted(lo for lo in launched if tongue(lo) not in shared) if read_by.keys() & set(known) else []


def measure(locale: str, pairs: pl.DataFrame, texts: list[str], device: str) -> dict[str, Any]:
    """One locale's row of the table. `pairs`: source, target of asked-again pairs; `texts`: any of the locale's. A model reads nothing of
    a language that it was not taught, whatever its letters."""
    row: dict[str, Any] = {"pairs": pairs.height, "auc": {}, "far_auc": {}, "reads": {}}
    cheap = [look(row, name, locale, pairs, texts, device) for name in (models.FAST, models.NGRAMS)]
    row["model"], row["why"] = choose(cheap, models.NGRAMS)
    # The wide one costs five to ten times as much: it is looked at only where the fast one fails, and taken only where it surely wins.
    if row["model"] != models.FAST or cheap[0][2] < READS:
        row["model"], row["why"] = choose([*cheap, look(row, models.WIDE, locale, pairs, texts, device)], models.NGRAMS)
    return row


def look(
    row: dict[str, Any], name: str, locale: str, pairs: pl.DataFrame, texts: list[str], device: str
) -> tuple[str, Separation | None, float]:
    """(a model, how it separates the pairs, the share of tokens it reads), noted in the locale's row too."""
    from pipelines.encode import encoder

    model = encoder(name, device)
    enough = pairs.height >= FEWEST_PAIRS
    found = separation(model.encode(pairs["source"].to_list()), model.encode(pairs["target"].to_list())) if enough else None
    reads = float(model.readable(texts[:PAIRS]).mean()) if models.taught(name, locale) else 0.0
    row["reads"][name] = round(reads, 4)
    if found is not None:
        row["auc"][name], row["far_auc"][name] = round(found.auc, 4), round(float(found.far.mean()), 4)
    return name, found, reads
