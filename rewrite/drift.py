"""How far a new model moves from the one in use, and whether that is worth rebuilding the daily tables for."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import polars as pl

from rewrite import asked_again, outcomes, pairs
from rewrite.model import Model

SAMPLE_TURNS: Final = 20_000
"""Turns that both models judge: a share of flips of 1 % is then known to about a tenth of a percent, in seconds."""
FLIPS: Final = 0.04
"""Measured on worlds that do not change: another seed flips .3 to 1.4 % of the pairs, a fit on one half of the days 1.1 to
3.3 % (the most where half is 3,000 pairs), and up to 1.9 % of the turns. What moves less may be chance."""
PSI: Final = 0.1
"""The customary line for a shift of a score's distribution that matters (Siddiqi 2006: below .1 none, above .25 large)."""
_BINS = 10


def compare(turns: pl.DataFrame, old: Model, new: Model, gap_s: float = outcomes.SESSION_GAP_S) -> dict[str, Any]:
    """What two models say of the same turns (whole sessions), rounded, JSON types.

    `pairs`, `turns`: how many were judged. `flipped`: share of neighbouring pairs in other words whose decision at .5 is
    another. `moved`: mean absolute change of P(asked again). `psi`: population stability index of it. `outcomes_flipped`,
    `outcomes_moved`: the same of P(failed). `bases`, `priors`: what each locale's base rate of asking again and P(served)
    were and are. `curves`: mean absolute change of each gap curve in log odds, over the gaps of these pairs.
    `worth`, `verdict`: whether a refit is worth it, and a sentence that says why.
    """
    t = pairs.ordered(turns)
    candidates = pairs.candidate_pairs(t)
    near = ((candidates["lag"] == 1) & ~candidates["same_text"]).to_numpy()
    said, failed = [], []
    for model in (old, new):
        scored = asked_again.score(t, candidates, model)
        said.append(scored["probability"].to_numpy()[near])
        failed.append(outcomes.judge(t, scored, model, gap_s)["p_failed"].to_numpy())
    out: dict[str, Any] = {
        "pairs": int(near.sum()),
        "turns": t.height,
        "flipped": _flips(*said),
        "moved": _moved(*said),
        "psi": psi(*said),
        "outcomes_flipped": _flips(*failed),
        "outcomes_moved": _moved(*failed),
        "curves": _curves(candidates.filter(near)["gap_s"].to_numpy(), old, new),
        "bases": _numbers(old, new, lambda m: {f"{locale}/{channel}": d.base for (locale, channel), d in m.detectors.items()}),
        "priors": _numbers(old, new, lambda m: {locale: o.prior for locale, o in m.outcomes.items()}),
    }
    out["worth"], out["verdict"] = _verdict(out)
    return out


def psi(old: np.ndarray, new: np.ndarray) -> float:
    """Population stability index of two samples of probabilities, in ten bins of equal mass of the old one."""
    if not len(old) or not len(new):
        return 0.0
    edges = np.unique(np.quantile(old, np.arange(1, _BINS) / _BINS))
    share = [np.bincount(np.searchsorted(edges, p, side="right"), minlength=len(edges) + 1) + 0.5 for p in (old, new)]
    a, b = (s / s.sum() for s in share)
    return round(float(((a - b) * np.log(a / b)).sum()), 6)


def _flips(a: np.ndarray, b: np.ndarray) -> float:
    return round(float(np.mean((a >= 0.5) != (b >= 0.5))), 6) if len(a) else 0.0


def _moved(a: np.ndarray, b: np.ndarray) -> float:
    return round(float(np.abs(a - b).mean()), 6) if len(a) else 0.0


def _curves(gap_s: np.ndarray, old: Model, new: Model) -> dict[str, float]:
    log_gap = np.log(np.maximum(gap_s, 0.0) + 0.5)
    both = sorted(set(old.detectors) | set(new.detectors))
    found = {(n): (old.detector(*n).gap, new.detector(*n).gap) for n in both}
    return {"/".join(n): round(float(np.abs(a(log_gap) - b(log_gap)).mean()), 4) for n, (a, b) in found.items() if len(log_gap)}


def _numbers(old: Model, new: Model, of: Any) -> dict[str, list[float | None]]:
    a, b = of(old), of(new)
    return {n: [round(m[n], 4) if n in m else None for m in (a, b)] for n in sorted(set(a) | set(b))}


def _verdict(c: dict[str, Any]) -> tuple[bool, str]:
    share = lambda v: f"{100 * v:.1f} %"  # noqa: E731
    figures = f"{share(c['flipped'])} of {c['pairs']:,} pairs and {share(c['outcomes_flipped'])} of {c['turns']:,} turns change sides at .5"
    if not c["turns"]:
        return True, "A refit is worth it: no turn was there to compare the models on."
    if max(c["flipped"], c["outcomes_flipped"]) > FLIPS:
        return (
            True,
            f"A refit is worth it: {figures}; up to {100 * FLIPS:.0f} % may be chance: halves of one log differ by that.",
        )
    if c["psi"] > PSI:
        return True, f"A refit is worth it: {figures}, and the scores shift as a whole (PSI {c['psi']:.2f}, above the customary {PSI})."
    return False, f"A refit is not worth it: {figures} (PSI {c['psi']:.3f}); up to {100 * FLIPS:.0f} % may be chance."
