"""What cannot be run here is linted, held to its schema, and says so in its first line; the image's commands run in a fresh environment."""

from __future__ import annotations

import os
import re
import shutil
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


@pytest.mark.parametrize("file", [INFRA / "Dockerfile", INFRA / "spark" / "compose.yaml"], ids=lambda p: p.name)
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
    text, ignore = (INFRA / "Dockerfile").read_text(), (INFRA / "Dockerfile.dockerignore").read_text().split()
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.M):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists() and f"!{source}" in ignore, source


@pytest.mark.soak
def test_the_commands_of_the_image_run_in_a_fresh_environment(tmp_path):
    """Everything that target `cpu` installs, without Google's clients: in a venv instead of a container, from what it copies alone."""
    stage = tmp_path / "opt"
    stage.mkdir()
    text = (INFRA / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.M):
        for source in line.split()[:-1]:
            copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
            copy(ROOT / source, stage / source)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SAYAGAIN_", "PYTHON"))}
    env["PATH"] = f"{tmp_path}/venv/bin:{env['PATH']}"
    commands = re.findall(r"^RUN (.+?[^\\])$", text[: text.index("FROM base AS cuda")].replace("\\\n", " "), re.M)
    assert len(commands) == 2
    for command in commands:
        ours = command.replace(" && useradd --create-home --uid 10001 sayagain", "").replace("aws,gcp,postgres", "aws,postgres")
        done = subprocess.run(["sh", "-ec", ours], cwd=stage, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{ours}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    made = subprocess.run(["sayagain", "--version"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert made.stdout.startswith("sayagain ")
