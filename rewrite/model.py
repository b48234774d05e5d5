"""The saved model: every number that scoring a day needs, as named files of bytes. Nothing in it is ever unpickled.

A model is a set of parts, each found by (locale, channel), then (locale, any channel), then the pool of all locales:

- `TextStats` per locale: how rare each n-gram and word is, how often each text that k users said is said, and a few
  hundred such turns drawn at random, the yardstick of chance;
- `Detector` per locale and channel: the three views of "asked again";
- `Outcome` per locale: what tells a served turn from a failed one;
- `Cause` per locale: what misheard texts look like.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from rewrite import ngrams
from rewrite.curves import Curve

VERSION = 4
POOL = "*"
"""In place of a locale or a channel: all of them."""


@dataclass(frozen=True, kw_only=True)
class TextStats:
    """What one locale's texts are like. `texts` counts distinct texts; `*_columns` and `*_counts` say in how many of them
    a hashed n-gram or word is; `known` (sorted hashes) and `frequency` the share of turns of each text that k users said,
    `served` how much its users' turns in the sample speak for it being served (log likelihood ratio)."""

    texts: int = 0
    turns: int = 0
    ngram_columns: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    ngram_counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    word_columns: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    word_counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    known: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    frequency: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float64))
    served: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float64))
    reference: tuple[str, ...] = ()

    @cached_property
    def ngram_idf(self) -> np.ndarray:
        return self._idf(self.ngram_columns, self.ngram_counts)

    @cached_property
    def word_idf(self) -> np.ndarray:
        return self._idf(self.word_columns, self.word_counts)

    def _idf(self, columns: np.ndarray, counts: np.ndarray) -> np.ndarray:
        seen = np.zeros(1 << ngrams.BITS, np.float32)
        seen[columns] = counts
        return (np.log((1.0 + self.texts) / (1.0 + seen)) + 1.0).astype(np.float32)

    def vectors(self, texts: list[str]) -> sp.csr_matrix:
        """Sublinear tf-idf over character n-grams, rows of length 1: shape (n, 2**BITS), float32."""
        x = ngrams.ngram_counts(texts)
        x.data = (1.0 + np.log(x.data)) * self.ngram_idf[x.indices]
        norm = np.sqrt(np.asarray(x.multiply(x).sum(axis=1)).ravel())
        x.data /= np.repeat(np.maximum(norm, 1e-12), np.diff(x.indptr)).astype(np.float32)
        return x

    def log_frequency(self, texts: list[str]) -> np.ndarray:
        """Log of the text's share of turns, per ten thousand; texts that fewer than k users said are all one: the rarest."""
        return np.log1p(1e4 * self._of_known(texts, self.frequency))

    def served_llr(self, texts: list[str]) -> np.ndarray:
        """`served` of each text, 0 where it is not known."""
        return self._of_known(texts, self.served)

    def _of_known(self, texts: list[str], values: np.ndarray) -> np.ndarray:
        if not len(values):
            return np.zeros(len(texts))
        hashes = ngrams.hash_texts(texts)
        at = np.minimum(np.searchsorted(self.known, hashes), len(self.known) - 1)
        return np.where(self.known[at] == hashes, values[at], 0.0)


@dataclass(frozen=True)
class Detector:
    """Log likelihood ratios of the three views of a pair, and the share of pairs that ask again.

    `text_trees` and `friction_trees` are LightGBM models in text form; their log odds count from `text_mean` and
    `friction_mean`. Without text trees the first guess of `rewrite.asked_again` is the text view, and without pairs all
    three are rules fixed by hand. `gap` maps log seconds to a log likelihood ratio, `related` a cosine to that of
    neighbours against turns of others: where either intent is unknown, where they differ, where they are the same;
    `unrelated` is the share of neighbours that are no nearer than chance. `close_trees`, whose log odds count from
    `close_mean`, are the text view of pairs that are aligned.
    """

    base: float
    text_trees: str = ""
    text_mean: float = 0.0
    friction_trees: str = ""
    friction_mean: float = 0.0
    close_trees: str = ""
    close_mean: float = 0.0
    gap: Curve = Curve()
    related: tuple[Curve, Curve, Curve] = (Curve(), Curve(), Curve())
    unrelated: float = 1.0
    pairs: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a turn went: `served` and `failed` are P(cell | class) over (friction, what came next), flattened.

    `session_trees` (log odds of served, from `signals.SESSION`) and `looks_trees` (from `signals.LOOKS`) are LightGBM
    models in text form; empty where the log was too thin, and the cells, or nothing, stand in.
    """

    prior: float  # P(served) of a turn
    mixed: float  # share of turns whose text is served sometimes
    served: tuple[float, ...] = ()
    failed: tuple[float, ...] = ()
    session_trees: str = ""
    session_base: float = 0.5  # P(served) of the turns that the session trees learned from
    looks_trees: str = ""
    turns: int = 0
    corrective: tuple[tuple[int, ...], tuple[float, ...]] = ((), ())  # columns of `ngrams.words`, and how much each speaks for failed


@dataclass(frozen=True)
class Cause:
    """What misheard texts look like (`causes`): `trees` (from `signals.LOOKS`) are LightGBM's in text form; `mean` is the
    evidence of the average failure."""

    trees: str = ""
    mean: float = 2.0


@dataclass(frozen=True)
class Model:
    k: int
    stats: Mapping[str, TextStats]  # by locale
    detectors: Mapping[tuple[str, str], Detector]  # by (locale, channel); the pool ("*", "*") is always there
    outcomes: Mapping[str, Outcome]  # by locale; the pool "*" is always there
    asr_confidence: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # deciles by locale, where logged
    causes: Mapping[str, Cause] = field(default_factory=dict)  # by locale and pooled

    def detector(self, locale: str, channel: str | None) -> Detector:
        for name in ((locale, channel or POOL), (locale, POOL), (POOL, channel or POOL)):
            if name in self.detectors:
                return self.detectors[name]
        return self.detectors[POOL, POOL]

    def outcome(self, locale: str) -> Outcome:
        return self.outcomes.get(locale, self.outcomes[POOL])

    def cause(self, locale: str) -> Cause:
        return self.causes.get(locale, self.causes.get(POOL, Cause()))

    def served_prior(self, locale: str) -> float:
        """P(served) of a turn of this locale before anything is known of it. An outcome vote of value v carries the
        log likelihood ratio logit(v) - logit(served_prior)."""
        return self.outcome(locale).prior

    def to_files(self) -> dict[str, bytes]:
        """File name -> bytes: one JSON, and one npz and two LightGBM texts per part where they are needed."""
        files: dict[str, bytes] = {}
        index: dict = {"version": VERSION, "k": self.k, "stats": [], "detectors": [], "outcomes": []}
        for i, locale in enumerate(sorted(self.stats)):
            s = self.stats[locale]
            files[f"texts-{i:03d}.npz"] = _npz({n: getattr(s, n) for n in _ARRAYS})
            index["stats"].append({"locale": locale, "texts": s.texts, "turns": s.turns, "reference": list(s.reference)})
        for i, (locale, channel) in enumerate(sorted(self.detectors)):
            d = asdict(self.detectors[locale, channel])
            for trees in _DETECTOR_TREES:
                if text := d.pop(trees):
                    files[f"detector-{i:03d}-{trees.split('_')[0]}.txt"] = text.encode()
            index["detectors"].append({"locale": locale, "channel": channel} | d)
        for i, (locale, outcome) in enumerate(sorted(self.outcomes.items())):
            o = asdict(outcome)
            for trees in ("session_trees", "looks_trees"):
                if text := o.pop(trees):
                    files[f"outcome-{i:03d}-{trees.split('_')[0]}.txt"] = text.encode()
            index["outcomes"].append({"locale": locale} | o)
        index["causes"] = []
        for i, (locale, cause) in enumerate(sorted(self.causes.items())):
            c = asdict(cause)
            if text := c.pop("trees"):
                files[f"cause-{i:03d}.txt"] = text.encode()
            index["causes"].append({"locale": locale} | c)
        index["asr_confidence"] = {n: list(v) for n, v in sorted(self.asr_confidence.items())}
        files["model.json"] = json.dumps(index, ensure_ascii=True, sort_keys=True, indent=1, default=list).encode()
        return dict(sorted(files.items()))

    @staticmethod
    def from_files(files: Mapping[str, bytes]) -> Model:
        """The model back; ValueError when a file is missing or of another version."""
        if "model.json" not in files:
            raise ValueError(f"not a model: model.json is missing among {sorted(files)}; run `sayagain fit` again")
        index = json.loads(files["model.json"])
        if index.get("version") != VERSION:
            raise ValueError(f"model version {index.get('version')!r} cannot be read, this code reads {VERSION}; run `sayagain fit` again")
        stats, detectors, outcomes = {}, {}, {}
        for i, s in enumerate(index["stats"]):
            with np.load(io.BytesIO(files[f"texts-{i:03d}.npz"]), allow_pickle=False) as arrays:
                locale, reference = s.pop("locale"), tuple(s.pop("reference"))
                stats[locale] = TextStats(**{n: arrays[n] for n in _ARRAYS}, **s, reference=reference)
        for i, d in enumerate(index["detectors"]):
            name = d.pop("locale"), d.pop("channel")
            curves = {"gap": _curve(d["gap"]), "related": tuple(map(_curve, d["related"]))}
            trees = {n: files.get(f"detector-{i:03d}-{n.split('_')[0]}.txt", b"").decode() for n in _DETECTOR_TREES}
            detectors[name] = Detector(**d | curves | trees)
        for i, o in enumerate(index["outcomes"]):
            locale, cells = o.pop("locale"), {n: tuple(o[n]) for n in ("served", "failed")}
            trees = {f"{n}_trees": files.get(f"outcome-{i:03d}-{n}.txt", b"").decode() for n in ("session", "looks")}
            words = {"corrective": tuple(tuple(part) for part in o["corrective"])}
            outcomes[locale] = Outcome(**o | cells | words | trees)
        causes = {c.pop("locale"): Cause(files.get(f"cause-{i:03d}.txt", b"").decode(), **c) for i, c in enumerate(index["causes"])}
        return Model(index["k"], stats, detectors, outcomes, {n: tuple(v) for n, v in index["asr_confidence"].items()}, causes)

    @property
    def fingerprint(self) -> str:
        """sha256 over names and bytes of the files, 64 hex digits."""
        h = hashlib.sha256()
        for name, data in self.to_files().items():
            h.update(f"{name}\0{len(data)}\0".encode() + data)
        return h.hexdigest()


def _curve(kept: Mapping) -> Curve:
    return Curve(tuple(kept["edges"]), tuple(kept["values"]))


_DETECTOR_TREES = ("text_trees", "friction_trees", "close_trees")
_ARRAYS = ("ngram_columns", "ngram_counts", "word_columns", "word_counts", "known", "frequency", "served")


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, allow_pickle=False, **arrays)  # type: ignore[arg-type]
    return out.getvalue()
