"""Ten epochs of mining and serving; in the sixth, misheard forms change their meaning. Small worlds, functions alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from loop import Loop

pytestmark = pytest.mark.soak

EPOCHS, TURNS, DAYS, FLIP = 10, 8_000, 14, 5


def test_meanings_flip(tmp_path: Path, record: Callable[[str, str], None]) -> None:
    """A miner that knows what it served recovers within two epochs of the flip; one that does not never settles."""

    def loop(name: str, *, serve: bool = True, aware: bool = True) -> list[float]:
        return Loop(tmp_path / name, EPOCHS, TURNS, DAYS, FLIP, aware=aware).run(serve)

    games = (("nothing served", {"serve": False}), ("treatment-aware", {}), ("treatment-blind", {"aware": False}))
    rates = []
    for name, more in games:
        rates.append(loop(name, **more))
        shown = ", ".join(f"{f:.3f}" for f in rates[-1])
        record("meanings flip", f"failed turns by epoch (the flip is in the sixth), {name}: {shown}")
    control, aware, blind = rates
    gain, blind_gain = ([1 - f / c for f, c in zip(failed, control, strict=True)] for failed in (aware, blind))
    settled = sum(gain[2:FLIP]) / (FLIP - 2)
    assert min(gain[FLIP + 2 :]) > 0.85 * settled, gain
    after = slice(FLIP + 2, EPOCHS)
    assert sum(gain[after]) > sum(blind_gain[after]) + 0.02 * (EPOCHS - FLIP - 2), (gain, blind_gain)
