"""Which proposed rows may leave the lake, and for what reason each of the others stays.

A text is cleared when k users of its locale said it (`cleared`: locale, text). Every function adds what it left out to `drops`:
table, reason, locale, source, target (those two of rewrites alone).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import polars as pl

from quality.checks import slot_values
from quality.scrub import has_placeholder
from rewrite.contracts import UNIQUE_KEYS

_NULL: Final = pl.lit(None, pl.String)


def goals(table: pl.DataFrame, cleared: pl.DataFrame, k: int, drops: list[pl.DataFrame]) -> pl.DataFrame:
    """Texts of goals that k users said; every goal keeps an exemplar."""
    table = table.sort("locale", "utterance", "membership", "goal_id", descending=[False, False, True, False])
    reasons: dict[str, pl.Expr | pl.Series] = {
        "below_k": (pl.col("users") < k) | ~pl.lit(is_cleared(table, cleared, "locale", "utterance")),
        "placeholder": has_placeholder("utterance"),
    }
    table = _without_doubles(_keep(table, "goals", _first_reason(table, reasons), drops), "goals", drops)
    # a goal whose exemplars stay home is named by the best text that is left
    best = ["membership", "users", "locale", "utterance"]
    table = table.sort("goal_id", *best, descending=[False, True, True, False, False])
    promoted = ~pl.col("is_exemplar").any().over("goal_id") & pl.col("goal_id").is_first_distinct()
    return table.with_columns(is_exemplar=pl.col("is_exemplar") | promoted)


def rewrites(table: pl.DataFrame, cleared: pl.DataFrame, k: int, drops: list[pl.DataFrame]) -> pl.DataFrame:
    """Rewrites that rest on k users, on both sides too; one per source, none that leads on."""
    table = table.sort("locale", "source", "probability", "target", descending=[False, False, True, False], nulls_last=True)
    reasons: dict[str, pl.Expr | pl.Series] = {
        "below_k": (pl.min_horizontal("users", "source_users", "target_users") < k)
        | pl.any_horizontal(pl.col("users", "source_users", "target_users").is_null()),
        "text_below_k": ~(is_cleared(table, cleared, "locale", "source") & is_cleared(table, cleared, "locale", "target")),
        "placeholder": has_placeholder("source") | has_placeholder("target"),
        "same_text": pl.col("source") == pl.col("target"),
    }
    table = _without_doubles(_keep(table, "rewrites", _first_reason(table, reasons), drops), "rewrites", drops)
    return _keep(table, "rewrites", _chains(table), drops)


def labels(
    table: pl.DataFrame, goals: pl.DataFrame, cleared: pl.DataFrame, slot_users: pl.DataFrame | None, k: int, drops: list[pl.DataFrame]
) -> pl.DataFrame:
    """Labels whose text k users said, the surest of each text; without its slots where they hold a value that k users did not say."""
    table = table.sort(
        "locale", "utterance", "confidence", "intent", "slots", descending=[False, False, True, False, False], nulls_last=True
    )
    reasons: dict[str, pl.Expr | pl.Series] = {
        "below_k": pl.col("users") < k,
        "text_below_k": ~is_cleared(table, cleared, "locale", "utterance"),
        "placeholder": has_placeholder("utterance"),
        "no_intent": pl.col("intent").is_null(),
    }
    table = _without_doubles(_keep(table, "labels", _first_reason(table, reasons), drops), "labels", drops)
    secret = secret_slots(table, goals, slot_users, k)
    without = table.filter(secret).select("locale", table=pl.lit("labels"), reason=pl.lit("slots_below_k (label kept)"))
    drops.append(without.select("table", "reason", "locale", source=_NULL, target=_NULL))
    return table.with_columns(slots=pl.when(~pl.lit(secret)).then("slots"))


def without_unknown_goals(table: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """The same rows; a goal that does not leave (`known`: goal_id) is not named."""
    return table.with_columns(goal_id=pl.when(pl.col("goal_id").is_in(known["goal_id"].implode())).then("goal_id"))


def pairs(table: pl.DataFrame, cleared: pl.DataFrame, known: pl.DataFrame, drops: list[pl.DataFrame]) -> pl.DataFrame:
    """Pairs whose texts k users said each, of a goal that leaves (`known`: goal_id)."""
    negative_ok = pl.lit(is_cleared(table, cleared, "locale_anchor", "negative")) | pl.col("negative").is_null()
    sides_ok = is_cleared(table, cleared, "locale_anchor", "anchor") & is_cleared(table, cleared, "locale_positive", "positive")
    same = (pl.col("anchor") == pl.col("positive")) & (pl.col("locale_anchor") == pl.col("locale_positive"))
    same_negative = ((pl.col("negative") == pl.col("anchor")) | (pl.col("negative") == pl.col("positive"))).fill_null(False)
    reasons: dict[str, pl.Expr | pl.Series] = {
        "text_below_k": ~(pl.lit(sides_ok) & negative_ok),
        "placeholder": pl.any_horizontal(has_placeholder(pl.col(c).fill_null("")) for c in ("anchor", "positive", "negative")),
        "same_text": same | same_negative,
        "goal_unknown": ~pl.col("goal_id").is_in(known["goal_id"].implode()),
    }
    return _keep(table, "pairs", _first_reason(table, reasons), drops)


def in_one_split(pairs: pl.DataFrame, splits: pl.DataFrame, drops: list[pl.DataFrame]) -> pl.DataFrame:
    """Pairs whose sides are in one split; a negative of another split is taken out, the pair stays."""
    for side, locale in (("anchor", "locale_anchor"), ("positive", "locale_positive"), ("negative", "locale_anchor")):
        named = splits.select(pl.col("locale").alias(locale), pl.col("text").alias(side), pl.col("split").alias(f"_{side}"))
        pairs = pairs.join(named, on=[locale, side], how="left", maintain_order="left")
    across = (pl.col("_anchor") != pl.col("_positive")) | (pl.col("_anchor") == "none")
    pairs = _keep(pairs, "pairs", _first_reason(pairs, {"other_split": across}), drops)
    inside = (pl.col("_negative") == pl.col("_anchor")).fill_null(False)
    pairs = pairs.with_columns(pl.when(inside).then("negative"), pl.when(inside).then("negative_origin"), split="_anchor")
    order = [*UNIQUE_KEYS["pairs"], "weight", "goal_id", "negative_origin"]
    pairs = pairs.sort(order, descending=[c == "weight" for c in order])
    # without its negative a row says nothing that the pair's other rows do not say
    bare = pl.col("negative").is_null() & pl.col("negative").is_not_null().any().over(UNIQUE_KEYS["pairs"][:4])
    pairs = _keep(pairs, "pairs", _first_reason(pairs, {"negative_other_split": bare}), drops)
    return _without_doubles(pairs, "pairs", drops)


def is_cleared(table: pl.DataFrame, cleared: pl.DataFrame, locale: str, text: str) -> pl.Series:
    """Boolean per row, in the order of the rows: did k users of the locale say the text?"""
    marks = cleared.select(pl.col("locale").alias(locale), pl.col("text").alias(text), _ok=pl.lit(True))
    return table.select(locale, text).join(marks, on=[locale, text], how="left", maintain_order="left")["_ok"].fill_null(False)


def secret_slots(labels: pl.DataFrame, goals: pl.DataFrame, slot_users: pl.DataFrame | None, k: int) -> pl.Series:
    """Boolean per label: does it hold a slot value that is in no cleared text of its goal, and not known of k users?

    Slots are canonical JSON (values under the text key), so a value is looked up as it stands in the keys.
    """
    rows = labels.with_row_index("_row").filter(pl.col("slots").is_not_null()).select("_row", "locale", "goal_id", "utterance", "slots")
    if rows.is_empty():
        return pl.Series("_secret", [False] * labels.height, dtype=pl.Boolean)
    said = goals.sort("utterance").group_by("locale", "goal_id").agg(said=pl.col("utterance").str.join("\n"))
    values = slot_values(rows).join(said, on=["locale", "goal_id"], how="left")
    in_text = pl.concat_str("utterance", pl.lit("\n"), pl.col("said").fill_null("")).str.contains(pl.col("value"), literal=True)
    values = values.with_columns(_ok=in_text)
    if slot_users is not None:
        common = slot_users.filter(pl.col("users") >= k).select("locale", "value", _known=pl.lit(True)).unique()
        values = values.join(common, on=["locale", "value"], how="left").with_columns(pl.col("_ok") | pl.col("_known").fill_null(False))
    secret = values.filter(~pl.col("_ok").fill_null(False))["_row"].unique()
    return labels.with_row_index("_row").select(pl.col("_row").is_in(secret.implode()).alias("_secret")).to_series()


def _keep(table: pl.DataFrame, name: str, reason: pl.DataFrame, drops: list[pl.DataFrame]) -> pl.DataFrame:
    """The rows without a reason to drop them; the others are counted (and kept for `retired`)."""
    marked = table.with_columns(reason.to_series().alias("_drop"))
    gone = marked.filter(pl.col("_drop").is_not_null())
    keys = {c: (pl.col(c) if c in gone.columns else _NULL) for c in ("locale", "source", "target")}
    if name == "pairs":
        keys["locale"] = pl.col("locale_anchor")
    drops.append(gone.select(pl.lit(name).alias("table"), pl.col("_drop").alias("reason"), **keys))
    return marked.filter(pl.col("_drop").is_null()).drop("_drop")


def _first_reason(table: pl.DataFrame, reasons: Mapping[str, pl.Expr | pl.Series]) -> pl.DataFrame:
    """One column: the first reason that holds, else null. An unknown (null) condition holds: doubt is not released."""
    conditions = [pl.when((pl.lit(r) if isinstance(r, pl.Series) else r).fill_null(True)).then(pl.lit(name)) for name, r in reasons.items()]
    return table.select(pl.coalesce(conditions).alias("_drop"))


def _without_doubles(table: pl.DataFrame, name: str, drops: list[pl.DataFrame]) -> pl.DataFrame:
    """The first row of every key; rows come sorted by preference."""
    doubled = ~pl.struct(UNIQUE_KEYS[name]).is_first_distinct()
    return _keep(table, name, _first_reason(table, {"doubled": doubled}), drops)


def _chains(table: pl.DataFrame) -> pl.DataFrame:
    """A server rewrites once: what is rewritten is no target, and no target is rewritten. The likelier rewrite stays."""
    order = table.with_row_index("_row").sort("probability", "locale", "source", descending=[True, False, False])
    sources: set[tuple[str, str]] = set()
    targets: set[tuple[str, str]] = set()
    chained: list[int] = []
    for row, locale, source, target in order.select("_row", "locale", "source", "target").iter_rows():
        if (locale, target) in sources or (locale, source) in targets:
            chained.append(row)
        else:
            sources.add((locale, source))
            targets.add((locale, target))
    return table.with_row_index("_row").select(pl.when(pl.col("_row").is_in(chained)).then(pl.lit("chain")).alias("_drop"))
