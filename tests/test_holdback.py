"""What is vetoed, protected or held out is turned down with its reason, in every table and role; the canary sees harm."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from release_world import build, frame, world

from pipelines.canary import _served
from pipelines.errors import UsageError
from pipelines.options import VetoOptions
from pipelines.store import Store
from pipelines.veto import VETOES, veto, vetoes
from quality.canary import canary
from quality.holdback import Veto, held, hold_back
from rewrite.contracts import CANDIDATES, GOALS, VOTES
from rewrite.text import rewrite_id

ID = rewrite_id("en-US", "tern on", "turn on the light")


def turned_down(**what: object) -> tuple[dict[str, pl.DataFrame], pl.DataFrame]:
    rows = world()
    given = {"vetoes": [], "intents": [], "texts": [], "test_texts": []} | what
    tables = {name: frame(schema, rows[name]) for name, schema in CANDIDATES.items()}
    found, goals = hold_back(tables, frame(GOALS, rows["goals"]), held(**given))  # type: ignore[arg-type]
    assert goals is not None and all(found[n].columns == tables[n].columns and found[n].height == tables[n].height for n in tables)
    return found, goals


def reasons(table: pl.DataFrame, why: str) -> int:
    hit = table.filter(pl.col("reason") == why)
    assert (hit["decision"] == "rejected").all()
    return hit.height


def test_nothing_held_back_changes_nothing() -> None:
    found, goals = turned_down()
    assert found["rewrites"].equals(frame(CANDIDATES["rewrites"], world()["rewrites"])) and goals.height == 6


def test_a_veto_of_a_rewrite_takes_that_rewrite_alone() -> None:
    found, goals = turned_down(vetoes=[Veto("wrong", rewrite_id=ID)])
    assert reasons(found["rewrites"], "vetoed") == 1 and reasons(found["labels"], "vetoed") == 0 and goals.height == 6


def test_a_veto_of_a_text_takes_it_in_every_role() -> None:
    found, goals = turned_down(vetoes=[Veto("a name", text="turn on the light")])
    assert [reasons(found[n], "vetoed") for n in ("rewrites", "labels", "pairs")] == [2, 1, 1]
    assert "turn on the light" not in goals["utterance"]


@pytest.mark.parametrize("intent", ["play", "pl*"])
def test_protected_intents_and_texts(intent: str) -> None:
    found, _ = turned_down(intents=[intent])
    assert [reasons(found[n], "protected") for n in ("rewrites", "labels")] == [1, 1]
    found, goals = turned_down(texts=["  Light ON "])
    assert reasons(found["pairs"], "protected") == 2 and "light on" not in goals["utterance"]


def test_the_test_set_is_not_taught() -> None:
    found, goals = turned_down(test_texts=["Turn on the LITE"])
    assert [reasons(found[n], "held_out") for n in ("rewrites", "labels", "pairs")] == [1, 1, 1] and goals.height == 6


def test_a_vetoed_rewrite_of_the_parent_is_retired_with_the_reason() -> None:
    parent, rows = build(), world()
    rows["rewrites"][1] |= {"decision": "rejected", "reason": "vetoed"}
    retired = build(rows, parent).tables["retired"]
    assert retired.select("rewrite_id", "reason").rows() == [(ID, "vetoed")]


def test_vetoes_are_kept_once_and_for_ever(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert veto(store, ID, "wrong")[1] and veto(store, "Ein\tName", "a name")[1]
    assert not veto(store, "ein name", "again")[1], "the first reason stays"
    assert {(v.rewrite_id, v.text, v.reason) for v in vetoes(store)} == {(ID, None, "wrong"), (None, "ein name", "a name")}
    assert "at" in json.loads(store.get(store.list(VETOES)[0]))
    store.put(f"{VETOES}/ff.json", b"{}")
    with pytest.raises(ValueError, match=r"ff\.json"):
        vetoes(store)
    with pytest.raises(UsageError, match="--reason"):
        VetoOptions(lake="x", what="a", reason=" ").validate()


def later(n: int = 60) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What was heard early, and what users were served with later: two intents told apart by their words."""
    rng = np.random.default_rng(0)
    rows = [
        ("xx", f"{'lamp' if i % 2 else 'song'} {''.join(rng.choice(list('abcde'), 4))} {i}", "light" if i % 2 else "play", 3)
        for i in range(2 * n)
    ]
    table = pl.DataFrame(rows, schema=["locale", "utterance", "intent", "users"], orient="row")
    return table.head(n), table.tail(n)


def test_the_canary_sees_labels_that_harm_and_lets_good_ones_pass() -> None:
    heard, served = later()
    sure = heard.with_columns(confidence=pl.lit(0.95)).drop("users")
    swapped = sure.with_columns(intent=pl.when(pl.col("intent") == "play").then(pl.lit("light")).otherwise(pl.lit("play")))
    good = {m.check: m.value for m in canary(heard, sure, served)}
    bad = {m.check: m.value for m in canary(heard, swapped, served)}
    assert good == {"canary": 0.0} and bad["canary"] > 0.5
    assert canary(heard, sure.clear(), served) == [] and canary(heard, sure, served.head(5)) == []


def test_the_canary_hears_those_who_had_to_ask_again() -> None:
    """What fails is heard as something else; labels that correct it are right for users who asked again, and wrong ones are not."""
    heard, served = later()
    fails = heard.with_columns(pl.col("utterance").str.replace("lamp|song", "noise"), intent=pl.lit("play")).head(30)
    ended = served.with_columns(pl.col("utterance").str.replace("lamp|song", "noise"), intent=pl.lit("light"))
    both = pl.concat([heard, fails])
    right, wrong = (fails.with_columns(intent=pl.lit(i), confidence=pl.lit(0.95)).drop("users") for i in ("light", "play"))
    assert {m.check: m.failed for m in canary(both, right, served, ended)} == {"canary": 0}
    spoilt = heard.filter(pl.col("intent") == "light").with_columns(intent=pl.lit("play"), confidence=pl.lit(0.95)).drop("users")
    harm = [
        next(m for m in canary(both, pl.concat([wrong, spoilt]), s, e) if m.check == "canary") for s, e in ((served, None), (served, ended))
    ]
    assert harm[0].rows < harm[1].rows and harm[1].value > 0.1
    assert canary(both, right, served, served) == canary(both, right, served), "a text that serves has one truth"


def test_calibration_on_later_days() -> None:
    heard, _ = later()
    labels = heard.with_columns(confidence=pl.lit(0.95)).drop("users")
    half = heard.with_columns(intent=pl.when(pl.int_range(pl.len()) % 2 == 0).then("intent").otherwise(pl.lit("other")))
    found = {m.check: m for m in canary(heard, labels, half)}
    assert found["calibration"].value == pytest.approx(0.45) and found["calibration"].failed == 30


def test_the_canary_holds_nothing_against_a_text_that_fails() -> None:
    """Of a text that fails nine of ten, the tenth seems served with the wrong thing: that is no truth to be held to."""
    types = pl.DataFrame(VOTES.empty_table()).schema
    base = dict.fromkeys(types) | {"locale": "xx", "kind": "outcome", "treatment": "untouched", "intent": "a"}
    rows = [
        base | {"user_key": f"u{n}", "source": text, "value": float(n < served)}
        for text, served in (("fails", 1), ("works", 8))
        for n in range(10)
    ]
    votes = pl.DataFrame(rows, schema=types, orient="row").with_columns(date=pl.lit(date(2026, 3, 1)))
    kept = _served(votes)
    assert kept["source"].unique().to_list() == ["works"] and kept.height == 8
