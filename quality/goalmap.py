"""The goal map of the report: the biggest goals as discs of their texts, laid out without randomness, drawn as inline SVG."""

from __future__ import annotations

import math
from typing import Any, Final

import polars as pl

from quality.markup import html

MAX_MAP_GOALS: Final = 40
MAX_MAP_TEXTS: Final = 12  # per goal: more do not fit beside their neighbours
MAX_MAP_EDGES: Final = 3000
NAME: Final = 24
"""Characters of a goal's name, and the room for it in the units of the picture (wide, high)."""
NAME_ROOM: Final = (170.0, 30.0)
COLOURS: Final = ("#4e79a7", "#e07b39", "#3c9d6b", "#c8504f", "#7b6fb0", "#a3793d", "#c56a9b", "#6f8a3c", "#3a9aa6", "#8a8f94")

Picture = dict[str, Any]
Rows = list[dict[str, Any]]


def goal_map(goals: pl.DataFrame, edges: pl.DataFrame | None) -> dict[str, Any]:
    """The biggest goals as discs of their texts, laid out without randomness.

    `goals` is the released table. Returns goals {x, y, r, name, texts}, points {x, y, goal, text, locale, users},
    edges [from, to, probability] between points. Units are arbitrary; the picture is scaled to fit.
    """
    biggest = goals.group_by("goal_id").agg(texts=pl.len(), users=pl.col("users").sum())
    biggest = biggest.filter(pl.col("texts") > 1).sort("texts", "users", "goal_id", descending=[True, True, False]).head(MAX_MAP_GOALS)
    placed: list[tuple[float, float, float]] = []
    discs: Rows = []
    points: Rows = []
    index: dict[tuple[str, str], int] = {}
    for goal_id, texts, _ in biggest.iter_rows():
        rows = goals.filter(pl.col("goal_id") == goal_id)
        rows = rows.sort("is_exemplar", "users", "locale", "utterance", descending=[True, True, False, False]).head(MAX_MAP_TEXTS)
        radius = 8 + 9 * math.sqrt(rows.height)
        x, y = _free_place(placed, radius)
        placed.append((x, y, radius))
        discs.append({"x": x, "y": y, "r": radius, "name": rows["utterance"][0], "users": rows["users"][0], "texts": texts})
        for n, row in enumerate(rows.iter_rows(named=True)):
            away, angle = 9 * math.sqrt(n), n * 2.399963  # the golden angle spreads points evenly
            at = {"x": round(x + away * math.cos(angle), 1), "y": round(y + away * math.sin(angle), 1)}
            index[row["locale"], row["utterance"]] = len(points)
            points.append({**at, "goal": len(discs) - 1, "text": row["utterance"], "locale": row["locale"], "users": row["users"]})
    return {"goals": discs, "points": points, "edges": _edges(edges, index), "goals_total": goals["goal_id"].n_unique()}


def _edges(edges: pl.DataFrame | None, index: dict[tuple[str, str], int]) -> list[list[float]]:
    if edges is None or not index:
        return []
    known = pl.DataFrame(
        [(locale, text, n) for (locale, text), n in index.items()], schema={"l": pl.String, "u": pl.String, "n": pl.Int64}, orient="row"
    )
    drawn = (
        edges.join(known.rename({"n": "a"}), left_on=["locale_a", "utterance_a"], right_on=["l", "u"])
        .join(known.rename({"n": "b"}), left_on=["locale_b", "utterance_b"], right_on=["l", "u"])
        .select("a", "b", pl.col("probability").round(2))
        .sort("probability", "a", "b", descending=[True, False, False])
        .head(MAX_MAP_EDGES)
    )
    return [list(row) for row in drawn.iter_rows()]


def _free_place(placed: list[tuple[float, float, float]], radius: float) -> tuple[float, float]:
    """The first place on a spiral from the middle where neither a disc nor its name touches another; wider than high."""
    wide, high = NAME_ROOM
    step = 0
    while True:
        angle = 0.35 * step
        x, y = round(6.0 * angle * math.cos(angle), 1), round(2.5 * angle * math.sin(angle), 1)
        if all(abs(x - px) >= max(radius + pr + 10, wide) or abs(y - py) >= radius + pr + high for px, py, pr in placed):
            return x, y
        step += 1


def draw(picture: Picture, k: int) -> str:
    """The map as SVG: a disc per goal, a point per text, a line per edge; texts are in the titles. Empty without points.

    Texts with fewer than `k` users are left out.
    """
    discs, points = picture.get("goals", []), picture.get("points", [])
    if not points:
        return ""
    left, right = min(d["x"] for d in discs) - NAME_ROOM[0] / 2, max(d["x"] for d in discs) + NAME_ROOM[0] / 2
    above, below = min(d["y"] - d["r"] for d in discs) - 10, max(d["y"] + d["r"] for d in discs) + NAME_ROOM[1]
    out = []
    for d in discs:
        title = f"<title>{html(d['name'])}: {d['texts']} texts</title>" if d["users"] >= k else ""
        out.append(f'<circle class="disc" cx="{d["x"]}" cy="{d["y"]}" r="{d["r"]:.1f}">{title}</circle>')
    for a, b, p in picture["edges"]:
        ends = f'x1="{points[a]["x"]}" y1="{points[a]["y"]}" x2="{points[b]["x"]}" y2="{points[b]["y"]}"'
        out.append(f'<line {ends} stroke-width="{0.4 + 1.4 * p:.1f}"/>')
    for p in points:
        if p["users"] >= k:
            size, colour = 3 + min(p["users"], 500) ** 0.25, COLOURS[p["goal"] % len(COLOURS)]
            title = f"<title>{html(p['text'])} ({html(p['locale'])}, {p['users']}+ users)</title>"
            out.append(f'<circle class="p" cx="{p["x"]}" cy="{p["y"]}" r="{size:.1f}" fill="{colour}">{title}</circle>')
    for d in discs:
        if d["users"] >= k:
            out.append(f'<text x="{d["x"]}" y="{d["y"] + d["r"] + 12:.1f}" text-anchor="middle">{html(d["name"], NAME)}</text>')
    box = f"{left:.0f} {above:.0f} {right - left:.0f} {below - above:.0f}"
    return f'<svg viewBox="{box}" role="img" aria-label="Map of the biggest goals">{"".join(out)}</svg>'
