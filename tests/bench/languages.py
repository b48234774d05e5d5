"""Goals across languages: how often a wording of one language leads to the right wordings of another one.

    python -m pipelines mine --logs EVAL/en-US/log.parquet EVAL/de-DE/log.parquet EVAL/ja-JP/log.parquet --lake LAKE
    python tests/bench/languages.py LAKE EVAL/en-US EVAL/de-DE EVAL/ja-JP
    python tests/bench/languages.py LAKE EVAL/en-US EVAL/de-DE EVAL/ja-JP --without-intents de-DE

The goals are built again from the lake's evidence by the code at hand, so one mined lake serves many looks. Two true goals of two
languages are one if intent and slot values are equal. Of every wording that one language's users said for such a goal:

- `joined right`: its mined goal holds wordings of the other language, and most of them are of the true goal;
- `joined wrong`: it holds wordings of the other language, most of them of another true goal;
- `right first`: of all mined goals with wordings of the other language, its own goal comes first if it is one of them, else the one
  whose mean is nearest (the mean of each language taken away); most of that goal's wordings are of the true goal. `by vectors alone` is the
  same without the graph's joins.
"""

from __future__ import annotations

import argparse
from itertools import permutations
from pathlib import Path

import numpy as np
import polars as pl


def gold(world: Path) -> pl.DataFrame:
    """locale, utterance (key), true (goal without its locale), users: texts of one true goal."""
    from rewrite.text import key_expr

    log = pl.read_parquet(world / "log.parquet").unique("turn_id").join(pl.read_parquet(world / "truth.parquet"), on="turn_id")
    texts = log.with_columns(key_expr("utterance").alias("utterance"), true=pl.col("goal").str.replace(r"^[^|]*\|", ""))
    texts = texts.group_by("locale", "utterance").agg(
        pl.col("true").mode().sort().first(), pure=pl.col("true").n_unique() == 1, users=pl.col("user_id").n_unique()
    )
    return texts.filter("pure").select("locale", "utterance", "true", "users").sort("locale", "utterance")


def retrieval(goals: pl.DataFrame, vectors: np.ndarray, true: pl.DataFrame) -> pl.DataFrame:
    """One row per ordered pair of locales. `goals`: locale, utterance, goal_id; `vectors`: (goals.height, d), NaN or zero where there is
    none; `true`: locale, utterance, true, users."""
    goals = goals.select("locale", "utterance", "goal_id").with_row_index("row").join(true, on=["locale", "utterance"], how="left")
    goals = goals.sort("row")
    vectors = np.nan_to_num(vectors)
    out = []
    for a, b in permutations(sorted(true["locale"].unique()), 2):
        shared = set(true.filter(pl.col("locale") == a)["true"]) & set(true.filter(pl.col("locale") == b)["true"])
        there = goals.filter(pl.col("locale") == b)
        ids = there["goal_id"].unique().sort()
        meant = dict(
            there.drop_nulls("true").group_by("goal_id").agg(pl.col("true").mode().sort().first()).select("goal_id", "true").iter_rows()
        )
        means = _means(vectors[there["row"].to_numpy()], there["goal_id"], ids)
        asked = goals.filter(pl.col("locale") == a, pl.col("true").is_in(list(shared)))
        all_a = goals.filter(pl.col("locale") == a)["row"].to_numpy()
        query = vectors[asked["row"].to_numpy()] - vectors[all_a].mean(axis=0)
        nearest = ids.gather((query @ means.T).argmax(axis=1)).to_list()
        held = set(ids)
        found = pl.DataFrame(
            {
                "users": asked["users"],
                "joined right": [g in held and meant.get(g) == t for g, t in asked.select("goal_id", "true").iter_rows()],
                "joined wrong": [g in held and meant.get(g) != t for g, t in asked.select("goal_id", "true").iter_rows()],
                "right first": [
                    meant.get(g if g in held else n) == t for g, n, t in zip(asked["goal_id"], nearest, asked["true"], strict=True)
                ],
                "by vectors alone": [meant.get(n) == t for n, t in zip(nearest, asked["true"], strict=True)],
            }
        )
        for least in (1, 3):
            said = found.filter(pl.col("users") >= least)
            named = {"from": a, "to": b, "goals": len(shared), "users": f"{least}+", "wordings": said.height}
            out.append(named | {n: said[n].mean() for n in ("joined right", "joined wrong", "right first", "by vectors alone")})
    return pl.DataFrame(out)


def _means(vectors: np.ndarray, goal: pl.Series, ids: pl.Series) -> np.ndarray:
    """Unit mean of each goal's texts, the mean of all taken away."""
    at = goal.replace_strict(ids, pl.Series(range(len(ids)), dtype=pl.Int64)).to_numpy()
    means = np.zeros((len(ids), vectors.shape[1]))
    np.add.at(means, at, vectors - vectors.mean(axis=0))
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)


def inputs(lake: str) -> tuple:
    """texts, links, served, vectors, models of a mined lake: what `link` builds goals from."""
    from pipelines import embed, link, shards, window
    from pipelines.context import Context
    from pipelines.options import LinkOptions
    from rewrite import evidence, trust

    context = Context(LinkOptions(lake=lake, quiet=True))
    rules, p, as_of = window.rules(context), context.config.privacy, context.as_of()
    votes = [shards.read(context.store, s).drop("bucket") for s in shards.by_bucket(window.manifests(context, as_of))]
    learned = trust.learn((trust.sketch(v) for v in votes), rules)
    believed = trust.Trust(rules, learned.least_texts, learned.copied)
    merged = evidence.merge_evidence([evidence.bucket_evidence(v, believed) for v in votes])
    texts, links, served = link.goal_inputs(merged, evidence.Options(k=p.k, burst=p.burst, scarce=p.scarce))
    return texts, links, served, *embed.vectors(context.store, embed.current(context), texts["locale"], texts["utterance"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lake")
    parser.add_argument("worlds", nargs="+", type=Path)
    parser.add_argument("--without-intents", action="append", default=[], metavar="LOCALE", help="as if its log had no intents")
    options = parser.parse_args()
    from rewrite.goals import build_goals

    texts, links, served, vectors, models = inputs(options.lake)
    served = served.filter(~pl.col("locale").is_in(options.without_intents))
    graph = build_goals(texts.select("locale", "utterance", "users", "served"), vectors, links, served, models=models)
    order = texts.select("locale", "utterance").with_row_index("at")
    at = graph.goals.join(order, on=["locale", "utterance"], how="left", maintain_order="left")["at"].to_numpy()
    table = retrieval(graph.goals, vectors[at], pl.concat([gold(w) for w in options.worlds]))
    print("without intents:", ", ".join(options.without_intents) or "(none)")
    with pl.Config(
        tbl_rows=-1, tbl_cols=-1, tbl_width_chars=200, float_precision=3, tbl_formatting="ASCII_MARKDOWN", tbl_hide_dataframe_shape=True
    ):
        print(table)


if __name__ == "__main__":
    main()
