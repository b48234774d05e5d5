"""The goal graph: every text one goal, the same whatever the order, ids that stay, nothing chained."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewrite import background, neighbours
from rewrite.contracts import GOAL_CHANGES, GOAL_EDGES, GOALS
from rewrite.goal_evidence import number_sets
from rewrite.goal_ids import goal_id
from rewrite.goals import build_goals
from rewrite.neighbours import top_cosine

TEXTS = {"locale": pl.String, "utterance": pl.String, "users": pl.Int64, "served": pl.Float64}
LINKS = {"locale": pl.String, "source": pl.String, "target": pl.String, "users": pl.Int64, "weight": pl.Float64}
SERVED = {"locale": pl.String, "utterance": pl.String, "intent": pl.String, "slots": pl.String, "users": pl.Int64, "weight": pl.Float64}


def texts(rows):
    return pl.DataFrame([("en", *r) for r in rows], schema=TEXTS, orient="row")


def links(rows=()):
    return pl.DataFrame([("en", *r) for r in rows], schema=LINKS, orient="row")


def served(rows=()):
    return pl.DataFrame([("en", *r) for r in rows], schema=SERVED, orient="row")


def groups(graph):
    return {frozenset(g) for g in graph.goals.group_by("goal_id").agg("utterance")["utterance"].to_list()}


def goal_of(graph, utterance):
    return graph.goals.filter(pl.col("utterance") == utterance)["goal_id"].item()


def kitchen():
    """Two goals known by what was served, failing texts that lead to them, a text alone, and vectors of three directions."""
    t = texts(
        [
            ("kitchen light on", 9, 0.95),
            ("turn on the kitchen light", 5, 0.9),
            ("bedroom light on", 7, 0.95),
            ("light in the bedroom please", 4, 0.9),
            ("kitten light", 4, 0.05),
            ("kitten bright", 3, 0.1),
            ("what a day", 3, None),
        ]
    )
    s = served(
        [
            ("kitchen light on", "on", '{"room":"kitchen"}', 9, 8.5),
            ("turn on the kitchen light", "on", '{"room":"kitchen"}', 5, 4.5),
            ("bedroom light on", "on", '{"room":"bedroom"}', 7, 6.5),
            ("light in the bedroom please", "on", '{"room":"bedroom"}', 4, 3.5),
            ("kitten light", "animal", '{"kind":"kitten"}', 4, 0.2),
        ]
    )
    asked = links(
        [
            ("kitten light", "kitchen light on", 3, 2.8),
            ("kitten bright", "kitten light", 2, 1.8),
            ("what a day", "bedroom light on", 1, 0.1),
        ]
    )
    directions = np.array([[1, 0, 0], [1, 0.1, 0], [0, 1, 0], [0.1, 1, 0], [1, 0, 0.5], [0.8, 0, 0.5], [0, 0, 1]])
    vectors = (directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float16)
    return t, vectors, asked, s


def test_served_interpretations_and_links_make_goals():
    graph = build_goals(*kitchen())
    assert groups(graph) == {
        frozenset({"kitchen light on", "turn on the kitchen light", "kitten light", "kitten bright"}),
        frozenset({"bedroom light on", "light in the bedroom please"}),
        frozenset({"what a day"}),
    }
    exemplars = graph.goals.filter("is_exemplar")
    assert set(exemplars["utterance"]) == {"kitchen light on", "bedroom light on", "what a day"}
    assert goal_of(graph, "kitten light") == goal_id("en", "kitchen light on")


def test_tables_keep_their_contracts():
    graph = build_goals(*kitchen())
    for table, schema in ((graph.goals.drop("x", "y"), GOALS), (graph.edges, GOAL_EDGES), (graph.changes, GOAL_CHANGES)):
        got = table.to_arrow()
        assert got.schema.names == schema.names
        for name in schema.names:
            large = {pa.large_string(): pa.string(), pa.string_view(): pa.string()}
            assert large.get(got.schema.field(name).type, got.schema.field(name).type) == schema.field(name).type, name
    assert graph.goals["membership"].is_between(0, 1).all()
    assert graph.edges["probability"].is_between(0, 1).all()
    assert graph.goals.group_by("goal_id").agg(pl.col("is_exemplar").sum())["is_exemplar"].unique().to_list() == [1]


@given(st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_no_row_order_changes_a_byte(random):
    t, vectors, asked, s = kitchen()

    def shuffled(n):
        order = list(range(n))
        random.shuffle(order)
        return order

    rows = shuffled(t.height)
    one = build_goals(t, vectors, asked, s)
    two = build_goals(t[rows], vectors[rows], asked[shuffled(asked.height)], s[shuffled(s.height)])
    for a, b in ((one.goals, two.goals), (one.edges, two.edges), (one.changes, two.changes), (one.curves, two.curves)):
        assert a.equals(b)


@pytest.mark.parametrize("missing", ["vectors", "links", "served", "all"])
def test_any_evidence_may_be_missing(missing):
    t, vectors, asked, s = kitchen()
    everything = missing == "all"
    graph = build_goals(
        t,
        None if everything or missing == "vectors" else vectors,
        links() if everything or missing == "links" else asked,
        served() if everything or missing == "served" else s,
    )
    assert sorted(graph.goals["utterance"]) == sorted(t["utterance"])
    if everything:
        assert graph.goals["goal_id"].n_unique() == t.height
        assert graph.goals["membership"].to_list() == [1.0] * t.height


def test_no_texts_and_one_text():
    empty = build_goals(texts([]), np.zeros((0, 3), np.float32), links(), served())
    assert empty.goals.height == empty.edges.height == empty.changes.height == 0
    one = build_goals(texts([("hi", 1, None)]), np.ones((1, 3), np.float32), links(), served())
    assert one.goals["goal_id"].to_list() == [goal_id("en", "hi")]
    assert one.changes["change"].to_list() == ["appeared"]


def test_null_vectors_are_no_evidence():
    t, vectors, asked, s = kitchen()
    broken = vectors.copy()
    broken[0], broken[1] = 0, np.nan
    graph = build_goals(t, broken, asked, s)
    near = graph.edges.filter(pl.col("similarity").is_not_null())
    assert not {"kitchen light on", "turn on the kitchen light"} & set(near["utterance_a"]) | set(near["utterance_b"]) & {
        "kitchen light on"
    }
    assert graph.goals.filter(pl.col("utterance") == "kitchen light on")["x"].item() is None


def test_different_numbers_and_different_slot_values_stay_apart():
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(12, 32))
    rows, vectors = [], []
    for c in range(12):  # twelve tight clusters, so that near texts stand out from random pairs
        for w in range(6):
            rows.append((f"topic {'abcdefghijkl'[c]} wording {'uvwxyz'[w]}", 3, None))
            vectors.append(centre[c] + 0.05 * rng.normal(size=32))
    rows += [("set alarm for 7", 5, None), ("set alarm for 8", 5, None), ("set alarm for ７", 5, None)]
    alarm = rng.normal(size=32)
    vectors += [alarm, alarm, alarm]
    vectors = np.array(vectors)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    graph = build_goals(texts(rows), vectors.astype(np.float32), links(), served())
    assert goal_of(graph, "set alarm for 7") == goal_of(graph, "set alarm for ７") != goal_of(graph, "set alarm for 8")
    assert goal_of(graph, "topic a wording u") == goal_of(graph, "topic a wording v") != goal_of(graph, "topic b wording u")

    t, _, _, s = kitchen()
    same = np.ones((t.height, 3)) / np.sqrt(3)
    strong = links([("kitchen light on", "bedroom light on", 50, 49.0)])
    graph = build_goals(t, same, strong, s)
    assert goal_of(graph, "kitchen light on") != goal_of(graph, "bedroom light on")


def test_a_list_of_texts_has_goals_whatever_the_scale_of_the_model():
    """Thirty goals of three wordings, nothing served: found alike by a model whose cosines are all high and by one whose are low."""
    rng = np.random.default_rng(4)
    names = [f"goal {chr(97 + g // 6)}{chr(97 + g % 6)} wording {w}" for g in range(30) for w in "xyz"]
    goals = np.repeat(rng.normal(size=(30, 48)), 3, axis=0)
    points = goals + 0.25 * rng.normal(size=goals.shape)
    found = []
    for shift in (0.0, 2.0):
        vectors = points + shift
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        found.append(groups(build_goals(texts([(u, 3, None) for u in names]), vectors.astype(np.float32), links(), served())))
        assert sum(len({u[:7] for u in g}) == 1 and len(g) == 3 for g in found[-1]) >= 28
    assert found[0] == found[1]


def test_unrelated_texts_stay_alone():
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(200, 48))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = [f"text {chr(97 + i // 20)}{chr(97 + i % 20)}" for i in range(200)]
    graph = build_goals(texts([(u, 3, None) for u in names]), vectors.astype(np.float32), links(), served())
    assert graph.goals["goal_id"].n_unique() >= 190


def test_numbers_of_any_script():
    assert number_sets(["at 7 or 12", "12 , 7", "um 8", "८ बजे", "none"]).tolist() == [0, 0, 1, 1, 2]


def test_a_bridge_does_not_chain_two_crowds():
    """Two goals of ten failing wordings each, well linked inside, and one stray link between them."""
    names = [[f"{side} wording {'abcdefghij'[i]}" for i in range(10)] for side in ("left", "right")]
    asked = [(side[i], side[j], 2, 1.8) for side in names for i in range(10) for j in range(i + 1, 10) if (i + j) % 3 == 0]
    asked += [(side[i], side[i + 1], 2, 1.9) for side in names for i in range(9)]
    t = texts([(u, 4, 0.1) for side in names for u in side])
    whole = build_goals(t, None, links(asked), served())
    bridged = build_goals(t, None, links([*asked, (names[0][4], names[1][5], 1, 0.9)]), served())
    for graph in (whole, bridged):
        sides = graph.goals.with_columns(side=pl.col("utterance").str.slice(0, 4)).group_by("goal_id").agg(pl.col("side").n_unique())
        assert sides["side"].max() == 1
    assert groups(whole) == groups(bridged)


def test_a_ring_cannot_join_a_text_that_works():
    """Nine accounts say a working request and then theirs: who leaves what works did not ask for it again."""
    t, _, asked, s = kitchen()
    t = pl.concat([t, texts([("open my shop", 9, 0.95)])])
    ring = links([("kitchen light on", "open my shop", 9, 8.9), ("what a day", "open my shop", 9, 8.9)])
    graph = build_goals(t, None, pl.concat([asked, ring]), s)
    assert goal_of(graph, "open my shop") != goal_of(graph, "kitchen light on")
    assert goal_of(graph, "open my shop") == goal_of(graph, "what a day")  # of a text that is not known to work, it may be true


def test_certain_links_give_the_components_of_networkx():
    import networkx as nx

    rng = np.random.default_rng(3)
    for _ in range(20):
        n = 40
        graph = nx.disjoint_union_all([nx.random_labeled_tree(int(k), seed=int(rng.integers(1e6))) for k in rng.integers(1, 3, n // 2)])
        names = [f"t{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(graph.number_of_nodes())]
        got = build_goals(
            texts([(u, 3, 0.2) for u in names]), None, links([(names[a], names[b], 5, 5.0) for a, b in graph.edges]), served()
        )
        assert groups(got) == {frozenset(names[i] for i in c) for c in nx.connected_components(graph)}


def test_nearest_neighbours_are_exact_with_ties_in_the_order_of_the_index(monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", 64 * 300)
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(300, 16))
    vectors[50:60] = vectors[40]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    indices, cosines = top_cosine(vectors.astype(np.float32), 5)
    full = np.round((vectors.astype(np.float32) @ vectors.astype(np.float32).T), 5)
    np.fill_diagonal(full, -2)
    expected = np.lexsort((np.broadcast_to(np.arange(300), full.shape), -full), axis=1)[:, :5]
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(cosines, np.take_along_axis(full, expected, 1), atol=2e-5)


def test_ids_stay_when_a_goal_changes():
    t, vectors, asked, s = kitchen()
    first = build_goals(t, vectors, asked, s)
    # The exemplar loses its crown and a new text comes: the goal is still the same one.
    later = texts(
        [
            *t.with_columns(users=pl.when(pl.col("utterance") == "turn on the kitchen light").then(50).otherwise("users"))
            .drop("locale")
            .rows(),
            ("new one", 3, None),
        ]
    )
    second = build_goals(later, np.vstack([vectors, [[0, 0, 0]]]), asked, s, last=first.goals)
    assert goal_of(second, "kitchen light on") == goal_of(first, "kitchen light on")
    assert second.goals.filter("is_exemplar", pl.col("utterance").str.contains("kitchen"))["utterance"].to_list() == [
        "turn on the kitchen light"
    ]
    counts = dict(second.changes.group_by("change").len().iter_rows())
    assert counts == {"kept": 3, "appeared": 1}
    third = build_goals(later, np.vstack([vectors, [[0, 0, 0]]]), asked, s, last=second.goals)
    assert third.goals.equals(second.goals)


def test_goals_merge_split_and_vanish():
    t, _, asked, s = kitchen()
    apart = build_goals(t, None, links(), served())
    together = build_goals(t, None, asked, s, last=apart.goals)
    change = {(c["old_goal_id"], c["change"]) for c in together.changes.iter_rows(named=True)}
    assert (goal_of(apart, "kitchen light on"), "kept") in change
    assert (goal_of(apart, "kitten light"), "merged") in change
    again = build_goals(t, None, links(), served(), last=together.goals)
    assert again.goals["goal_id"].n_unique() == t.height
    assert goal_of(again, "kitchen light on") == goal_of(together, "kitchen light on")
    split = again.changes.filter(pl.col("change") == "split")
    assert set(split["old_goal_id"]) == {goal_of(together, "kitchen light on"), goal_of(together, "bedroom light on")}
    gone = build_goals(t.head(2), None, links(), served(), last=apart.goals)
    assert gone.changes.filter(pl.col("change") == "vanished").height == t.height - 2
    assert set(gone.changes["change"]) == {"kept", "vanished"}


def test_a_born_id_never_collides_with_a_kept_one():
    """The goal moves away from the text that named it; that text alone must not get the same id again."""
    t = texts([("a", 9, None), ("b", 5, None), ("c", 5, None)])
    last = pl.DataFrame({"locale": ["en", "en"], "utterance": ["b", "c"], "goal_id": [goal_id("en", "a")] * 2})
    graph = build_goals(t, None, links([("b", "c", 5, 5.0)]), served(), last=last)
    assert goal_of(graph, "b") == goal_of(graph, "c") == goal_id("en", "a")
    assert goal_of(graph, "a") == goal_id("en", "a", salt=1)


def test_errors_name_the_value():
    t, vectors, asked, s = kitchen()
    with pytest.raises(ValueError, match=r"vectors: 6 rows for 7 texts"):
        build_goals(t, vectors[:-1], asked, s)
    with pytest.raises(ValueError, match="'what a day' comes more than once"):
        build_goals(pl.concat([t, t.tail(1)]), None, asked, s)
    with pytest.raises(ValueError, match="least must be in"):
        build_goals(t, None, asked, s, least=1.5)


EVAL = Path(os.environ.get("SAYAGAIN_EVAL", Path(__file__).parents[1] / ".." / "shared" / "eval"))


SMALL_SETS = ("ar", "en", "es", "ja", "pl", "ro", "ru", "zh-cn")  # the others are larger, or in no language the model reads


@pytest.mark.eval
@pytest.mark.slow
def test_wordings_of_one_goal_in_many_languages_without_any_behaviour():
    """Same-goal groups in 8 languages, texts alone: median B-cubed F1 above what n-grams reach at their best threshold (.61)."""
    if not (EVAL / "variants" / "variants.parquet").exists():
        pytest.skip(f"needs the evaluation data in {EVAL}")
    from pipelines.models import load_encoder
    from rewrite.text import key_expr

    spec = importlib.util.spec_from_file_location("score", EVAL / "score.py")
    score = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(score)
    gold = pl.read_parquet(EVAL / "variants" / "variants.parquet").filter(pl.col("locale").is_in(SMALL_SETS))
    t = gold.select("locale", utterance=key_expr("text")).unique().with_columns(users=pl.lit(3), served=pl.lit(None, pl.Float64))
    graph = build_goals(t, load_encoder().encode(t["utterance"].to_list()), links(), served())
    f1 = [v for k, v in score.variant_scores(gold, graph.goals).items() if k.endswith("_f1")]
    assert np.median(f1) > 0.61


def test_misspelt_copies_do_not_move_the_scale_of_likeness():
    """Of 2,000 wordings, and of the same with nine near copies each: a list is not judged harder because it is long."""
    rng = np.random.default_rng(0)
    wordings = np.repeat(rng.normal(size=(250, 64)), 8, axis=0) + 0.5 * rng.normal(size=(2000, 64))
    copies = np.repeat(wordings, 10, axis=0) + 0.05 * rng.normal(size=(20_000, 64))
    short, long = ((v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32) for v in (wordings, copies))
    near, near_of_many = (np.median(background.nearest_of_sample(v, background.THINNED, 0)) for v in (short, long))
    assert np.median(top_cosine(long[:2000], 1)[1]) > 0.99
    assert 0.7 < near_of_many < near + 0.05


@pytest.mark.parametrize(("texts", "expected"), [(3, (2_000, 8_000)), (10, (1_000, 2_000)), (200, (500, 500))])
def test_the_sample_grows_until_it_holds_one_text_of_each_goal(texts, expected):
    """12,000 texts in 4,000, 1,200 or 60 goals under 100, 30 or 12 subjects: nobody says how many goals there are."""
    rng, n = np.random.default_rng(0), 12_000
    goal = np.arange(n) // texts
    subject = np.arange(n) // (texts * 40 if texts < 200 else texts * 5)
    vectors = 0.3 * rng.normal(size=(1, 64)) + rng.normal(size=(n, 64))[subject] + rng.normal(size=(n, 64))[goal]
    vectors += 0.6 * rng.normal(size=(n, 64))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    size = background.sample_size(vectors, float(np.median(neighbours.random_cosines(vectors, 20_000, 0))), 0)
    assert expected[0] <= size <= expected[1]
    assert background.sample_size(vectors[:400], 0.1, 0) == 400
