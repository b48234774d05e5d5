"""Which encoder reads a language: measured without labels, the cheaper one unless a dearer one is surely better."""

from __future__ import annotations

from datetime import date

import numpy as np
import polars as pl
import pytest

from pipelines import choose as job
from pipelines import engine
from pipelines.context import Context
from pipelines.options import EmbedOptions
from pipelines.store import Manifest, Store
from quality.goalview import model_rows
from rewrite.contracts import VOTES
from rewrite.model_choice import Separation, choose, separation


def pairs(noise, n=200, d=64, seed=0):
    rng = np.random.default_rng(seed)
    left = rng.normal(size=(n, d))
    right = left + noise * rng.normal(size=(n, d))
    return [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (left, right)]


def test_separation_is_one_where_pairs_stand_out_and_falls_with_noise():
    clear, middling, blind = (separation(*pairs(noise)) for noise in (0.1, 2.5, 100))
    assert clear.auc == 1
    assert clear.far.mean() == 1
    assert 0.9 < middling.auc < 1
    assert 0.1 < middling.far.mean() < 0.95
    assert blind.auc == pytest.approx(0.5, abs=0.1)
    assert blind.far.mean() < 0.1


def test_auc_agrees_with_its_definition():
    left, right = pairs(3, n=40)
    cosine = np.round((left.astype(np.float32) @ right.astype(np.float32).T).astype(np.float64), 5)
    random = cosine[~np.eye(40, dtype=bool)]
    wins = [(t > random).mean() + (t == random).mean() / 2 for t in np.diag(cosine)]
    assert separation(left, right).auc == pytest.approx(np.mean(wins))


def test_the_first_one_stays_unless_another_is_surely_better():
    good, same, bad = separation(*pairs(0.5)), separation(*pairs(2.5, seed=1)), separation(*pairs(2.5, seed=2))
    assert choose([("fast", same, 1.0), ("ngrams", bad, 1.0)], "ngrams")[0] == "fast"
    assert choose([("fast", bad, 1.0), ("ngrams", same, 1.0), ("wide", good, 1.0)], "ngrams")[0] == "wide"
    assert choose([("fast", bad, 0.4), ("ngrams", good, 1.0), ("wide", same, 1.0)], "ngrams")[0] == "ngrams"


def test_nobody_pays_for_a_tie():
    bad, letters, wide = separation(*pairs(2.5)), separation(*pairs(1, seed=1)), separation(*pairs(1, seed=2))
    assert abs(letters.far.mean() - wide.far.mean()) < 0.05
    assert choose([("fast", bad, 0.4), ("ngrams", letters, 1.0), ("wide", wide, 1.0)], "ngrams")[0] == "ngrams"


def test_with_few_pairs_the_first_that_reads_the_language():
    few = separation(*pairs(0.1, n=10))
    for found in (None, few):
        assert choose([("fast", found, 0.4), ("ngrams", found, 1.0), ("wide", found, 1.0)], "ngrams")[0] == "wide"
        assert choose([("fast", found, 1.0), ("ngrams", found, 1.0)], "ngrams")[0] == "fast"
        assert choose([("fast", found, 0.4), ("ngrams", found, 1.0), ("wide", found, 0.4)], "ngrams")[0] == "ngrams"


class Fake:
    def __init__(self, seed, reads):
        self.seed, self.reads = seed, reads

    def encode(self, texts):
        table = np.random.default_rng(self.seed).normal(size=(1000, 16))
        rng = np.random.default_rng(ord(texts[0][0]))
        noise = 0.3 if self.reads == 1 else 50
        out = np.array([table[int(t.split()[1])] + noise * rng.normal(size=16) for t in texts])
        return out / np.linalg.norm(out, axis=1, keepdims=True)

    def readable(self, texts):
        return np.full(len(texts), self.reads, np.float32)


@pytest.mark.slow
def test_the_wide_model_is_asked_only_where_the_fast_one_fails(monkeypatch):
    asked = []

    def encoder(reads):
        def get(name, device):
            asked.append(name)
            return Fake(1, reads.get(name, 1))

        return get

    import pipelines.encode

    sides = pl.DataFrame({"source": [f"a {i}" for i in range(100)], "target": [f"b {i}" for i in range(100)]})
    monkeypatch.setattr(pipelines.encode, "encoder", encoder({}))
    row = job.measure("en-US", sides, ["a 1"], "cpu")
    assert row["model"] == job.models.FAST
    assert asked == [job.models.FAST, job.models.NGRAMS]
    monkeypatch.setattr(pipelines.encode, "encoder", encoder({job.models.FAST: 0.4}))
    assert job.measure("en-US", sides, ["a 1"], "cpu")["model"] == job.models.NGRAMS, "a tie is not worth the dearer one"
    monkeypatch.setattr(pipelines.encode, "encoder", encoder({job.models.FAST: 0.4, job.models.NGRAMS: 0.4}))
    row = job.measure("en-US", sides, ["a 1"], "cpu")
    assert row["model"] == job.models.WIDE
    assert set(row["auc"]) == {job.models.FAST, job.models.WIDE, job.models.NGRAMS}
    assert row["auc"][job.models.FAST] < row["auc"][job.models.WIDE]


def test_letters_are_no_language(monkeypatch):
    import pipelines.encode

    monkeypatch.setattr(pipelines.encode, "encoder", lambda name, device: Fake(1, 1))
    none = pl.DataFrame(schema={"source": pl.String, "target": pl.String})
    read = {x: job.measure(x, none, ["a 1"], "cpu")["model"] for x in ("fi", "fi-FI", "pt-BR", "zh_CN", "und")}
    assert read == {"fi": job.models.WIDE, "fi-FI": job.models.WIDE} | dict.fromkeys(("pt-BR", "zh_CN", "und"), job.models.FAST)


def test_the_sample_does_not_depend_on_rows_or_shards():
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "locale": rng.choice(["en", "sw"], 2000),
            "source": [f"s{i}" for i in rng.integers(0, 900, 2000)],
            "target": [f"t{i}" for i in rng.integers(0, 900, 2000)],
        }
    )
    whole = job._first(frame)
    assert whole.group_by("locale").len()["len"].to_list() == [job.PAIRS] * 2
    assert not whole.select(pl.struct("locale", "source").is_duplicated().any()).item()
    assert job._first(frame.sample(fraction=1, shuffle=True, seed=1)).equals(whole)


def test_separation_has_one_share_per_pair():
    found = separation(*pairs(1, n=50))
    assert isinstance(found, Separation)
    assert found.far.shape == (50,)


def test_who_meets_nobody():
    fast, wide, letters = job.models.FAST, job.models.WIDE, job.models.NGRAMS
    read_by = {"de": fast, "en": fast, "fi": fast, "hi": wide, "sw": letters, "xh": letters}
    assert job.strangers(read_by, ["de"], ["en"]) == [], "one model was taught both"
    assert job.strangers(read_by, ["fi", "de", "sw"], ["en"]) == ["fi", "sw"], "letters and names are no language"
    assert job.strangers(read_by, ["xh"], ["sw"]) == ["xh"], "nor are they where both are read so"
    assert job.strangers(read_by, ["en"], ["sw", "hi"]) == ["en"], "whose models are others"
    assert job.strangers(dict.fromkeys(read_by, wide), ["fi", "sw"], ["en"]) == []
    assert job.strangers(read_by, ["de", "sw"], []) == [], "there is nobody to meet"


def lake_of(folder, launched_texts, intents):
    """English that is served with intents and asked again, and Swahili with or without; the context of a run on it."""
    store = Store(str(folder))
    rows = []
    for locale, texts in (("en-US", 300), ("sw-KE", launched_texts)):
        named = "lamp" if locale in intents else None
        rows += [("u1", locale, "outcome", f"{locale} {i}", None, 1.0, named) for i in range(texts)]
        rows += [("u1", locale, "rephrase", f"{locale} {i}", f"other {i}", 1.0, named) for i in range(texts)]
    names = ("user_key", "locale", "kind", "source", "target", "value", "intent")
    votes = pl.DataFrame(rows, schema=dict(zip(names, [pl.String] * 5 + [pl.Float64, pl.String], strict=True)), orient="row")
    for name, kind in pl.DataFrame(VOTES.empty_table()).schema.items():
        votes = votes if name in votes.columns else votes.with_columns(pl.lit(None, kind).alias(name))
    entry = store.attempt("t", "votes", "date=2026-01-01", engine.conform(votes, VOTES), 0)
    store.publish("t", Manifest("votes", "date=2026-01-01", "test", "f", (entry,)))
    context = Context(EmbedOptions(lake=str(folder)), make=True)
    context.said = []
    context.say = lambda line, **_: context.said.append(line)
    return context


def test_a_language_just_launched_is_read_together_with_those_that_have_intents(tmp_path, monkeypatch):
    import pipelines.encode

    monkeypatch.setattr(pipelines.encode, "encoder", lambda name, device: Fake(1, 1))

    def chosen(name, texts, *intents):
        context = lake_of(tmp_path / name, texts, intents)
        return job.run(context, date(2026, 1, 1)), " ".join(context.said)

    apart = dict.fromkeys(("en-US", "sw-KE"), job.models.FAST)  # a tie: the cheaper one, taught the language or not
    own = chosen("own", 300, "en-US", "sw-KE")
    for rows, said in (own, chosen("few", 150, "en-US"), chosen("none", 300)):
        assert {lo: row["model"] for lo, row in rows.items()} == apart and "intents" not in str(rows) + said
    rows, said = chosen("launched", 300, "en-US")
    assert "reads the texts of en-US, sw-KE: the log has no intents of sw-KE," in said
    assert {row["model"] for row in rows.values()} == {job.models.WIDE}
    assert rows["en-US"]["far_auc"].items() > own[0]["en-US"]["far_auc"].items(), "what was measured stays beside it"
    taken = [(r["locale"], r["why"]) for r in model_rows(rows) if r["taken"]]
    assert [lo for lo, _ in taken] == ["en-US", "sw-KE"] and all("the language of sw-KE too" in why for _, why in taken)
