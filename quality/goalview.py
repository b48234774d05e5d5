"""The report's look at goals: the map of texts, the biggest and the least sure goals, cohesion by size, which model read which locale."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import Any, Final

import polars as pl

from quality.goalmap import COLOURS, draw
from quality.markup import html

MAX_GOALS: Final = 50
"""Rows of a list: who reads further reads `goals.parquet`."""
MAX_POINTS: Final = 1500
"""Points of the map: 250 kB of the page; more are one blot."""
SIZES: Final = ((1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32), (33, None))
DOUBTED: Final = 0.5
"""A membership below: most of what ties the text to any goal ties it to others."""
COLOURED: Final = len(COLOURS) - 1  # the last one is the grey of all others
WIDE: Final = 1000
HIGH: Final = 560

GOAL_COLUMNS: Final = (
    ("name", "named by", "text"),
    ("locales", "locales", "w"),
    ("texts", "texts", "n"),
    ("users", "users of that text", "n"),
    ("cohesion", "cohesion", "n"),
    ("least", "its least", "n"),
    ("other", "its least sure text", "text"),
)
Rows = list[dict[str, Any]]


def goal_view(goals: pl.DataFrame, where: pl.DataFrame | None) -> dict[str, Any]:
    """biggest, unsure, sizes (rows of tables) and scatter (points {x, y, text, locale, users, goal: rank of its goal by size}).

    `goals`: the released table (every text said by k users, counts floored); `where`: locale, utterance, x, y of the goal graph.
    """
    ordered = goals.sort("goal_id", "is_exemplar", "users", "locale", "utterance", descending=[False, True, True, False, False])
    each = ordered.group_by("goal_id", maintain_order=True).agg(
        pl.col("utterance").first().alias("name"),
        pl.col("locale").unique().sort().str.join(", ").alias("locales"),
        pl.len().alias("texts"),
        pl.col("users").first(),
        pl.col("membership").sort().mean().round(3).alias("cohesion"),
        pl.col("membership").min().round(3).alias("least"),
        pl.col("utterance").sort_by("membership", "utterance").first().alias("other"),
    )
    several = each.filter(pl.col("texts") > 1)
    biggest = several.sort("texts", "users", "goal_id", descending=[True, True, False])
    unsure = several.sort("cohesion", "texts", "goal_id", descending=[False, True, False])
    sizes: Rows = []
    for low, high in SIZES:
        of = each.filter(pl.col("texts").is_between(low, high or each.height + goals.height))
        inside = goals.join(of.select("goal_id"), on="goal_id", how="semi")["membership"].sort()
        if of.height:
            named = str(low) if low == high else f"{low} to {high}" if high else f"{low} and more"
            row = {"texts of a goal": named, "goals": of.height, "texts": len(inside), "cohesion": round(float(inside.mean()), 3)}  # type: ignore[arg-type]
            sizes.append(row | {f"texts below {DOUBTED}": int((inside < DOUBTED).sum())})
    return {
        "biggest": biggest.head(MAX_GOALS).drop("goal_id").to_dicts(),
        "unsure": unsure.head(MAX_GOALS).drop("goal_id").to_dicts(),
        "sizes": sizes,
        "scatter": _points(goals, biggest["goal_id"], where),
    }


def _points(goals: pl.DataFrame, biggest: pl.Series, where: pl.DataFrame | None) -> Rows:
    if where is None or "x" not in where.columns:
        return []
    rank = pl.DataFrame({"goal_id": biggest, "goal": pl.Series(range(len(biggest)), dtype=pl.Int64)})
    at = where.select("locale", "utterance", "x", "y").drop_nulls()
    found = goals.join(at, on=["locale", "utterance"]).join(rank, on="goal_id").sort("goal", "locale", "utterance").head(MAX_POINTS)
    return found.select("x", "y", "locale", "users", "goal", text="utterance").to_dicts()


def model_rows(choice: Mapping[str, Mapping[str, Any]]) -> Rows:
    """A row per locale and encoder that was tried: how it separates, what it reads, which was taken and why. `choice`: of `pipelines.choose`."""
    rows: Rows = []
    for locale, found in sorted(choice.items()):
        for name in sorted(found.get("reads", {}), key=lambda n: (n != found["model"], n)):
            taken = name == found["model"]
            rows.append(
                {
                    "locale": locale,
                    "model": name,
                    "taken": "taken" if taken else "",
                    "separation": found["far_auc"].get(name),
                    "AUC": found["auc"].get(name),
                    "tokens it reads": found["reads"].get(name),
                    "asked-again pairs": found["pairs"],
                    "why": found["why"] if taken else "",
                }
            )
    return rows


def scatter(points: Rows, k: int) -> str:
    """The texts of goals as points, coloured by goal, their texts in the titles; empty without any. Texts of fewer than `k` users stay out."""
    points = [p for p in points if p["users"] >= k]
    if not points:
        return ""
    (left, right), (low, high) = (_most([p[axis] for p in points]) for axis in ("x", "y"))
    out = []
    for p in reversed(points):  # the biggest goals on top
        x, y = ((min(max(at, a), b) - a) / (b - a) for at, a, b in ((p["x"], left, right), (p["y"], low, high)))
        first = p["goal"] < COLOURED
        colour = f' fill="{COLOURS[p["goal"]]}"' if first else ""
        title = f"<title>{html(p['text'])} ({html(p['locale'])}, {p['users']}+ users)</title>"
        size = 2 + min(p["users"], 500) ** 0.25 + first
        out.append(
            f'<circle class="{"p" if first else "p rest"}" cx="{x * WIDE:.0f}" cy="{(1 - y) * HIGH:.0f}" r="{size:.1f}"{colour}>{title}</circle>'
        )
    return f'<svg viewBox="-10 -10 {WIDE + 20} {HIGH + 20}" role="img" aria-label="Map of texts, coloured by goal">{"".join(out)}</svg>'


def _most(values: list[float]) -> tuple[float, float]:
    """From the first to the last hundredth: what lies beyond is drawn at the edge, or a few far texts would take all the room."""
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 100], ordered[-1 - len(ordered) // 100]
    return low, high if high > low else low + 1.0


def legend(points: Rows, biggest: Rows) -> str:
    """The names of the goals that have a colour of their own."""
    shown = sorted({p["goal"] for p in points if p["goal"] < COLOURED})
    names = [
        f'<span><svg class="key" viewBox="0 0 10 10"><circle cx="5" cy="5" r="5" fill="{COLOURS[g]}"/></svg>{html(biggest[g]["name"], 40)}</span>'
        for g in shown
    ]
    return f'<p class="legend">{"".join(names)}</p>' if names else ""


def section(
    seen: Mapping[str, Any], k: int, table: Callable[[str, Rows, tuple[tuple[str, str, str], ...]], str], plain: Callable[[Rows], str]
) -> str:
    """The report's section on goals. `seen`: of `goal_map`, `goal_view` and {models, recall}; `table`, `plain`: how the page draws rows."""
    out = []
    points = seen.get("scatter", [])
    if picture := scatter(points, k):
        lead = (
            f"{len(points):,} texts of the biggest goals, along the two directions that tell goals apart most; languages are laid over each "
            f"other. The {COLOURED} biggest goals have a colour; hover over a point to read it."
        )
        out.append(f'<p class="sub">{lead}</p>{picture}{legend(points, seen["biggest"])}')
    if svg := draw(dict(seen), k):
        shown = len(seen["goals"])
        lead = (
            f"The {shown} biggest of {seen.get('goals_total', shown):,} goals. A point is a text that users said, a line is evidence "
            "that two texts ask for the same; hover over a point to read it. Each goal is named by one of its texts."
        )
        out.append(f'<h3>The evidence inside</h3><p class="sub">{escape(lead)}</p>{svg}')
    if seen.get("sizes"):
        lead = (
            "Cohesion is the mean membership of a goal's texts: of the evidence that ties a text to any goal, the share that ties it to "
            "this one. Goals by the number of their released texts:"
        )
        out.append(f'<h3>Cohesion by size</h3><p class="sub">{lead}</p>{plain(seen["sizes"])}')
    for name, title in (("biggest", "The biggest goals"), ("unsure", "The least sure goals")):
        if seen.get(name):
            out.append(f"<h3>{title}</h3>{table(name, seen[name], GOAL_COLUMNS)}")
    if seen.get("models"):
        lead = (
            "Per locale, the encoders that were tried on pairs that were confidently asked again. Separation: the part of such pairs that "
            "stand above all but the nearest hundredth of random pairs (partial AUC); a dearer encoder must be surely better."
        )
        out.append(f'<h3>Who reads which locale</h3><p class="sub">{lead}</p>{plain(seen["models"])}')
    if seen.get("recall") is not None:
        found = float(seen["recall"])
        what = (
            "All nearest neighbours were searched."
            if found == 1
            else f"Of the true nearest neighbours of a sample, {found:.3f} were found."
        )
        out.append(f'<p class="soft">{what}</p>')
    return "".join(out)
