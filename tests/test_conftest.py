"""The rules of tests/conftest.py hold: what is required may not skip, long runs only run when asked for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLE = """
import pytest

@pytest.mark.prism
def test_need():
    pytest.skip("nothing there")

def test_fixture(eval_data):
    pass

def test_plain():
    pass

def test_unmarked():
    pytest.skip("no reason that anyone could mend")

@pytest.mark.soak
def test_long():
    pass
"""


@pytest.fixture
def sample(tmp_path):
    here = Path(__file__).resolve().parent
    (tmp_path / "conftest.py").write_text((here / "conftest.py").read_text())
    (tmp_path / "pyproject.toml").write_text((here.parent / "pyproject.toml").read_text())
    (tmp_path / "test_sample.py").write_text(SAMPLE)

    def run(*arguments, **environment):
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_sample.py", *arguments]
        env = {k: v for k, v in os.environ.items() if k not in ("SAYAGAIN_REQUIRE", "PYTEST_ADDOPTS")} | {
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"
        }
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env | environment, check=False)
        return done.returncode, done.stdout

    return run


def test_a_missing_need_skips(sample):
    code, out = sample(SAYAGAIN_EVAL="/nowhere")
    assert code == 0
    assert "1 passed, 3 skipped, 1 deselected" in out


def test_a_missing_need_that_is_required_fails(sample):
    code, out = sample(SAYAGAIN_EVAL="/nowhere", SAYAGAIN_REQUIRE="prism,eval")
    assert code == 1
    assert "2 failed, 1 passed, 1 deselected, 1 error" in out  # an error: the skip of a fixture
    assert "as SAYAGAIN_REQUIRE names prism" in out and "nothing there" in out
    assert "test_unmarked: may not skip, as it has no marker of a need" in out


def test_a_need_that_is_not_required_may_be_missing(sample):
    code, out = sample("-k", "need", SAYAGAIN_REQUIRE="dag")
    assert code == 0 and "1 skipped" in out


def test_long_runs_only_when_asked_for(sample):
    code, out = sample("-m", "soak")
    assert code == 0
    assert "1 passed, 4 deselected" in out
