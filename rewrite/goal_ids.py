"""Names of goals that stay while most of a goal's evidence stays, and what became of the last ones."""

from __future__ import annotations

import hashlib

import polars as pl

from rewrite.contracts import GOAL_CHANGES


def goal_id(locale: str, utterance: str, salt: int = 0) -> str:
    """The id a goal is born with: `g` and 16 hex digits of its exemplar's sha256. `salt` > 0 when that id is taken."""
    name = f"{locale}|{utterance}" + (f"|{salt}" if salt else "")
    return "g" + hashlib.sha256(name.encode()).hexdigest()[:16]


def stable_ids(goals: pl.DataFrame, last: pl.DataFrame | None) -> tuple[list[str], pl.DataFrame]:
    """An id per row of `goals`, and what became of the last ids (GOAL_CHANGES, sorted)."""
    old = pl.DataFrame(schema={"locale": pl.String, "utterance": pl.String, "old": pl.String})
    if last is not None and last.height:
        old = last.select("locale", "utterance", old="goal_id").unique(["locale", "utterance"]).sort("locale", "utterance")
    shared = (
        goals.join(old, on=["locale", "utterance"])
        .group_by("goal", "old")
        .agg(users=pl.col("users").clip(lower_bound=1).sum(), texts=pl.len().cast(pl.Int64))
        .sort("users", "texts", "old", "goal", descending=[True, True, False, False])
    )
    name: dict[int, str] = {}
    kept: set[str] = set()
    for number, before in shared.select("goal", "old").iter_rows():
        if number not in name and before not in kept:
            name[number] = before
            kept.add(before)
    taken = set(old["old"].to_list())
    for number, locale, utterance in goals.filter("is_exemplar").select("goal", "locale", "utterance").sort("goal").iter_rows():
        if number not in name:
            salt = 0
            while (new := goal_id(locale, utterance, salt)) in taken:
                salt += 1
            name[number] = new
            taken.add(new)
    sizes = dict(goals.group_by("goal").len().iter_rows())
    rows = [(before, name[number], "kept" if name[number] == before else "", texts) for number, before, _, texts in shared.iter_rows()]
    mainly: dict[str, str] = {}
    for before, new, _, _ in rows:  # the largest share comes first
        mainly.setdefault(before, new)
    changes: list[tuple[str | None, str | None, str, int]] = []
    seen = set()
    for before, new, change, texts in rows:
        if not change:
            # The id went on in a goal of its own: this part was split off. Else the goal went into another one.
            change = "split" if before in kept else "merged"  # noqa: PLW2901
            if change == "merged" and mainly[before] != new:
                change = "split"  # noqa: PLW2901
        changes.append((before, new, change, texts))
        seen.add(new)
    changes += [(None, name[number], "appeared", size) for number, size in sizes.items() if name[number] not in seen]
    gone = old.filter(~pl.col("old").is_in(shared["old"].unique().implode())).group_by("old").len()
    changes += [(before, None, "vanished", texts) for before, texts in gone.iter_rows()]
    schema = {"old_goal_id": pl.String, "new_goal_id": pl.String, "change": pl.String, "texts": pl.Int64}
    table = pl.DataFrame(changes, schema=schema, orient="row").select(GOAL_CHANGES.names)
    ids = pl.DataFrame({"goal": list(name), "id": list(name.values())}, schema={"goal": pl.Int64, "id": pl.String})
    ordered = goals.select("goal").join(ids, on="goal", how="left", maintain_order="left")["id"].to_list()
    return ordered, table.sort("change", "old_goal_id", "new_goal_id", nulls_last=True)
