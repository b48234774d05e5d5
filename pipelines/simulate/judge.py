"""What a table of rewrites would have done to users whom the log never saw: the same assistant, asked again with the target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.simulate import world
from rewrite.text import key_expr


def languages(folder: str | Path) -> dict[str, world.Language]:
    """The languages of a world that was written to a folder, made again from its options."""
    options = json.loads((Path(folder) / "world.json").read_text(encoding="utf-8"))["options"]
    return {n.strip(): world.build(n.strip(), options["seed"], options["unknown"]) for n in options["locales"].split(",")}


def replay(folder: str | Path, rewrites: pl.DataFrame, future: pl.DataFrame | None = None) -> dict[str, Any]:
    """First requests of unseen users, served with and without the rewrites.

    Args:
        folder: of a world.
        rewrites: locale, source, target, and probability when a source has several targets.
        future: requests with truth; default: future.parquet of the folder.

    Returns:
        Per locale and for `all`: `requests`, `defects`, `triggered` (rewritten requests), `wins` (failed, served when rewritten), `losses`
        (served, failed when rewritten), `win_loss`, `precision` (of rewritten requests, served), `defect_reduction` ((wins - losses) / defects).
    """
    future = pl.read_parquet(Path(folder) / "future.parquet") if future is None else future
    order = ["probability"] if "probability" in rewrites.columns else []
    table = (
        rewrites.sort([*order, "target"], descending=[True] * len(order) + [False])
        .with_columns(key=key_expr("source"), target_key=key_expr("target"))
        .unique(["locale", "key"], keep="first", maintain_order=True)
        .filter(pl.col("key") != pl.col("target_key"))
        .select("locale", "key", "target_key")
    )
    first = future.filter(pl.col("attempt") == 0).with_columns(key=key_expr("utterance")).join(table, on=["locale", "key"], how="left")
    out = {}
    for name, language in languages(folder).items():
        f = first.filter(pl.col("locale") == name)
        hit = f.filter(pl.col("target_key").is_not_null())
        ok = pl.Series(language.serves(hit["target_key"].to_list(), hit["goal"].to_list()), dtype=pl.Boolean)
        was = hit["success"]
        out[name] = _figures(
            f.height, int((~f["success"]).sum()), hit.height, int((ok & ~was).sum()), int((~ok & was).sum()), int(ok.sum())
        )
    keys = ("requests", "defects", "triggered", "wins", "losses", "served")
    out["all"] = _figures(*(sum(v[k] for v in out.values()) for k in keys))
    return out


def _figures(requests: int, defects: int, triggered: int, wins: int, losses: int, served: int) -> dict[str, Any]:
    return {
        "requests": requests, "defects": defects, "triggered": triggered, "wins": wins, "losses": losses, "served": served,
        "win_loss": wins / max(losses, 1), "precision": served / max(triggered, 1), "defect_reduction": (wins - losses) / max(defects, 1),
    }  # fmt: skip
