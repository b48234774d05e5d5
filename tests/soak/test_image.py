"""The image cannot be built here; its commands run in a fresh environment instead."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.soak
ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"


def test_the_commands_of_the_image_run_in_a_fresh_environment(tmp_path, record, say):
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
        say(command[:100])
        ours = command.replace(" && useradd --create-home --uid 10001 sayagain", "").replace("aws,gcp,postgres", "aws,postgres")
        done = subprocess.run(["sh", "-ec", ours], cwd=stage, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{ours}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    made = subprocess.run(["sayagain", "--version"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert made.stdout.startswith("sayagain ")
    record("the image's commands", "what target `cpu` runs, without Google's clients: installed and checked in a fresh environment")
