"""`data_card.md`: what a release holds, how it was made, and what it must not be used for."""

from __future__ import annotations

import polars as pl

from quality.describe import TABLES
from quality.gates import Verdicts
from quality.reasons import sentence
from quality.release import Release


def data_card(release: Release, verdicts: Verdicts) -> str:
    """Markdown; the same release gives the same text. It names no text that users said."""
    tables = release.tables
    rows = "\n".join(f"| `{name}` | {tables[name].height:,} | {about} |" for name, about in TABLES.items())
    left_out = release.dropped.group_by("table", "reason", maintain_order=True).agg(pl.col("rows").sum())
    dropped = "\n".join(f"| {table} | {sentence(reason)} | {n:,} |" for table, reason, n in left_out.iter_rows())
    failed = "\n".join(
        f"- {v.table}, {v.column or 'all columns'}: {v.message} ({v.rows_failed:,} of {v.rows:,} rows)" for v in verdicts.warnings
    )
    gates = f"{len(verdicts.verdicts)} expectations were checked before publication"
    gates += f": {len(verdicts.failures)} critical, {len(verdicts.warnings)} with a warning."
    parent = f"It follows `{release.parent_id}`." if release.parent_id else "It is the first of its line."
    return f"""# {release.release_id}

Weakly labelled training data for a conversational assistant, mined by sayagain from interaction logs as of {release.as_of}.
No human annotated anything: labels rest on what users did after a turn. {parent}

## What is in it

| table | rows | what it is for |
| --- | ---: | --- |
{rows}

{_locales(tables)}

## How it was made

1. Turns were scrubbed of mail addresses, phone numbers and long numbers before anything was stored, and of names where the configuration says so.
2. Each user has one vote per text and outcome; asking again for the same thing counts against the first wording.
3. What users reached in the end, whether it was served, and how alike texts are, decides goals, rewrites and labels.
4. {gates}

{failed if failed else "No warning was raised."}

## Privacy

- Every released text, both sides of a pair, negatives and slot values included, was said by at least **{release.k}** users of its locale.
- Counts are floored to 3, 5, 10, 20, 50, 100 and so on; dates to the Monday of their week; `expires` is exact.
- Texts that held personal data are not released at all. There are no user, session or turn ids.

{"Left out on the way:" if dropped else "Nothing that was proposed had to be left out."}

{"| table | reason | rows |" + chr(10) + "| --- | --- | ---: |" + chr(10) + dropped if dropped else ""}

## Read it

Every table is one Parquet file; `schema/NAME.json` describes its columns (JSON Schema), `croissant.json` the whole (Croissant 1.0).

```python
polars.read_parquet("labels.parquet")
pandas.read_parquet("labels.parquet")
duckdb.sql("SELECT * FROM 'labels.parquet'")
datasets.load_dataset(".", "labels", split="train")  # from this folder; its only split holds all rows, see the column `split`
```

## Use it with care

- Labels are evidence, not truth: use `confidence` and `sample_weight`, and keep a human-labelled test set to judge by.
- `split` belongs to a goal for ever: `train`, `dev` and `test` share no goal; rows with `none` moved between goals and belong to no split.
- A rewrite holds until `expires`; stop serving it then, or when it is in `retired`.
- The users of the log are not everybody: what few of them say is not in here.
"""


def _locales(tables: dict[str, pl.DataFrame]) -> str:
    counted = []
    for name in ("rewrites", "labels", "goals", "pairs"):
        locale = "locale_anchor" if name == "pairs" else "locale"
        counted.append(tables[name].group_by(pl.col(locale).alias("locale")).len("n").with_columns(table=pl.lit(name)))
    counts = pl.concat(counted)
    if counts.is_empty():
        return "There are no rows in any locale."
    names = ("rewrites", "labels", "goals", "pairs")
    lines = ["| locale | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for (locale,), part in sorted(counts.partition_by("locale", as_dict=True).items(), key=lambda item: str(item[0][0])):
        by = dict(part.select("table", "n").iter_rows())
        lines.append(f"| {locale} | " + " | ".join(f"{by.get(n, 0):,}" for n in names) + " |")
    return "\n".join(lines)
