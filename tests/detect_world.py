"""A small log built in code: goals with several wordings, some of which fail, and users who then ask again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl

from rewrite.contracts import TURNS
from rewrite.text import key_expr

SCHEMA = pl.from_arrow(TURNS.empty_table()).schema  # type: ignore[union-attr]
SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]


def frame(rows: list[dict]) -> pl.DataFrame:
    """Rows with any columns of TURNS -> a turns frame; `key` and `treatment` are filled in."""
    given = pl.DataFrame(rows, schema_overrides={n: t for n, t in SCHEMA.items() if rows and n in rows[0]}) if rows else pl.DataFrame()
    absent = [pl.lit(None, t).alias(n) for n, t in SCHEMA.items() if n not in given.columns]
    out = given.with_columns(absent) if rows else pl.DataFrame(schema=SCHEMA)
    return out.with_columns(key=key_expr("utterance"), treatment=pl.col("treatment").fill_null("untouched")).select(SCHEMA.names())


def word(rng: np.random.Generator, n: int = 3) -> str:
    return "".join(rng.choice(SYLLABLES, n))


def world(seed: int = 0, sessions: int = 1500, locale: str = "xx") -> tuple[pl.DataFrame, pl.DataFrame]:
    """Turns, and the truth: `turn_id, goal, failed`. Words are of no language. A wording either works or not; who fails
    is refused half of the time and asks again soon in a wording that shares the goal's name; others come later."""
    rng = np.random.default_rng(seed)
    names = [word(rng, 4) for _ in range(60)]
    frames_ = [[word(rng) for _ in range(2)] for _ in range(5)]
    works = rng.random((60, 5)) < 0.6
    works[:, 0] = True
    rows, truth = [], []
    for s in range(sessions):
        at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=int(rng.integers(7)), seconds=int(rng.integers(80_000)))
        for _ in range(int(rng.integers(1, 4))):
            goal, ways = int(rng.integers(60)), rng.permutation(5)
            for way in ways[:3]:
                ok = bool(works[goal, way])
                refused = not ok and rng.random() < 0.5
                turn = f"{locale}-{len(rows):05d}"
                rows.append(
                    {
                        "turn_id": turn,
                        "timestamp": at,
                        "user_key": f"{s % 400:032x}",
                        "locale": locale,
                        "session": s // 400,
                        "utterance": f"{frames_[way][0]} {names[goal]} {frames_[way][1]}",
                        "status": "no_match" if refused else "completed",
                        "barge_in": bool(not ok and rng.random() < 0.4),
                        "intent": None if refused else f"i{goal % 7}",
                    }
                )
                truth.append({"turn_id": turn, "goal": f"{s}-{goal}", "failed": not ok})
                if ok or rng.random() < 0.2:
                    break
                at += timedelta(seconds=float(rng.lognormal(2.0, 0.5)) + 2.1)
            at += timedelta(seconds=float(rng.lognormal(4.0, 0.7)) + 2.1)
    return frame(rows), pl.DataFrame(truth)


def auc(y: np.ndarray, p: np.ndarray) -> float:
    rank = pl.Series(p).rank().to_numpy()
    positives = int(y.sum())
    return float((rank[y].sum() - positives * (positives + 1) / 2) / (positives * (len(y) - positives)))
