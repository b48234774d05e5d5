"""The rooms keep to what they may know, and the command line starts at once."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("apache_beam", "polars", "pyarrow", "numpy", "scipy", "torch", "great_expectations", "lightgbm", "sklearn", "obstore", "airflow")
SOURCES = {room: sorted((ROOT / room).rglob("*.py")) for room in ("rewrite", "quality", "pipelines")}


def imported(file: Path) -> set[str]:
    """Full names of what a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return found


def within(name: str, *packages: str) -> bool:
    return any(name == p or name.startswith(p + ".") for p in packages)


LIGHT = [["--help"], ["--version"], ["config"], *([*c.split(), "--help"] for c in COMMANDS)]
HELP = """
import contextlib, io, json, sys
from pipelines.cli import main
found = []
for arguments in json.loads(sys.argv[1]):
    before, said, code = set(sys.modules), io.StringIO(), None
    with contextlib.redirect_stdout(said):
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = stop.code
    found.append([code or 0, len(said.getvalue()), sorted(set(sys.modules) - before)])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def helped() -> list[tuple[int, int, list[str]]]:
    """Per command line of LIGHT: exit code, characters printed, modules that it loaded; all in one interpreter, as starting one takes long."""
    command = [sys.executable, "-c", HELP, json.dumps(LIGHT)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("number", range(len(LIGHT)), ids=[" ".join(arguments) for arguments in LIGHT])
def test_help_loads_nothing_heavy(helped, number):
    code, characters, loaded = helped[number]
    assert code == 0 and characters > 10
    assert not set(HEAVY) & set(loaded)


def test_help_is_instant():
    """Half a second of processor time at most, interpreter included; the best of three, as machines are shared."""
    seconds = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-m", "pipelines", "--help"], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(seconds) < 0.5


def test_import_linter_passes():
    """Who may import whom: the contracts in pyproject.toml."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_science_knows_no_clock_no_environment_and_no_network():
    never = ("os", "time", "random", "secrets", "socket", "subprocess", "urllib", "requests", "uuid", "getpass", "tempfile")
    wrong = {(f.name, n) for f in SOURCES["rewrite"] for n in imported(f) if within(n, *never)}
    assert not wrong


def test_nothing_is_unpickled():
    never = ("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")
    wrong = {(f.name, n) for files in SOURCES.values() for f in files for n in imported(f) if within(n, *never)}
    for files in SOURCES.values():
        for f in files:
            text = f.read_text(encoding="utf-8")
            wrong |= {(f.name, word) for word in ("allow_pickle=True", "torch.load(") if word in text}
    assert not wrong


def test_nothing_imports_dags_or_infra():
    wrong = {(f.name, n) for files in SOURCES.values() for f in files for n in imported(f) if within(n, "dags", "infra", "tests")}
    assert not wrong
