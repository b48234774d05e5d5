"""Neighbours, graph and communities of many texts with known goals, beside `sentence_transformers.util.community_detection`.

Up to 100,000 texts are wordings of the simulator's English goals and what a recogniser may make of them, embedded by the bundled fast
model (not timed). Beyond, the vectors are made up: goals of 2 to 20 texts under subjects, of the same dimension and as hard to search as
real ones; and community detection, which is quadratic, is left out.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from random import Random

import numpy as np
import polars as pl

REAL = 100_000
SWEEP = 8_000
"""Texts on which the rival's threshold is looked for: its best one on all of them would take it an hour to find."""
THRESHOLDS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
DIMENSION = 512
SUBJECT, GOAL, PHRASE, OWN, ALL = 0.30, 0.25, 0.12, 0.15, 0.15
"""Variance of a made-up vector by what it says: a subject of many goals, its goal, a turn of phrase found with any goal, itself (on
average; some are near copies), and what is common to all texts."""
PHRASES, GOALS_OF_SUBJECT = 40, 800
"""Phrases there are; subjects have 1 to 799 goals. Measured beside real vectors of the fast model (25,703 texts of an English log; in brackets
50,000 texts with misheard ones; made up): nearest text at a cosine of .91 (.93; .82), the tenth at .71 (.82; .70), the hundredth at .51
(.64; .58), random pairs at .13 (.16; .18), and a recall of .98 takes 11 of 51 cells (5 of 100; 12 of 50, and of 100, and 11 of 400).
Directions of no structure would be another thing: 24 of them take 25 of 100 cells and 126 of 2,000, and nothing joins."""


def wordings(n: int) -> tuple[list[str], np.ndarray]:
    """(texts, goal of each): distinct, the simulator's wordings first, then misheard ones."""
    from pipelines.simulate import world
    from pipelines.simulate.hearing import Ear

    language, dice = world.build("en-US", 0, 0.0), Random(0)
    said = {language.texts[t]: g for g, row in enumerate(language.said) for t in row.tolist() if t >= 0}
    found, first = dict(list(said.items())[:n]), list(said.items())
    ear = Ear(list(said), dice)
    while len(found) < n:
        text, goal = first[int(dice.random() * len(first))]
        found.setdefault(ear.mishear(text), goal)
    return list(found), np.array(list(found.values()))


def made_up(n: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(texts, goal of each, unit vectors float16 (n, DIMENSION)): as hard to search as real ones, see `PHRASES`."""
    rng = np.random.default_rng(0)

    def directions(many: int, variance: float) -> np.ndarray:
        return rng.normal(0, np.sqrt(variance / DIMENSION), (many, DIMENSION)).astype(np.float32)

    goal = np.repeat(np.arange(n), rng.integers(2, 21, n))[:n]
    subject = np.repeat(np.arange(n), rng.integers(1, GOALS_OF_SUBJECT, n))[: goal[-1] + 1]
    phrase = rng.integers(0, PHRASES, n)
    common, subjects = directions(1, ALL), directions(subject[-1] + 1, SUBJECT)
    goals, phrases = directions(goal[-1] + 1, GOAL), directions(PHRASES, PHRASE)
    vectors = np.empty((n, DIMENSION), np.float16)
    for start in range(0, n, 50_000):
        part = slice(start, start + 50_000)
        own = directions(len(goal[part]), OWN) * np.sqrt(3) * rng.random((len(goal[part]), 1), np.float32)
        block = common + subjects[subject[goal[part]]] + goals[goal[part]] + phrases[phrase[part]] + own
        vectors[part] = block / np.linalg.norm(block, axis=1, keepdims=True)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    names = letters[(np.arange(n)[:, None] // 26 ** np.arange(5)) % 26]
    return ["wording " + "".join(row) for row in names], goal, vectors


@dataclass(frozen=True)
class Result:
    """What one method took and found: seconds, processor seconds, adjusted Rand index, anything worth telling."""

    name: str
    seconds: float
    cpu: float
    ari: float
    told: str


def ours(texts: list[str], vectors: np.ndarray, goal: np.ndarray) -> Result:
    from sklearn.metrics import adjusted_rand_score

    from rewrite.goals import build_goals

    none = pl.DataFrame(schema={"locale": pl.String, "source": pl.String, "target": pl.String, "users": pl.Int64, "weight": pl.Float64})
    served = pl.DataFrame(schema={**dict.fromkeys(("locale", "utterance", "intent", "slots"), pl.String), "weight": pl.Float64})
    frame = pl.DataFrame({"locale": ["en-US"] * len(texts), "utterance": texts}).with_columns(
        users=pl.lit(3, pl.Int64), served=pl.lit(None, pl.Float64)
    )
    start, cpu = time.perf_counter(), time.process_time()
    graph = build_goals(frame, vectors, none, served)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    at = frame.with_columns(true=pl.Series(goal)).join(graph.goals, on=["locale", "utterance"], maintain_order="left")
    ari = adjusted_rand_score(at["true"].to_numpy(), at["goal_id"].rank("dense").to_numpy())
    told = f"{graph.goals['goal_id'].n_unique():,} goals, recall of neighbours {graph.curves['recall'].min():.3f}"
    return Result("sayagain: neighbours, graph, communities", seconds, cpu, ari, told)


def rival(vectors: np.ndarray, goal: np.ndarray) -> Result:
    import torch
    from sentence_transformers.util import community_detection
    from sklearn.metrics import adjusted_rand_score

    table = torch.from_numpy(vectors.astype(np.float32))

    def detect(rows: np.ndarray, threshold: float) -> float:
        label = np.arange(len(rows))  # who is in no community is alone
        for members in community_detection(table[rows], threshold=threshold, min_community_size=2):
            label[members] = members[0]
        return float(adjusted_rand_score(goal[rows], label))

    # whole goals, so that a threshold is as good there as it is on all texts
    order = np.random.default_rng(0).permutation(goal.max() + 1)[goal]
    sample = np.sort(np.argsort(order, kind="stable")[:SWEEP])
    best = max(THRESHOLDS, key=lambda t: detect(sample, t))
    start, cpu = time.perf_counter(), time.process_time()
    ari = detect(np.arange(len(goal)), best)
    return Result("community_detection", time.perf_counter() - start, time.process_time() - cpu, ari, f"threshold {best}")


def run(n: int) -> str:
    """The table of one size, Markdown."""
    import resource

    if n <= REAL:
        from pipelines import models

        texts, goal = wordings(n)
        vectors = models.load_encoder(models.FAST).encode(texts).astype(np.float16)
    else:
        texts, goal, vectors = made_up(n)
    rows = [ours(texts, vectors, goal)] + ([rival(vectors, goal)] if n <= REAL else [])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    lines = ["| method | seconds | processor seconds | adjusted Rand index | |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {r.name} | {r.seconds:.1f} | {r.cpu:.1f} | {r.ari:.3f} | {r.told} |" for r in rows]
    lines += ["", f"{len(set(goal.tolist())):,} true goals; peak {peak:.1f} GiB with the vectors."]
    if len(rows) > 1:
        lines[-1] += f" Time of ours / theirs: {rows[0].seconds / rows[1].seconds:.2f} (processor: {rows[0].cpu / rows[1].cpu:.2f})."
    return "\n".join(lines) + "\n"
