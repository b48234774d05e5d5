"""`link --texts FILE`: goals of a list of texts, without a log: the same functions, from what the texts alone say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from pipelines import choose, config, engine, lexicon, models
from pipelines.errors import InputError, UsageError
from pipelines.options import LinkOptions
from rewrite import contracts
from rewrite.text import key_expr

READERS: dict[str, Any] = {".parquet": pl.read_parquet, ".csv": pl.read_csv, ".jsonl": pl.read_ndjson, ".ndjson": pl.read_ndjson}


def main(options: LinkOptions) -> int:
    """Read, embed, join, write `goals.parquet`, `goal_edges.parquet` and `rejects.parquet`. Returns the exit code."""
    c = config.load(options.config)
    texts, rejects = read_texts(str(options.texts))
    words = lexicon.read(options.lexicon or c.goals.lexicon)
    vectors, choice = embed(texts, c.embedding.model, c.embedding.device)
    from rewrite.goals import build_goals

    empty = {
        "links": pl.DataFrame(
            schema={"locale": pl.String, "source": pl.String, "target": pl.String, "users": pl.Int64, "weight": pl.Float64}
        ),
        "served": pl.DataFrame(schema={**dict.fromkeys(("locale", "utterance", "intent", "slots"), pl.String), "weight": pl.Float64}),
    }
    by = {locale: str(row["model"]) for locale, row in choice.items()}
    model = texts["locale"].replace_strict(by, default=None, return_dtype=pl.String)
    graph = build_goals(texts, vectors, empty["links"], empty["served"], seed=c.run.seed, models=model, lexicon=words)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(engine.conform(graph.goals, contracts.GOALS), out / "goals.parquet")
    pq.write_table(engine.conform(graph.edges, contracts.GOAL_EDGES), out / "goal_edges.parquet")
    rejects.write_parquet(out / "rejects.parquet")
    reasons = dict(rejects.group_by("reason").len().sort("reason").iter_rows())
    counts = {"texts": texts.height, "goals": graph.goals["goal_id"].n_unique(), "rejected": rejects.height, "reasons": reasons}
    if options.json:
        print(json.dumps({"job": "link", "out": str(out), **counts, "models": choice}))
    else:
        for locale, row in choice.items():
            print(f"{locale}: {row['texts']:,} texts, read by {row['model']} ({row['why']})")
        told = "".join(f"; {n:,} left out: {reason}" for reason, n in reasons.items())
        print(f"{counts['texts']:,} texts, {counts['goals']:,} goals in {out}{told}")
    return 0


def read_texts(path: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(texts: locale, utterance (key), users (rows that say it), served (null); rejects: row, reason).

    Raises InputError that names the file and the fix when it cannot be read or has no column of texts.
    """
    read = READERS.get(Path(path).suffix.lower())
    if read is None:
        raise UsageError(f"--texts {path}: should end in one of {', '.join(READERS)}")
    try:
        frame = read(path)
    except FileNotFoundError:
        raise InputError(f"--texts {path}: there is no such file") from None
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"--texts {path}: cannot be read as {Path(path).suffix[1:]}: {str(error).splitlines()[0]}") from None
    name = next((n for n in ("text", "utterance") if n in frame.columns), None)
    if name is None:
        raise InputError(
            f"--texts {path}: has columns {', '.join(frame.columns) or '(none)'}; one must be named text (and one locale, if known)"
        )
    locale = pl.col("locale").cast(pl.String).fill_null("und") if "locale" in frame.columns else pl.lit("und")
    rows = frame.select(locale=locale, text=pl.col(name).cast(pl.String)).with_row_index("row")
    rows = rows.with_columns(utterance=key_expr("text"))
    reason = (
        pl.when(pl.col("text").is_null() | (pl.col("utterance") == ""))
        .then(pl.lit("text_empty"))
        .when(pl.col("text").str.len_chars() > contracts.MAX_TEXT)
        .then(pl.lit("text_too_long"))
    )
    rows = rows.with_columns(reason=reason)
    texts = rows.filter(pl.col("reason").is_null()).group_by("locale", "utterance").agg(users=pl.len().cast(pl.Int64))
    texts = texts.with_columns(served=pl.lit(None, pl.Float64)).sort("locale", "utterance")
    return texts, rows.filter(pl.col("reason").is_not_null()).select("row", "reason")


def embed(texts: pl.DataFrame, spec: str, device: str) -> tuple[np.ndarray | None, dict[str, dict[str, Any]]]:
    """float32 (texts.height, widest dimension), and per locale the model that read it. Without a log no pairs choose the model:
    with `auto` the first one that was taught the locale's language and knows its tokens does."""
    from pipelines.encode import encoder

    none = pl.DataFrame(schema={"source": pl.String, "target": pl.String})
    choice: dict[str, dict[str, Any]] = {}
    parts = []
    for (locale,), here in texts.with_row_index("at").group_by("locale", maintain_order=True):
        keys = here["utterance"].to_list()
        row = choose.measure(str(locale), none, keys, device) if spec == models.AUTO else {"model": spec, "why": "configured"}
        choice[str(locale)] = row | {"texts": here.height}
        parts.append((here["at"].to_numpy(), encoder(row["model"], device).encode(keys)))
    if not parts:
        return None, choice
    out = np.zeros((texts.height, max(v.shape[1] for _, v in parts)), np.float32)
    for at, vectors in parts:
        out[at, : vectors.shape[1]] = vectors
    return out, choice
