"""What no honest user says: a bot, a ring of fake accounts pushing one rewrite, and personal data. Not in the truth."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.simulate.play import DAY, SECOND
from pipelines.simulate.world import Language, generator
from rewrite.contracts import LOG

RINGS = 3  # attacked sources per language
ACCOUNTS = 8  # fake accounts per attacked source
SHARE_BOT, SHARE_PERSONAL = 0.02, 0.003  # of the turns of a day
MOST = 5_000  # rows of each kind per language and day


def attacks(language: Language) -> list[tuple[str, str]]:
    """The rewrites that the rings push: popular texts that are served well -> a shop."""
    popularity = np.diff(language.goal_cdf, prepend=0.0)
    served = [t for g in np.argsort(-popularity) for t in language.said[g, :1] if language.works[t] and language.meaning[t] == g]
    return [(language.texts[t], language.spec["shop"].format(n=n)) for n, t in enumerate(served[8 : 8 + RINGS])]


def planted(language: Language, seed: int, day: int, midnight: int, turns: float, assistant: str) -> pa.Table:
    """The planted rows of one language and day, in the log contract. `turns`: how many honest ones there are, about."""
    rng = generator(seed, language.locale, "planted", day)
    rows: list[dict[str, Any]] = []
    name = language.locale

    def row(user: str, at: int, text: str, **more: Any) -> None:
        rows.append(
            {
                "turn_id": f"{name}-{day}-p{len(rows)}",
                "timestamp": datetime.fromtimestamp(at // SECOND, UTC),
                "user_id": f"{name}-{user}",
                "utterance": text,
                "locale": name,
                "holdout": False,
                "assistant_version": assistant,
                "asr_confidence": round(float(0.8 + 0.2 * rng.random()), 3),
                "intent_confidence": 0.9,
                "status": "completed",
                "barge_in": False,
                "channel": "voice",
            }
            | more
        )

    for ring, (source, target) in enumerate(attacks(language)):
        meaning = language.meanings[language.meaning[language.number([source])[0]]]
        for account in range(ACCOUNTS):
            if rng.random() < 0.4:
                at = midnight + int(rng.integers(0, DAY - 60 * SECOND))
                row(f"r{ring}{account}", at, source, intent=meaning[0], slots=meaning[1], barge_in=True)
                row(f"r{ring}{account}", at + 6 * SECOND, target, intent="shop_open", slots="{}")

    n = int(min(MOST, rng.poisson(turns * SHARE_BOT)))
    texts = [language.said[g, 0] for g in rng.choice(len(language.goals), 5)]
    for at in np.sort(rng.integers(0, DAY - 1, n)):
        t = texts[int(rng.integers(len(texts)))]
        intent, slots = language.meanings[language.meaning[t]] if language.meaning[t] >= 0 else (None, None)
        row("bot", midnight + int(at), language.texts[t], intent=intent, slots=slots, session_id=f"{name}-{day}-bot")

    for _ in range(int(min(MOST, rng.poisson(turns * SHARE_PERSONAL)))):
        form = language.spec["personal"][int(rng.integers(len(language.spec["personal"])))]
        text = form.format(n=int(rng.integers(20)), nnnn=f"{int(rng.integers(30)):04d}")  # few numbers, so that k users share them
        row(f"u{int(rng.integers(2_000))}p", midnight + int(rng.integers(0, DAY - 1)), text, intent="message_send", slots="{}")
    return pa.Table.from_pylist(rows, schema=LOG)
