"""`sayagain simulate`: plays the world day by day and writes the log, and the truth beside it."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import InputError, UsageError
from pipelines.simulate import world
from pipelines.simulate.columns import TRUTH, Columns
from pipelines.simulate.options import SimulateOptions
from pipelines.simulate.planted import attacks, planted
from pipelines.simulate.play import DAY, Serving, play, users
from rewrite.contracts import LOG
from rewrite.text import key, rewrite_id

BLOCK_TURNS = 100_000  # of a block of users in a day: big enough for NumPy, small enough for the cache and for memory
BLOCK_USERS = 65_536
DUPLICATES = 0.01  # events that the log holds twice
FUTURE_SHARE, FUTURE_MOST = 0.33, 60_000  # turns of users whom the log never saw
THREADS = 2
UNFINISHED = "UNFINISHED"  # a file that is there while the folder is being written
FUTURE_DAY = 1 << 20  # stands for the day of `future` where generators are seeded


def run(options: SimulateOptions, progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Writes a world to `options.out` and returns its summary, which is also in world.json.

    Returns: `turns`, `defect_rate`, `rephrases`, `rewritten`, `seconds` and more. Same options: same bytes (seconds are not written).
    Raises: UsageError for options, InputError for a rewrites table that is not one.
    """
    options.validate()
    began, out = time.perf_counter(), _folder(options.out)
    game = Game(options)
    counts: dict[str, dict[str, int]] = {
        name: dict.fromkeys(("turns", "failed", "rephrases", "rewritten"), 0) for name in options.locale_list
    }
    rows = 0
    with _Out(out, "log", LOG, options.by_day) as logs, _Out(out, "truth", TRUTH, options.by_day, not options.no_truth) as truths:
        shown = ""
        for date, locale, log, truth, flat in game.days():
            if progress and shown != date:
                progress(f"playing {date}, {rows} rows so far")
                shown = date
            logs.write(date, log)
            truths.write(date, truth)
            rows += log.num_rows
            for k, v in flat.items():
                counts[locale][k] += v
    _write(game.future(), out / "future.parquet")
    for name, table in zip(("taught", "test"), game.teaching(), strict=True):
        _write(table, out / f"{name}.parquet")
    summary = _summary(options, game, counts, rows)
    (out / "world.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / UNFINISHED).unlink()
    return summary | {"out": str(out), "seconds": round(time.perf_counter() - began, 2)}


def _folder(name: str) -> Path:
    """The folder, empty: a new one, or one that a run of this job did not finish."""
    out = Path(name)
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: is a file; name a new folder")
    if (out / UNFINISHED).exists():
        shutil.rmtree(out)
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"--out {out}: is not empty; name a new folder")
    out.mkdir(parents=True, exist_ok=True)
    (out / UNFINISHED).touch()
    return out


def main(options: SimulateOptions) -> int:
    """Make the world, and say what it is like and what to do next."""
    summary = run(options, None if options.quiet else lambda text: print(text, file=sys.stderr))
    for name, f in summary["locales"].items():
        print(
            f"{name}: {f['turns']} turns of {f['users']} users, {f['goals']} goals, {f['defect_rate']:.0%} failed, {f['rephrases']} asked again"
        )
    if options.rewrites:
        print(f"{summary['rewrites_live']} of {summary['rewrites_given']} rewrites were live and served {summary['rewritten']} turns")
    print(f"{summary['rows']} rows in {summary['seconds']} s. Mine them:")
    start, days = options.start + timedelta(options.first_epoch * options.days), options.epochs * options.days
    dates = f" --from {start} --to {start + timedelta(days - 1)}" if options.by_day else ""
    log = f"'{options.out}/log/{{date}}.parquet'" if options.by_day else f"{options.out}/log.parquet"
    print(f"sayagain mine --logs {log} --lake {options.out}/lake{dates}")
    return 0


class Game:
    """All languages of a world, and the days that are played."""

    def __init__(self, options: SimulateOptions):
        self.options = o = options
        self.languages = {name: world.build(name, o.seed, o.unknown) for name in o.locale_list}
        self.flipped = {name: world.flip(x, o.flip_share, o.seed) for name, x in self.languages.items()} if o.flip_day >= 0 else {}
        table = read_rewrites(o.rewrites) if o.rewrites else {}
        self.plain = {name: Columns(x, Serving.of(x), o.assistant) for name, x in self.languages.items()}
        self.live = {
            name: Columns(x, Serving.of(x, table[name]), o.assistant) if name in table else self.plain[name]
            for name, x in self.languages.items()
        }
        self.live_rewrites = sum(r is not None for c in self.live.values() for r in c.serving.rewrite_ids)
        self.rewrites_given = sum(map(len, table.values()))
        per_locale = o.user_count / len(o.locale_list)
        self.users = {name: round((i + 1) * per_locale) - round(i * per_locale) for i, name in enumerate(o.locale_list)}
        self.per_user_day = o.turns / o.user_count / o.days
        self.block = int(max(1, min(BLOCK_USERS, BLOCK_TURNS / self.per_user_day)))
        self.start = int(datetime(o.start.year, o.start.month, o.start.day, tzinfo=UTC).timestamp()) * 1_000_000
        self.sessions_a_day = {name: self._sessions_a_day(name) for name in o.locale_list}

    def heard(self, locale: str, day: int) -> np.ndarray:
        """What wordings are misheard as on a day of the world: int (G, W, V)."""
        return self.flipped[locale] if 0 <= self.options.flip_day <= day else self.languages[locale].heard

    def days(self) -> Iterator[tuple[str, str, pa.Table, pa.Table, dict[str, int]]]:
        """(date, locale, log rows, truth rows, counts), in the order of dates."""
        o = self.options
        todo: deque = deque()
        late: list[tuple[str, pa.Table, pa.Table]] = []  # sessions that went on after midnight
        with ThreadPoolExecutor(THREADS) as pool:
            plan = self._plan()
            for _ in range(2 * THREADS):
                if (p := next(plan, None)) is not None:
                    todo.append((p, pool.submit(self._block, *p)))
            while todo:
                (locale, _, day, first), job = todo.popleft()
                log, truth, counts = job.result()
                if (p := next(plan, None)) is not None:
                    todo.append((p, pool.submit(self._block, *p)))
                date = (o.start + timedelta(days=day)).isoformat()
                if first == 0 and locale == o.locale_list[0]:
                    for name, late_log, late_truth in late:
                        yield date, name, late_log, late_truth, {}
                    late = []
                midnight = pa.scalar(self.start + (day + 1) * DAY, pa.int64()).cast(LOG.field("timestamp").type)
                before = pc.less(log["timestamp"], midnight)
                if not pc.all(before).as_py():
                    is_late = pc.invert(before)
                    ids = log["turn_id"].filter(is_late)
                    held = pc.is_in(truth["turn_id"], value_set=ids.combine_chunks())
                    late.append((locale, log.filter(is_late), truth.filter(held)))
                    log, truth = log.filter(before), truth.filter(pc.invert(held))
                yield date, locale, log, truth, counts

    def _plan(self) -> Iterator[tuple[str, int, int, int]]:
        """(locale, epoch, day of the world, first user of the block)."""
        o = self.options
        for epoch in range(o.first_epoch, o.first_epoch + o.epochs):
            for day in range(epoch * o.days, (epoch + 1) * o.days):
                for locale in o.locale_list:
                    for first in range(0, self.users[locale], self.block):
                        yield locale, epoch, day, first

    def _block(self, locale: str, epoch: int, day: int, first: int) -> tuple[pa.Table, pa.Table, dict[str, int]]:
        """One block of users on one day: log rows with planted ones and duplicates, truth rows, counts."""
        o, language = self.options, self.languages[locale]
        rng = world.generator(o.seed, locale, "day", day, first)
        who = users(locale, o.seed, first, min(self.block, self.users[locale] - first), o.holdout)
        columns = self.live[locale] if epoch >= o.live_from else self.plain[locale]
        midnight = self.start + day * DAY
        turns = play(language, columns.serving, self.heard(locale, day), who, self.sessions_a_day[locale], midnight, o.mishear, rng)
        log = columns.log(turns, who, f"{locale}-{day}-{first}", f"{locale}-u")
        truth = columns.truth(turns, log)
        counts = {
            "turns": len(turns),
            "failed": int((~turns.success).sum()),
            "rephrases": int(turns.rephrase.sum()),
            "rewritten": int((turns.served != turns.said).sum()),
        }
        if not o.no_planted:
            twice = np.flatnonzero(rng.random(log.num_rows) < DUPLICATES)
            parts = [log, log.take(twice)]
            if first == 0:
                parts.append(planted(language, o.seed, day, midnight, o.turns / o.days / len(o.locale_list), o.assistant))
            log = pa.concat_tables(parts)
        return log, truth, counts

    def _sessions_a_day(self, locale: str) -> float:
        """Of a user of mean activity, so that the turns are about as many as was asked for. Turns per session are measured on a day that is not kept."""
        o, language, count = self.options, self.languages[locale], self.users[locale]
        who = users(locale, o.seed, 0, 8_192, o.holdout, "pilot")
        turns = play(language, self.plain[locale].serving, language.heard, who, 1.0, 0, o.mishear, world.generator(o.seed, locale, "pilot"))
        blocks = range(0, count, self.block)
        activity = sum(float(users(locale, o.seed, b, min(self.block, count - b), o.holdout).activity.sum()) for b in blocks)
        return o.turns * count / o.user_count / o.days / activity / (len(turns) / float(who.activity.sum()))

    def future(self) -> pa.Table:
        """Turns of users whom the log never saw, without rewrites, on the day after the last: log and truth columns."""
        o, parts = self.options, []
        day = (o.first_epoch + o.epochs) * o.days
        for locale, language in self.languages.items():
            count = int(min(FUTURE_MOST, FUTURE_SHARE * o.turns) / len(self.languages) / 5) + 1
            who = users(locale, o.seed, 0, count, 0.0, "future")
            rng = world.generator(o.seed, locale, "day", FUTURE_DAY)
            rate = 5 * self.sessions_a_day[locale] / self.per_user_day
            columns = self.plain[locale]
            turns = play(language, columns.serving, self.heard(locale, day - 1), who, rate, self.start + day * DAY, o.mishear, rng)
            log = columns.log(turns, who, f"{locale}-f", f"{locale}-f")
            truth = columns.truth(turns, log)
            for name in truth.column_names[1:]:
                log = log.append_column(name, truth[name])
            parts.append(log.cast(FUTURE))
        return pa.concat_tables(parts)

    def teaching(self) -> tuple[pa.Table, pa.Table]:
        """What the assistant was taught (locale, utt, intent: known wordings), and a test of every wording, heard rightly."""
        taught, test = [], []
        for locale, x in self.languages.items():
            for g, i in enumerate(x.goal_intent):
                for w in range(len(x.spec["intents"][x.intents[i]]["wordings"])):
                    row = {"locale": locale, "utt": x.texts[x.said[g, w]], "intent": x.intents[i]}
                    test.append(row)
                    if x.known[i, w]:
                        taught.append(row)
        schema = pa.schema([("locale", pa.string()), ("utt", pa.string()), ("intent", pa.string())])
        rng = world.generator(self.options.seed, "teaching")
        return tuple(
            pa.Table.from_pylist(rows, schema=schema).take(np.sort(rng.choice(len(rows), max(1, len(rows) // 3), replace=False)))
            for rows in (taught, test)
        )  # type: ignore[return-value]


FUTURE = pa.schema([*LOG, *list(TRUTH)[1:]])
"""The columns of future.parquet: the log's and the truth's."""


def read_rewrites(path: str) -> dict[str, dict[str, tuple[str, str]]]:
    """locale -> source key -> (target, rewrite id), of a release folder or a Parquet file."""
    where = Path(path)
    if where.is_dir():
        inside = where / "rewrites.parquet"
        where = inside if inside.exists() else where / "rewrites"
    if not where.exists():
        raise InputError(f"--rewrites {path}: no such file, or no rewrites.parquet in the folder")
    try:
        table = pq.read_table(where)
    except pa.ArrowInvalid as error:
        raise InputError(f"--rewrites {where}: is not Parquet ({error})") from None
    missing = {"locale", "source", "target"} - set(table.column_names)
    if missing:
        raise InputError(f"--rewrites {where}: column {', '.join(sorted(missing))} is missing; it has {', '.join(table.column_names)}")
    out: dict[str, dict[str, tuple[str, str]]] = {}
    names = [n for n in ("locale", "source", "target", "rewrite_id") if n in table.column_names]
    try:
        table = table.select(names).cast(pa.schema([(n, pa.string()) for n in names]))
    except pa.ArrowInvalid as error:
        raise InputError(f"--rewrites {where}: {', '.join(names)} should be texts ({error})") from None
    for row in table.to_pylist():
        locale, source, target = row["locale"], row["source"], row["target"]
        if locale is None or source is None or target is None or key(source) == key(target):
            continue
        out.setdefault(locale, {})[key(source)] = (target, row.get("rewrite_id") or rewrite_id(locale, key(source), key(target)))
    return out


class _Out:
    """A table that is written piece by piece: one file, or one file a day."""

    def __init__(self, out: Path, name: str, schema: pa.Schema, by_day: bool, wanted: bool = True):
        self.out, self.name, self.schema, self.by_day, self.wanted = out, name, schema, by_day, wanted
        self.path: Path | None = None
        self.writer: pq.ParquetWriter | None = None

    def __enter__(self) -> _Out:
        if self.wanted and not self.by_day:
            self._open(self.out / f"{self.name}.parquet")
        return self

    def write(self, date: str, table: pa.Table) -> None:
        """Adds rows; dates come in order."""
        if not self.wanted:
            return
        path = self.out / self.name / f"{date}.parquet"
        if self.by_day and path != self.path:
            path.parent.mkdir(exist_ok=True)
            self._open(path)
        assert self.writer
        self.writer.write_table(table)

    def _open(self, path: Path) -> None:
        if self.writer:
            self.writer.close()
        self.path = path
        self.writer = pq.ParquetWriter(path, self.schema, **_format(self.schema))

    def __exit__(self, *_: object) -> None:
        if self.writer:
            self.writer.close()


def _format(schema: pa.Schema) -> dict[str, Any]:
    plain = {"turn_id", "user_id", "session_id", "timestamp", "again_of"}  # a dictionary does not pay where values hardly repeat
    return {"compression": "zstd", "compression_level": 1, "use_dictionary": [n for n in schema.names if n not in plain]}


def _write(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, **_format(table.schema))


def _summary(options: SimulateOptions, game: Game, counts: dict[str, dict[str, int]], rows: int) -> dict[str, Any]:
    def figures(c: dict[str, int]) -> dict[str, Any]:
        return {
            "turns": c["turns"],
            "defect_rate": round(c["failed"] / max(c["turns"], 1), 4),
            "rephrases": c["rephrases"],
            "rewritten": c["rewritten"],
        }

    total = {k: sum(c[k] for c in counts.values()) for k in ("turns", "failed", "rephrases", "rewritten")}
    return {
        "locales": {
            name: figures(counts[name])
            | {"goals": len(x.goals), "wordings": int(x.known.shape[1]), "texts": len(x.texts), "users": game.users[name]}
            for name, x in game.languages.items()
        },
        **figures(total),
        "rows": rows,
        "rewrites_given": game.rewrites_given,
        "rewrites_live": game.live_rewrites,
        "planted": {} if options.no_planted else {"sybil": [list(a) for x in game.languages.values() for a in attacks(x)]},
        "options": {
            k: v.isoformat() if hasattr(v, "isoformat") else v for k, v in vars(options).items() if k not in ("out", "quiet", "rewrites")
        },
    }
