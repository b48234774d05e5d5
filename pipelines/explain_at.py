"""`sayagain explain --at-threshold NAME=VALUE`: what another setting would have decided, from the figures that candidates keep.

Nothing is computed anew, so it can tell as far as the figures go: rules are tried in the order in which candidates were
judged, and a row that now passes the rule that turned it down may still meet one that was never tried on it; those are named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import polars as pl

from pipelines.errors import UsageError
from pipelines.options import THRESHOLDS
from rewrite.evidence import Options

Rule = tuple[str, pl.Expr | None]
_AFTER_BLOCK: Final = ("same_meaning", "number_changed", "value_lost", "no_outside_users", "no_other_wording", "no_served_target")
"""One rule with several names: why a goal has no text that could be a target."""


def parse(given: Iterable[str]) -> dict[str, float]:
    """NAME=VALUE, as given. Raises UsageError for a name that is none or a value that is no number of its range."""
    out = {}
    for one in given:
        name, _, text = one.partition("=")
        low, high, _ = THRESHOLDS.get(name.strip(), (0.0, 0.0, ""))
        try:
            out[name.strip()] = value = float(text)
        except ValueError:
            value = low - 1
        if name.strip() not in THRESHOLDS or not low <= value <= high:
            known = ", ".join(f"{n} ({lo:g} to {hi:g}: {what})" for n, (lo, hi, what) in THRESHOLDS.items())
            raise UsageError(f"--at-threshold {one}: should be NAME=NUMBER, with one of {known}")
    return out


def _rules(table: str, values: Mapping[str, float]) -> list[Rule]:
    """(reason, fails) in the order of judging, with the settings of now changed by `values`; None: no figure was kept."""
    now = Options()
    k, served, sure, lift, label = (values.get(n, getattr(now, n)) for n in ("k", "served", "probability", "lift", "label"))
    unheard = (pl.col("reason") == "live") & (pl.col("source_served") >= now.served)  # hardly anybody was left alone: no figure
    if table == "labels":
        return [("placeholder", None), ("below_k", pl.col("users") < k), ("unsure", pl.col("confidence") < label)]
    return [
        ("placeholder", None),
        ("below_k", (pl.col("source_users") < k) | (pl.col("target_users") < k)),
        ("source_served", (pl.col("source_served") >= served) & ~unheard),
        ("treated_failed", None),
        ("other_goal", None),
        ("blocked", None),
        ("weak", pl.col("probability") < sure),
        ("repeaters", None),
        ("ambiguous", None),
        ("no_lift", pl.col("lift_probability") < lift),
    ]


def at(table: str, rows: pl.DataFrame, values: Mapping[str, float], k: int) -> pl.DataFrame:
    """`rows` of candidates with `at_decision` (proposed, rejected, perhaps), `at_reason`, and `untried` (rules a `perhaps` still has to pass).

    table: rewrites or labels. `k`: of the configuration, where `values` has none.
    """
    rules = _rules(table, {"k": float(k), **values})
    names = [n for n, _ in rules]
    was = pl.when(pl.col("reason").is_in(_AFTER_BLOCK)).then(pl.lit("blocked")).otherwise("reason")
    # a proposed row passed every rule; a live one was never asked about evidence: `blocked` and what follows do not hold for it
    place = was.replace_strict(names, list(range(len(names))), default=len(names), return_dtype=pl.Int64)
    live = pl.col("reason") == "live"
    stop, untried = pl.lit(None, pl.String), pl.lit("")
    for i in reversed(range(len(rules))):
        name, fails = rules[i]
        skip = live & pl.lit(name in names[names.index("blocked") :] and name != "no_lift") if table == "rewrites" else pl.lit(False)
        if fails is None:
            hit = place == i
            never = (place < i) & ~skip
            untried = pl.when(never).then(pl.concat_str(pl.lit(f"{name} "), untried)).otherwise(untried)
        else:
            hit = fails.fill_null(False) & ~skip
        stop = pl.when(hit).then(pl.lit(name)).otherwise(stop)
    found = rows.with_columns(_stop=stop, untried=untried.str.strip_chars())
    found = found.with_columns(_stop=pl.when(pl.col("_stop") == "blocked").then("reason").otherwise("_stop"))
    vetoed = pl.col("decision").ne("proposed") & place.eq(len(names))  # turned down for something that is no threshold
    found = found.with_columns(_stop=pl.when(vetoed).then("reason").otherwise("_stop"))
    found = found.with_columns(untried=pl.when(pl.col("_stop").is_null()).then("untried").otherwise(pl.lit("")))
    decision = (
        pl.when(pl.col("_stop").is_not_null())
        .then(pl.lit("rejected"))
        .when(pl.col("untried") != "")
        .then(pl.lit("perhaps"))
        .otherwise(pl.lit("proposed"))
    )
    kept = pl.when(pl.col("decision") == "proposed").then("reason").otherwise(pl.lit("passed"))
    return found.with_columns(at_decision=decision, at_reason=pl.coalesce("_stop", kept)).drop("_stop")


def summary(table: str, rows: pl.DataFrame, values: Mapping[str, float], k: int) -> dict[str, Any]:
    """How many rows would change sides: proposed then and now, gained, lost, perhaps (as far as the figures tell)."""
    moved = at(table, rows, values, k)
    was, now = pl.col("decision") == "proposed", pl.col("at_decision")
    counts = moved.select(
        before=was.sum(),
        stay=(was & (now == "proposed")).sum(),
        gained=(~was & (now == "proposed")).sum(),
        lost=(was & (now == "rejected")).sum(),
        perhaps=(~was & (now == "perhaps")).sum(),
    ).row(0, named=True)
    lost = moved.filter(was, now == "rejected").group_by("at_reason").len("rows").sort("rows", "at_reason", descending=[True, False])
    return counts | {"lost_to": dict(lost.iter_rows())}


def told(row: Mapping[str, Any]) -> str:
    """One row's fate under the other setting, for a terminal."""
    from quality.reasons import sentence

    if row["at_decision"] == "perhaps":
        rest = ", ".join(str(row["untried"]).split())
        return f"perhaps: it passes what turned it down; not tried on it yet: {rest}"
    return f"{row['at_decision']}" + (f": {sentence(row['at_reason'])}" if row["at_decision"] == "rejected" else "")
