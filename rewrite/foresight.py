"""Do rewrites come true? What was judged from some users, against what others went on to ask, and how much either profile serves.

A case is a later user of a source, unseen before, whose want showed: they went on to what the target serves, or to something
else that served them. That is not the truth: a next request of another kind counts as `something else`, so both calibration
and the precision of the curve are read from below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from rewrite.careful import MILLION, shown

if TYPE_CHECKING:
    from rewrite.evidence import Options
    from rewrite.pool import Pool

JUDGED: Final = ("goal", "live", "weak", "no_lift", "unproven", "false_discovery")
"""Reasons of pairs that passed every guard: only how sure one is decides about them."""
STEPS: Final = 10
CASES: dict[str, Any] = {
    "locale": pl.String,
    "source": pl.String,
    "predicted": pl.Float64,
    "log_e": pl.Float64,
    "proposed": pl.Boolean,
    "happened": pl.Boolean,
}


def cases(rewrites: pl.DataFrame, before: pl.DataFrame, later: pl.DataFrame, pool: Pool, options: Options) -> pl.DataFrame:
    """One row per case (`CASES`), sorted. rewrites: of `rewrites.mine` on `pool`, made from earlier users or days; before,
    later: merged `careful.trials` of them and of what came after."""
    ids = pool.texts.select("locale", "id", "utterance", "goal")
    judged = rewrites.filter(pl.col("reason").is_in(JUDGED)).select(
        "locale", "source", "target", "probability", "log_e", proposed=pl.col("decision") == "proposed"
    )
    pairs = judged.join(ids.select("locale", s="id", source="utterance"), on=["locale", "source"])
    pairs = pairs.join(ids.select("locale", "goal", t="id", target="utterance"), on=["locale", "target"]).sort("s", "t")
    new = later.join(before.select("ask").unique(), on="ask", how="anti")
    rows = shown(pairs.select("s", "t", "goal"), new, pool, options).filter(pl.max_horizontal("win", "loss") >= MILLION // 2)
    pairs = pairs.with_row_index("pair").with_columns(pl.col("pair").cast(pl.Int64))
    found = rows.join(pairs, on="pair").with_columns(predicted="probability", happened=pl.col("win") >= pl.col("loss"))
    return found.select(pl.col(n).cast(t) for n, t in CASES.items()).sort(list(CASES))


def trade_off(found: pl.DataFrame) -> list[dict[str, Any]]:
    """Precision against volume, as either profile grows stricter: `profile, threshold, served` (share of all cases), `right` (share of
    the served that came true), `sources`. At most `STEPS` points per profile, from all that it would propose up to its surest tenth."""
    out: list[dict[str, Any]] = []
    for profile, column in (("balanced", "predicted"), ("careful", "log_e")):
        of = found.filter("proposed")[column].to_numpy()
        for threshold in np.unique(np.quantile(of, np.arange(STEPS) / STEPS, method="lower")) if len(of) else []:
            kept = found.filter("proposed", pl.col(column) >= threshold)
            out.append(
                {
                    "profile": profile,
                    "threshold": round(float(threshold), 4),
                    "served": round(kept.height / found.height, 4),
                    "right": round(float(np.mean(kept["happened"].to_numpy())), 4),
                    "sources": kept.select("locale", "source").n_unique(),
                }
            )
    return out
