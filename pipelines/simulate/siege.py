"""`sayagain siege`: how many of the rewrites that rings of fake accounts push would be released, by kind and size of ring.

The log is judged once, ring rows apart with the same model; then evidence, goals and candidates are made anew for every
point with the functions of `rewrite`, in memory and without Beam: seconds per point on a small log.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from pipelines import config
from pipelines.errors import UsageError
from pipelines.link import goal_inputs
from pipelines.simulate.options import SiegeOptions
from pipelines.simulate.rings import KINDS, rings
from pipelines.store import Store
from pipelines.watch import SIEGE
from rewrite import asked_again, trust
from rewrite.contracts import BUCKETS, GOALS, LOG, TURNS
from rewrite.encoders.ngrams import NgramEncoder
from rewrite.evidence import Options, bucket_evidence, candidates, merge_evidence
from rewrite.goals import build_goals
from rewrite.model import Model
from rewrite.text import canonical_slots, key_expr
from rewrite.turns import cut_sessions
from rewrite.votes import detect

GAP = config.Sessions().gap
MOST_ACCOUNTS = 0.15
"""Fake accounts of one point, as a share of the log's users: more would be another log, not an attacked one."""

Mined = tuple[set[tuple[str, str, str]], set[tuple[str, str]]]  # proposed rewrites (locale, source, target), labels (locale, utterance)


@dataclass(frozen=True)
class Fort:
    """An honest log, judged: its rows, its model, its votes, the day of its last vote."""

    log: pl.DataFrame
    model: Model
    votes: pl.DataFrame

    @staticmethod
    def of(log: pl.DataFrame) -> Fort:
        types = pl.DataFrame(LOG.empty_table()).schema
        absent = [pl.lit(None, t).alias(c) for c, t in types.items() if c not in log.columns]
        log = (
            log.with_columns(absent)
            .select(pl.col(c).cast(t) for c, t in types.items())
            .unique("turn_id", keep="first", maintain_order=True)
        )
        turns = turns_of(log)
        model = asked_again.fit(turns)
        return Fort(log, model, detect(turns, model, GAP).votes)


def turns_of(log: pl.DataFrame) -> pl.DataFrame:
    """The turns of a log by the contract, as `ingest` would make them, under the user ids that stand there."""
    types = pl.DataFrame(TURNS.empty_table()).schema
    given = log.rename({"user_id": "user_key"})
    slots = given["slots"].unique().drop_nulls()
    given = given.with_columns(
        key=key_expr("utterance"),
        treatment=pl.when(pl.col("rewrite_id").is_null()).then(pl.lit("untouched")).otherwise(pl.lit("rewritten")),
        slots=pl.col("slots").replace_strict(slots, pl.Series([canonical_slots(s) for s in slots], dtype=pl.String), default=None),
        _day=pl.col("timestamp").dt.date(),
    )
    cut = pl.concat([cut_sessions(day, GAP) for day in given.partition_by("_day", maintain_order=True)])
    missing = [pl.lit(None, t).alias(c) for c, t in types.items() if c not in cut.columns]
    return cut.with_columns(missing).select(pl.col(c).cast(t) for c, t in types.items())


def mine(votes: pl.DataFrame, rules: trust.Rules | None, options: Options) -> Mined:
    """Candidates that the votes propose, through evidence, goals (n-gram vectors) and selection. rules None: believe everybody."""
    parts = votes.with_columns(_b=pl.col("user_key").hash() % BUCKETS).partition_by("_b", include_key=False)
    believed = trust.learn((trust.sketch(p) for p in parts), rules) if rules else None
    evidence = merge_evidence(bucket_evidence(p, believed) for p in parts)
    texts, links, served = goal_inputs(evidence, options)
    vectors = np.asarray(NgramEncoder().encode(texts["utterance"].to_list()))
    goals = build_goals(texts.select("locale", "utterance", "users", "served"), vectors, links, served).goals
    last = votes["date"].max()
    assert last is not None
    found = candidates(evidence, goals.select(GOALS.names), as_of=last, k=options.k, options=options)  # type: ignore[arg-type]

    def proposed(frame: pl.DataFrame, *key: str) -> set:
        return set(frame.filter(pl.col("decision") == "proposed").select(key).iter_rows())

    return proposed(found.rewrites, "locale", "source", "target"), proposed(found.labels, "locale", "utterance")


def attacked(fort: Fort, kind: str, size: int, count: int, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The votes of the log under attack, and the attacks."""
    rows, attacks = rings(fort.log, kind, size, count, seed)
    return pl.concat([fort.votes, detect(turns_of(rows), fort.model, GAP).votes]), attacks


def fallen(kind: str, attacks: pl.DataFrame, found: Mined, calm: Mined) -> int:
    """How many attacks got what they wanted."""
    rewrites, labels = found
    keys = list(attacks.select("locale", "source", "target").iter_rows())
    if kind == "burying":  # a rewrite of a text that works, or its label gone
        before = {(at, source) for at, source, _ in calm[0]}
        now = {(at, source) for at, source, _ in rewrites}
        return sum(((k[:2] in now) and (k[:2] not in before)) or (k[:2] in calm[1] and k[:2] not in labels) for k in keys)
    if kind == "nonsense":
        return sum(k[:2] in labels or k in rewrites for k in keys)
    return sum(k in rewrites for k in keys)


def curve(fort: Fort, kinds: tuple[str, ...], sizes: tuple[int, ...], count: int, seed: int, say: Callable[[str], None]) -> pl.DataFrame:
    """One row per kind and size: attacks, released with and without the defences, honest rewrites and labels kept of those of the calm log."""
    options, off = Options(), Options(burst=0, scarce=0)
    calm = mine(fort.votes, None, off)
    guarded = mine(fort.votes, trust.Rules(), options)
    users = fort.log["user_id"].n_unique()
    out = [_row("none", 0, 0, 0, 0, guarded, calm, set())]
    for kind in kinds:
        for size in sizes:
            n = max(1, min(count, int(users * MOST_ACCOUNTS / size)))
            votes, attacks = attacked(fort, kind, size, n, seed)
            hit = set(attacks.select("locale", "source").iter_rows())
            with_, without = mine(votes, trust.Rules(), options), mine(votes, None, off)
            out.append(
                _row(
                    kind,
                    size,
                    attacks.height,
                    fallen(kind, attacks, with_, guarded),
                    fallen(kind, attacks, without, calm),
                    with_,
                    calm,
                    hit,
                )
            )
            say(
                f"{kind:<10} {size:>3} accounts: {out[-1]['released']} of {attacks.height} released, {out[-1]['undefended']} without defences"
            )
    return pl.DataFrame(out)


def _row(kind: str, size: int, attacks: int, fell: int, undefended: int, found: Mined, calm: Mined, hit: set[tuple[str, str]]) -> dict:
    honest = {k[:2] for k in calm[0]} - hit
    labels = calm[1] - hit
    return {
        "kind": kind,
        "size": size,
        "attacks": attacks,
        "released": fell,
        "undefended": undefended,
        "rewrites_kept": round(len({k[:2] for k in found[0]} & honest) / max(len(honest), 1), 4),
        "rewrites_now": round(len({k[:2] for k in found[0]} - hit) / max(len(honest), 1), 4),
        "labels_kept": round(len(found[1] & labels) / max(len(labels), 1), 4),
    }


def main(options: SiegeOptions) -> int:
    """Measure and print the curve; `--out` keeps it as JSON."""
    if options.lake and not Store(options.lake).exists("lake.json"):
        raise UsageError(f"--lake {options.lake}: there is no lake; mine the log first")
    try:
        log = pl.read_parquet(options.logs)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UsageError(f"--logs {options.logs}: not a Parquet file in the log contract: {error}") from None
    say = (lambda text: None) if options.quiet else (lambda text: print(text, file=sys.stderr, flush=True))
    kinds = tuple(k.strip() for k in options.kinds.split(",")) if options.kinds else KINDS
    sizes = tuple(int(s) for s in options.sizes.split(","))
    table = curve(Fort.of(log), kinds, sizes, options.rings, options.seed, say)
    print(markdown(table))
    text = json.dumps(table.to_dicts(), indent=1) + "\n"
    if options.out:
        Path(options.out).write_text(text, encoding="utf-8")
    if options.lake:
        Store(options.lake).put(SIEGE, text.encode())
    return 0


def markdown(table: pl.DataFrame) -> str:
    """The curve as a table that people read."""
    lines = [
        "| ring | accounts | attacks | released | without defences | honest rewrites | the same sources | labels kept |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in table.iter_rows(named=True):
        share = f"{r['released'] / r['attacks']:.0%}" if r["attacks"] else "-"
        bare = f"{r['undefended'] / r['attacks']:.0%}" if r["attacks"] else "-"
        lines.append(
            f"| {r['kind']} | {r['size']} | {r['attacks']} | {share} | {bare} | {r['rewrites_now']:.1%} | {r['rewrites_kept']:.1%} | {r['labels_kept']:.1%} |"
        )
    return "\n".join(lines)
