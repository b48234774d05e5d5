"""What must not be released whatever the evidence: vetoed by a person, protected by configuration, or held out for tests.

Candidates are turned down, with the reason, before a release is built from them, so that the report and `explain` say why.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from rewrite.text import key, rewrite_ids

TEXT_NAMES: Final = ("utterance", "utt", "text", "sentence", "query")
"""The column of a test set that holds its texts: the first of these that there is."""


@dataclass(frozen=True)
class Veto:
    """A rewrite (by its id) or a text (by its key, in every role) that is never released again, and why."""

    reason: str
    rewrite_id: str | None = None
    text: str | None = None

    def to_json(self, more: Mapping[str, Any]) -> bytes:
        """The event file; `more`: who and when."""
        body = {"event": "veto", "rewrite_id": self.rewrite_id, "text": self.text, "reason": self.reason, **more}
        return (json.dumps(body, indent=1, sort_keys=True, ensure_ascii=True) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> Veto:
        """Raises ValueError for what is no veto."""
        try:
            raw = json.loads(data)
            return cls(str(raw["reason"]), raw["rewrite_id"], raw["text"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"not a veto ({type(error).__name__}: {error}); delete the file or write it again") from None


@dataclass(frozen=True)
class Held:
    """All that is held back. intents: exact, or ending in `*`; texts, test_texts: keys."""

    vetoes: tuple[Veto, ...] = ()
    intents: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    test_texts: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.vetoes or self.intents or self.texts or self.test_texts)


def held(vetoes: Iterable[Veto], intents: Iterable[str], texts: Iterable[str], test_texts: Iterable[str]) -> Held:
    """`texts` and `test_texts` as people write them."""
    return Held(tuple(vetoes), tuple(intents), tuple(map(key, texts)), frozenset(map(key, test_texts)))


def test_column(columns: Iterable[str]) -> str | None:
    """Which column of a test set holds texts."""
    return next((n for n in TEXT_NAMES if n in set(columns)), None)


def hold_back(
    candidates: Mapping[str, pl.DataFrame], goals: pl.DataFrame | None, what: Held
) -> tuple[dict[str, pl.DataFrame], pl.DataFrame | None]:
    """The candidates with everything that is held back turned down, and the goals without vetoed and protected texts."""
    if not what:
        return dict(candidates), goals
    vetoed = pl.Series([v.text for v in what.vetoes if v.text], dtype=pl.String)
    ids = pl.Series([v.rewrite_id for v in what.vetoes if v.rewrite_id], dtype=pl.String)
    kept, test = pl.Series(what.texts, dtype=pl.String), pl.Series(sorted(what.test_texts), dtype=pl.String)
    out = {}
    for name, table in candidates.items():
        sides = [c for c in ("source", "target", "utterance", "anchor", "positive", "negative") if c in table.columns]
        reasons = {
            "vetoed": _any(sides, vetoed),
            "protected": _any(sides, kept),
            # a target is served, not learned from: the test set does not forbid it
            "held_out": _any([c for c in sides if c != "target"], test),
        }
        if name == "rewrites":
            of = pl.Series(rewrite_ids(*(table[c].fill_null("") for c in ("locale", "source", "target"))), dtype=pl.String)
            reasons["vetoed"] |= pl.lit(of.is_in(ids.implode()))
        if what.intents:
            reasons["protected"] |= _protected(name, table, candidates, what.intents)
        reason = pl.coalesce(pl.when(hit).then(pl.lit(why)) for why, hit in reasons.items())
        marked = table.with_columns(_why=reason)
        out[name] = marked.with_columns(
            decision=pl.when(pl.col("_why").is_null()).then("decision").otherwise(pl.lit("rejected")), reason=pl.coalesce("_why", "reason")
        ).drop("_why")
    if goals is not None:
        goals = goals.filter(~_any(["utterance"], vetoed), ~_any(["utterance"], kept))
    return out, goals


def _any(columns: Sequence[str], texts: pl.Series) -> pl.Expr:
    return pl.any_horizontal(pl.lit(False), *(pl.col(c).is_in(texts.implode()).fill_null(False) for c in columns))


def _protected(name: str, table: pl.DataFrame, candidates: Mapping[str, pl.DataFrame], intents: tuple[str, ...]) -> pl.Expr:
    """Rows of protected intents: a label's own, for other tables the labels of their texts."""

    def hit(column: str) -> pl.Expr:
        exact = pl.col(column).is_in([i for i in intents if not i.endswith("*")])
        return pl.any_horizontal(exact, *(pl.col(column).str.starts_with(i[:-1]) for i in intents if i.endswith("*"))).fill_null(False)

    if name == "labels":
        return hit("intent") | hit("majority_intent")
    labels = candidates.get("labels")
    if labels is None:
        return pl.lit(False)
    texts = labels.filter(hit("intent")).select("locale", text="utterance").unique()
    found = pl.Series([False] * table.height, dtype=pl.Boolean)
    for side, locale in (("source", "locale"), ("target", "locale"), ("anchor", "locale_anchor"), ("positive", "locale_positive")):
        if side in table.columns:
            at = table.select(locale=locale, text=side).join(
                texts.with_columns(yes=pl.lit(True)), on=["locale", "text"], how="left", maintain_order="left"
            )
            found |= at["yes"].fill_null(False)
    return pl.lit(found)
