"""What is new in a window: words and failing texts that come up, or come up much more, in its last days.

`tally` reduces the votes to counts of users, once per text and period, so that nobody makes news alone; `growing` and
`failing` choose from the counts. Texts that held personal data are left out.
"""

from __future__ import annotations

import re
from datetime import date
from typing import Final

import numpy as np
import polars as pl
from scipy import special

from rewrite.ngrams import UNSPACED
from rewrite.text import PLACEHOLDER

CHANCE: Final = 0.01
"""Of all words (or texts) of a locale together: one report in a hundred names something that only chance made grow."""
FACTOR: Final = 2.0
"""Growing fast: at least twice the share of what is said."""
SERVED: Final = 0.5
"""A user whose turns of a text were served less than this in the mean is one whom it failed."""

Tally = dict[str, pl.DataFrame]
_SUMS: Final = {"texts": ("users", "failed", "early", "late", "failed_early", "failed_late"), "words": ("early", "late")}
_DENSE: Final = re.compile("[" + "".join(f"{chr(int(a))}-{chr(int(b))}" for a, b in UNSPACED) + "]")


def words(texts: pl.Series) -> pl.DataFrame:
    """text, word: the distinct words of distinct keys, without marks around them; pairs of characters where a script has no spaces."""
    tokens = pl.DataFrame({"text": texts.unique()}).with_columns(token=pl.col("text").str.split(" ")).explode("token").unique()
    distinct = tokens["token"].unique()
    pieces = [[t[i : i + 2] for i in range(len(t) - 1)] if len(t) > 2 and _DENSE.search(t) else [t] for t in distinct]
    cut = pl.DataFrame({"token": distinct, "word": pl.Series(pieces, dtype=pl.List(pl.String))}).explode("word")
    cut = cut.with_columns(pl.col("word").str.replace_all(r"^[^\p{Alphabetic}\p{M}\p{N}]+|[^\p{Alphabetic}\p{M}\p{N}]+$", ""))
    cut = cut.filter(pl.col("word").str.contains(r"\p{Alphabetic}")).unique()
    return tokens.join(cut, on="token").select("text", "word").unique()


def tally(votes: pl.DataFrame, late_from: date) -> Tally:
    """Users per text and per word, before and from `late_from` on; of texts also whom they failed. Rewritten turns are left out.

    votes: contracts.VOTES and `date`, of whole users.
    """
    outcome = votes.lazy().filter(pl.col("kind") == "outcome", pl.col("treatment") != "rewritten")
    events = pl.col("events").cast(pl.Int64)
    late = pl.col("date") >= late_from
    sums = {"n": events, "v": pl.col("value") * events}
    per = outcome.group_by("user_key", "locale", text="source").agg(
        **{f"{name}_{at}": e.filter(when).sum() for name, e in sums.items() for at, when in (("late", late), ("early", ~late))}
    )
    failed = lambda n, v: (pl.col(n) > 0) & (pl.col(v) < SERVED * pl.col(n))  # noqa: E731
    per = per.with_columns(n=pl.col("n_late") + pl.col("n_early"), v=pl.col("v_late") + pl.col("v_early")).with_columns(
        failed=failed("n", "v"),
        early=pl.col("n_early") > 0,
        late=pl.col("n_late") > 0,
        failed_early=failed("n_early", "v_early"),
        failed_late=failed("n_late", "v_late"),
        users=pl.lit(True),
    )
    users = per.filter(~pl.col("text").str.contains(PLACEHOLDER)).select("user_key", "locale", "text", *_SUMS["texts"]).collect()
    said = users.lazy().join(words(users["text"]).lazy(), on="text")
    each = said.group_by("user_key", "locale", text="word").agg(pl.col("early", "late").any())
    return {n: _added(t, n) for n, t in {"texts": users.lazy(), "words": each}.items()}


def _added(table: pl.LazyFrame, name: str) -> pl.DataFrame:
    key = ["locale", "text"]
    return table.group_by(key).agg(pl.col(c).cast(pl.Int64).sum() for c in _SUMS[name]).sort(key).collect()


def growing(counts: Tally, what: str, k: int) -> pl.DataFrame:
    """Rows of `what` (`words`; `texts`: by whom they failed) that k users made new or growing in the late days, the surest first.

    Columns: locale, text, early, late (users), factor (of the share of all that is said; null: new), chance. The test is
    binomial: of the users of a row, the late ones against the late share of everything said in the locale, by the
    Bonferroni bound over its rows.
    """
    table = counts[what]
    now, before = ("failed_late", "failed_early") if what == "texts" else ("late", "early")
    base = table.group_by("locale").agg(all_late=pl.col("late").sum(), all_early=pl.col("early").sum())
    rows = (
        table.select("locale", "text", early=before, late=now)
        .join(base, on="locale")
        .filter(pl.col("all_late") > 0, pl.col("all_early") > 0)
    )
    rows = rows.with_columns(tried=pl.len().over("locale")).filter(pl.col("late") >= k)
    m, n, tried = (rows[c].to_numpy().astype(np.float64) for c in ("late", "early", "tried"))
    share = rows.select(pl.col("all_late") / (pl.col("all_late") + pl.col("all_early"))).to_series().to_numpy()
    rows = rows.with_columns(chance=pl.Series(special.betainc(m, n + 1, share) * tried, dtype=pl.Float64))
    ratio = (pl.col("late") / pl.col("all_late")) / (pl.col("early") / pl.col("all_early"))
    rows = rows.with_columns(factor=pl.when(pl.col("early") > 0).then(ratio))
    rows = rows.filter(pl.col("chance") < CHANCE, pl.col("factor").fill_null(FACTOR) >= FACTOR)
    return rows.select("locale", "text", "early", "late", "factor", "chance").sort("chance", "locale", "text")


def failing(counts: Tally, k: int) -> pl.DataFrame:
    """Texts that failed k users, and half of who said them or more: locale, text, users, failed; the most failed first."""
    rows = counts["texts"].filter(pl.col("failed") >= k, pl.col("failed") >= SERVED * pl.col("users"))
    return rows.select("locale", "text", "users", "failed").sort("failed", "locale", "text", descending=[True, False, False])
