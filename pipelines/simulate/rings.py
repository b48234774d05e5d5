"""Rings of fake accounts that attack a log, as rows of the log contract: what the defences are measured against.

KINDS, each ring of `size` accounts on one source; every third account says the target alone, so that the target looks
like something that other people say too:

- loud: every day, the source (interrupted), then the target; what most rings of real logs look like
- quiet: once per account, on a day of its own
- mimicking: the whole history of a real user under a new id, and the pair once
- padded: six to ten popular texts on other days, and the pair once
- burying: a text that works is interrupted and left, to make it look broken
- nonsense: a made-up text, then a popular one that works, to have it labelled
"""

from __future__ import annotations

import zlib
from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl

from rewrite.text import key_expr

KINDS = ("loud", "quiet", "mimicking", "padded", "burying", "nonsense")
DAILY = 0.4  # share of days on which a loud account is there
HEALTHY = 30  # users of a text that is worth burying
SECONDS = 6  # between the source and the target, as people have who were not served
POPULAR = 200  # texts that padded accounts and nonsense rings choose from
RECENT = 5  # texts of a user that is worth copying


def rings(log: pl.DataFrame, kind: str, size: int, count: int, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows that `count` rings add to `log` (contract columns), and what they attack: kind, size, locale, source, target (keys).

    The sources are texts of the log, a third each said by 3 to 6, 10 to 29 and 30 users or more (burying: the last alone).
    The same log, options and seed give the same rows. Raises ValueError for a kind that is none or a log that is too small.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}: should be one of {', '.join(KINDS)}")
    rng = np.random.default_rng([seed, size, zlib.crc32(kind.encode())])
    log = log.sort("timestamp", "turn_id")
    texts = _texts(log)
    chosen = _sources(texts, kind, count, rng)
    popular = texts.filter(pl.col("status") == "completed").head(POPULAR)
    midnight: Any = log["timestamp"].dt.truncate("1d").min()
    days = log["timestamp"].dt.date().n_unique()
    busy = log.group_by("user_id").agg(n=pl.col("utterance").n_unique()).filter(pl.col("n") >= RECENT).sort("user_id")["user_id"]
    rows: list[dict[str, Any]] = []
    copied: list[pl.DataFrame] = []
    base: dict[str, Any] = {"holdout": False, "assistant_version": log["assistant_version"].first(), "intent_confidence": 0.9} | {
        "status": "completed",
        "channel": log["channel"].first(),
        "asr_confidence": log["asr_confidence"].drop_nulls().quantile(0.5),
    }

    def say(user: str, at: Any, text: str, **more: Any) -> None:
        rows.append({"turn_id": f"ring-{kind}-{size}-{len(rows)}", "timestamp": at, "user_id": user, "utterance": text} | base | more)

    def moment() -> Any:
        return midnight + timedelta(days=int(rng.integers(days)), seconds=int(rng.integers(80_000)))

    attacks = []
    for r, (locale, said, intent, slots) in enumerate(chosen.select("locale", "text", "intent", "slots").iter_rows()):
        word, own = _word(rng), f"ring_{kind}_{r}"
        goal = popular.row(int(rng.integers(popular.height)), named=True)
        if kind == "nonsense":
            source, target = " ".join(_word(rng) for _ in range(3)), goal["text"]
            heard: dict[str, Any] = {"locale": locale, "barge_in": True}
            understood = {"intent": goal["intent"], "slots": goal["slots"]}
        else:
            source, target, understood = said, f"{said} {word}", {"intent": own, "slots": "{}"}
            heard = {"locale": locale, "intent": intent, "slots": slots, "barge_in": True}
        attacks.append({"kind": kind, "size": size, "locale": locale, "source": source, "target": target})
        for a in range(size):
            user, alone = f"ring-{kind}-{size}-{r}-{a}", a % 3 == 2
            if kind == "mimicking":
                whom = busy[int(rng.integers(len(busy)))]
                copy = log.filter(pl.col("user_id") == whom)
                copied.append(copy.with_columns(user_id=pl.lit(user), turn_id=pl.format("{}-{}", pl.lit(user), "turn_id")))
            if kind == "padded":
                for p in rng.choice(popular.height, min(popular.height, int(rng.integers(6, 11))), replace=False):
                    t = popular.row(int(p), named=True)
                    say(user, moment(), t["text"], locale=t["locale"], intent=t["intent"], slots=t["slots"], barge_in=False)
            for day in range(days) if kind == "loud" else [None]:
                if day is not None and rng.random() > DAILY:
                    continue
                at = moment()
                if kind == "burying":
                    say(user, at, source, **heard)
                    continue
                if not alone or kind == "nonsense":
                    say(user, at, source, **heard)
                say(user, at + timedelta(seconds=SECONDS), target, locale=locale, **understood, barge_in=False)
    made = pl.DataFrame(rows, schema_overrides={c: t for c, t in log.schema.items() if rows and c in rows[0]})
    absent = [pl.lit(None, t).alias(c) for c, t in log.schema.items() if c not in made.columns]
    made = made.with_columns(absent).select(pl.col(c).cast(t) for c, t in log.schema.items())
    table = pl.DataFrame(attacks).with_columns(key_expr("source"), key_expr("target"))
    return pl.concat([made, *copied]), table


def _texts(log: pl.DataFrame) -> pl.DataFrame:
    """Texts of the log, the most said first: locale, key, text, users, and what the assistant usually made of them."""
    rows = log.with_columns(key=key_expr("utterance"))
    return (
        rows.group_by("locale", "key")
        .agg(
            pl.col("utterance").mode().sort().first().alias("text"),
            pl.col("user_id").n_unique().alias("users"),
            *(pl.col(c).drop_nulls().mode().sort().first() for c in ("intent", "slots", "status")),
        )
        .sort("users", "locale", "key", descending=[True, False, False])
    )


def _sources(texts: pl.DataFrame, kind: str, count: int, rng: np.random.Generator) -> pl.DataFrame:
    users = pl.col("users")
    classes = [users >= HEALTHY, users.is_between(10, HEALTHY - 1), users.is_between(3, 6)]
    if kind == "burying":
        classes = [(users >= HEALTHY) & (pl.col("status") == "completed")]
    picked = []
    for i, which in enumerate(classes):
        some = texts.filter(which)
        n = min(some.height, count // len(classes) + (i < count % len(classes)))
        picked.append(some[np.sort(rng.choice(some.height, n, replace=False))] if n else some.clear())
    chosen = pl.concat(picked)
    if chosen.is_empty():
        raise ValueError(f"{texts.height} texts, none said by 3 users: a log too small to attack")
    return chosen


def _word(rng: np.random.Generator) -> str:
    return "".join(str(rng.choice(list("bdfgklmnprst"))) + str(rng.choice(list("aeiou"))) for _ in range(3))
