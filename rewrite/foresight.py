"""Do rewrites come true? What was judged from some users, against what others went on to ask, and how much either profile serves.

A case is a source with a judged rewrite that users said later who had not said it before. What they went on to is no label: some
meant something else, some asked for the next thing. So it is evidence for and against the rewrite (`calibration.evidence`), and of
many cases together the share that came true is the one that makes the evidence likeliest. Where the log has no interpretations a goal is
one wording of several, and who goes to another one counts against the rewrite: read it from below there.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import polars as pl

from rewrite import calibration
from rewrite.blocks import Blocks
from rewrite.contracts import MILLION
from rewrite.pool import FAILS, Pool
from rewrite.reliability import BINS, MIN_CASES, Diagram

JUDGED: Final = ("goal", "live", "weak", "no_lift", "unproven", "false_discovery")
"""Reasons of pairs that passed every guard: only how sure one is decides about them."""
STEPS: Final = 10
DOUBT: Final = 0.02
"""No outcome of a live turn is surer than this."""
CASES: dict[str, Any] = {
    "locale": pl.String,
    "source": pl.String,
    "predicted": pl.Float64,
    "log_e": pl.Float64,
    "proposed": pl.Boolean,
    "users": pl.Float64,
    "evidence": pl.Float64,
}
"""`users`: how many later users were served, or had the rewrite tried on them; `evidence`: theirs, a log likelihood ratio."""


def cases(rewrites: pl.DataFrame, before: Blocks, later: pl.DataFrame, pool: Pool) -> pl.DataFrame:
    """One row per case (`CASES`), sorted. rewrites: of `rewrites.mine` on `pool`, made from earlier users or days; before,
    later: merged `careful.trials` of them and of what came after."""
    ids = pool.texts.select("locale", "utterance", "id", "goal", "means")
    judged = rewrites.filter(pl.col("reason").is_in(JUDGED)).select(
        "locale", "source", "target", "probability", "log_e", proposed=pl.col("decision") == "proposed"
    )
    pairs = judged.join(ids.select("locale", s="id", source="utterance"), on=["locale", "source"])
    pairs = pairs.join(ids.select("locale", "goal", target="utterance"), on=["locale", "target"])
    # the surest of a source; one row each
    pairs = pairs.sort("s", "proposed", "probability", "target", descending=[False, True, True, False]).unique(
        "s", keep="first", maintain_order=True
    )
    new = later.join(before.each(lambda b: b.select("ask").unique()), on="ask", how="anti")
    new = new.join(pairs.select("locale", "source", "s", wanted="target"), on=["locale", "source"])
    alone = calibration.evidence(pairs.select("s", "goal"), _went(new.filter(~pl.col("rewritten")), pool), calibration.base(pool.texts))
    own = (pl.col("own") / MILLION).clip(DOUBT, 1 - DOUBT)
    tried = new.filter("rewritten", pl.col("target") == pl.col("wanted")).sort("s", "ask", "own")
    live = tried.group_by("s", maintain_order=True).agg(live_users=pl.len().cast(pl.Float64), live=(own / (1 - own)).log().sum())
    found = (
        pairs.join(alone, on="s", how="left")
        .join(live, on="s", how="left")
        .with_columns(pl.col("users", "llr", "live_users", "live").fill_null(0))
    )
    found = found.with_columns(
        predicted="probability",
        users=pl.col("users") + pl.col("live_users"),
        evidence=(pl.col("llr") + pl.col("live")).clip(-calibration.SURE, calibration.SURE),
    ).filter(pl.col("users") > 0)
    return found.select(pl.col(n).cast(t) for n, t in CASES.items()).sort(list(CASES))


def _went(asked: pl.DataFrame, pool: Pool) -> pl.DataFrame:
    """`s, goal, n`: later users of a source by the goal in which they were served; what failed with the same meaning does not count."""
    texts = pool.texts.select("locale", "utterance", "goal", "means", "intent", "slots")
    meanings = texts.filter(pl.col("means").is_not_null()).with_columns(pl.col("slots").fill_null("{}")).sort("means", "goal")
    meanings = meanings.unique("means", keep="first", maintain_order=True).select("locale", "intent", "slots", "means", by_meaning="goal")
    source = pool.texts.select(s="id", failed_as=pl.when(pl.col("served") < FAILS).then("means"))
    known = texts.select("locale", "goal", target="utterance")
    rows = asked.with_columns(pl.when(pl.col("intent").is_not_null()).then(pl.col("slots").fill_null("{}")).alias("slots"))
    rows = (
        rows.join(known, on=["locale", "target"], how="left")
        .join(meanings, on=["locale", "intent", "slots"], how="left")
        .join(source, on="s")
    )
    rows = rows.filter((pl.col("means") != pl.col("failed_as")).fill_null(True))
    nowhere = -1 - pl.col("target").rank("dense").cast(pl.Int64)  # a text that nobody said before: a goal of its own
    rows = rows.with_columns(goal=pl.coalesce("goal", "by_meaning", nowhere), n=pl.col("p") * pl.col("own") // MILLION)
    user = rows.group_by("s", "ask", "goal").agg(pl.col("n").max())
    return user.group_by("s", "goal").agg(n=pl.col("n").sum() / MILLION).filter(pl.col("n") > 0)


def reliability(found: pl.DataFrame) -> dict[str, Diagram]:
    """Diagrams of the proposed of `cases`, as `reliability.by_locale` makes them: all locales ("") and each with enough cases."""
    found = found.filter("proposed")
    parts = {str(n): part for (n,), part in found.group_by("locale", maintain_order=True) if part.height >= MIN_CASES}
    if found.height >= MIN_CASES and (len(parts) != 1 or found["locale"].n_unique() > 1):
        parts = {"": found} | parts
    return {name: _diagram(part) for name, part in parts.items()}


def _diagram(found: pl.DataFrame) -> Diagram:
    bins, off = [], 0.0
    at = found.with_columns(bin=(pl.col("predicted") * BINS).cast(pl.Int64).clip(0, BINS - 1)).sort("bin", "predicted", "evidence")
    for (_,), part in at.group_by("bin", maintain_order=True):
        said, came = float(np.mean(part["predicted"].to_numpy())), calibration.share_right(part["evidence"].to_numpy())
        bins.append([round(said, 4), round(came, 4), part.height])
        off += abs(said - came) * part.height
    mean = float(np.mean(at["predicted"].to_numpy()))
    return {"n": at.height, "ece": round(off / at.height, 4), "mean": round(mean, 4), "bins": bins}


def trade_off(found: pl.DataFrame) -> list[dict[str, Any]]:
    """Precision against volume, as either profile grows stricter: `profile, threshold, served` (share of all later users), `right` (share of
    the served for whom it came true), `sources`. At most `STEPS` points per profile, from all that it would propose up to its surest tenth."""
    out: list[dict[str, Any]] = []
    users = float(found["users"].sum())
    for profile, column in (("balanced", "predicted"), ("careful", "log_e")):
        of = found.filter("proposed")[column].to_numpy()
        for threshold in np.unique(np.quantile(of, np.arange(STEPS) / STEPS, method="lower")) if len(of) else []:
            kept = found.filter("proposed", pl.col(column) >= threshold)
            out.append(
                {
                    "profile": profile,
                    "threshold": round(float(threshold), 4),
                    "served": round(float(kept["users"].sum()) / users, 4),
                    "right": round(calibration.share_right(kept["evidence"].to_numpy(), kept["users"].to_numpy()), 4),
                    "sources": kept.height,
                }
            )
    return out
