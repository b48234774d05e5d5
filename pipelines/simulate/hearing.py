"""How a sentence is misheard: sounds confused, letters lost, words dropped, joined or taken for a similar word."""

from __future__ import annotations

from random import Random

from pipelines.simulate.assistant import pick

CONFUSED = ("ae", "ei", "ou", "oa", "bp", "dt", "gk", "fv", "sz", "mn", "rl", "cg", "wv", "yi", "hk", "äe", "öo", "üu")
"""Sounds that are taken for each other, written in Latin letters; other scripts confuse any two of their signs."""


class Ear:
    """Mishears sentences of one language, by the words and signs of the sentences it was given."""

    def __init__(self, texts: list[str], rng: Random):
        self.rng = rng
        self.spaced = sum(" " in t for t in texts) * 2 > len(texts)
        words = sorted({w for t in texts for w in t.split()}) if self.spaced else []
        self.alike: dict[tuple[str, int], list[str]] = {}  # words by first letter and length: what a word may be taken for
        for w in words:
            self.alike.setdefault((w[0], len(w)), []).append(w)
        self.signs = sorted({c for t in texts for c in t if c != " "})
        self.confused: dict[str, str] = {}
        for pair in CONFUSED:
            for a, b in ((pair[0], pair[1]), (pair[1], pair[0])):
                self.confused[a] = self.confused.get(a, "") + b

    def mishear(self, text: str) -> str:
        """Another form of a text; never empty, never the text itself."""
        for _ in range(8):
            words = text.split() if self.spaced else [text]
            for _ in range(1 + (self.rng.random() < 0.35)):  # one slip, sometimes two
                words = self._slip(words)
            heard = " ".join(" ".join(words).split())
            if heard and heard != text:
                return heard
        return text + pick(self.signs, self.rng)

    def _slip(self, words: list[str]) -> list[str]:
        i = int(self.rng.random() * len(words))
        word, u = words[i], self.rng.random()
        if len(words) > 2 and u < 0.2:
            return words[:i] + words[i + 1 :]
        if len(words) > 1 and u < 0.28:
            i = min(i, len(words) - 2)
            return [*words[:i], words[i] + words[i + 1], *words[i + 2 :]]
        if self.spaced and u < 0.5:
            near = [w for d in (0, 1, -1) for w in self.alike.get((word[0], len(word) + d), ()) if w != word]
            if near:
                return [*words[:i], pick(near, self.rng), *words[i + 1 :]]
        return [*words[:i], self._letters(word, self.rng.random()), *words[i + 1 :]]

    def _letters(self, word: str, u: float) -> str:
        i = int(self.rng.random() * len(word))
        if u < 0.3 and len(word) > 2:
            return word[:i] + word[i + 1 :]
        if u < 0.4 and len(word) > 4:
            return word[: max(2, i)]
        if u < 0.5:
            return word[:i] + word[i] + word[i:]
        return word[:i] + pick(self.confused.get(word[i]) or self.signs, self.rng) + word[i + 1 :]
