"""The report's view into the model: signal tables, learned gap curves, reliability diagrams, and what a fit moved.

Draws what `pipelines.seeing` gathered. Every text is escaped; pictures are inline SVG whose colours follow the page.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, Final

from quality.markup import html

MAX_PICTURES: Final = 12
"""Locales whose curves and diagrams are drawn; more say no more, and the page stays small."""
MAX_TABLES: Final = 50
WIDE: Final = 270
HIGH: Final = 190
LEFT, RIGHT, ABOVE, BELOW = 38, 10, 22, 34
LINES: Final = 6  # styles of lines in report.css

BORDERLINE_COLUMNS: Final = (
    ("locale", "locale", "w"),
    ("text", "users said", "text"),
    ("next_text", "and next", "text"),
    ("gap_s", "after, s", "n"),
    ("probability", "P (again)", "n"),
    ("p_text", "by texts", "n"),
    ("p_gap", "by gap", "n"),
    ("p_friction", "by friction", "n"),
    ("p_same_topic", "P (topic)", "n"),
    ("decided_by", "decided by", "w"),
    ("source_users", "users", "n"),
    ("target_users", "of next", "n"),
)
KINDS: Final = {
    "feedback": (
        "Thumbs down, foretold without feedback",
        "Sessions with feedback: a model learned from the earlier half of their days, without any feedback, judges the later half (of a "
        "single day, the model in use does): predicted P(failed) against the share that got a thumbs down. Who gives feedback is no random "
        "sample, so a diagram off the line may say as much about them.",
    ),
    "later": (
        "Refused or asked again, foretold by earlier users",
        "Each text's P(failed) comes from users and days before the split; whether the first turn of other users, later, was refused or asked "
        "again is what happened.",
    ),
    "rewrites": (
        "Rewrites, foretold by earlier users",
        "Each rewrite's probability comes from the days before the window's last fifth (from other users, in a log of few days). Up: the "
        "share that came true, by what users did who came to the source later. What they were served with is evidence, not a label: some "
        "went on to the next thing, which goals do by chance as often as the locale is served there; the share shown is the one that makes it "
        "likeliest. Texts that users gave up on and that look served are not seen by it.",
    ),
}

Rows = list[dict[str, Any]]


def signals(seen: Mapping[str, Any]) -> str:
    """The signal table and the views of asked-again, one table per locale; empty without any."""
    rows, views = seen.get("signals") or [], seen.get("views") or []
    if not rows and not views:
        return ""
    locales = list(dict.fromkeys([r["locale"] for r in rows] + [r["locale"] for r in views]))
    out = [
        '<p class="sub">What each signal of a turn says about whether it was served, learned without labels. Weight: log odds that it adds '
        "for failed (to the right) or served (to the left) when it fires. Failed: how often the turn failed then. Accuracy: how often the rest "
        "of the evidence, this signal left out, agrees. Overlap: another signal fires too. Conflict: the rest of the evidence points the other "
        "way.</p>"
    ]
    for n, locale in enumerate(locales[:MAX_TABLES]):
        mine = [r for r in rows if r["locale"] == locale]
        turns = f", {mine[0]['turns']:,} turns" if mine else ""
        body = _signals(mine, seen.get("meanings") or {}) + _views([v for v in views if v["locale"] == locale], seen, locale)
        out.append(f"<details{' open' if n == 0 else ''}><summary>{html(locale or 'all locales')}{turns}</summary>{body}</details>")
    return "".join(out) + _more(len(locales) - MAX_TABLES)


def _signals(rows: Rows, meanings: Mapping[str, str]) -> str:
    if not rows:
        return ""
    top = max((abs(r["weight"]) for r in rows if r["weight"] is not None), default=1.0) or 1.0
    lines = []
    for r in sorted(rows, key=lambda r: (r["weight"] is None, -abs(r["weight"] or 0.0), r["signal"])):
        says = "" if r["weight"] is None else f"{r['weight']:+.2f}"
        lines.append(
            f"<tr><td>{html(r['signal'])}<br><span class='soft'>{html(meanings.get(r['signal'], ''))}</span></td>{percent(r['logged'])}"
            f'{percent(r["fires"])}<td class="n">{says}</td><td class="bar">{_diverging((r["weight"] or 0.0) / top)}</td>{percent(r["failed"])}'
            f"{percent(r['accuracy'])}{percent(r['overlap'])}{percent(r['conflict'])}</tr>"
        )
    names = ("logged", "fires", "weight", "", "failed", "accuracy", "overlap", "conflict")
    head = "<th>signal</th>" + "".join(f'<th class="n">{n}</th>' if n else "<th></th>" for n in names)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _views(rows: Rows, seen: Mapping[str, Any], locale: str) -> str:
    if not rows:
        return ""
    top = max(r["weight"] for r in rows) or 1.0
    lines = "".join(
        f'<tr><td>{html(r["view"])}</td>{percent(r["coverage"])}<td class="n">{r["weight"]:.2f}</td>'
        f'<td class="bar"><i style="width:{100 * r["weight"] / top:.1f}%"></i></td>{percent(r["accuracy"])}{percent(r["turns"])}{percent(r["conflict"])}</tr>'
        for r in rows
    )
    names = ("speaks", "weight", "", "accuracy", "turns it", "conflict")
    head = "<th>view</th>" + "".join(f'<th class="n">{n}</th>' if n else "<th></th>" for n in names)
    steps = [d for d in seen.get("decided") or [] if d["locale"] == locale]
    by = "; ".join(f"{100 * d['share']:.1f} % by {d['step']}" for d in steps)
    lead = (
        f"Asked again: the three views of {rows[0]['pairs']:,} neighbouring turns in other words. Weight: mean of the absolute log odds it adds. "
        "Accuracy: alone it decides as all three do. Turns it: without it the decision is another. Conflict: the other two say the opposite."
    )
    decided = f" Decided {by}." if by else ""
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'
    return f'<p class="sub">{html(lead + decided, 2000)}</p>{table}'


def model(seen: Mapping[str, Any]) -> str:
    """Which model judged, and how far it moved from the one before."""
    facts, moved = seen.get("model") or {}, seen.get("comparison") or {}
    if not facts:
        return ""
    through = f", learned from turns through {facts['through']}" if facts.get("through") else ""
    out = f'<p class="sub">Model {html(facts.get("fingerprint", ""))}{html(through)}.</p>'
    if moved:
        names = {
            "flipped": "pairs whose decision at .5 is another",
            "moved": "mean change of P(asked again)",
            "psi": "population stability index of P(asked again)",
            "outcomes_flipped": "turns whose verdict (failed or served) is another",
            "outcomes_moved": "mean change of P(failed)",
        }
        rows = "".join(
            f'<tr><td>{title}</td><td class="n">{moved[n]:.4f}</td></tr>'
            for n, title in names.items()
            if isinstance(moved.get(n), (int, float))
        )
        out += f'<p>{html(moved.get("verdict", ""), 1000)}</p><div class="scroll"><table><tbody>{rows}</tbody></table></div>'
    return out


def gaps(seen: Mapping[str, Any]) -> str:
    """Learned gap curves, one picture per locale, a line per channel; empty without a learned curve."""
    curves: dict[str, Rows] = {}
    for c in seen.get("gaps") or []:
        if len(c["edges"]) and len(c["values"]) == len(c["edges"]) + 1:
            curves.setdefault(c["locale"], []).append(c)
    silent = [f"{c['locale']}/{c['channel']}".replace("*", "any") for c in seen.get("gaps") or [] if not c["edges"]]
    idle = f'<p class="sub">The time says too little to be used (locale/channel): {html(", ".join(silent), 500)}.</p>' if silent else ""
    if not curves:
        return idle
    low = min(max(c["edges"][0], 0.5) for cs in curves.values() for c in cs)
    high = max(max(c["edges"][-1], 1.0) for cs in curves.values() for c in cs)
    most = max(1.0, *(abs(v) for cs in curves.values() for c in cs for v in c["values"]))
    span = (math.log(low / 1.5), math.log(high * 1.5))
    figures = [_gap_picture(locale, cs, span, most) for locale, cs in list(curves.items())[:MAX_PICTURES]]
    lead = (
        "How much the silence before the next turn says for (above the line) or against asking again, in log odds, as learned from the log. "
        "A locale or channel that is too thin to learn for itself uses the curve of the next wider group."
    )
    return f'<p class="sub">{lead}</p><div class="pictures">{"".join(figures)}</div>{_more(len(curves) - MAX_PICTURES)}{idle}'


def _gap_picture(locale: str, curves: Rows, span: tuple[float, float], most: float) -> str:
    def x(seconds: float) -> float:
        return LEFT + (WIDE - LEFT - RIGHT) * (math.log(max(seconds, 0.05)) - span[0]) / (span[1] - span[0])

    def y(value: float) -> float:
        return ABOVE + (HIGH - ABOVE - BELOW) * (0.5 - 0.5 * value / most)

    marks = [s for s in (1, 3, 10, 30, 60, 300, 1800, 7200, 43200) if span[0] <= math.log(s) <= span[1]]
    named = {60: "1 min", 300: "5 min", 1800: "30 min", 7200: "2 h", 43200: "12 h"}
    out = [tick(x(s), named.get(s, f"{s} s")) for s in marks]
    out += [
        f'<text class="t" x="{LEFT - 5}" y="{y(v) + 4:.1f}" text-anchor="end">{v:+.0f}</text>'
        for v in (-math.floor(most), 0, math.floor(most))
    ]
    out.append(f'<line x1="{LEFT}" x2="{WIDE - RIGHT}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>')
    left, right = math.exp(span[0]), math.exp(span[1])
    for n, c in enumerate(sorted(curves, key=lambda c: (c["channel"] != "*", c["channel"]))):
        ends = [left, *c["edges"], right]
        points = [(x(max(s, left)), y(v)) for v, pair in zip(c["values"], itertools.pairwise(ends), strict=True) for s in pair]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        channel = "any channel" if c["channel"] == "*" else c["channel"]
        out.append(f'<polyline class="c{n % LINES}" points="{path}"><title>{html(channel)}: {c["pairs"]:,} pairs</title></polyline>')
        if len(curves) > 1:
            out.append(
                f'<text class="t l{n % LINES}" x="{WIDE - RIGHT}" y="{ABOVE + 12 + 13 * n}" text-anchor="end">{html(channel, 24)}</text>'
            )
    name = "all locales" if locale == "*" else locale
    return figure(f"{name}, {max(c['pairs'] for c in curves):,} pairs", f"Gap curve of {name}", out, "seconds until the next turn")


def reliability(seen: Mapping[str, Any]) -> str:
    """Reliability diagrams with their expected calibration error; says what there is none of, and why."""
    diagrams = seen.get("reliability") or []
    if not seen.get("model"):
        return ""
    if not seen.get("deep", True):
        return (
            '<p class="sub">Nothing was judged anew in this run; the diagrams are in the report of the run that made the last release.</p>'
        )
    out = []
    split = seen.get("split") or {}
    for kind, (title, lead) in KINDS.items():
        mine = [d for d in diagrams if d["kind"] == kind]
        more = ""
        if kind == "later" and split:
            known = (
                "after the last day that the model learned from"
                if split.get("unseen")
                else "a day that the model's parameters were learned from too"
            )
            more = f" The split is {split['day']}, {known}."
        if not mine:
            some = seen.get("feedback_turns") or 0
            why = f"{some:,} turns with feedback are too few." if kind == "feedback" and some else ""
            why = why or (
                "The log has no feedback." if kind == "feedback" else "There are too few days, or too few texts said before and after."
            )
            out.append(f'<h3>{html(title)}</h3><p class="sub">No diagram: {html(why)}</p>')
            continue
        pictures = "".join(_diagram(d) for d in mine[:MAX_PICTURES])
        out.append(
            f'<h3>{html(title)}</h3><p class="sub">{html(lead + more, 1000)}</p><div class="pictures">{pictures}</div>{_more(len(mine) - MAX_PICTURES)}'
        )
    sampled = seen.get("sampled") or {}
    if sampled:
        out.append(f'<p class="sub">From {sampled["turns"]:,} turns, {html(sampled["from"])} to {html(sampled["to"])}.</p>')
    return "".join(out)


def trade_off(seen: Mapping[str, Any]) -> str:
    """How much each profile would serve, and how much of that came true, as it grows stricter; empty without any."""
    rows = seen.get("trade_off") or []
    if not rows:
        return ""
    lead = (
        "Of the later users of sources whose rewrite passed every guard: the share that would be served as the threshold falls, and the share "
        "of those for whom it came true, reckoned as in the diagram above. balanced decides by P(served), careful by ln(e), evidence that holds however often one looks."
    )
    cells = "".join(
        f"<tr><td>{html(r['profile'])}</td><td class='n'>{r['threshold']:.2f}</td>{percent(r['served'])}{percent(r['right'])}"
        f"<td class='n'>{r['sources']:,}</td></tr>"
        for r in rows
    )
    head = "<th>profile</th>" + "".join(f'<th class="n">{h}</th>' for h in ("at least", "served", "came true", "sources"))
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table></div>'
    return (
        f'<h3>Precision and volume</h3><p class="sub">{html(lead, 1000)}</p><div class="pictures">{_curves(rows)}</div>'
        f"<details><summary>The figures</summary>{table}</details>"
    )


def _curves(rows: Rows) -> str:
    """One line per profile: what came true (up) of what is served."""

    def x(p: float) -> float:
        return LEFT + (WIDE - LEFT - RIGHT) * p

    def y(p: float) -> float:
        return ABOVE + (HIGH - ABOVE - BELOW) * (1 - p)

    out = [tick(x(p), f"{100 * p:.0f} %") for p in (0, 0.5, 1)]
    out += [f'<text class="t" x="{LEFT - 5}" y="{y(p) + 4:.1f}" text-anchor="end">{100 * p:.0f} %</text>' for p in (0, 0.5, 1)]
    for n, profile in enumerate(dict.fromkeys(r["profile"] for r in rows)):
        mine = [r for r in rows if r["profile"] == profile]
        path = " ".join(f"{x(r['served']):.1f},{y(r['right']):.1f}" for r in mine)
        out.append(f'<polyline class="c{n % LINES}" points="{path}"><title>{html(profile)}</title></polyline>')
        for r in mine:
            said = (
                f"{profile}, at least {r['threshold']:.2f}: {r['served']:.0%} served, {r['right']:.0%} came true, {r['sources']:,} sources"
            )
            out.append(
                f'<circle class="p l{n % LINES}" cx="{x(r["served"]):.1f}" cy="{y(r["right"]):.1f}" r="3"><title>{html(said)}</title></circle>'
            )
        out.append(f'<text class="t l{n % LINES}" x="{LEFT + 8}" y="{HIGH - BELOW - 8 - 13 * n}">{html(profile, 24)}</text>')
    return figure("Precision and volume", "Share that came true against the share served, per profile", out, "served; up: came true")


def _diagram(d: Mapping[str, Any]) -> str:
    def x(p: float) -> float:
        return LEFT + (WIDE - LEFT - RIGHT) * p

    def y(p: float) -> float:
        return ABOVE + (HIGH - ABOVE - BELOW) * (1 - p)

    out = [tick(x(p), f"{p:g}") for p in (0, 0.25, 0.5, 0.75, 1)]
    out += [f'<text class="t" x="{LEFT - 5}" y="{y(p) + 4:.1f}" text-anchor="end">{p:g}</text>' for p in (0, 0.5, 1)]
    out.append(f'<line class="ideal" x1="{x(0)}" y1="{y(0)}" x2="{x(1)}" y2="{y(1)}"/>')
    path = " ".join(f"{x(p):.1f},{y(q):.1f}" for p, q, _ in d["bins"])
    out.append(f'<polyline class="c0" points="{path}"/>')
    biggest = max((n for _, _, n in d["bins"]), default=1)
    for p, q, n in d["bins"]:
        title = f"said {p:.2f}, happened {q:.2f}, {n:,} cases"
        out.append(
            f'<circle class="p dot" cx="{x(p):.1f}" cy="{y(q):.1f}" r="{2.5 + 5 * math.sqrt(n / biggest):.1f}"><title>{title}</title></circle>'
        )
    caption = f"{d['locale'] or 'all locales'}: {d['n']:,} cases, ECE {d['ece']:.3f}"
    return figure(caption, f"Reliability diagram, {caption}", out, "predicted; up: happened")


def tick(x: float, text: str) -> str:
    """A mark on the horizontal axis; at the right end its text ends there, or it would be cut off."""
    base = HIGH - BELOW
    at, anchor = (x, "middle") if x < WIDE - 2 * RIGHT else (WIDE - 1, "end")
    mark = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 4}"/>'
    return f'{mark}<text class="t" x="{at:.1f}" y="{base + 16}" text-anchor="{anchor}">{text}</text>'


def figure(caption: str, label: str, parts: list[str], axis: str) -> str:
    frame = f'<rect class="frame" x="{LEFT}" y="{ABOVE}" width="{WIDE - LEFT - RIGHT}" height="{HIGH - ABOVE - BELOW}"/>'
    title = f'<text class="h" x="{LEFT}" y="14">{html(caption, 60)}</text>'
    foot = f'<text class="t" x="{(WIDE + LEFT - RIGHT) / 2}" y="{HIGH - 4}" text-anchor="middle">{html(axis)}</text>'
    return f'<svg class="plot" viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{html(label)}">{frame}{"".join(parts)}{title}{foot}</svg>'


def percent(value: float | None) -> str:
    """A share as a cell in percent, with enough digits for a rare one."""
    if value is None:
        return '<td class="n"></td>'
    percent = 100 * value
    return f'<td class="n">{percent:.{0 if percent >= 10 or percent == 0 else 1 if percent >= 1 else 2}f} %</td>'


def _diverging(part: float) -> str:
    """A bar from the middle: to the right for failed, to the left for served."""
    width = 50 * min(abs(part), 1.0)
    side = "left:50%" if part >= 0 else f"left:{50 - width:.1f}%"
    return f'<span class="mid"><i class="{"bad" if part >= 0 else "good"}" style="{side};width:{width:.1f}%"></i></span>' if part else ""


def _more(n: int) -> str:
    return f'<p class="sub">{n:,} more locales are not shown.</p>' if n > 0 else ""
