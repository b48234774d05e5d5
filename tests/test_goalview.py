"""What an analyst sees of goals: the report's part on them, and the code blocks of the README, run."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl

from pipelines import engine
from pipelines.store import Manifest, Store
from quality.goalview import COLOURED, MAX_POINTS, goal_view, legend, model_rows, scatter
from rewrite.contracts import GOAL_CHANGES, GOAL_EDGES, GOALS
from rewrite.goals import build_goals

README = Path(__file__).resolve().parent.parent / "README.md"


def released(sizes, users=5):
    """A goal of each size, `g0` the first; its first text is the exemplar, the others are less and less sure."""
    rows = [
        ("en", f"goal {g} text {i:03}", f"g{g}", 1.0 - i / 100, users, i == 0, float(g), float(i))
        for g, n in enumerate(sizes)
        for i in range(n)
    ]
    names = ["locale", "utterance", "goal_id", "membership", "users", "is_exemplar", "x", "y"]
    table = pl.DataFrame(rows, schema=names, orient="row")
    return table.drop("x", "y"), table.select("locale", "utterance", "x", "y")


def test_biggest_and_least_sure_goals_and_cohesion_by_size():
    goals, where = released([1, 2, 5, 40])
    seen = goal_view(goals, where)
    assert seen == goal_view(goals.sample(fraction=1, shuffle=True, seed=1), where.reverse())
    assert [r["texts"] for r in seen["biggest"]] == [40, 5, 2]
    assert seen["biggest"][0] | {"users": 5} == {
        "name": "goal 3 text 000",
        "locales": "en",
        "texts": 40,
        "users": 5,
        "cohesion": 0.805,
        "least": 0.61,
        "other": "goal 3 text 039",
    }
    assert [r["cohesion"] for r in seen["unsure"]] == sorted(r["cohesion"] for r in seen["unsure"])
    assert [(r["texts of a goal"], r["goals"], r["texts"]) for r in seen["sizes"]] == [
        ("1", 1, 1),
        ("2", 1, 2),
        ("5 to 8", 1, 5),
        ("33 and more", 1, 40),
    ]
    assert len(seen["scatter"]) == 47  # a goal of one text has no place on the map
    empty = goal_view(goals.clear(), None)
    assert empty == {"biggest": [], "unsure": [], "sizes": [], "scatter": []}
    assert scatter([], 3) == legend([], []) == ""


def test_the_map_hides_what_few_users_said_and_escapes_the_rest():
    goals, where = released([30, 4, 3])
    hostile = "</svg><script>alert('x')</script>"
    goals = goals.with_columns(
        users=pl.when(pl.col("utterance") == "goal 0 text 001").then(2).otherwise("users"),
        utterance=pl.col("utterance").replace("goal 1 text 000", hostile),
    )
    where = where.with_columns(pl.col("utterance").replace("goal 1 text 000", hostile))
    seen = goal_view(goals, where)
    svg = scatter(seen["scatter"], 3) + legend(seen["scatter"], seen["biggest"])
    assert svg.count("<title>") == 36
    assert "goal 0 text 001" not in svg
    assert "<script" not in svg and "alert(" in svg
    many, at = released([MAX_POINTS] + [2] * (COLOURED + 3))
    points = goal_view(many, at)["scatter"]
    assert len(points) == MAX_POINTS
    few, at = released([2] * (COLOURED + 3))
    assert scatter(goal_view(few, at)["scatter"], 3).count("rest") == 2 * 3


def test_the_table_of_encoders_names_all_that_were_tried():
    tried = {"auc": {"fast": 0.9, "ngrams": 0.8}, "far_auc": {"fast": 0.5, "ngrams": 0.4}, "reads": {"fast": 1.0, "ngrams": 1.0}}
    rows = model_rows({"en": {"pairs": 200, **tried, "model": "ngrams", "why": "better"}})
    assert [(r["model"], r["taken"], r["separation"], r["why"]) for r in rows] == [
        ("ngrams", "taken", 0.4, "better"),
        ("fast", "", 0.5, ""),
    ]
    assert model_rows({}) == []


def test_the_code_blocks_of_the_readme_run(tmp_path, monkeypatch, capsys):
    store, last = Store(str(tmp_path / "lake")), None
    texts = pl.DataFrame(
        {"locale": "en", "utterance": ["light on", "lights on", "play jazz"], "users": [9, 4, 5], "served": [0.9, 0.2, 0.9]},
        schema_overrides={"users": pl.Int64},
    )
    link = pl.DataFrame({"locale": ["en"], "source": ["lights on"], "target": ["light on"], "users": [3], "weight": [1.8]})
    served = pl.DataFrame(schema={**dict.fromkeys(("locale", "utterance", "intent", "slots"), pl.String), "weight": pl.Float64})
    for day, n in (("2026-01-01", 2), ("2026-01-02", 3)):
        graph = build_goals(texts.head(n), np.eye(3, dtype=np.float32)[:n], link, served, last)
        last = graph.goals
        for table, frame, schema in (
            ("goals", graph.goals, GOALS),
            ("goal_edges", graph.edges, GOAL_EDGES),
            ("goal_changes", graph.changes, GOAL_CHANGES),
        ):
            entry = store.attempt("a", table, f"as_of={day}", engine.conform(frame, schema))
            store.publish("a", Manifest(table, f"as_of={day}", "link", "f", (entry,)))
    section = README.read_text(encoding="utf-8").split("## For an analyst")[1].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    told = {}
    for block in blocks:
        exec(block, told)
    shown = capsys.readouterr().out
    assert told["biggest"]["name"].to_list() == ["light on", "play jazz"]
    assert "lights on" in shown and "appeared" in shown and "2026-01-02" in shown
