"""Reads a lexicon: a TSV file of four columns, locale, phrase, locale, phrase, one pair that says the same per line."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from pipelines.errors import InputError
from rewrite.casts import to_locale
from rewrite.text import key

COLUMNS = 4
SHOWN = 5


def read(path: str) -> tuple[tuple[str, str, str, str], ...]:
    """The rows of `path`, phrases as keys, sorted, each once; none for an empty path. Empty lines and lines that begin with # are
    skipped. Raises InputError that names the file and the first bad lines."""
    if not path:
        return ()
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise InputError(f"lexicon {path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"lexicon {path}: cannot be read as UTF-8 text: {error}") from None
    tags = _canonical(lines)
    rows, bad = set(), []
    for number, line in enumerate(lines, 1):
        cells = [key(cell) for cell in line.split("\t")]
        if line.startswith("#") or not any(cells):
            continue
        if len(cells) != COLUMNS:
            bad.append(f"line {number} has {len(cells)} columns, not {COLUMNS} (locale, phrase, locale, phrase, with tabs between them)")
        elif not all(cells):
            bad.append(f"line {number}: column {cells.index('') + 1} is empty")
        elif wrong := [c for c in line.split("\t")[::2] if tags.get(c) is None]:
            bad.append(f"line {number}: {wrong[0]!r} is no locale, such as en-US")
        elif cells[0] == cells[2] and cells[1] == cells[3]:
            bad.append(f"line {number}: {cells[1]!r} stands for itself")
        else:
            rows.add((str(tags[line.split("\t")[0]]), cells[1], str(tags[line.split("\t")[2]]), cells[3]))
    if bad:
        more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise InputError(f"lexicon {path}: " + "; ".join(bad[:SHOWN]) + more)
    return tuple(sorted(rows))


def _canonical(lines: list[str]) -> dict[str, str | None]:
    """Locale as it is written -> as it is in a lake, None if it is none."""
    written = sorted({cell for line in lines for cell in line.split("\t")[::2][:2]})
    return dict(zip(written, to_locale(pl.Series(written, dtype=pl.String)).to_list(), strict=True))
