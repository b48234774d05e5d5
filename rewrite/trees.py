"""Monotone gradient-boosted trees in LightGBM's text form: learned on soft targets, the same for the same rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MAX_ROWS = 40_000
"""Measured, more change nothing."""


class Learner:
    """Learns trees for targets of the same rows as often as is asked: the rows are put into LightGBM's bins once."""

    def __init__(self, x: np.ndarray, signs: Sequence[int], *, rounds: int = 40, seed: int = 0):
        """`x`: shape (n, features), NaN where not known. `signs`: +1, -1 or 0 per feature, the direction in which it may move
        the result. Of more than MAX_ROWS rows, that many are drawn."""
        import lightgbm as lgb

        drawn = len(x) > MAX_ROWS
        self._rows = np.sort(np.random.default_rng([seed, len(x)]).choice(len(x), MAX_ROWS, replace=False)) if drawn else slice(None)
        x, self._rounds = x[self._rows], rounds
        self._params = {
            "objective": "cross_entropy",
            "learning_rate": 0.1,
            "num_leaves": 15,
            "min_data_in_leaf": max(25, len(x) // 400),
            "min_sum_hessian_in_leaf": 1e-3,
            "lambda_l2": 1.0,
            "monotone_constraints": list(signs),
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": 1,
            "seed": seed,
            "verbose": -1,
        }
        self._data = lgb.Dataset(x, params=dict(self._params), free_raw_data=True)

    def fit(self, y: np.ndarray, weight: np.ndarray | None = None) -> str:
        """Trees for log odds of `y` (0..1, may be soft), shape (n,)."""
        import lightgbm as lgb

        self._data.set_label(y[self._rows])
        self._data.set_weight(None if weight is None else weight[self._rows])
        return lgb.train(dict(self._params), self._data, num_boost_round=self._rounds).model_to_string()


def fit_trees(
    x: np.ndarray, y: np.ndarray, signs: Sequence[int], *, weight: np.ndarray | None = None, rounds: int = 40, seed: int = 0
) -> str:
    """Trees of one target, see `Learner`."""
    return Learner(x, signs, rounds=rounds, seed=seed).fit(y, weight)


def log_odds(trees: str, x: np.ndarray) -> np.ndarray:
    """What the trees say of each row, shape (n,)."""
    import lightgbm as lgb

    if not len(x):
        return np.zeros(0)
    return np.asarray(lgb.Booster(model_str=trees).predict(x, raw_score=True, num_threads=1))
