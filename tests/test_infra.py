"""What cannot be run here is linted, held to its schema, and says so in its first line (the image's commands: tests/soak/test_image.py)."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
INFRA = ROOT / "infra"
TOOLS = Path(sys.executable).parent


def tool(name: str) -> str:
    path = TOOLS / name
    if not path.exists():
        pytest.skip(f"no {name} in {TOOLS}: pip install -c constraints.txt -e '.[dev]'")
    return str(path)


def check(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


FILES = sorted(p for p in INFRA.rglob("*") if p.is_file() and p.suffix not in (".md", ".png"))


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.name)
def test_the_first_line_says_what_was_executed(file):
    assert re.match(r"# (not )?executed", file.read_text())


@pytest.mark.slow
def test_the_dockerfile_is_clean():
    check(tool("hadolint"), str(INFRA / "Dockerfile"))


@pytest.mark.slow
def test_the_compose_file_follows_the_specification_and_its_settings_have_examples():
    file = INFRA / "spark" / "compose.yaml"
    check(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(file))
    example = (INFRA / "spark" / "env.example").read_text()
    assert set(re.findall(r"(?<!\$)\$\{(\w+)", file.read_text())) == set(re.findall(r"^(\w+)=", example, re.M))


def test_versions_are_those_that_are_tested():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    used = re.findall(r"(?:_sdk|_job_server):([\d.]+)", (INFRA / "Dockerfile").read_text() + (INFRA / "spark" / "compose.yaml").read_text())
    assert set(used) == {pins["apache-beam"]}


def test_what_the_image_copies_is_there_and_is_let_in():
    text, ignore = (INFRA / "Dockerfile").read_text(), (INFRA / "Dockerfile.dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.M):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists() and f"!{source}" in ignore, source


def test_every_long_run_has_a_row_in_the_table_of_long_runs():
    rows = (ROOT / "tests" / "soak" / "RESULTS.md").read_text()
    for file in sorted((ROOT / "tests" / "soak").glob("test_*.py")):
        for test in ast.parse(file.read_text()).body:
            if isinstance(test, ast.FunctionDef) and test.name.startswith("test_"):
                calls = [n for n in ast.walk(test) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "record"]
                names = {ast.literal_eval(call.args[0]) for call in calls}
                assert names, f"{file.name}::{test.name} adds no row"
                assert all(f"| {name} |" in rows for name in names), f"{file.name}::{test.name} was never run to its end: {names}"
