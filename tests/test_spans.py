"""Slot spans projected by alignment."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewrite.spans import aligned, project


@pytest.mark.parametrize(
    ("value", "target", "source", "said"),
    [
        ("elton john", "play elton john please", "play elton jon please", "elton jon"),
        ("elton john", "play elton john", "play alton john please", "alton john"),
        ("john", "call john now", "call jon now", "jon"),
        ("five am", "wake me up at five am", "wake me at fife am", "fife am"),
        ("東京", "東京の天気は", "東享の天気は", "東享"),
        ("नौ बजे", "मुझे नौ बजे जगाओ", "मुझे नो बजे जगाओ", "नो बजे"),
        ("elton john", "play elton john", "play some music", None),  # another thing
        ("elton john", "play elton john", "play", None),  # left out
    ],
)
def test_a_value_is_found_where_it_stands(value: str, target: str, source: str, said: str | None) -> None:
    assert aligned(value, target, source) == said


def test_values_of_three_kinds() -> None:
    slots = json.dumps({"artist": "elton john", "room": "kitchen", "date": "2026-01-05", "song": "your song", "n": 5})
    found = json.loads(project(slots, "play your song by elton john in the kitchen", "play by elton jon in the kitchen"))
    assert found == {"artist": "elton jon", "room": "kitchen", "date": "2026-01-05", "n": 5}


@given(st.text(max_size=40), st.text(max_size=40), st.data())
def test_whatever_is_projected_is_said(target: str, source: str, data: st.DataObject) -> None:
    a = data.draw(st.integers(0, len(target)))
    value = target[a : data.draw(st.integers(a, len(target)))]
    if value:
        said = aligned(value, target, source)
        assert said is None or (said in source and said)
