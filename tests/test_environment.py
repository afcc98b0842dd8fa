"""Promises of the packaging: conda and pip users get the same thing, and it is all that the code needs."""

import ast
import os
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA = yaml.safe_load((ROOT / "environment.yaml").read_text())["dependencies"]
OURS = {"ldm", "cldm", "train", "sample", "evaluate", "tests", "benchmarks"}


def declared(*extras: str) -> set[str]:
    """Canonical names of the distributions asked for by the project and by the named extras."""
    lines = PROJECT["dependencies"] + [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    return {canonicalize_name(Requirement(line).name) for line in lines}


def imported(files: list[Path]) -> dict[str, Path]:
    """Top-level modules imported anywhere in the files (inside functions too), with one place each."""
    found: dict[str, Path] = {}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            else:
                continue
            found.update({name.split(".")[0]: file for name in names})
    return {name: file for name, file in found.items() if name not in sys.stdlib_module_names | OURS}


def undeclared(files: list[Path], *extras: str) -> list[str]:
    """Imports of the files that no declared distribution provides, in words."""
    providers, known = packages_distributions(), declared(*extras)
    missing = []
    for module, file in imported(files).items():
        candidates = {canonicalize_name(name) for name in providers.get(module, [module])}
        if not candidates & known:
            missing.append(f"{module} (imported in {file.name})")
    return missing


def product_files() -> list[Path]:
    """The code that `pip install -e .` must be enough for."""
    return [*ROOT.glob("*.py"), *ROOT.glob("ldm/**/*.py"), *ROOT.glob("cldm/**/*.py")]


def test_conda_users_get_the_pins_of_pyproject():
    (pip,) = (entry["pip"] for entry in CONDA if isinstance(entry, dict))
    assert pip == [*PROJECT["dependencies"], "-e ."]


def test_conda_users_get_the_python_that_pip_demands():
    assert f"python{PROJECT['requires-python']}" in CONDA


def test_pip_install_brings_everything_that_the_code_imports():
    files = product_files()
    assert len(files) > 5
    optional = [extra for extra in PROJECT["optional-dependencies"] if extra != "test"]
    assert undeclared(files, *optional) == []


def test_the_test_extra_brings_everything_that_the_tests_import():
    assert undeclared(list(ROOT.glob("tests/**/*.py")), *PROJECT["optional-dependencies"]) == []


@pytest.mark.slow
def test_an_undeclared_import_would_be_noticed(tmp_path):
    file = tmp_path / "module.py"
    file.write_text("import os\nimport numpy as np\n\ndef f():\n    from iniconfig.x import y\n")
    assert undeclared([file]) == ["iniconfig (imported in module.py)"]


def test_lightning_comes_from_the_distribution_that_was_never_tampered_with():
    everything = declared(*PROJECT["optional-dependencies"])
    assert "pytorch-lightning" in everything
    assert "lightning" not in everything
    assert "lightning" not in imported(product_files())


@pytest.mark.parametrize("name", ["torch", "numpy", "open-clip-torch", "safetensors", "einops"])
def test_ranges_are_wide(name):
    (line,) = (line for line in PROJECT["dependencies"] if Requirement(line).name == name)
    assert re.fullmatch(r">=[\d.]+", str(Requirement(line).specifier))


def test_ci_runs_the_commands_of_the_readme_and_every_linter():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    steps = [line.removeprefix("step ") for line in script.read_text().splitlines() if line.startswith("step ")]
    assert steps == [
        "pip install --quiet --no-compile -e '.[test]'",
        "ruff check .",
        "ruff format --check .",
        "mypy",
        "pytest -n auto --dist worksteal --durations=15",
    ]
    readme = (ROOT / "README.md").read_text()
    assert "pip install -e '.[test]' && pytest -n auto" in readme
    assert "pip install -e . && python train.py" in readme
