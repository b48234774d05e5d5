"""`report.html`: one file that opens offline, in light and dark, and is safe whatever the texts in it are.

Everything is escaped; tables travel as JSON and reach the page as textContent; a content security policy allows the one
script by its hash and no request to anywhere.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files
from typing import Any, Final

from quality import goalview, rowevidence, seeing, tables, watch, worth
from quality.markup import html
from quality.reasons import sentence
from quality.reportdata import MAX_ROWS, ReportData, Rows
from rewrite.text import slots_object

FEW_LOCALES: Final = 7
"""More locales than this do not fit beside each other; the others are in `other`."""
OTHER: Final = "other"
LONG: Final = 36
"""Characters of a cell that may break into lines."""
FEW_CARDS: Final = 4
"""Steps of the funnel that head the page, before the sizes of the release."""

HEADLINES: Final = {
    "released": ("good", "Released"),
    "refused": ("bad", "Refused"),
    "nothing_new": ("warn", "Nothing new"),
    "empty": ("warn", "Nothing to release"),
}
REWRITE_COLUMNS: Final = (
    ("locale", "locale", "w"),
    ("source", "users said", "text"),
    ("target", "serve instead", "text"),
    ("probability", "P (served)", "n"),
    ("lift", "lift", "n"),
    ("lift_lower", "lift, lower", "n"),
    ("users", "users", "n"),
    ("source_users", "source users", "n"),
    ("votes", "votes", "n"),
    ("cause", "cause", "w"),
    ("status", "status", "w"),
    *((name, title, tables.MORE) for name, title in rowevidence.REWRITES),
)
LABEL_COLUMNS: Final = (
    ("locale", "locale", "w"),
    ("utterance", "users said", "text"),
    ("intent", "intent", "text"),
    ("slots", "slots", "text"),
    ("confidence", "confidence", "n"),
    ("sample_weight", "weight", "n"),
    ("users", "users", "n"),
    ("votes", "votes", "n"),
    ("origin", "origin", "w"),
    ("split", "split", "w"),
    *((name, title, tables.MORE) for name, title in rowevidence.LABELS),
)
REJECTED_COLUMNS: Final = (
    ("locale", "locale", "w"),
    ("source", "users said", "text"),
    ("target", "could be served", "text"),
    ("why", "why not", "text"),
    ("probability", "P (served)", "n"),
    ("lift_lower", "lift, lower", "n"),
    ("source_users", "source users", "n"),
    ("target_users", "target users", "n"),
)


def render_report(data: ReportData) -> str:
    """The whole page. Rows that fewer than `data.k` users share are left out, whoever put them in."""
    tone, word = HEADLINES.get(data.status, ("warn", data.status.replace("_", " ").capitalize()))
    script, style = _asset("report.js"), _asset("report.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    sections = [
        ("gates", "Gates", _gates(data)),
        ("funnel", "From turns to released rows", _funnel(data)),
        ("effect", "Did releases help?", watch.effect(data.watch)),
        ("goals", "Goals", _map(data)),
        ("rewrites", "Rewrites", _rewrites(data)),
        ("labels", "Labels", _labels(data)),
        ("worth", "What it is worth", worth.part(data.worth)),
        ("not-proposed", "Not proposed, and why", _candidates(data)),
        ("new", "New, or growing fast", _news(data)),
        ("work", "Failing, and no target yet", _work(data)),
        ("trends", "Days, coverage, drift", watch.trends(data.watch)),
        ("defences", "Rings and personal data", watch.defences(data.watch, data.candidates)),
        ("signals", "Signals", seeing.signals(data.seeing) + _plain(data.signals)),
        ("gaps", "Time until the next turn", seeing.gaps(data.seeing)),
        ("reliability", "Does it come true?", seeing.reliability(data.seeing) + seeing.trade_off(data.seeing)),
        ("borderline", "Borderline pairs", _borderline(data)),
        ("model", "The model", seeing.model(data.seeing)),
        ("run", "The run", _timings(data)),
    ]
    shown = [(name, title, body) for name, title, body in sections if body]
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title, _ in shown)
    body = "".join(
        f'<section id="{name}" class="long" aria-labelledby="h-{name}"><h2 id="h-{name}">{escape(title)}</h2>{text}</section>'
        for name, title, text in shown
    )
    facts = [f"as of {data.as_of}" if data.as_of else "", f"k = {data.k}", f"follows {data.parent_id}" if data.parent_id else ""]
    notes = "".join(f"<p>{html(note, 1000)}</p>" for note in data.notes)
    title = f"{word} {data.release_id or ''}".strip()
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="referrer" content="no-referrer">
<title>{html(title)} - sayagain</title><style>{style}</style></head><body>
<header><span class="pill {tone}">{escape(word)}</span>
<h1>{html(_headline(data), 400)}</h1>
<p class="soft">{" &middot; ".join(html(f) for f in [data.release_id or "", *facts] if f)}</p>
<p>{html(data.why or why_of(data), 2000)}</p>{notes}
<div class="cards">{_cards(data)}</div><nav aria-label="Sections">{links}</nav></header>
<main>{body}</main>
<footer><p>Counts of users are floored to 3, 5, 10, 20, 50, 100 and so on, and only texts that at least {data.k} users of a
locale said are shown. The tables hold at most {MAX_ROWS:,} rows; all of them are in the Parquet files beside this page.</p></footer>
<script>{script}</script></body></html>
"""


def _asset(name: str) -> str:
    return (files("quality") / name).read_text(encoding="utf-8")


def _headline(data: ReportData) -> str:
    total = data.rows_total
    what = [f"{total[n]:,} {n}" for n in ("rewrites", "labels", "pairs") if total.get(n)]
    listed = f"{', '.join(what[:-1])} and {what[-1]}" if len(what) > 1 else "".join(what)
    if data.status == "released":
        return f"{listed} released" if listed else "A release without rows: everything of its parent is retired"
    if data.status == "refused":
        failed = sum(not v["success"] and v["severity"] == "critical" for v in data.verdicts)
        return f"{_n(failed, 'critical gate')} failed, so nothing was released"
    if data.status == "nothing_new":
        return "Nothing is new since the last release"
    return "There is nothing to release" if data.status == "empty" else data.status.replace("_", " ").capitalize()


def why_of(data: ReportData) -> str:
    """The headline's reason in words, from what the run counted."""
    if data.status == "refused":
        messages = [f"{v['table']}: {v['message']}" for v in data.verdicts if not v["success"] and v["severity"] == "critical"]
        return "The release before stays in place. " + "; ".join(dict.fromkeys(messages)) + "."
    if data.status == "nothing_new":
        return "The rows equal those of the parent release, and none of its rewrites is about to expire."
    if data.status == "released":
        parts = [f"{n:,} {status}" for status, n in data.changes.items()]
        gone = sum(data.retired.values())
        parts += [f"{gone:,} retired"] if gone else []
        return f"Rewrites: {', '.join(parts)}." if parts else ""
    considered = sum(c["count"] for c in data.candidates)
    if not considered:
        return (
            f"No text was said by {data.k} or more users of one locale with evidence of what they wanted, so there was nothing to weigh. "
            "More days, or more users, would help; see the counts below."
        )
    reasons: dict[str, int] = {}
    for row in data.candidates:
        reasons[row["reason"]] = reasons.get(row["reason"], 0) + row["count"]
    main = sorted(reasons.items(), key=lambda r: (-r[1], r[0]))[:3]
    listed = "; ".join(f"{n:,} because: {sentence(code)}" for code, n in main)
    return f"{considered:,} candidates were weighed and none could be released. Most of them: {listed}."


def _cards(data: ReportData) -> str:
    steps: dict[str, int] = {}
    for row in data.funnel:
        steps[row["step"]] = steps.get(row["step"], 0) + row["count"]
    cards = list(steps.items())[:FEW_CARDS] + [
        (n, data.rows_total[n]) for n in ("goals", "rewrites", "labels", "pairs") if n in data.rows_total
    ]
    return "".join(f'<div class="card"><b>{n:,}</b><span>{html(name)}</span></div>' for name, n in dict(cards).items())


def _gates(data: ReportData) -> str:
    if not data.verdicts:
        return ""
    failed = [v for v in data.verdicts if not v["success"]]
    passed = [v for v in data.verdicts if v["success"]]

    def table(verdicts: Rows) -> str:
        rows = "".join(
            f'<tr><td><span class="pill {_tone(v)}">{_mark(v)}</span></td><td>{html(v["table"])}</td><td>{html(v["column"])}</td>'
            f'<td>{html(str(v["expectation"]).replace("_", " "))}</td><td class="n">{v["rows_failed"]:,} of {v["rows"]:,}</td>'
            f'<td class="why">{html(v["message"], 500) if not v["success"] else ""}</td></tr>'
            for v in verdicts
        )
        head = '<th>verdict</th><th>table</th><th>column</th><th>expectation</th><th class="n">rows failed</th><th>what it means</th>'
        return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'

    critical = sum(v["severity"] == "critical" for v in failed)
    warned = len(failed) - critical
    lead = f"{len(passed):,} of {len(data.verdicts):,} expectations are met; {_n(critical, 'critical failure')}, {_n(warned, 'warning')}."
    lead += " One critical failure refuses the release; warnings are shown and pass."
    order = sorted(failed, key=lambda v: v["severity"] != "critical")
    rest = f"<details><summary>The {len(passed):,} that are met</summary>{table(passed)}</details>" if passed else ""
    return f'<p class="sub">{lead}</p>{table(order) if order else ""}{rest}'


def _n(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _tone(verdict: Mapping[str, Any]) -> str:
    return "good" if verdict["success"] else "bad" if verdict["severity"] == "critical" else "warn"


def _mark(verdict: Mapping[str, Any]) -> str:
    return "met" if verdict["success"] else escape(str(verdict["severity"]))


def _funnel(data: ReportData) -> str:
    """Steps with a bar each, one column per locale, and under each step what was lost there and why."""
    if not data.funnel and not data.drops:
        return ""
    locales = _locales([*data.funnel, *data.drops])
    columns = locales if len(locales) > 1 else []
    order = list(dict.fromkeys([r["step"] for r in data.funnel] + [d["step"] for d in data.drops]))
    steps = {step: [r for r in data.funnel if r["step"] == step] for step in order}
    top = max((_total(rows) for rows in steps.values()), default=0) or 1
    lines = []
    for step, counts in steps.items():
        bar = f'<i style="width:{100 * _total(counts) / top:.1f}%"></i>' if counts else ""
        lines.append(f'<tr><td>{html(step)}</td><td class="bar">{bar}</td>{_counts(counts, columns, "")}</tr>')
        lost: dict[str, Rows] = {}
        for drop in data.drops:
            if drop["step"] == step:
                lost.setdefault(sentence(drop["reason"]), []).append(drop)
        for why, drops in sorted(lost.items(), key=lambda item: -_total(item[1])):
            lines.append(f'<tr class="drop"><td colspan="2">left out: {html(why)}</td>{_counts(drops, columns, "&minus;")}</tr>')
    head = "".join(f'<th class="n">{html(name)}</th>' for name in columns)
    head = f'<th>step</th><th></th><th class="n">rows</th>{head}'
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _total(rows: Iterable[Mapping[str, Any]]) -> int:
    return sum(int(row["count"]) for row in rows)


def _counts(rows: Rows, columns: list[str], sign: str) -> str:
    """Cells: the total, then one per column of locales; empty where nothing was counted."""
    per = dict.fromkeys(columns, 0)
    for row in rows:
        name = str(row.get("locale") or "")
        if name and columns:
            per[name if name in per else OTHER] += int(row["count"])
    total = f"{sign}{_total(rows):,}" if rows else ""
    return f'<td class="n">{total}</td>' + "".join(f'<td class="n">{f"{sign}{n:,}" if n else ""}</td>' for n in per.values())


def _locales(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The locales that get a column, the biggest first."""
    sizes: dict[str, int] = {}
    for row in rows:
        if name := str(row.get("locale") or ""):
            sizes[name] = sizes.get(name, 0) + int(row["count"])
    order = sorted(sizes, key=lambda name: (-sizes[name], name))
    return order if len(order) <= FEW_LOCALES else [*order[: FEW_LOCALES - 1], OTHER]


def _rewrites(data: ReportData) -> str:
    parts = [f"{n:,} {status}" for status, n in data.changes.items()]
    parts += [f"{n:,} retired ({sentence(reason)})" for reason, n in data.retired.items()]
    lead = "Serve the right side to someone who says the left one. " + (f"Against the parent: {'; '.join(parts)}." if parts else "")
    return tables.table("rewrites", data, data.rewrites, REWRITE_COLUMNS, lead)


def _labels(data: ReportData) -> str:
    rows = [{**row, "slots": _slots(row.get("slots"))} for row in data.labels]
    return tables.table("labels", data, rows, LABEL_COLUMNS, "Training examples: what the assistant should have understood.")


def _slots(slots: str | None) -> str | None:
    """Slots as a person reads them: name: value, name: value."""
    parsed = slots_object(slots or "")
    return slots if parsed is None else ", ".join(f"{name}: {value}" for name, value in parsed.items())


def _candidates(data: ReportData) -> str:
    """How many candidates of each kind were not proposed, by reason, and the most used of the rewrites among them."""
    if not data.candidates:
        return ""
    counts: dict[tuple[str, str, str], int] = {}
    for row in data.candidates:
        group = (str(row["table"]), str(row["decision"]), str(row["reason"]))
        counts[group] = counts.get(group, 0) + row["count"]
    order = sorted(counts, key=lambda g: (g[0], g[1] != "proposed", -counts[g], g[2]))
    top = max(counts.values())
    rows = "".join(
        f"<tr><td>{html(t)}</td><td>{html(d)}</td><td>{html(sentence(r, t))} <code class='soft'>{html(r)}</code></td>"
        f'<td class="bar"><i style="width:{100 * counts[t, d, r] / top:.1f}%"></i></td><td class="n">{counts[t, d, r]:,}</td></tr>'
        for t, d, r in order
    )
    head = '<th>table</th><th>decision</th><th>reason</th><th></th><th class="n">rows</th>'
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    rejected = [{**r, "why": sentence(str(r.get("reason")))} for r in data.rejected]
    examples = tables.table("rejected", data, rejected, REJECTED_COLUMNS, "") if rejected else ""
    more = f"<h3>Rewrites that were not proposed, the most used first</h3>{examples}" if examples else ""
    return f'<p class="sub">Every candidate was weighed; these are the decisions.</p>{table}{more}'


def _news(data: ReportData) -> str:
    """Words, and failing texts, that came up in the window's last days."""
    seen = data.watch
    if "late" not in seen:
        return ""
    lead = f"From {seen['late']} on, against the days from {seen['days'][0]}; users each, floored.{watch.sampled(seen)}"
    parts = [f'<p class="sub">{escape(lead)}</p>']
    for name, title, none in (("words", "Words", "No word is new or growing."), ("failing_more", "Failing texts", "No text fails more.")):
        rows = seen.get(name) or []
        table = tables.table(name, data, rows, watch.NEW_COLUMNS, "", tables.FEW_JSON) if rows else f"<p>{none}</p>"
        parts.append(f"<h3>{title}</h3>{table}")
    return "".join(parts)


def _work(data: ReportData) -> str:
    """What the people who extend the assistant can do: texts that fail and that nothing known would serve."""
    rows = watch.work_rows(data.watch)
    if not rows:
        return ""
    total = data.watch.get("work_total", len(rows))
    more = f" The {len(rows):,} most failed of {total:,}." if total > len(rows) else ""
    lead = f"Texts that fail most of the users who say them, and that no other wording is known to serve: a work list.{more}"
    return tables.table("work", data, rows, watch.WORK_COLUMNS, lead + watch.sampled(data.watch), tables.FEW_JSON)


def _borderline(data: ReportData) -> str:
    rows = data.seeing.get("borderline") or []
    lead = (
        "Neighbouring turns where the model is least sure whether the second asked again for the goal of the first, the least sure of each "
        f"locale first. Only texts that {data.k} users said are here."
    )
    return tables.table("borderline", data, rows, seeing.BORDERLINE_COLUMNS, lead) if rows else ""


def _map(data: ReportData) -> str:
    return goalview.section(data.goal_map, data.k, lambda name, rows, columns: tables.table(name, data, rows, columns, ""), _plain)


def _plain(rows: Rows) -> str:
    """Any rows as a plain table; numbers to the right."""
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row))
    kinds = {n: "n" if any(isinstance(r.get(n), (int, float)) and not isinstance(r.get(n), bool) for r in rows) else "w" for n in names}
    kinds |= {n: "text" for n in names if any(isinstance(r.get(n), str) and len(r[n]) > LONG for r in rows)}
    head = "".join(f'<th class="{kinds[n]}">{html(n.replace("_", " "))}</th>' for n in names)
    body = "".join("<tr>" + "".join(f'<td class="{kinds[n]}">{_cell(r.get(n))}</td>' for n in names) + "</tr>" for r in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "" if value is None else html(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3g}"


def _timings(data: ReportData) -> str:
    if not data.timings:
        return ""
    seconds, memory = (sum(t.get("seconds") or 0 for t in data.timings), max(t.get("peak_mib") or 0 for t in data.timings))
    lead = f"{seconds:,.1f} seconds in all, at most {memory:,.0f} MiB."
    rows = "".join(
        f'<tr><td>{html(t["stage"])}</td><td class="n">{t.get("seconds") or 0:,.1f}</td><td class="n">{t.get("peak_mib") or 0:,.0f}</td>'
        f"<td>{html(t.get('what') or '', 300)}</td></tr>"
        for t in data.timings
    )
    head = '<th>stage</th><th class="n">seconds</th><th class="n">peak MiB</th><th>what it did</th>'
    return f'<p class="sub">{lead}</p><div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
