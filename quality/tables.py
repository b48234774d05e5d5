"""Tables that report.js sorts, searches and opens: their rows as JSON that means nothing to HTML.

Cells are escaped by the script (textContent), heads here. Rows that fewer than k users share are left out, whoever put them in.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from html import escape
from typing import Any, Final

from quality.markup import clean
from quality.reportdata import MAX_ROWS, ReportData, Rows

MAX_JSON: Final = 1_200_000
"""Bytes of one table's JSON: three such tables and the rest stay under five megabytes."""
FEW_JSON: Final = 200_000
"""Bytes of the JSON of a list for reading, of which there are three."""
MORE: Final = "more"
"""The kind of a column that opens below its row."""

Columns = tuple[tuple[str, str, str], ...]
"""(field, title, kind): kinds are `n` (number), `w` (short words), `text` (what users said), and `MORE`."""


def table(name: str, data: ReportData, rows: Rows, columns: Columns, lead: str, most: int = MAX_JSON) -> str:
    """A table that report.js sorts and searches: its rows as JSON that cannot end a script element."""
    counts = [c for c in ("users", "source_users", "target_users", "late", "failed") if c in {n for n, _, _ in columns}]
    kept = [r for r in rows if all(_users(r, c, data.k) >= data.k for c in counts)][:MAX_ROWS]
    if not kept:
        return f'<p class="sub">{escape(lead)}</p><p>None.</p>' if name in data.rows_total else ""
    used = [c for c in columns if any(r.get(c[0]) is not None for r in kept)]
    lines, size = [], 0
    for row in kept:
        line = _inert([clean(v) if isinstance(v := row.get(n), str) else _number(v) for n, _, _ in used])
        size += len(line.encode())
        if size > most:
            break
        lines.append(line)
    total = max(data.rows_total.get(name, 0), len(kept))
    cut = f" The top {len(lines):,} of {total:,} rows." if total > len(lines) else ""
    body = f'{{"columns":{_inert([{"kind": kind} | ({"title": title} if kind == MORE else {}) for _, title, kind in used])},"rows":[{",".join(lines)}]}}'
    shown = [(title, kind) for _, title, kind in used if kind != MORE]
    head = "".join(f'<th class="{kind}" scope="col"><button type="button">{escape(title)}</button></th>' for title, kind in shown)
    if len(shown) < len(used):
        head = f'<th><span class="hidden">evidence</span></th>{head}'
    return f"""<p class="sub">{escape(lead + cut)}</p>
<script type="application/json" id="rows-{name}">{body}</script>
<div data-rows="rows-{name}">
<div class="tools"><input type="search" placeholder="Search" aria-label="Search {name}"><output class="soft"></output></div>
<div class="scroll tall" tabindex="0" role="region" aria-label="Table of {name}"><table>
<thead><tr>{head}</tr></thead><tbody></tbody></table></div>
<p><button type="button" class="more" hidden>Show more</button></p>
<noscript><p>This table needs JavaScript; its rows are in {name}.parquet.</p></noscript></div>"""


def _inert(value: object) -> str:
    """JSON without a character that means something to HTML."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _users(row: Mapping[str, Any], column: str, k: int) -> int:
    """A count of users; one that the row does not have is not held against it."""
    value = row.get(column)
    return k if value is None else int(value)


def _number(value: object) -> float | int | str | None:
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value if isinstance(value, int) or value is None else clean(value)
