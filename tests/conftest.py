"""What every test runs in, and what a test may need that is not everywhere.

A need is a marker (`eval`, `prism`, `spark`, `browser`, `dag`). A test whose need is not there skips with the reason. Where
SAYAGAIN_REQUIRE is set (`SAYAGAIN_REQUIRE=dag,browser`: CI names what it has), a skip of a test with a need that it
names is a failure, and so is one of a test that names no need.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent
NEEDS = {"eval_data": "eval", "prism": "prism", "spark_jar": "spark", "chromium": "browser", "airflow_home": "dag"}  # fixture -> marker
SLOW = 20.0  # seconds; a test beyond it should have one of these markers, so that `make check` stays short
NOT_IN_CHECK = {"slow", "soak", "e2e", "dag", "browser", "prism", "spark"}

# Before any heavy import. Workers of pytest-xdist share the cores: one thread each, two without them.
_THREADS = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"):
    os.environ.setdefault(_name, _THREADS)
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks a hub for a model
os.environ["GX_ANALYTICS_ENABLED"] = "false"
os.environ["SAYAGAIN_USER_KEY"] = "00" * 32  # tests of how the key is made take it away again

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None)
hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test that takes the fixture of a need has its marker; long runs are left out unless they are asked for."""
    for item in items:
        for fixture, marker in NEEDS.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(marker)
    if "soak" not in (config.option.markexpr or "") and not any("soak" in a for a in config.args):
        config.hook.pytest_deselected(items=[i for i in items if i.get_closest_marker("soak")])
        items[:] = [i for i in items if not i.get_closest_marker("soak")]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Under SAYAGAIN_REQUIRE a test may skip only for want of something that it does not name."""
    report = yield
    required = set(filter(None, os.environ.get("SAYAGAIN_REQUIRE", "").split(",")))
    if report.skipped and required and not hasattr(report, "wasxfail"):
        needs = {m.name for m in item.iter_markers()} & set(NEEDS.values())
        missed = sorted(needs & required)
        if missed or not needs:
            why = f"SAYAGAIN_REQUIRE names {', '.join(missed)}" if missed else f"it has no marker of a need ({', '.join(NEEDS.values())})"
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid}: may not skip, as {why}: {reason}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Names tests that belong behind a marker."""
    for report in terminalreporter.getreports("passed"):
        if report.when == "call" and report.duration > SLOW and not NOT_IN_CHECK & set(report.keywords):
            terminalreporter.write_line(f"{report.nodeid} took {report.duration:.0f} s: mark it slow", yellow=True)


@pytest.fixture(autouse=True, scope="session")
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the developer's own configuration."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def eval_data() -> Path:
    """The evaluation worlds: `../shared/eval`, or where SAYAGAIN_EVAL says. They are never part of this repository."""
    folder = Path(os.environ.get("SAYAGAIN_EVAL") or ROOT.parent / "shared" / "eval")
    if not folder.is_dir():
        pytest.skip(f"no evaluation data in {folder}; SAYAGAIN_EVAL may name another folder")
    return folder


@pytest.fixture(scope="session")
def prism() -> str:
    """Beam's portable runner, which is not on PyPI: `../shared/tools/prism`, or where SAYAGAIN_PRISM says."""
    path = Path(os.environ.get("SAYAGAIN_PRISM") or ROOT.parent / "shared" / "tools" / "prism")
    if not path.exists():
        pytest.skip(f"no Prism at {path}; SAYAGAIN_PRISM may name another path")
    return str(path)


@pytest.fixture(scope="session")
def spark_jar() -> str:
    """Beam's Spark 3 job server, from Maven Central, and Java."""
    path = os.environ.get("BEAM_SPARK_JOB_SERVER_JAR", "")
    if not path:
        pytest.skip("BEAM_SPARK_JOB_SERVER_JAR is not set: it names org.apache.beam:beam-runners-spark-3-job-server of Maven Central")
    return path


@pytest.fixture(scope="session")
def chromium() -> str:
    """A headless browser."""
    found = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
    if not found:
        pytest.skip("no Chromium on the PATH; on Debian: apt install chromium")
    return found
