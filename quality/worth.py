"""The part of the report that says what a release is worth: to an intent model (`evaluate`), to the text encoder (`adapt`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from quality.markup import html

SETS: Final = {
    "before": "the training set alone",
    "labels": "with the labels of the release",
    "random": "with as many random labels",
    "majority": "with the majority vote on the same texts",
}
OVER: Final = {"random": "the labels over random ones", "majority": "the labels over the majority vote"}


def part(worth: Mapping[str, Any]) -> str:
    """HTML of what `sayagain evaluate` and `sayagain adapt` found; empty when nobody asked."""
    return _evaluate(worth.get("evaluate") or {}) + _adapt(worth.get("adapt") or {})


def _evaluate(found: Mapping[str, Any]) -> str:
    if not found:
        return ""
    parts = list(found["test_rows"])
    head = "".join(f'<th class="n">{html(p)} ({found["test_rows"][p]:,} rows)</th><th class="n">gain</th>' for p in parts)
    rows = "".join(
        f'<tr><td>{html(SETS.get(s["name"], s["name"]))}</td><td class="n">{s["labels"]:,}</td>'
        + "".join(f'<td class="n">{_percent(s["accuracy"][p])}</td><td class="n">{_gain(s, p)}</td>' for p in parts)
        + "</tr>"
        for s in found["sets"]
    )
    rows += "".join(
        f"<tr><td>{html(OVER.get(name, name))}</td><td></td>"
        + "".join(f'<td></td><td class="n">{_interval(gain[p])}</td>' for p in parts)
        + "</tr>"
        for name, gain in found["labels_over"].items()
    )
    lead = (
        f"Accuracy of a small intent model on {found['test_rows']['all']:,} rows that people labelled, mean of {found['seeds']} seeds. Head: the "
        "frequent intents that make up half of the training set; tail: the others. Gains with their 95 % intervals, paired bootstrap."
    )
    return f'<p class="sub">{html(lead, 1000)}</p>' + _table(f'<th>taught</th><th class="n">labels</th>{head}', rows)


def _adapt(found: Mapping[str, Any]) -> str:
    if not found:
        return ""

    def cells(m: Mapping[str, Any]) -> str:
        gains = (_interval(m[name]) if m.get(name) else "" for name in ("gain", "gain_across"))
        figures = (f'<td class="n">{_percent(m[name])}</td><td class="n">{next(gains)}</td>' for name in ("nearest", "nearest_across"))
        verdict = "kept" if m["kept"] else "thrown away" if m.get("gain") else ""
        return f'{"".join(figures)}<td class="n">{m["texts_per_second"]:,.0f}</td><td>{verdict}</td><td>{html(m.get("why", ""))}</td>'

    rows = "".join(f"<tr><td>{html(m['name'])}</td>{cells(m)}</tr>" for m in found["models"])
    asked, across = (found["models"][0].get(name) for name in ("asked", "asked_across"))
    of = f" (asked of {asked:,} texts, across languages of {across:,})" if asked is not None else ""
    lead = (
        f"How often the nearest of {found['texts']:,} texts of the release's test split is of the same goal, and the nearest in another language{of}, "
        "by the intents of labels where two languages have them, else by goals. "
        "Gains with their 95 % intervals, paired bootstrap over goals or intents. Kept is what is surely better in one of the two and surely worse in neither."
    )
    names = ("same goal", "gain", "across languages", "gain", "texts/s")
    head = "<th>model</th>" + "".join(f'<th class="n">{h}</th>' for h in names) + "<th></th><th>why</th>"
    return f'<h3>The text encoder</h3><p class="sub">{html(lead, 1000)}</p>' + _table(head, rows)


def _table(head: str, rows: str) -> str:
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _gain(row: Mapping[str, Any], part: str) -> str:
    return "" if row["name"] == "before" else _interval(row["gain"][part])


def _interval(gain: list[float]) -> str:
    return f"{100 * gain[0]:+.1f} [{100 * gain[1]:+.1f}, {100 * gain[2]:+.1f}]"
