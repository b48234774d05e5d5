"""The report: one file that says what happened and why, safe whatever the texts, with or without anything to show."""

import json
import re
import shutil
import subprocess
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from release_world import AS_OF, build, frame, goal, label, rewrite, world

from quality.data_card import data_card
from quality.gates import Verdict, Verdicts
from quality.goalmap import draw, goal_map
from quality.markup import clean
from quality.reasons import sentence
from quality.report import render_report
from quality.reportdata import ReportData, report_data
from quality.rowevidence import of_labels, of_rewrites
from quality.tables import MAX_JSON
from rewrite.contracts import CANDIDATES, GOAL_EDGES

HOSTILE = "</script><script>alert('x1')</script><img src=x onerror=alert(2)>\"'&<!--"
FAILED = Verdict("rewrites", "k_users", "source", "critical", False, 4, 90, "a text was said by fewer than k users")
WARNED = Verdict("goals", "goal_has_exemplar", "is_exemplar", "warning", False, 1, 9, "a goal has no exemplar")
MET = Verdict("labels", "columns", "", "critical", True, 0, 13, "a column is missing")


class Page(HTMLParser):
    """Tags with their attributes, the JSON of tables, and the text that can be read."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, Any] = {}
        self.text = ""
        self._at: dict[str, str | None] | None = None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._at = dict(attrs) if tag in ("script", "style") else None

    def handle_data(self, data: str) -> None:
        if self._at is None:
            self.text += data
        elif self._at.get("type") == "application/json":
            self.tables[str(self._at["id"]).removeprefix("rows-")] = json.loads(data)

    def handle_endtag(self, tag: str) -> None:
        self._at = None


def whole(**more: Any) -> tuple[ReportData, Any]:
    """A report with everything in it."""
    rows = world(**more)
    release = build(rows)
    edge = {"locale_a": "en-US", "utterance_a": "turn on the light", "locale_b": "en-US", "utterance_b": "light on", "probability": 0.9}
    data = report_data(
        "released",
        release=release,
        verdicts=Verdicts((MET, WARNED)),
        candidates={name: frame(schema, rows[name]) for name, schema in CANDIDATES.items()},
        goal_edges=frame(GOAL_EDGES, [edge]),
        funnel=[{"step": "turns read", "locale": "en-US", "count": 900}, {"step": "turns read", "locale": "sw-KE", "count": 80}],
        drops=[{"step": "turns read", "reason": "bad_json", "locale": "sw-KE", "count": 3}],
        signals=[{"signal": "barge_in", "locale": "en-US", "coverage": 0.125, "weight": -2}],
        notes=["naive timestamps were read as UTC"],
        timings=[{"stage": "ingest", "seconds": 12.34, "peak_mib": 512.6, "what": "980 turns"}],
    )
    return data, release


def test_it_tells_the_whole_story() -> None:
    data, release = whole()
    page = Page(render_report(data))
    for said in [
        "2 rewrites, 3 labels and 2 pairs released", release.release_id, "Rewrites: 2 new.", "1 warning.", "a goal has no exemplar",
        "turns read", "a line that is not a JSON object", "980", "unproven", "barge_in", "0.125", "naive timestamps", "12.3", "513",
        "rewrites considered", "rewrites released",
    ]:  # fmt: skip
        assert said in page.text, said
    assert [row[1] for row in page.tables["rewrites"]["rows"]] == ["turn on the lite", "tern on"]
    assert "device: light" in [cell for row in page.tables["labels"]["rows"] for cell in row]
    assert page.tables["rejected"]["rows"][0][1:3] == ["play jass", "play jazz"]
    assert "<title>light on (en-US, 10+ users)</title>" in render_report(data)


def test_the_copy_inside_a_release_has_no_clock() -> None:
    data, _ = whole()
    data.timings = None
    assert "12.3" not in render_report(data) and "peak MiB" not in render_report(data)
    assert render_report(data) == render_report(whole()[0].__class__.from_json(data.to_json()))


def test_nothing_leaves_the_page() -> None:
    text = render_report(whole()[0])
    page = Page(text)
    assert not re.search(r"(?:src|href)=\"(?!#)", text) and "url(" not in text and "@import" not in text
    assert {tag for tag, _ in page.tags}.isdisjoint({"link", "iframe", "img", "object", "base", "form"})
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'") and "'unsafe-inline'; script-src 'sha256-" in policy


def test_hostile_texts_stay_texts() -> None:
    rows = world(rewrites=[rewrite("tern on", HOSTILE), rewrite(HOSTILE, "light on", decision="rejected", reason=HOSTILE)])
    rows["labels"] = [label(HOSTILE, HOSTILE, locale=HOSTILE, slots=json.dumps({HOSTILE: HOSTILE}))]
    rows["goals"] = [goal(HOSTILE, users=90), goal("light on"), goal(HOSTILE, "g2", locale=HOSTILE), goal("x", "g2")]
    data, _ = whole(**rows)
    data.notes, data.why = [HOSTILE], HOSTILE
    data.funnel = [{"step": HOSTILE, "locale": HOSTILE, "count": 1}]
    data.drops = [{"step": HOSTILE, "locale": HOSTILE, "count": 1, "reason": HOSTILE}]
    data.signals = [{HOSTILE: HOSTILE}]
    data.timings = [{"stage": HOSTILE, "what": HOSTILE, "seconds": 1, "peak_mib": 1}]
    data.verdicts = [{**WARNED.__dict__, "message": HOSTILE, "column": HOSTILE, "table": HOSTILE}]
    text = render_report(data)
    page, plain = Page(text), Page(render_report(whole()[0]))
    kinds = lambda p: {tag for tag, _ in p.tags}  # noqa: E731
    assert kinds(page) <= kinds(plain)
    assert sum(tag == "script" for tag, _ in page.tags) == 6, "five tables and the one that draws them"
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert "alert('x1')" in page.text and page.tables["rewrites"]["rows"][0][2] == HOSTILE


def test_control_and_direction_characters_become_visible() -> None:
    assert clean("a\x00b\x1b[31m\u202eevil\u2066\ud800") == "a\ufffdb\ufffd[31m\ufffdevil\ufffd\ufffd"
    assert clean("x" * 500) == "x" * 200 + "…"
    assert clean("नमस्ते 你好 שלום") == "नमस्ते 你好 שלום"
    render_report(ReportData("empty", why="\ud800\x00")).encode("utf-8")


def test_texts_below_k_never_show() -> None:
    row = {"locale": "en-US", "source": "a secret", "target": "b", "probability": 0.5, "users": 9, "source_users": 2}
    seen = {**row, "source": "no secret", "source_users": 3}
    data = ReportData("released", k=3, rewrites=[row, seen], labels=[{"utterance": "my secret", "users": 2}], rejected=[row])
    data.goal_map = goal_map(pl.DataFrame([goal("a secret place", users=2), goal("light on", users=2)]), None)
    text = render_report(data)
    assert "no secret" in text and "a secret" not in text and "my secret" not in text and "light on" not in text
    rejected = [rewrite("hidden", "light on", source_users=2, decision="rejected"), rewrite("x <mail>", "light on", decision="rejected")]
    candidates = {"rewrites": frame(CANDIDATES["rewrites"], rejected)}
    assert report_data("empty", candidates=candidates).rejected == []


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (ReportData("empty"), "No text was said by 3 or more users"),
        (ReportData("empty", why="28 months hold 94 active days."), "94 active days"),
        (ReportData("nothing_new", release_id="r1"), "The rows equal those of the parent"),
        (ReportData("refused", verdicts=[FAILED.__dict__, MET.__dict__]), "1 critical gate failed, so nothing was released"),
        (ReportData("refused", verdicts=[FAILED.__dict__]), "4 of 90"),
        (ReportData("released"), "A release without rows"),
    ],
)
def test_little_or_nothing_to_show(data: ReportData, said: str) -> None:
    assert said in Page(render_report(data)).text


def test_an_empty_run_says_why() -> None:
    decisions = [("weak", 70), ("other_goal", 900), ("below_k", 30)]
    rows = [{"table": "rewrites", "decision": "rejected", "reason": r, "locale": "en-US", "count": n} for r, n in decisions]
    text = Page(render_report(ReportData("empty", candidates=rows))).text
    assert "1,000 candidates were weighed and none could be released" in text
    assert text.index("end on another goal") < text.index("less likely than not")


def test_it_stays_under_five_megabytes() -> None:
    row = {"locale": "en-US", "source": "<" * 1000, "target": "&" * 1000, "probability": 0.5, "users": 3}
    rows = [row] * 5000
    labels = [{"locale": "en-US", "utterance": "<" * 900, "intent": "ü" * 300, "slots": "{" * 900, "users": 3}] * 5000
    data = ReportData("released", rewrites=rows, labels=labels, rejected=[{**row, "reason": "weak"}] * 5000, candidates=[])
    data.candidates = [{"table": "rewrites", "decision": "rejected", "reason": "weak", "locale": "en-US", "count": 5000}]
    text = render_report(data)
    assert len(text.encode()) < 5_000_000
    assert "The top " in text and all(len(json.dumps(t)) < 2 * MAX_JSON for t in Page(text).tables.values())


def test_reasons_are_sentences() -> None:
    assert sentence("weak").startswith("the target is less likely") and sentence("brand_new") == "brand new"
    assert sentence("goal", "pairs") == "two texts of one goal" != sentence("goal", "rewrites")


def test_many_locales_share_a_column() -> None:
    funnel = [{"step": "turns read", "locale": f"x{n:02}", "count": 100 - n} for n in range(20)]
    text = Page(render_report(ReportData("empty", funnel=funnel))).text
    assert "x05" in text and "x06" not in text and "other" in text


def test_a_row_opens_its_evidence() -> None:
    extra = {"goal_users": 13, "treated_users": 0, "log_e": 4.5}
    weighed = [
        rewrite("tern on", "turn on the light"),
        *(rewrite("tern on", f"turn {n}", decision="rejected", target_users=n) for n in range(9)),
    ]
    candidates = frame(CANDIDATES["rewrites"], weighed).with_columns(pl.lit(v).alias(n) for n, v in extra.items())
    tables = build().tables
    found = of_rewrites(tables["rewrites"].filter(source="tern on"), candidates, tables["goals"], 3)
    row = found[0]
    assert row["goal"] == "light on" and row["goal_users"] == "10+" and row["treated_users"] is None and row["pair_users"] == "3+"
    assert row["others"].startswith("turn 3 (P 0.812: ") and row["others"].count("; ") == 2 and "turn 2" not in row["others"], (
        "k users or unnamed"
    )
    labels = of_labels(tables["labels"], frame(CANDIDATES["labels"], world()["labels"]), tables["goals"], 3)
    assert labels[0]["why"] == sentence("own") and labels[0]["majority_share"] == 1 and len(labels) == 3
    assert of_rewrites(tables["rewrites"], None, tables["goals"], 3)[0]["rewrite_id"]


def test_goal_map_is_deterministic_and_discs_do_not_touch() -> None:
    rows = pl.DataFrame([goal(f"text {g} {n}", f"g{g}", users=3 + n) for g in range(60) for n in range(2 + g % 20)])
    picture = goal_map(rows, None)
    assert picture == goal_map(rows.sample(fraction=1, shuffle=True, seed=1), None)
    discs = picture["goals"]
    for i, a in enumerate(discs):
        assert all((a["x"] - b["x"]) ** 2 + (a["y"] - b["y"]) ** 2 >= (a["r"] + b["r"]) ** 2 for b in discs[:i])
    assert draw(picture, 3).startswith("<svg") and draw({}, 3) == ""
    assert goal_map(rows.clear(), None)["points"] == []


def test_data_card_names_no_text_and_does_not_change() -> None:
    release = build()
    card = data_card(release, Verdicts((MET, WARNED)))
    assert card == data_card(build(), Verdicts((MET, WARNED)))
    assert release.release_id in card and "| en-US | 2 | 3 | 6 | 2 |" in card and "a goal has no exemplar" in card
    assert "turn on" not in card and "**3** users" in card
    later = build(parent=release, as_of=AS_OF + timedelta(days=1))
    assert f"It follows `{release.release_id}`" in data_card(later, Verdicts(()))
    empty = build(world(rewrites=[], labels=[], goals=[], pairs=[], goal_changes=[]))
    assert "There are no rows in any locale" in data_card(empty, Verdicts(()))


FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--hide-scrollbars", "--virtual-time-budget=3000"]


def browse(chromium: str, tmp_path: Path, text: str) -> str:
    """What the page is after its script ran."""
    path = tmp_path / "report.html"
    path.write_text(text, encoding="utf-8")
    command = [chromium, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    shutil.rmtree(tmp_path / "profile", ignore_errors=True)
    return done.stdout


def test_in_a_browser(chromium: str, tmp_path: Path) -> None:
    """Tables are drawn, sort and search without an error on the console; a hostile text runs nothing."""
    data, _ = whole(rewrites=[rewrite("tern on", HOSTILE), rewrite("turn on the lite", "turn on the light")])
    drive = """
    <script>addEventListener("load", () => {
      const host = document.querySelector("[data-rows=rows-rewrites]");
      const cells = () => [...host.querySelectorAll("tbody tr")].map((r) => r.children[2].textContent);
      const out = { first: cells() };
      host.querySelectorAll("th button")[1].click(); out.sorted = cells();
      out.aria = host.querySelectorAll("th")[2].getAttribute("aria-sort");
      const fold = host.querySelector("td.fold button"); fold.focus(); out.focus = document.activeElement === fold; fold.click();
      out.evidence = host.querySelector("tr.evidence").textContent; out.expanded = fold.getAttribute("aria-expanded");
      fold.click(); out.folded = host.querySelector("tr.evidence") === null;
      const box = host.querySelector("input"); box.value = "TERN"; box.dispatchEvent(new Event("input")); out.found = cells();
      out.count = host.querySelector("output").textContent; out.alerts = window.alerted || 0;
      const p = document.createElement("p"); p.id = "drive"; p.textContent = JSON.stringify(out); document.body.append(p);
    });</script>"""
    text = render_report(data)
    open_policy = re.sub(r"script-src &#x27;sha256-[^&]+&#x27;", "script-src &#x27;unsafe-inline&#x27;", text)
    assert open_policy != text
    dom = browse(
        chromium, tmp_path, open_policy.replace("<head>", "<head><script>window.alert = () => { window.alerted = 1; };</script>" + drive)
    )
    found = re.search(r'<p id="drive">(.*?)</p>', dom)
    assert found
    done = json.loads(found[1])
    assert sorted(done["first"]) == done["sorted"] == ["tern on", "turn on the lite"] and done["aria"] == "ascending"
    assert done["found"] == ["tern on"] and done["count"] == "1 of 2 rows" and done["alerts"] == 0
    assert "weeks seen" in done["evidence"] and "users of the source end on" in done["evidence"]
    assert done["focus"] and done["expanded"] == "true" and done["folded"]
    shipped = browse(chromium, tmp_path, text)
    assert shipped.count("<td") > 20 and "2 of 2 rows" in shipped, "the policy lets the report's own script run"
