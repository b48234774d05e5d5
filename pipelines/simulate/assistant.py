"""What the assistant makes of a text: decided once, when the text is first made, and the same ever after."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any, TypeVar

NO_MATCH = -1
"""A meaning: the assistant did not understand."""

T = TypeVar("T")


class Assistant:
    """Numbers the texts of one language as they are made, and gives each a meaning.

    Meanings are numbers: first the goals in their order, then each intent with its values lost.
    """

    def __init__(self, spec: dict[str, Any], goals: list[str], surface: list[dict[str, str]], intent: list[int], rng: Random):
        self.rng = rng
        self.texts: list[str] = []
        self.number: dict[str, int] = {}
        self.meaning: list[int] = []
        self.works: list[bool] = []  # the action can be carried out
        self.right: list[bool] = []  # what the user wanted for whom the text was made
        intents = list(spec["intents"])
        slots = [json.dumps(s, sort_keys=True, ensure_ascii=False) for s in surface]
        self.meanings = [(intents[i], s) for i, s in zip(intent, slots, strict=True)] + [(name, "{}") for name in intents]
        self.intent, self.goals = intent, len(goals)
        value = [g.partition("|")[2] for g in goals]
        of_intent: dict[int, list[int]] = {}
        of_value: dict[str, list[int]] = {}
        for g, (i, v) in enumerate(zip(intent, value, strict=True)):
            of_intent.setdefault(i, []).append(g)
            of_value.setdefault(v, []).append(g)
        self.other_value = [[x for x in of_intent[intent[g]] if x != g] for g in range(len(goals))]
        self.other_intent = [[x for x in of_value[value[g]] if value[g] and intent[x] != intent[g]] for g in range(len(goals))]

    def tell(self, text: str, goal: int, understood: bool, supported: bool = True) -> int:
        """The number of a text that is said for a goal; when it is new, it is understood or mistaken."""
        if text in self.number:
            return self.number[text]
        if not supported and self.rng.random() < 0.5:
            return self.add(text, goal, goal, False)
        if supported and understood:
            return self.add(text, goal, goal, True)
        return self.add(text, goal, *self.mistake(goal))

    def add(self, text: str, goal: int, meaning: int, works: bool) -> int:
        """A new text, said for a goal, and what the assistant makes of it."""
        self.number[text] = len(self.texts)
        self.texts.append(text)
        self.meaning.append(meaning)
        self.works.append(works)
        self.right.append(works and meaning == goal)
        return self.number[text]

    def mistake(self, goal: int) -> tuple[int, bool]:
        """(meaning, works) of a failure: not understood, the action fails, the value lost, another value, another intent."""
        u, intent = self.rng.random(), self.intent[goal]
        if u < 0.25:
            return NO_MATCH, False
        if u < 0.33:
            return goal, False
        if self.other_value[goal] and u < 0.53:
            return self.goals + intent, True
        if self.other_value[goal] and u < 0.73:
            return pick(self.other_value[goal], self.rng), True
        if self.other_intent[goal] and u < 0.9:
            return pick(self.other_intent[goal], self.rng), True
        other = goal
        while self.intent[other] == intent:
            other = int(self.rng.random() * self.goals)
        return other, True


def pick(of: Sequence[T], rng: Random) -> T:
    """One of them."""
    return of[int(rng.random() * len(of))]
