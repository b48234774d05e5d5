"""The report's view of the votes: what is new, what is still to be done, whether releases helped, who was not believed.

Draws what `pipelines.watch` gathered. Every text is escaped; pictures are inline SVG whose colours follow the page.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, Final

from quality.markup import html
from quality.reasons import sentence
from quality.seeing import ABOVE, BELOW, HIGH, LEFT, MAX_PICTURES, RIGHT, WIDE, figure, percent, tick

Rows = list[dict[str, Any]]

NEW_COLUMNS: Final = (
    ("locale", "locale", "w"),
    ("text", "users said", "text"),
    ("early", "users before", "n"),
    ("late", "users lately", "n"),
    ("factor", "times the share (none: new)", "n"),
)
WORK_COLUMNS: Final = (
    ("locale", "locale", "w"),
    ("text", "users said", "text"),
    ("users", "users", "n"),
    ("failed", "of them not served", "n"),
    ("share", "share", "n"),
    ("cause", "likely cause", "w"),
    ("why", "why there is no target", "text"),
)
GROUPS: Final = {
    "corrected": "touched: rewritten, or labelled otherwise than the assistant understood it",
    "confirmed": "labelled as the assistant understood it",
    "untouched": "not touched",
}
SURE: Final = 2.0
"""A change beyond two standard errors is called one."""


def work_rows(seen: Mapping[str, Any]) -> Rows:
    """The work list with reasons in words."""
    told = {None: "no other wording of it is known"}
    return [{**r, "why": told.get(r.get("reason")) or sentence(str(r["reason"]))} for r in seen.get("work") or []]


def sampled(seen: Mapping[str, Any]) -> str:
    """Of which users and days, where it is not all of them; plain text."""
    read, of = seen.get("buckets") or (0, 0)
    return f" Counted from {read} of {of} parts of the users." if read < of else ""


def effect(seen: Mapping[str, Any]) -> str:
    """Per trained assistant version: how often texts failed before and after, touched by its release or not."""
    out = []
    for version in seen.get("effect") or []:
        title = f"<h3>{html(version['version'])}, trained on {html(version['release_id'])}, first seen on {html(version['first'])}</h3>"
        if not version["rows"]:
            out.append(title + '<p class="sub">No text was said by enough users both before and after.</p>')
            continue
        top = max(max(r["before"], r["after"]) for r in version["rows"]) or 1.0
        lines = "".join(
            f'<tr><td>{html(GROUPS[r["group"]])}</td><td class="n">{r["texts"]:,}</td><td class="n">{r["users_before"]:,}</td>'
            f'<td class="n">{r["users_after"]:,}</td>{percent(r["before"])}{percent(r["after"])}'
            f'<td class="bar">{_bar(r["before"] / top)}{_bar(r["after"] / top)}</td><td>{html(_said(r))}</td></tr>'
            for r in version["rows"]
        )
        names = ("texts", "users before", "users after", "failed before", "failed after")
        head = "<th>texts</th>" + "".join(f'<th class="n">{n}</th>' for n in names) + "<th></th><th>change</th>"
        table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'
        out.append(f"{title}{table}<p>{html(_net(version['rows']))}</p>")
    if not out:
        return ""
    lead = (
        "Defects (turns that did not serve their user) before a version of the assistant that was trained on a release, and after it, of the same "
        "texts in the mix of after. Texts that the release did not touch show what would have changed anyway."
    )
    return f'<p class="sub">{html(lead, 1000)}</p>{"".join(out)}'


def _said(row: Mapping[str, Any]) -> str:
    word = "fewer" if row["change"] < 0 else "more"
    sure = "" if abs(row["change"]) > SURE * row["error"] else ", which may be chance"
    return f"{100 * abs(row['change']):.1f} points {word} (give or take {100 * row['error']:.1f}){sure}"


def _net(rows: Rows) -> str:
    by = {r["group"]: r for r in rows}
    if not {"corrected", "untouched"} <= by.keys():
        return "Touched and untouched texts cannot be compared: one of them has no text said by enough users before and after."
    a, b = by["corrected"], by["untouched"]
    change, error = a["change"] - b["change"], math.hypot(a["error"], b["error"])
    return f"Against texts that it did not touch, the release made {_said({'change': change, 'error': error})} of touched turns fail."


def _bar(part: float) -> str:
    return f'<i style="width:{100 * min(part, 1.0):.1f}%"></i>'


def trends(seen: Mapping[str, Any]) -> str:
    """Defects per day and coverage, per locale."""
    daily, coverage = seen.get("daily") or [], seen.get("coverage") or []
    out = ""
    locales = [r["locale"] for r in coverage] or sorted({r["locale"] for r in daily})
    pictures = [_days([r for r in daily if r["locale"] == at], at) for at in locales[:MAX_PICTURES]]
    if any(pictures):
        lead = (
            "Turns that did not serve their user, day by day: a step that no release explains is a change of the assistant or of its users."
        )
        out += f'<p class="sub">{lead}</p><div class="pictures">{"".join(pictures)}</div>'
    if coverage:
        rows = "".join(
            f'<tr><td>{html(r["locale"])}</td>{percent(r["labelled"])}<td class="bar">{_bar(r["labelled"])}</td>'
            f'{percent(r["rewritten"])}<td class="bar">{_bar(r["rewritten"])}</td></tr>'
            for r in coverage[:MAX_PICTURES]
        )
        head = '<th>locale</th><th class="n">said and labelled</th><th></th><th class="n">failed and rewritten</th><th></th>'
        lead = "Coverage: of what users said, the share whose text has a label; of what failed them, the share whose text has a rewrite."
        out += f'<h3>Coverage</h3><p class="sub">{lead}</p><div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    return out + _movers(seen.get("movers") or [])


def _days(rows: Rows, locale: str) -> str:
    if len(rows) < 2:
        return ""
    most = max(0.1, *(r["defect"] for r in rows))

    def point(n: int, defect: float) -> tuple[float, float]:
        return LEFT + (WIDE - LEFT - RIGHT) * n / (len(rows) - 1), ABOVE + (HIGH - ABOVE - BELOW) * (1 - defect / most)

    points = [point(n, r["defect"]) for n, r in enumerate(rows)]
    parts = [tick(min(points[n][0], WIDE - 16.0), html(rows[n]["date"][5:])) for n in sorted({0, len(rows) // 2, len(rows) - 1})]
    parts += [
        f'<text class="t" x="{LEFT - 5}" y="{point(0, v)[1] + 4:.1f}" text-anchor="end">{100 * v:.0f} %</text>' for v in (0, most / 2, most)
    ]
    parts.append(f'<polyline class="c0" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>')
    for (x, y), r in zip(points, rows, strict=True):
        title = f"{r['date']}: {100 * r['defect']:.1f} %, {r['users']:,} users or more"
        parts.append(f'<circle class="p dot" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{html(title)}</title></circle>')
    return figure(locale or "all", f"Defects per day in {locale}", parts, "day; up: turns that failed")


def _movers(rows: Rows) -> str:
    if not rows:
        return ""
    top = max(abs(r["now"] - r["before"]) for r in rows) or 1.0
    lines = "".join(
        f"<tr><td>{html(r['locale'])}</td><td>{html(r['intent'])}</td>{percent(r['before'])}{percent(r['now'])}"
        f'<td class="bar">{_bar(abs(r["now"] - r["before"]) / top)}</td><td class="n">{r["psi"]:.3f}</td></tr>'
        for r in rows
    )
    head = '<th>locale</th><th>intent</th><th class="n">parent</th><th class="n">now</th><th></th><th class="n">PSI</th>'
    lead = "Drift against the parent: intents whose share of a locale's labels moved most."
    return f'<h3>Drift</h3><p class="sub">{lead}</p><div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def defences(seen: Mapping[str, Any], decisions: Rows) -> str:
    """Who was not believed, what was scrubbed, and what rings would get by the last siege."""
    t, scrubbed, siege = seen.get("trust") or {}, seen.get("scrubbed") or {}, seen.get("siege") or []
    reasons = {n: sum(d["count"] for d in decisions if d["reason"] == n) for n in ("no_outside_users", "no_other_wording")}
    facts: list[tuple[int, str]] = []
    if t:
        facts = [
            (t["accounts"], "accounts with votes"),
            (t["new"], "too new to link anything: they said too few texts, or nothing but a few pairs"),
            (t["links_of_new"], f"links of theirs left out, of {t['links']:,}"),
            (t["copies"], "accounts with the history of another; what they share counts once"),
            (t["links_of_spare"], "links of copies that only one of them has, left out"),
            (t["bursts"], "sources whose users came together on one day"),
            (t["links_of_bursts"], "links of those days left out"),
        ]
    facts += [(n, f"rewrites not proposed: {sentence(code)}") for code, n in reasons.items() if n]
    facts += [(n, f"{kind} scrubbed before anything was written") for kind, n in scrubbed.items()]
    if not facts and not siege:
        return ""
    rows = "".join(f'<tr><td class="n">{n:,}</td><td>{html(what)}</td></tr>' for n, what in facts)
    table = f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>' if rows else ""
    return f'<p class="sub">What fake accounts and personal data met.{html(sampled(seen))}</p>{table}{_siege(siege)}'


def _siege(rows: Rows) -> str:
    attacks = [r for r in rows if r.get("attacks")]
    if not attacks:
        return '<p class="sub">What rings of fake accounts would get out of this log is measured by sayagain siege --lake.</p>'
    lines = "".join(
        f'<tr><td>{html(r["kind"])}</td><td class="n">{r["size"]:,}</td><td class="n">{r["attacks"]:,}</td>'
        f"{percent(r['released'] / r['attacks'])}{percent(r['undefended'] / r['attacks'])}{percent(r['rewrites_now'])}</tr>"
        for r in attacks
    )
    names = ("accounts", "attacks", "released", "without defences", "honest rewrites")
    head = "<th>ring</th>" + "".join(f'<th class="n">{n}</th>' for n in names)
    pictures = "".join(_ring(list(part), kind) for kind, part in itertools.groupby(attacks, key=lambda r: r["kind"]))
    lead = "By the last siege: rings of fake accounts of the project's own attack the log; so many of their attacks would be released."
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'
    return (
        f'<h3>Siege</h3><p class="sub">{lead}</p><div class="pictures">{pictures}</div><details><summary>Figures</summary>{table}</details>'
    )


def _ring(rows: Rows, kind: str) -> str:
    """Share released by size of the ring, with (first colour) and without defences."""
    if len(rows) < 2:
        return ""
    sizes = [math.log(r["size"]) for r in rows]

    def x(n: int) -> float:
        return LEFT + (WIDE - LEFT - RIGHT) * (sizes[n] - sizes[0]) / ((sizes[-1] - sizes[0]) or 1.0)

    def y(share: float) -> float:
        return ABOVE + (HIGH - ABOVE - BELOW) * (1 - share)

    parts = [tick(x(n), str(r["size"])) for n, r in enumerate(rows)]
    parts += [f'<text class="t" x="{LEFT - 5}" y="{y(p) + 4:.1f}" text-anchor="end">{p:.0%}</text>' for p in (0, 0.5, 1)]
    for style, name in ((1, "undefended"), (0, "released")):
        points = " ".join(f"{x(n):.1f},{y(r[name] / r['attacks']):.1f}" for n, r in enumerate(rows))
        title = "without defences" if style else "with defences"
        parts.append(f'<polyline class="c{style}" points="{points}"><title>{title}</title></polyline>')
        parts.append(f'<text class="t l{style}" x="{WIDE - RIGHT}" y="{ABOVE + 12 + 13 * style}" text-anchor="end">{title}</text>')
    return figure(f"{kind} rings", f"Share of attacks of {kind} rings that are released, by accounts", parts, "accounts; up: released")
