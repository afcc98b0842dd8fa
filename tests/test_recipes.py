"""CONTRIBUTING.md's recipes, followed literally: a condition, a branch, a sampler and a world from outside."""

import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests import processes

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
FILES = re.findall(r"```(?:python|yaml)\n# (mine/\S+)\n(.*?)```", TEXT, re.S)


@pytest.mark.slow
def test_the_recipes_work_as_they_are_written(tmp_path):
    assert len(FILES) == 8
    for name, content in FILES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    [command] = re.findall(r"```bash\n(python train\.py.*?)```", TEXT, re.S)
    words = shlex.split(command.replace("\\\n", " "))
    words[words.index("mine/configs")] = str(tmp_path / "mine" / "configs")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "CUDA_VISIBLE_DEVICES": ""}
    done = processes.run([sys.executable, str(ROOT / "train.py"), *words[2:]], tmp_path, environment)
    assert done.returncode == 0, done.stderr
    [path] = (tmp_path / "mine" / "runs").rglob("results.json")
    results = json.loads(path.read_text())
    assert results["condition"] == "brightness"
    assert results["fidelity"]["side"]["ceiling"] >= 0
    assert "side right" in done.stdout
    assert "Pixels" in done.stdout or "control " in done.stdout
