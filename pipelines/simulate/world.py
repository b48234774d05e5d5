"""What can be said in one language, how it is heard, and what the assistant makes of it.

Everything is decided once per text, so the assistant serves a text always or never (but for rare passing errors): that is
how deterministic assistants fail, and what makes rewriting worth while. All arrays are small; `play` only looks things up.
"""

from __future__ import annotations

import tomllib
import zlib
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from random import Random
from typing import Any

import numpy as np

from pipelines.simulate.assistant import NO_MATCH, Assistant, pick
from pipelines.simulate.hearing import Ear
from rewrite.text import key

ZIPF_GOALS = 0.7  # the top goal gets about 5 % of the requests
ZIPF_WORDINGS = 0.7  # the usual wording of an intent gets about 27 % of first requests
HEARD_AS = 8  # misheard forms per wording of a goal; few, so that users share them, as they do in real logs
UNSUPPORTED = 2  # intents that the assistant understands at best and never carries out
EXCEPTIONS = 0.12  # share of (goal, wording) that go against what holds for the wording: known words, unknown value, or the other way
STILL_UNDERSTOOD = 0.6  # share of misheard forms with the value intact that mean to the assistant what the right form means


@dataclass(frozen=True)
class Language:
    """One language of a world. G goals, W wordings at most per intent, V misheard forms, T texts, M meanings."""

    locale: str
    spec: dict[str, Any]  # the wordings file
    goals: list[str]  # G goal ids such as "alarm_set|time=h7", the same in every language
    goal_intent: np.ndarray  # int (G,): index into `intents`
    intents: list[str]
    goal_cdf: np.ndarray  # float (G,): popularity, cumulated
    siblings: np.ndarray  # int (G, 3): goals of the same intent that tend to be asked next; itself when there is none
    routine: np.ndarray  # int (G, 2): goals of other intents that tend to be asked next
    wording_cdf: np.ndarray  # float (intents, W): how usual each wording is, cumulated
    said: np.ndarray  # int (G, 2 * W): text of a wording; W places on, of the same wording with stress ("i said ...")
    heard: np.ndarray  # int (G, 2 * W, V): text of a misheard wording
    texts: list[str]  # T texts, each its own key
    meaning: np.ndarray  # int (T,): the goal, or further meaning, that the assistant takes it for; NO_MATCH
    works: np.ndarray  # bool (T,): whether the action can be carried out
    confidence: np.ndarray  # float (T,)
    meanings: list[tuple[str, str]]  # M: (intent, slots as JSON); the first G are the goals
    known: np.ndarray  # bool (intents, W): wordings that the assistant was taught

    def number(self, texts: list[str]) -> np.ndarray:
        """Text numbers (n,) of the keys of texts; -1 for one that nobody says in this world."""
        at = _index(self.locale, tuple(self.texts))
        return np.array([at.get(key(t), -1) for t in texts], dtype=np.int64)

    def serves(self, texts: list[str], goals: list[str]) -> np.ndarray:
        """Whether the assistant, given each text, does what each goal asks: bool (n,). Unknown texts and goals: False."""
        at = {g: i for i, g in enumerate(self.goals)}
        t, g = self.number(texts), np.array([at.get(x, -2) for x in goals], dtype=np.int64)
        return (t >= 0) & self.works[t] & (self.meaning[t] == g)


@lru_cache(maxsize=8)
def _index(locale: str, texts: tuple[str, ...]) -> dict[str, int]:
    return {t: i for i, t in enumerate(texts)}


def wordings(locale: str) -> dict[str, Any]:
    """The wordings file of a language."""
    return tomllib.loads((files("pipelines.simulate") / "wordings" / f"{locale}.toml").read_text(encoding="utf-8"))


def generator(*what: int | str) -> np.random.Generator:
    """A random generator of its own for everything that is drawn: the same whatever else is drawn before."""
    return np.random.Generator(np.random.PCG64([zlib.crc32(w.encode()) if isinstance(w, str) else w for w in what]))


@lru_cache(maxsize=8)
def build(locale: str, seed: int, unknown: float) -> Language:
    """The world of one language.

    Args:
        locale: one of `options.LOCALES`.
        seed: decides which wordings are unknown, what is misheard and how, and what is popular.
        unknown: share of wordings that the assistant does not understand.
    """
    spec, rng = wordings(locale), generator(seed, locale, "world")
    intents = list(spec["intents"])
    goals, surface, goal_intent = _goals(spec)
    g_n, w_n = len(goals), max(len(i["wordings"]) for i in spec["intents"].values())
    of_intent = [np.flatnonzero(goal_intent == i) for i in range(len(intents))]

    weight = (1.0 + rng.permutation(g_n)) ** -ZIPF_GOALS
    usual = np.zeros((len(intents), w_n))
    for i, name in enumerate(intents):
        n = len(spec["intents"][name]["wordings"])
        usual[i, :n] = (1.0 + np.arange(n)) ** -ZIPF_WORDINGS
    share = np.bincount(goal_intent, weight) / weight.sum()
    known = _known(usual > 0, share, unknown, rng)
    supported = np.ones(len(intents), bool)
    middling = np.argsort(share, kind="stable")[len(intents) // 4 : len(intents) * 3 // 4]
    supported[rng.choice(middling, UNSUPPORTED, replace=False)] = False

    dice = Random(int(rng.integers(1 << 62)))  # for single draws, where it is ten times faster than NumPy's
    assistant = Assistant(spec, goals, surface, goal_intent.tolist(), dice)
    said = np.full((g_n, w_n), -1)
    for g, i in enumerate(goal_intent):
        for w, wording in enumerate(spec["intents"][intents[i]]["wordings"]):
            exception = dice.random() < EXCEPTIONS
            said[g, w] = assistant.tell(key(wording.format(**surface[g])), g, known[i, w] != exception, bool(supported[i]))
    heard = _misheard(assistant, said, of_intent, goal_intent, surface, dice)
    said = np.where(said < 0, said[:, :1], said)  # places that no wording has are never drawn
    said, heard = np.hstack([said, _stressed(assistant, said, spec["stressed"], dice)]), np.hstack([heard, heard])

    return Language(
        locale, spec, goals, goal_intent, intents, _cdf(weight), _siblings(of_intent, goal_intent, rng),
        _routine(goal_intent, weight, rng), _cdf(usual), said, heard, assistant.texts, np.array(assistant.meaning), np.array(assistant.works),
        np.round(_confidence(np.array(assistant.meaning), np.array(assistant.right), rng), 4), assistant.meanings, known,
    )  # fmt: skip


def flip(language: Language, share: float, seed: int) -> np.ndarray:
    """`heard` from the day on which misheard forms change their meaning: int (G, 2 * W, V).

    A share of the misheard forms that are never served change places with a form of another goal that is said about as often:
    what users of one goal were heard as, users of the other are heard as now. Traffic and failures stay as they were.
    """
    heard, n = language.heard, len(language.texts)
    goal = np.broadcast_to(np.arange(heard.shape[0])[:, None, None], heard.shape).ravel()
    usual = np.diff(language.wording_cdf, axis=1, prepend=0.0)[language.goal_intent]
    often = (
        np.diff(language.goal_cdf, prepend=0.0)[:, None, None] * np.hstack([usual, usual])[:, :, None] / (1.0 + np.arange(heard.shape[2]))
    )
    text, often = heard.ravel(), np.broadcast_to(often, heard.shape).ravel()
    said_by = np.zeros(n, np.int64)  # the goal that a form is heard from most
    order = np.argsort(often, kind="stable")
    said_by[text[order]] = goal[order]
    never = np.bincount(text, often, n) > 0
    never[text[language.works[text] & (language.meaning[text] == goal)]] = False
    never[language.said] = False
    at = np.flatnonzero(never & (generator(seed, language.locale, "flip").random(n) < share))
    at = at[np.argsort(-np.bincount(text, often, n)[at], kind="stable")]
    a, b = at[: at.size // 2 * 2 : 2], at[1::2]
    other = said_by[a] != said_by[b]
    place = np.arange(n)
    place[a[other]], place[b[other]] = b[other], a[other]
    return place[heard]


def _goals(spec: dict) -> tuple[list[str], list[dict[str, str]], np.ndarray]:
    """Goal ids, the slot values as they are said, and the intent of each."""
    goals: list[str] = []
    surface: list[dict[str, str]] = []
    intent: list[int] = []
    for i, (name, it) in enumerate(spec["intents"].items()):
        combos: list[dict[str, str]] = [{}]
        for slot in it["slots"]:
            combos = [c | {slot: v} for c in combos for v in spec["values"][slot]]
        for c in combos:
            goals.append(f"{name}|" + "|".join(f"{s}={v}" for s, v in sorted(c.items())))
            surface.append({s: spec["values"][s][v] for s, v in c.items()})
            intent.append(i)
    return goals, surface, np.array(intent)


def _known(there: np.ndarray, share: np.ndarray, unknown: float, rng: np.random.Generator) -> np.ndarray:
    """Wordings that the assistant was taught: bool (intents, W). Usual ones rather than rare ones, two of an intent at least.

    Systematic sampling over intents in the order of their share of the requests, so that the failure rate hardly depends on the seed.
    """
    known, order = there.copy(), np.argsort(-share, kind="stable")
    width = there.shape[1]
    for w in range(width):
        chance = min(0.95, unknown * (0.6 + 0.8 * w / max(width - 1, 1)))  # .6 of the share for the most usual, 1.4 for the rarest
        steps = np.floor(rng.random() + chance * np.arange(len(order) + 1))
        known[order, w] &= np.diff(steps) == 0
    for i in np.flatnonzero(known.sum(1) < 2):
        known[i, rng.choice(np.flatnonzero(there[i]), 2, replace=False)] = True
    return known


def _misheard(
    assistant: Assistant, said: np.ndarray, of_intent: list, goal_intent: np.ndarray, surface: list[dict], rng: Random
) -> np.ndarray:
    """Misheard forms of every wording: int (G, W, V)."""
    heard = np.zeros((*said.shape, HEARD_AS), dtype=np.int64)
    ear = Ear(assistant.texts, rng)
    for g, i in enumerate(goal_intent):
        values = [key(x) for x in surface[g].values()]
        siblings = [int(x) for x in of_intent[i] if x != g]
        for w, t in enumerate(said[g]):
            if t < 0:  # this intent has fewer wordings; its weight is 0
                continue
            for v in range(HEARD_AS):
                if siblings and rng.random() < 0.06:  # heard as the same wording with another value
                    heard[g, w, v] = said[pick(siblings, rng), w]
                    continue
                text = ear.mishear(assistant.texts[t])
                if text in assistant.number:
                    heard[g, w, v] = assistant.number[text]
                    continue
                intact = all(x in text for x in values)
                same = intact and rng.random() < STILL_UNDERSTOOD
                meaning, works = (assistant.meaning[t], assistant.works[t]) if same else assistant.mistake(g)
                if not intact and meaning == g:  # the value is gone: it cannot have been caught
                    meaning = NO_MATCH
                heard[g, w, v] = assistant.add(text, g, meaning, works)
    return heard


def _stressed(assistant: Assistant, said: np.ndarray, forms: list[str], rng: Random) -> np.ndarray:
    """What people say who repeat themselves: the wording with a word more. Text numbers (G, W)."""
    out = np.zeros_like(said)
    for g, row in enumerate(said):
        for w, t in enumerate(row):
            text = key(pick(forms, rng).format(assistant.texts[t]))
            helps = rng.random() < (0.93 if assistant.right[t] else 0.15)
            out[g, w] = assistant.tell(text, g, helps)
    return out


def _siblings(of_intent: list, goal_intent: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    out = np.repeat(np.arange(len(goal_intent))[:, None], 3, axis=1)
    for g, i in enumerate(goal_intent):
        others = of_intent[i][of_intent[i] != g]
        if others.size:
            out[g] = rng.choice(others, 3)
    return out


def _routine(goal_intent: np.ndarray, weight: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    out = rng.choice(len(goal_intent), (len(goal_intent), 2), p=weight / weight.sum())
    same = goal_intent[out] == goal_intent[:, None]
    return np.where(same, (out + len(goal_intent) // 2) % len(goal_intent), out)


def _confidence(meaning: np.ndarray, right: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The assistant's confidence per text: high when right, not much lower when wrong, low when it did not understand."""
    sure, unsure = 1 - rng.beta(1.0, 8.0, meaning.size), rng.beta(4.0, 1.7, meaning.size)
    none = 0.15 + 0.25 * rng.random(meaning.size)
    return np.where(meaning == NO_MATCH, none, np.maximum(np.where(right, sure, unsure), 0.41))


def _cdf(weight: np.ndarray) -> np.ndarray:
    total = np.cumsum(weight, axis=-1)
    return total / total[..., -1:]
