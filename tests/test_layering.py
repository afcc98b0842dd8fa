"""Promises of the floor plan: imports run one way, and the model code stands on torch alone.

Two looks at each rule: what a file says (its syntax tree, lazy imports included) and what really gets loaded
when it is imported in a fresh interpreter. Files added later are covered without a change here.
"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The rooms from the ground up: a file imports its own room and rooms of lower floors, never one beside it.
FLOORS = [
    {"ldm"},
    {"ldm.training"},
    {"cldm.pictures"},
    {"cldm.conditions"},
    {"cldm.data"},
    {"cldm.worlds"},
    {"cldm.branches", "cldm.tables"},
    {"cldm.runs"},
    {"cldm.sampling"},
    {"cldm.evaluation", "cldm.app"},
    {"cldm.reports"},
    {"cldm.training"},
    {"cldm.commands"},
    {"cldm.__main__"},
    {"train", "sample", "evaluate"},
]
FRAMEWORKS = {"pytorch_lightning", "lightning", "hydra", "omegaconf", "wandb"}
MODEL_IMPORTS = {"torch", "einops", "numpy", "ldm"}
EXTRA_IMPORTS = {  # what single files or folders of ldm may import on top, each for one reason
    "ldm/conditioner.py": {"open_clip", "regex"},  # the tokenizer, whose vocabulary ships in the wheel
    "ldm/attention.py": {"xformers"},  # an optional backend
    "ldm/files.py": {"filelock"},  # one process at a time in a folder
    "ldm/weights.py": {"safetensors"},  # reads and writes this project's own weight files
    "ldm/interop": {"safetensors"},  # reads and writes published files; no model file imports it
}
TRAINING = "ldm/training"  # the one room of ldm that knows Lightning

PROBE = """
import importlib, json, sys
forbidden, found = set(sys.argv[2].split(",")), {}
for name in sys.argv[1].split(","):
    importlib.import_module(name)
    loaded = sorted(forbidden & set(sys.modules))
    if loaded:
        found[name] = loaded
        forbidden -= set(loaded)  # blame the first module only
print(json.dumps(found))
"""


def test_the_picture_in_the_docs_is_the_order_that_is_kept():
    picture = (ROOT / "docs/architecture.md").read_text().split("```")[1]
    drawn: list[set[str]] = []
    for number, room in re.findall(r"^ {2,3}( ?\d+| {2,3})  ((?:cldm|ldm)[\w/.]*)", picture, re.M):
        name = room.removesuffix(".py").replace("/", ".")
        if number.strip():
            drawn.insert(0, {name})
        else:
            drawn[0].add(name)
    assert drawn == [rooms for rooms in FLOORS if all("ldm" in room for room in rooms) and "cldm.__main__" not in rooms]


def files(*roots: str) -> list[Path]:
    """Python files of folders and files of the repository, as paths relative to it."""
    found = [
        path
        for root in roots
        for path in ([ROOT / root] if root.endswith(".py") else sorted((ROOT / root).rglob("*.py")))
    ]
    return [path.relative_to(ROOT) for path in found]


def imports(path: Path, root: Path = ROOT) -> set[str]:
    """Dotted names that a file imports at any level: `from a import b` gives both a and a.b."""
    package = path.parent.parts
    found: set[str] = set()
    for node in ast.walk(ast.parse((root / path).read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found.update({module, *(f"{module}.{alias.name}" for alias in node.names)})
    return found


def top_level(path: Path, root: Path = ROOT) -> set[str]:
    """Top-level names of the imports of a file that are not of the standard library."""
    return {name.split(".")[0] for name in imports(path, root)} - sys.stdlib_module_names


def allowed(path: Path) -> set[str]:
    """Packages that a model file of ldm may import."""
    extra = [names for place, names in EXTRA_IMPORTS.items() if path.is_relative_to(place)]
    return MODEL_IMPORTS.union(*extra)


def loaded_by(paths: list[Path], forbidden: set[str], root: Path = ROOT) -> dict[str, list[str]]:
    """Forbidden modules that importing the files one after another loads, by the file that did it first."""
    modules = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths]
    command = [sys.executable, "-c", PROBE, ",".join(modules), ",".join(sorted(forbidden))]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def floor(module: str) -> int | None:
    """The floor of the room that a module lies in; None for what is not of this house."""
    parts = module.split(".")
    names = {".".join(parts[:n]) for n in (1, 2)}
    return max((i for i, rooms in enumerate(FLOORS) if rooms & names), default=None)


def room(module: str) -> str:
    """The room that a module lies in: cldm.data.folder -> cldm.data."""
    parts = module.split(".")
    return ".".join(parts[: 1 + (parts[0] == "cldm" or parts[:2] == ["ldm", "training"])])


HOUSE = files("ldm", "cldm", "train.py", "sample.py", "evaluate.py")


@pytest.mark.parametrize("path", HOUSE, ids=str)
def test_imports_run_downwards_through_the_rooms(path):
    own = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    if own == "cldm":
        return
    here = floor(own)
    assert here is not None, f"{path} lies in no room of FLOORS"
    for name in imports(path):
        there = floor(name)
        if there is not None and name != "cldm" and room(name) != room(own):
            assert there < here, f"{path} imports {name}, which lies beside or above it"


LDM_MODELS = [path for path in files("ldm") if not path.is_relative_to(TRAINING)]


@pytest.mark.slow
def test_importing_ldm_loads_no_framework_and_nothing_of_cldm():
    assert Path("ldm/unet.py") in LDM_MODELS
    assert loaded_by(LDM_MODELS, FRAMEWORKS | {"cldm", "kornia"}) == {}


@pytest.mark.parametrize("path", LDM_MODELS, ids=str)
def test_a_model_file_imports_torch_einops_and_numpy_only(path):
    assert top_level(path) <= allowed(path)


def test_no_model_file_imports_the_converters_of_published_checkpoints():
    models = [path for path in files("ldm") if not path.is_relative_to("ldm/interop")]
    assert models
    assert [path for path in models if "ldm.interop" in imports(path)] == []


def test_ldm_never_imports_cldm_hydra_or_a_tracker():
    never = FRAMEWORKS - {"pytorch_lightning"} | {"cldm"}
    assert [path for path in files("ldm") if top_level(path) & never] == []


def test_only_entry_points_import_hydra():
    # building.py is the one place that instantiates; sweeps.py is a callback of Hydra
    entry_points = {
        Path("cldm/commands/cli.py"),
        Path("cldm/runs/building.py"),
        Path("cldm/runs/configs.py"),
        Path("cldm/runs/sweeps.py"),
        Path("cldm/runs/trained.py"),
        Path("cldm/sampling/drawing.py"),
        *files("cldm/commands"),
    }
    others = set(files("ldm", "cldm")) - entry_points
    assert [path for path in others if "hydra" in top_level(path)] == []


# what evaluate.py composes and reads its items from; the rest of the evaluation works on tensors
NAMES = ("applied.py", "measuring.py", "subject.py", "held_out.py", "seen.py")
INPUTS = {Path("cldm/evaluation", name) for name in NAMES}
OUTER = [path for path in files("cldm/conditions", "cldm/evaluation") if path not in INPUTS]


@pytest.mark.parametrize("path", OUTER, ids=str)
def test_conditions_and_evaluation_do_not_name_the_lightning_module(path):
    assert not {"pytorch_lightning", "lightning"} & top_level(path)
    assert "cldm.training.control_ldm" not in imports(path)


@pytest.mark.slow
def test_conditions_and_evaluation_do_not_load_the_lightning_module():
    assert Path("cldm/conditions/canny.py") in OUTER
    assert loaded_by(OUTER, {"pytorch_lightning", "hydra", "wandb", "cldm.training.control_ldm"}) == {}


def test_conditions_do_not_import_the_data_that_imports_them():
    found = {path: {name for name in imports(path) if name.startswith("cldm.data")} for path in OUTER}
    assert not any(names for path, names in found.items() if path.is_relative_to("cldm/conditions")), found


def test_these_tests_see_lazy_relative_and_indirect_imports(tmp_path):
    package = tmp_path / "house"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "cellar.py").write_text("import colorsys\n")
    (package / "attic.py").write_text(
        "from . import cellar\n\ndef f():\n    import hydra.utils\n    from torch import nn\n"
    )
    attic = Path("house/attic.py")
    assert top_level(attic, tmp_path) == {"house", "hydra", "torch"}
    assert {"house.cellar", "hydra.utils", "torch.nn"} <= imports(attic, tmp_path)
    assert loaded_by([attic], {"colorsys", "wandb"}, tmp_path) == {"house.attic": ["colorsys"]}
