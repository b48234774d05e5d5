"""Log to votes as one would write it in Beam without thinking of columns: a dict per turn, GroupByKey by user and day, Python
loops for sessions, pairs and signals. The rival that `bench.py` measures `ingest` and `detect` against.

It is given what helps it: results of texts and pairs of texts are kept (`lru_cache`), trees judge a user's pairs in one call, and
it does less than the jobs do: no rejects, no alignment of undecided pairs, no looks of a text, no causes, and of the four daily
tables it writes the votes alone.
"""

from __future__ import annotations

import datetime as dt
import hmac
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.options.pipeline_options import PipelineOptions

from quality.scrub import scrub_text
from rewrite import ngrams, pairs, signals
from rewrite.contracts import STATUSES
from rewrite.curves import LIMIT, logit, sigmoid
from rewrite.model import Model, TextStats
from rewrite.text import canonical_slots, key

LINK, MAX_STEPS = 0.5, 5  # as `rewrite.votes` has them
VOTE = pa.schema(
    [(n, pa.string()) for n in ("user_key", "date", "locale", "kind", "source", "target", "intent", "slots", "text")]
    + [("value", pa.float64())]
)
Row = dict[str, Any]


class Read(beam.DoFn):
    def process(self, path: str) -> Iterator[Row]:
        with pq.ParquetFile(path) as f:
            for batch in f.iter_batches(batch_size=10_000):
                yield from batch.to_pylist()


class Clean(beam.DoFn):
    """A log row -> ((user key, date), turn): scrubbed, under pseudonyms, with its text key."""

    def __init__(self, secret: bytes):
        self._secret = secret

    def process(self, row: Row) -> Iterator[tuple[tuple[str, str], Row]]:
        if not row["turn_id"] or not row["user_id"] or row["timestamp"] is None or not (row["utterance"] or "").strip():
            return
        region = row["locale"].partition("-")[2] or None
        turn = {n: scrub_text(v, region)[0] if n in ("utterance", "response", "slots") and v else v for n, v in row.items()}
        user = hmac.digest(self._secret, turn.pop("user_id").encode(), "sha256").hex()[:32]
        session = turn["session_id"]
        turn["session_id"] = hmac.digest(self._secret, f"session\0{session}".encode(), "sha256").hex()[:32] if session else None
        turn |= {"user_key": user, "key": key(turn["utterance"]), "slots": canonical_slots(turn["slots"])}
        yield (user, str(turn["timestamp"].date())), turn


class Judge(beam.DoFn):
    """A user's turns of a day -> votes."""

    def __init__(self, files: dict[str, bytes], gap: float):
        self._files, self._gap = files, gap

    def setup(self) -> None:
        import lightgbm as lgb

        self.model = Model.from_files(self._files)
        self.trees = lru_cache(maxsize=64)(lambda text: lgb.Booster(model_str=text))
        self.text = lru_cache(maxsize=200_000)(self._text)
        self.pair = lru_cache(maxsize=200_000)(self._pair)
        self.reference = lru_cache(maxsize=64)(lambda locale: self.stats(locale).vectors(list(self.stats(locale).reference)).tocsr())

    def stats(self, locale: str) -> TextStats:
        return self.model.stats.get(locale, TextStats())

    def process(self, element: tuple[tuple[str, str], Iterable[Row]]) -> Iterator[Row]:
        (user, date), rows = element
        turns = list({repr(sorted(r.items(), key=lambda x: x[0])): r for r in rows}.values())  # events that came twice
        turns.sort(key=lambda t: (t["timestamp"], t["turn_id"]))
        votes: dict[tuple, list[float]] = defaultdict(list)
        for session in self.sessions(turns):
            for locale in sorted({t["locale"] for t in session}):
                self.judge([t for t in session if t["locale"] == locale], locale, votes)
        for (locale, kind, source, target, intent, slots, text), values in votes.items():
            value = sum(values) / len(values) if kind == "outcome" else max(values)
            yield {"user_key": user, "date": date, "locale": locale, "kind": kind, "source": source, "target": target} | {
                "intent": intent,
                "slots": slots,
                "text": text,
                "value": value,
            }

    def sessions(self, turns: list[Row]) -> list[list[Row]]:
        streams: dict[str | None, list[list[Row]]] = {}
        last = next((t["session_id"] for t in turns if t["session_id"]), None)
        for t in turns:
            last = t["session_id"] or last
            stream = streams.setdefault(last, [])
            if not stream or (t["timestamp"] - stream[-1][-1]["timestamp"]).total_seconds() > self._gap:
                stream.append([])
            stream[-1].append(t)
        return [s for stream in streams.values() for s in stream]

    def judge(self, turns: list[Row], locale: str, votes: dict[tuple, list[float]]) -> None:
        again = [a["key"] == b["key"] and (b["timestamp"] - a["timestamp"]).total_seconds() <= pairs.RETRY_S for a, b in pairwise(turns)]
        turns = [t for t, retry in zip(turns, [*again, False], strict=True) if not retry]
        n = len(turns)
        links = [(i, i + g) for g in range(1, pairs.MAX_LAG + 1) for i in range(n - g)]
        d = self.model.detector(locale, turns[0]["channel"])
        p: dict[tuple[int, int], float] = {}
        alike = {}
        if links:
            x = np.array([self.pair(locale, turns[i]["key"], turns[j]["key"]) for i, j in links])
            went = np.array([self.friction(turns, i, locale) for i, _ in links])
            kept = np.array([[self.kept(turns[i][n_], turns[j][n_]) for n_ in ("intent", "slots")] for i, j in links])
            gaps = np.array([(turns[j]["timestamp"] - turns[i]["timestamp"]).total_seconds() for i, j in links])
            text = self.says(d.text_trees, x[:, :6], d.text_mean)
            gap = d.gap(np.log(np.maximum(gaps, 0.0) + 0.5))
            friction = self.says(d.friction_trees, np.hstack([went, x[:, 6:], kept]), d.friction_mean)
            whole = sigmoid(logit(d.base) + text + gap + friction)
            direct = sigmoid(2 * np.log(d.base) + text + np.minimum(gap, 0.0))
            step = {i: float(whole[r]) for r, (i, j) in enumerate(links) if j == i + 1}
            for r, (i, j) in enumerate(links):
                alike[i, j] = x[r]
                chain = float(np.prod([step[m] for m in range(i, j)]))
                apart = float(np.prod([1 - step[m] for m in (i, j - 1)])) if j > i + 1 else 0.0
                p[i, j] = min(max(chain + (1 - chain) * float(direct[r]) * apart, 0.001), 0.999) if j > i + 1 else step[i]
        self.outcomes(turns, locale, p, alike, votes)
        self.chains(turns, locale, p, votes)

    @staticmethod
    def kept(a: str | None, b: str | None) -> float:
        return np.nan if a is None or b is None else float(a == b)

    def says(self, trees: str, x: np.ndarray, mean: float) -> np.ndarray:
        if not trees:
            return np.zeros(len(x))
        return np.clip(self.trees(trees).predict(x, raw_score=True, num_threads=1) - mean, -LIMIT, LIMIT)

    def _text(self, locale: str, text: str) -> tuple[dict[int, float], dict[int, float], float, np.ndarray]:
        """n-gram weights, word weights, log frequency, and cosines with the reference turns."""
        s = self.stats(locale)
        v, w = s.vectors([text]), ngrams.words([text])
        near = np.sort((self.reference(locale) @ v.T).toarray().ravel()) if s.reference else np.zeros(0)
        words = {int(c): float(s.word_idf[c]) for c in w.indices}
        return dict(zip(v.indices.tolist(), v.data.tolist(), strict=True)), words, float(s.log_frequency([text])[0]), near

    def _pair(self, locale: str, a: str, b: str) -> tuple[float, ...]:
        from rapidfuzz.distance import Levenshtein

        (va, wa, fa, na), (vb, wb, fb, nb) = self.text(locale, a), self.text(locale, b)
        cosine = sum(w * vb[c] for c, w in va.items() if c in vb)
        shared = [w for c, w in wa.items() if c in wb]
        every = sum(wa.values()) + sum(wb.values()) - sum(shared)
        closer = max(len(x) - np.searchsorted(x, cosine - 1e-6) for x in (na, nb)) if len(na) else np.nan
        chance = -np.log((closer + 0.5) / (len(na) + 1))
        edit = Levenshtein.normalized_similarity(a, b)
        return edit, cosine, max(shared, default=0.0), sum(shared), sum(shared) / max(every, 1e-9), chance, fa, fb

    def friction(self, turns: list[Row], i: int, locale: str) -> list[float]:
        from rapidfuzz.distance import Levenshtein

        t, before = turns[i], turns[i - 1]["response"] if i else None
        status = STATUSES.index(t["status"]) if t["status"] in STATUSES else np.nan
        number = [np.nan if t[n] is None else float(t[n]) for n in ("barge_in", "feedback", "intent_confidence", "asr_confidence")]
        same = Levenshtein.normalized_similarity(before, t["response"]) if before and t["response"] else np.nan
        echo = np.nan
        if t["response"]:
            said, heard = self.text(locale, t["key"])[1], self.text(locale, key(t["response"]))[1]
            echo = sum(w for c, w in said.items() if c in heard) / max(sum(said.values()), 1e-9)
        return [status, np.nan if np.isnan(status) else float(status > 0), *number, same, echo]

    def outcomes(self, turns: list[Row], locale: str, p: dict, alike: dict, votes: dict[tuple, list[float]]) -> None:
        o = self.model.outcome(locale)
        again = [max((v for (i, _), v in p.items() if i == m), default=0.0) for m in range(len(turns))]
        at = {name: c for c, name in enumerate(signals.SESSION)}
        x = np.full((len(turns), len(at)), np.nan)
        for m, t in enumerate(turns):
            status = t["status"]
            row = {
                "refused": float(status in STATUSES[1:3]) if status else np.nan,
                "cancelled": float(status == STATUSES[3]) if status else np.nan,
            }
            row |= {n: np.nan if t[n] is None else float(t[n]) for n in ("barge_in", "feedback")}
            row |= {"again": again[m], "ended": float(m + 1 == len(turns)), "corrective": 0.0, "position": min(m, 20)}
            if m + 1 < len(turns):
                after, like = turns[m + 1], alike[m, m + 1]
                row |= {
                    "gap": np.log(max((after["timestamp"] - t["timestamp"]).total_seconds(), 0.0) + 0.5),
                    "edit": like[0],
                    "jaccard": like[4],
                }
                row |= {"kept_intent": self.kept(t["intent"], after["intent"]), "next_again": again[m + 1]}
                row |= {
                    "next_refused": float(after["status"] in STATUSES[1:3]),
                    "next_barge_in": np.nan if after["barge_in"] is None else float(after["barge_in"]),
                }
            if m:
                row |= {"was_again": p[m - 1, m], "was_edit": alike[m - 1, m][0], "was_jaccard": alike[m - 1, m][4]}
            for name, value in row.items():
                x[m, at[name]] = value
        served = sigmoid(logit(o.prior) + self.says(o.session_trees, x, float(logit(o.session_base))))
        midnight = turns[0]["timestamp"].replace(hour=0, minute=0, second=0, microsecond=0) + dt.timedelta(1)
        for m, t in enumerate(turns):
            if m + 1 < len(turns) or (midnight - t["timestamp"]).total_seconds() >= self._gap:  # else nobody knows what came next
                votes[locale, "outcome", t["key"], None, t["intent"], t["slots"], t["utterance"]].append(float(served[m]))

    def chains(self, turns: list[Row], locale: str, p: dict, votes: dict[tuple, list[float]]) -> None:
        before: dict[int, int] = {}
        for i, j in sorted(p, key=lambda pair: (pair[1] - pair[0], pair[0])):
            if p[i, j] >= LINK and j not in before and i not in before.values():
                before[j] = i
        for j in before:
            at, value, steps = j, 1.0, 0
            while at in before and steps < MAX_STEPS:
                value, at, steps = value * p[before[at], at], before[at], steps + 1
                a, b = turns[at], turns[j]
                if a["key"] != b["key"]:
                    kind = "transition" if steps == 1 else "same_goal"
                    votes[locale, kind, a["key"], b["key"], b["intent"], b["slots"], None].append(value)


def run(log: Path, out: Path, model: Model, secret: bytes, gap: float) -> int:
    """Votes of the log's files under `out`; how many there are."""
    files = sorted(str(p) for p in log.glob("*.parquet"))
    out.mkdir()
    with beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"])) as pipeline:
        _ = (
            pipeline
            | beam.Create(files)
            | beam.ParDo(Read())
            | beam.ParDo(Clean(secret))
            | beam.GroupByKey()
            | beam.ParDo(Judge(model.to_files(), gap))
            | beam.io.WriteToParquet(str(out / "votes"), VOTE, file_name_suffix=".parquet")
        )
    return sum(pq.read_metadata(p).num_rows for p in out.glob("*.parquet"))
