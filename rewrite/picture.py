"""Where a text stands in the picture of goals: two numbers of its vector."""

from __future__ import annotations

import numpy as np
import polars as pl
from scipy.linalg import eigh

PICTURED = 50_000
"""Texts that the directions of the picture are learned from: more move no point by the width of a point."""


def picture(goals: pl.DataFrame, vectors: np.ndarray | None) -> pl.DataFrame:
    """`x`, `y`: the two directions that tell goals apart most, for a scatter plot; null where a text has no vector.

    Each locale is centred and scaled first (languages lie apart in every model, and models differ); the directions are the principal
    ones of the goals' means, so that the texts of a goal stay together.
    """
    at = np.full((goals.height, 2), np.nan)
    there = np.flatnonzero(vectors.any(axis=1)) if vectors is not None and goals.height > 2 else np.zeros(0, np.int64)
    if vectors is None or len(there) < 3 or vectors.shape[1] < 2:
        return goals.with_columns(x=pl.lit(None, pl.Float64), y=pl.lit(None, pl.Float64))
    locale = np.unique(goals["locale"].to_numpy()[there], return_inverse=True)[1]
    goal = np.unique(goals["goal_id"].to_numpy()[there], return_inverse=True)[1]
    size = np.bincount(goal)
    of = np.flatnonzero(size > 1)  # a text alone says nothing of what holds texts together
    shown = np.isin(goal, of[np.cumsum(size[of]) <= PICTURED])
    if len(np.unique(goal[shown])) < 3:
        shown = np.arange(len(there)) < PICTURED
    centre = np.stack([vectors[there[locale == lo]].mean(axis=0, dtype=np.float64) for lo in range(locale.max() + 1)])
    spread = np.sqrt(np.maximum(1 - (centre**2).sum(axis=1), 1e-9))  # of unit rows

    def placed(rows: np.ndarray) -> np.ndarray:
        return (vectors[there[rows]] - centre[locale[rows]]) / spread[locale[rows], None]

    means = _means(placed(np.flatnonzero(shown)), np.unique(goal[shown], return_inverse=True)[1])
    width = means.shape[1]
    # two of the directions take a third of the time of all
    _, axes = eigh(means.T @ means, subset_by_index=[width - 2, width - 1])
    axes = axes[:, ::-1]
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), [0, 1]] < 0, -1, 1)  # a direction has no sign of its own
    for start in range(0, len(there), PICTURED):
        rows = np.arange(start, min(start + PICTURED, len(there)))
        at[there[rows]] = placed(rows) @ axes
    x, y = np.round(at, 4).T
    return goals.with_columns(x=pl.Series(x).fill_nan(None), y=pl.Series(y).fill_nan(None))


def _means(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """(groups, d): the mean of each group's rows; groups are numbered from 0, none empty."""
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(group.max() + 1))
    return np.add.reduceat(values[order], starts, axis=0) / np.bincount(group)[:, None]
