"""A run that dies in the middle is finished by the same command, with the same result as if nothing had happened."""

from __future__ import annotations

import pytest
from faults import CONFIG
from running import DIED, Nursery, contents, difference, simulate

pytestmark = [pytest.mark.slow, pytest.mark.e2e]


def test_three_deaths_change_nothing(tmp_path):
    log = simulate(tmp_path / "world", 4_000, 2)
    config = tmp_path / "c.toml"
    config.write_text(CONFIG)
    mine = ["mine", f"--logs={log}", f"--config={config}", "--quiet"]
    with Nursery(tmp_path) as calmly:
        _, changes = calmly.run(*mine, f"--lake={tmp_path}/calm")
    calm = contents(tmp_path / "calm")
    assert "releases/LATEST" in calm

    with Nursery(tmp_path) as nursery:
        shares = (0.3, 0.45, 0.12)  # ingest publishing; then the daily tables; then whatever comes next
        deaths = sum(nursery.run(*mine, f"--lake={tmp_path}/killed", at=int(share * changes))[0] == DIED for share in shares)
        assert deaths >= 2, f"of {changes} changes"
        assert nursery.run(*mine, f"--lake={tmp_path}/killed")[0] == 0
    assert not difference(calm, contents(tmp_path / "killed"))
