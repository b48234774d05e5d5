"""`sayagain detect --explain TURN_ID`: why a turn was judged as it was, computed anew from its session and the model."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pyarrow.compute as pc

from pipelines import modelstore, shards
from pipelines.context import Context
from pipelines.errors import LakeError
from pipelines.explain import printable
from pipelines.options import DetectOptions
from pipelines.shards import Shard
from pipelines.store import FileEntry, Store

VIEWS = {"text": "the texts", "gap": "the time between", "friction": "how the first went"}
SIGNALS = ("status", "barge_in", "feedback", "intent_confidence", "asr_confidence", "response")
NEAR = 5
"""Turns of the session that are shown before and after it: pairs reach three, and a little around."""

Story = dict[str, Any]
Text = dict[str, Any]


def main(options: DetectOptions) -> int:
    """Print why. Raises LakeError when no turn of the chosen days has the id."""
    context = Context(options)
    stories = [_story(context, day, entry, user, str(options.explain)) for day, entry, user in _find(context, str(options.explain))]
    if options.json:
        print(json.dumps({"turns": stories}, default=str, ensure_ascii=True))
    else:
        print("\n\n".join("\n".join(lines(s)) for s in stories))
    return 0


def _find(context: Context, turn_id: str) -> list[tuple[str, FileEntry, str]]:
    """(day, file, user key) of the turns with this id: it is unique per user and date alone."""
    store, found = context.store, []
    days = context.chosen_dates("turns")
    have = store.manifests("turns")
    for day in days:
        for entry in have[shards.partition(day)].files:
            ids = store.read_file(entry, ["turn_id", "user_key"])
            at = ids.filter(pc.equal(ids["turn_id"], turn_id))
            found += [(str(day), entry, user) for user in sorted(set(at["user_key"].to_pylist()))]
    if not found:
        span = f"{days[0]} to {days[-1]}" if days else "no day at all"
        raise LakeError(
            f"--explain {printable(turn_id)[:200]}: no turn has this id ({span}); a row that was rejected or a duplicate is no turn, "
            "see the rejects of its day, and --from and --to choose the days"
        )
    return found


def _story(context: Context, day: str, entry: FileEntry, user: str, turn_id: str) -> Story:
    from rewrite import asked_again, outcomes, pairs
    from rewrite.alignment import ALIGNMENT, KINDS, align
    from rewrite.curves import logit

    store, gap_s = context.store, context.config.sessions.gap
    fingerprint = modelstore.current(store)
    if fingerprint is None:
        raise LakeError(f"{store.url('models')}: there is no model yet; run `sayagain fit --lake {context.options.lake}` first")
    model = modelstore.load(store.root, fingerprint)
    whole = shards.read(store, Shard("turns", ((f"date={day}", entry),))).filter(pl.col("user_key") == user)
    at_session = whole.filter(pl.col("turn_id") == turn_id)["session"][0]
    turns = pairs.ordered(whole.filter(pl.col("session") == at_session))

    def judged(t: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        scored = asked_again.score(t, pairs.candidate_pairs(t), model)
        return scored, outcomes.judge(t, scored, model, gap_s).with_row_index("row")

    scored, verdicts = judged(turns)
    row = turns["turn_id"].to_list().index(turn_id)
    turn = turns.row(row, named=True)
    verdict = verdicts.row(row, named=True)
    p, own = verdict["p_failed"], verdict.get("p_failed_seen", verdict["p_failed"])
    prior = 1.0 - model.served_prior(turn["locale"])
    private = bool(getattr(context.options, "private", False))
    k = context.config.privacy.k
    shown = set() if private else _shared(store, turns, day, k)
    distinct = turns.select("locale", "key").unique(maintain_order=True).rows()

    def text(i: int) -> Text:
        """The text, or its number in the session where it may not be shown."""
        key = turns["locale"][i], turns["key"][i]
        return {"text": turns["utterance"][i] if private else key[1] if key in shown else None, "number": distinct.index(key) + 1}

    def changed(near: pl.DataFrame) -> pl.DataFrame:
        found = dict(zip(ALIGNMENT, align(*(turns["key"].gather(near[side]) for side in ("i", "j"))).T, strict=True))
        return near.with_columns(change=pl.Series([KINDS[int(n)] for n in found["kind"]], dtype=pl.String), sound=found["sound"])

    without = {}
    for name in SIGNALS:
        if turn[name] is not None:
            blank = pl.when(pl.int_range(pl.len()) == row).then(None).otherwise(pl.col(name)).alias(name)
            without[name] = judged(turns.with_columns(blank))[1]["p_failed"][row]
    if row + 1 < turns.height:
        without["what came next"] = judged(turns.head(row + 1))[1]["p_failed"][row]
    manifest = store.manifest("outcomes", f"date={day}")
    made_by = manifest.inputs.get("model") if manifest else None
    around = range(max(0, row - NEAR), min(turns.height, row + NEAR + 1))
    return {
        "turn_id": turn_id,
        "date": day,
        "locale": turn["locale"],
        "k": k,
        "model": fingerprint[:12],
        "stale": None if made_by == fingerprint else "never scored" if made_by is None else f"scored by model {made_by[:12]}",
        "session": [{"offset": i - row, "text": text(i), **_facts(turns.row(i, named=True), turn)} for i in around],
        "pairs": [
            _pair(r, row, text, model.detector(r["locale"], turns["channel"][r["i"]]).base)
            for r in changed(scored.filter((pl.col("i") == row) | (pl.col("j") == row))).iter_rows(named=True)
        ],
        "outcome": {
            "prior": prior,
            "p_failed_seen": own,
            "p_failed": p,
            "session_says": float(logit(own) - logit(prior)),
            "text_says": float(logit(p) - logit(own)),
            "p_mixed": verdict["p_mixed"],
            "cause": verdict["cause"],
            "cause_probability": verdict["cause_probability"],
            "came_next": _came_next(scored, row, turn, bool(verdict.get("censored", False))),
            "retry": bool(turn["is_retry"]),
            "without": without,
        },
    }


def _facts(turn: dict[str, Any], focus: dict[str, Any]) -> dict[str, Any]:
    kept = {n: turn[n] for n in ("channel", "status", "barge_in", "feedback", "asr_confidence", "intent_confidence", "treatment")}
    seconds = (turn["timestamp"] - focus["timestamp"]).total_seconds()
    return {"seconds": seconds, **{n: v for n, v in kept.items() if v is not None}}


def _pair(r: dict[str, Any], row: int, text: Any, base: float) -> dict[str, Any]:
    """One scored pair: what each view adds to the prior, in log odds."""
    from rewrite.curves import logit

    names = ("lag", "gap_s", "same_text", "is_retry", "probability", "p_same_topic", "decided_by", "edit", "jaccard", "change", "sound")
    says = {v: float(logit(r[f"p_{v}"]) - logit(base)) for v in VIEWS}
    out = {"first": text(r["i"]), "second": text(r["j"]), "this_is": "first" if r["i"] == row else "second", "base": base}
    return out | {n: r[n] for n in names} | {"says": says, "alone": {v: r[f"p_{v}"] for v in VIEWS}}


def _came_next(scored: pl.DataFrame, row: int, turn: dict[str, Any], censored: bool) -> str:
    real = scored.filter((pl.col("i") == row) & ~pl.col("is_retry"))
    if turn["is_retry"]:
        return "the same again within two seconds: a client's retry, judged by the turn that stands for it"
    if not real.height:
        return "not known: midnight came first" if censored else "nothing: the session ended here"
    best = max(real["probability"].to_list())
    return f"asked again with P = {best:.2f}" if best >= 0.5 else f"something else (asked again with P = {best:.2f})"


def _shared(store: Store, turns: pl.DataFrame, day: str, k: int) -> set[tuple[str, str]]:
    """(locale, text) of the session that k users said: by the newest goals, or on this day; both can only say too few."""
    wanted = turns.select("locale", "key").unique()
    out: set[tuple[str, str]] = set()
    if newest := max(store.manifests("goals"), default=None):
        goals = shards.whole(store, "goals", newest)
        if goals is not None:
            known = goals.filter(pl.col("users") >= k).select("locale", key="utterance")
            out |= set(wanted.join(known, on=["locale", "key"], how="semi").iter_rows())
    if len(out) < wanted.height:
        said = [store.frame(f, ["locale", "key", "user_key"]) for f in _files(store, day)]
        users = (
            pl.concat(said).join(wanted, on=["locale", "key"], how="semi").group_by("locale", "key").agg(n=pl.col("user_key").n_unique())
        )
        out |= set(users.filter(pl.col("n") >= k).select("locale", "key").iter_rows())
    return out


def _files(store: Store, day: str) -> tuple[FileEntry, ...]:
    manifest = store.manifest("turns", f"date={day}")
    return manifest.files if manifest else ()


# ---- for a terminal ----------------------------------------------------------------------------------------------------


def lines(s: Story) -> list[str]:
    """The story for a terminal: nothing that a stranger wrote is sent as it is."""
    o = s["outcome"]
    out = [f"Turn {printable(s['turn_id'])[:200]} of {s['date']}, {printable(s['locale'])}, judged by model {s['model']}"]
    if s["stale"]:
        out.append(f"  The day's tables say otherwise, maybe: they were {s['stale']}; `sayagain detect` makes them anew.")
    out += ["", "Its session"]
    for t in s["session"]:
        facts = ", ".join(
            f"{n} {printable(v)}" for n, v in t.items() if n not in ("offset", "text", "seconds", "treatment") and v is not False
        )
        mark = ">" if t["offset"] == 0 else " "
        out.append(f"{mark} {t['seconds']:>+9.1f} s  {_quoted(t['text'])}" + (f"  [{facts}]" if facts else ""))
    if any(t["text"]["text"] is None for t in s["session"]):
        out.append(f"  (numbered texts were said by fewer than k = {s['k']} users, as far as is known; --private shows them)")
    out += ["", "Its pairs: did the second ask again for the goal of the first?"]
    for p in s["pairs"]:
        out += _pair_lines(p)
    if not s["pairs"]:
        out.append("  none: it is alone in its session")
    out += ["", f"Was it served? P(failed) = {o['p_failed']:.3f}"]
    out.append(f"  before anything is known: {o['prior']:.3f}, the share of this locale's turns that fail")
    out.append(f"  what came next: {o['came_next']}")
    out.append(
        f"  how it went and what came next: {o['session_says']:+.2f} log odds, so {o['p_failed_seen']:.3f}: this is what its user's vote says"
    )
    out.append(
        f"  what others' turns of the text, and the assistant's confidence, say: {o['text_says']:+.2f} log odds, so {o['p_failed']:.3f}"
    )
    for name, p in o["without"].items():
        if abs(p - o["p_failed"]) >= 0.0005:
            out.append(f"  without {name.replace('_', ' ')}: {p:.3f}")
    out.append(f"  a text that is served only sometimes: {o['p_mixed']:.3f}")
    out.append(f"  if it failed, the likeliest cause: {o['cause']} ({o['cause_probability']:.2f})")
    return out


def _pair_lines(p: dict[str, Any]) -> list[str]:
    order = f"{_quoted(p['first'])} -> {_quoted(p['second'])}"
    apart = "a retry" if p["is_retry"] else "neighbours" if p["lag"] == 1 else f"{p['lag']} turns apart"
    head = f"  {order}  {p['gap_s']:.1f} s later, {apart}"
    if p["is_retry"]:
        return [head, "    the same text within two seconds: a client sending twice, no one asking twice"]
    says = "; ".join(f"{title} {p['says'][v]:+.2f} (alone {p['alone'][v]:.2f})" for v, title in VIEWS.items())
    chain = "" if p["lag"] == 1 else "; further apart the neighbours between decide, or the texts alone"
    return [
        head,
        f"    P(asked again) {p['probability']:.3f}, P(same topic) {p['p_same_topic']:.3f}, decided by {p['decided_by']}{chain}",
        f"    from {p['base']:.2f}, in log odds: {says}",
        f"    edit similarity {p['edit']:.2f}, words in common {p['jaccard']:.2f}, sound {p['sound']:.2f}; change: {p['change']}",
    ]


def _quoted(text: Text) -> str:
    return f"(text {text['number']})" if text["text"] is None else f'"{printable(text["text"])}"'
