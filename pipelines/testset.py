"""A file of texts that people labelled: a held-out test set, or what an assistant was taught."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from pipelines.errors import UsageError

READERS: dict[str, Any] = {".csv": pl.read_csv, ".jsonl": pl.read_ndjson, ".ndjson": pl.read_ndjson}


def read(path: str, said: str, *needs: str) -> tuple[pl.DataFrame, str]:
    """(the table, its column of texts). Raises UsageError that begins with `said` and names what it lacks of that column and `needs`."""
    from quality.holdback import TEXT_NAMES, test_column

    try:
        table = READERS.get(Path(path).suffix, pl.read_parquet)(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UsageError(f"{said}: cannot be read as {Path(path).suffix or 'Parquet'}: {error}") from None
    column = test_column(table.columns)
    if column is None or not set(needs) <= set(table.columns):
        lacks = next((n for n in needs if n not in table.columns), "") if column else f"text (one of {', '.join(TEXT_NAMES)})"
        raise UsageError(f"{said}: it has columns {', '.join(table.columns)}, and none for the {lacks}: rename one")
    return table, column
