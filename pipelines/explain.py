"""`sayagain explain`: what was mined for a text and on what evidence, or why nothing was released."""

from __future__ import annotations

import json
import shutil
import textwrap
from typing import Any

import polars as pl

from pipelines import explain_at, registry, shards
from pipelines.context import Context
from pipelines.errors import LakeError
from pipelines.options import ExplainOptions
from pipelines.store import Store
from quality.reasons import sentence
from rewrite.text import key

Rows = list[dict[str, Any]]


def main(options: ExplainOptions) -> int:
    """Print the story of a text, newest as-of first. Texts that fewer than k users share are shown with --private only."""
    context = Context(options)
    as_of, values = options.as_of or _newest(context.store), explain_at.parse(options.at_threshold)
    if options.text is None:
        return _all(context, str(as_of), options, values)
    story = tell(context, key(options.text), str(as_of), options.locale, options.private, values)
    if options.json:
        print(json.dumps(story, default=str, ensure_ascii=True))
    else:
        print("\n".join(lines(story)))
    return 0


def _newest(store: Store) -> str:
    days = [p.removeprefix("as_of=")[:10] for p in store.manifests("candidates")]
    if not days:
        raise LakeError(f"{store.url('candidates')}: nothing was mined yet; run `sayagain mine` first")
    return max(days)


def _mined(store: Store, as_of: str, locale: str | None) -> list[pl.DataFrame]:
    """Candidate rewrites, candidate labels and goals as of a date. Raises LakeError when there are none."""
    names = (("candidates", f"as_of={as_of}/rewrites"), ("candidates", f"as_of={as_of}/labels"), ("goals", f"as_of={as_of}"))
    frames = [f for f in (shards.whole(store, t, p) for t, p in names) if f is not None]
    if len(frames) < len(names):
        raise LakeError(f"{store.url('candidates')}: nothing was mined as of {as_of}; leave --as-of away for the newest date")
    return [f.filter(pl.col("locale") == locale) if locale else f for f in frames]


def _all(context: Context, as_of: str, options: ExplainOptions, values: dict[str, float]) -> int:
    """What the setting would do to all candidates, as counts."""
    rewrites, labels, _ = _mined(context.store, as_of, options.locale)
    k = context.config.privacy.k
    found = {n: explain_at.summary(n, t, values, k) for n, t in (("rewrites", rewrites), ("labels", labels))}
    if options.json:
        print(json.dumps({"as_of": as_of, "at": values, **found}))
        return 0
    print(f"As of {as_of}, with {', '.join(f'{n} = {v:g}' for n, v in values.items())} instead:")
    for name, c in found.items():
        lost = "; ".join(f"{n:,} {sentence(r)}" for r, n in c["lost_to"].items())
        print(
            f"  {name}: {c['before']:,} proposed, {c['stay']:,} would stay, {c['lost']:,} go{f' ({lost})' if lost else ''}, {c['gained']:,} come"
        )
        if c["perhaps"]:
            print(f"    and {c['perhaps']:,} perhaps: they pass what turned them down, other rules were not tried on them yet")
    return 0


def tell(
    context: Context, text: str, as_of: str, locale: str | None, private: bool, values: dict[str, float] | None = None
) -> dict[str, Any]:
    """Everything known about a text as of a date: per locale its goal, its rewrites either way, its label, what was released.

    values: of `--at-threshold`; rows then have `at_decision`, `at_reason` and `untried`.
    """
    store, k = context.store, context.config.privacy.k
    rewrites, labels, goals = _mined(store, as_of, locale)
    if values:
        rewrites, labels = explain_at.at("rewrites", rewrites, values, k), explain_at.at("labels", labels, values, k)
    shown = pl.lit(True) if private else (pl.col("source_users") >= k) & (pl.col("target_users") >= k)
    at = goals.filter(pl.col("utterance") == text)
    said = labels.filter(pl.col("utterance") == text)
    users = max([*at["users"], *said["users"], *rewrites.filter(pl.col("source") == text)["source_users"], 0])
    story: dict[str, Any] = {"text": text, "as_of": as_of, "k": k, "users": users if private or users >= k else None}
    nowhere = at.is_empty() and said.is_empty() and rewrites.filter(pl.col("source") == text).is_empty()
    if story["users"] is None or nowhere:
        story["why"] = (
            f"no text with this key was mined as of {as_of}"
            if private
            else f"fewer than k = {k} users said this, or nobody did; --private shows what there is"
        )
        if not private:
            return story
    others = goals.join(at.select("goal_id"), on="goal_id", how="semi").filter(pl.col("utterance") != text)
    others = others.filter(pl.lit(private) | (pl.col("users") >= k)).sort("users", "locale", "utterance", descending=[True, False, False])
    story["goals"] = at.select("locale", "goal_id", "membership", "users").to_dicts()
    story["other_wordings"] = others.head(12).select("locale", "utterance", "users", "membership").to_dicts()
    order = ["probability", "target"]
    story["rewrites_from_it"] = (
        rewrites.filter(pl.col("source") == text, shown).sort(order, descending=[True, False], nulls_last=True).head(12).to_dicts()
    )
    hidden = rewrites.filter(pl.col("source") == text).height - rewrites.filter(pl.col("source") == text, shown).height
    story["hidden_targets"] = hidden
    to_it = rewrites.filter(pl.col("target") == text, shown, pl.col("decision") == "proposed")
    story["rewrites_to_it"] = to_it.sort("source_users", "source", descending=[True, False]).head(12).to_dicts()
    story["labels"] = said.to_dicts()
    story["released"] = _released(store, text, locale)
    return story


def _released(store: Store, text: str, locale: str | None) -> dict[str, Any] | None:
    release_id = registry.newest_id(store)
    if release_id is None:
        return None
    out: dict[str, Any] = {"release_id": release_id}
    tables = registry.Opened(store, release_id).tables("rewrites", "labels")
    for name, column in (("rewrites", "source"), ("labels", "utterance")):
        table = tables[name]
        out[name] = table.filter(pl.col(column) == text, pl.lit(locale is None) | (pl.col("locale") == (locale or ""))).to_dicts()
    return out


def printable(value: Any) -> str:
    """A stranger's text for a terminal: control and format characters are shown as escapes, never sent."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in str(value))


def lines(story: dict[str, Any]) -> list[str]:
    """The story for a terminal."""
    out = [f'"{printable(story["text"])}"  (as of {story["as_of"]})']
    if story.get("why"):
        return [*out, f"  {story['why']}"]
    out.append(f"  said by {story['users']} users" if story["users"] else "  said by new accounts alone, which count beside known ones")
    for g in story["goals"]:
        out.append(f"  goal {g['goal_id']} in {g['locale']}, membership {g['membership']:.2f}")
    if story["other_wordings"]:
        out += ["", "Other wordings of its goal"]
        out += [f"  {w['users']:>6} users  {w['locale']}  {printable(w['utterance'])}" for w in story["other_wordings"]]
    out += ["", "Rewrites from it"]
    for r in story["rewrites_from_it"]:
        out += _rewrite(r, r["target"])
    if not story["rewrites_from_it"]:
        out.append(
            "  none was considered: nobody who said it went on to ask for the same goal in another wording"
            if not story["hidden_targets"]
            else ""
        )
    if story["hidden_targets"]:
        out.append(f"  ({story['hidden_targets']} more whose wording fewer than k = {story['k']} users share; --private shows them)")
    if story["rewrites_to_it"]:
        out += ["", "Rewrites to it"]
        out += [f"  {r['probability']:.2f}  {printable(r['source'])}" for r in story["rewrites_to_it"]]
    out += ["", "Label"]
    for row in story["labels"]:
        slots = f" {printable(row['slots'])}" if row["slots"] else ""
        out.append(f"  {row['decision']}: {printable(row['intent'])}{slots}, confidence {row['confidence']:.2f}, from {row['origin']}")
        out += _why(row["reason"]) + _at(row)
        out.append(f"    majority of users' turns: {printable(row['majority_intent'])} ({row['majority_share'] or 0:.2f})")
    if not story["labels"]:
        out.append("  none")
    out += ["", "Released"]
    released = story["released"]
    if released is None:
        out.append("  nothing was released from this lake yet")
    else:
        for r in released["rewrites"]:
            out.append(f'  rewrite {r["rewrite_id"]} to "{printable(r["target"])}", {r["status"]}, expires {r["expires"]}')
        for r in released["labels"]:
            out.append(f"  label {printable(r['intent'])}, weight {r['sample_weight']:.2f}, split {r['split']}")
        if not released["rewrites"] and not released["labels"]:
            out.append(f"  nothing for this text in {released['release_id']}")
    return out


def _rewrite(r: dict[str, Any], text: str) -> list[str]:
    head = f"  {r['decision']:<9} {printable(text)}"
    facts = (
        f"P(serves) {r['probability']:.2f} against {r['source_served']:.2f} when left alone (lift at least {r['lift_lower']:+.2f}); "
        f"chain score {r['score']:.2f}; {r['pair_users']} users went straight from one to the other; target said by {r['target_users']}"
    )
    width = max(60, shutil.get_terminal_size((110, 24)).columns)
    return [head, *textwrap.wrap(facts, width, subsequent_indent="    ", initial_indent="    "), *_why(r["reason"]), *_at(r)]


def _at(row: dict[str, Any]) -> list[str]:
    return [f"    at the other setting {explain_at.told(row)}"] if "at_decision" in row else []


def _why(reason: str) -> list[str]:
    return [f"    because {sentence(reason)}"]
