"""What the report shows of the model: the signal tables, learned curves, reliability and borderline pairs, from the lake.

Tables come from the counts in the daily manifests; what needs single turns comes from the newest days that hold
MAX_TURNS together. No clock, no host, no user key: the same lake gives the same figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from pipelines import modelstore
from pipelines.store import Manifest, Store

MAX_TURNS = 200_000
"""A tenth of a percent in a reliability bin, and seconds to read."""
MAX_FEEDBACK_TURNS = 10_000
"""Turns that a model learns from and judges without their feedback: two seconds' work."""


def gather(store: Store, days: list[str], gap_s: float, goals: pl.DataFrame | None, k: int, *, deep: bool = True) -> dict[str, Any]:
    """Everything that `quality.seeing` draws, as JSON types; {} when nothing was scored. `days`: of the window, ISO.

    Not `deep`: only what the manifests and the model say, which costs nothing.
    """
    from rewrite import reliability, sampling, signal_table

    have = {t: store.manifests(t) for t in ("turns", "rephrases", "outcomes")}
    days = [d for d in days if all(f"date={d}" in m for m in have.values())]
    fingerprint = modelstore.current(store)
    if not days or fingerprint is None:
        return {}
    counted = lambda table, name: signal_table.add(have[table][f"date={d}"].counts.get(name, {}) for d in days)  # noqa: E731
    model = modelstore.load(store.root, fingerprint)
    through = modelstore.made_from(store, fingerprint).get("through", "")
    out: dict[str, Any] = {
        "model": {"fingerprint": fingerprint[:12], "through": through},
        "comparison": modelstore.comparison(store, fingerprint),
        "meanings": signal_table.SIGNALS,
        "signals": signal_table.signal_table(counted("outcomes", "signals")),
        "views": signal_table.view_table(counted("rephrases", "views")),
        "decided": _decided(signal_table.with_all(counted("rephrases", "views"))),
        "gaps": reliability.gap_curves(model),
        "deep": deep,
    }
    if not deep:
        return out
    said, pairs, with_feedback = _sample(store, have, days)
    chosen = sorted(said["date"].unique().to_list())
    out["sampled"] = {"turns": said.height, "from": str(chosen[0]), "to": str(chosen[-1])} if chosen else {}
    out["reliability"] = []
    if with_feedback.height:
        cases = reliability.feedback_cases(sampling.thinned(with_feedback.drop("bucket"), MAX_FEEDBACK_TURNS), model, gap_s)
        out["reliability"] += [{"kind": "feedback", "locale": n, **d} for n, d in reliability.by_locale(cases).items()]
    out["feedback_turns"] = int(with_feedback["feedback"].is_not_null().sum()) if with_feedback.height else 0
    if split := reliability.split_day(chosen):
        cases = reliability.later_cases(said, split)
        out["reliability"] += [{"kind": "later", "locale": n, **d} for n, d in reliability.by_locale(cases).items()]
        out["split"] = {"day": str(split), "unseen": bool(through) and through < str(split)}
    out["borderline"] = _borderline(pairs, goals, k) if goals is not None else []
    return out


def _borderline(pairs: pl.DataFrame, goals: pl.DataFrame, k: int) -> list[dict[str, Any]]:
    """The pairs that the model is least sure of, of texts that k users of the locale said in the window and that held no
    personal data, with how many (floored) did; what is one user's, such as the exact time, is rounded away."""
    from quality.checks import floor_counts
    from quality.scrub import has_placeholder
    from rewrite import reliability

    shown = goals.filter(pl.col("users") >= k, ~has_placeholder("utterance"))
    shared = shown.group_by("locale", text="utterance").agg(pl.col("users").max()).with_columns(floor_counts(pl.col("users"), k))
    pairs = pairs.with_columns(pl.col("gap_s").round(0), pl.col("^p_.*$").round(3), pl.col("probability").round(4))
    found = reliability.borderline(pairs, shared)
    found = found.join(shared.rename({"users": "source_users"}), on=["locale", "text"], how="left", maintain_order="left")
    second = shared.rename({"text": "next_text", "users": "target_users"})
    return found.join(second, on=["locale", "next_text"], how="left", maintain_order="left").to_dicts()


def _decided(views: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]]:
    rows = []
    for locale, found in views.items():
        steps = {n.removeprefix("decided "): c for n, c in found.items() if n.startswith("decided ")}
        rows += [{"locale": locale, "step": s, "pairs": n, "share": n / sum(steps.values())} for s, n in sorted(steps.items())]
    return rows


def _sample(store: Store, have: Mapping[str, Mapping[str, Any]], days: list[str]) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Of the newest days: turns with their outcome, their pairs of neighbours in other words, and whole sessions with feedback.

    A day that alone is too big is thinned to whole sessions, file by file.
    """
    chosen: list[str] = []
    rows = 0
    for day in reversed(days):
        rows += have["turns"][f"date={day}"].rows
        if chosen and rows > MAX_TURNS:
            break
        chosen.append(day)
    said, pairs, told = [_EMPTY_SAID], [_EMPTY_PAIRS], []
    for day in sorted(chosen):
        share = min(1.0, MAX_TURNS / max(have["turns"][f"date={day}"].rows, 1))
        turns = _day(store, have["turns"], day, share)
        if turns is None:
            continue
        turns = turns.unique("turn_id", keep="none").sort("turn_id")  # the tables beside have no user key to tell two apart
        kept = turns.select(_ID)
        judged = _day(store, have["outcomes"], day, keep=kept)
        found = _day(store, have["rephrases"], day, keep=kept)
        if judged is None or found is None:
            continue
        again = found.filter(pl.col("lag") > 0).group_by(_ID).agg(again=pl.col("probability").max())
        own = pl.col("p_failed_seen") if "p_failed_seen" in judged.columns else pl.col("p_failed")
        t = turns.join(judged.select(*_ID, p_failed=own), on=_ID).join(again, on=_ID, how="left")
        event = pl.col("status").is_in(["no_match", "error"]).fill_null(False) | (pl.col("again") >= 0.5).fill_null(False)
        said.append(t.with_columns(event=event).select(_EMPTY_SAID.columns))
        pairs.append(_neighbours(found, turns))
        whose = turns.filter(pl.col("feedback").is_not_null()).select("user_key", "session").unique()
        told.append(turns.join(whose, on=["user_key", "session"], how="semi"))
    return pl.concat(said), pl.concat(pairs), pl.concat(told) if told else pl.DataFrame()


def _neighbours(found: pl.DataFrame, turns: pl.DataFrame) -> pl.DataFrame:
    """Neighbours in other words, with their texts and without whose they are."""
    texts, next_texts = turns.select(*_ID, text="key"), turns.select("bucket", next_turn_id="turn_id", next_text="key")
    near = found.filter((pl.col("lag") == 1) & ~pl.col("same_text"))
    near = near.join(texts, on=_ID).join(next_texts, on=["bucket", "next_turn_id"])
    return near.select(_EMPTY_PAIRS.columns).cast(dict(_EMPTY_PAIRS.schema))  # type: ignore[arg-type]


def _day(store: Store, have: Mapping[str, Manifest], day: str, share: float = 1.0, keep: pl.DataFrame | None = None) -> pl.DataFrame | None:
    """A day of a table with `date` and `bucket`: a share of its sessions, or the rows of the turns in `keep`; None when empty."""
    from rewrite import sampling

    frames = []
    files = have[f"date={day}"].files
    # a day that is too big is cut down file by file; else one conversion of all files is several times faster
    for group in [[f] for f in files] if share < 1 else [files] if files else []:
        table = pa.concat_tables([store.read_file(f) for f in group])
        buckets = np.repeat([f.bucket or 0 for f in group], [f.rows for f in group]).astype(np.int32)
        frame = pl.DataFrame(pl.from_arrow(table)).with_columns(pl.Series("bucket", buckets), date=pl.lit(day).str.to_date())
        frame = frame.filter(sampling.drawn(frame, share)) if share < 1 else frame
        frames.append(frame if keep is None else frame.join(keep, on=_ID, how="semi"))
    return pl.concat(frames) if frames else None


_ID = ["bucket", "turn_id"]
_EMPTY_SAID = pl.DataFrame(
    schema=dict.fromkeys(("locale", "key", "user_key", "turn_id"), pl.String)
    | {"timestamp": pl.Datetime("us", "UTC"), "date": pl.Date, "p_failed": pl.Float64, "event": pl.Boolean}
)
_EMPTY_PAIRS = pl.DataFrame(
    schema={"locale": pl.String, "text": pl.String, "next_text": pl.String}
    | dict.fromkeys(("probability", "p_same_topic", "p_text", "p_gap", "p_friction", "gap_s"), pl.Float64)
    | {"decided_by": pl.String}
)
