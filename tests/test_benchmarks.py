"""Promises of benchmarks/gpu.sh, without a GPU: its commands exist, and a failing step ends nothing but itself."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from benchmarks import sampling, scaling, training
from cldm.branches.controlnet import ControlNet
from tests.pipelines import Sizes, build

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = {module.__name__: module.options for module in (sampling, scaling, training)}


def gpu_sh(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu.sh"), *arguments], capture_output=True, text=True, timeout=60,
        env={**os.environ, **environment},
    )  # fmt: skip


def commands(**environment: str) -> dict[str, list[str]]:
    """Name of each step -> the words of its command."""
    lines = [shlex.split(line) for line in gpu_sh("--dry-run", **environment).stdout.splitlines()]
    return {name: words for name, _, *words in lines}


def test_every_command_is_one_that_its_program_takes(composed):
    found = commands()
    assert {"tests", "train", "training-32-compile", "sampling-1"} <= found.keys()
    for words in found.values():
        match words[1:]:
            case ["train.py", *overrides]:
                assert composed(*overrides).trainer.accelerator == "gpu"
            case ["-m", "pytest", *arguments]:
                files = [argument for argument in arguments if argument.startswith("tests/")]
                assert files
                assert all("pytest.mark.gpu" in (ROOT / file).read_text() for file in files)
            case ["-m", module, *arguments]:
                assert OPTIONS[module]().parse_args(arguments).device == "cuda"
            case _:
                pytest.fail(f"unknown command {words}")


def test_steps_are_chosen_by_how_their_names_begin():
    assert {*commands(STEPS="train tests")} == {name for name in commands() if name.startswith("train")} | {"tests"}
    assert [*commands(STEPS="install", WHEELS="wheels")] == ["install"]


def test_a_failing_step_is_told_with_its_last_words_and_the_next_one_runs(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" = train.py ] && echo all is well && exit\necho no such luck >&2\nexit 3\n')
    python.chmod(0o755)
    done = gpu_sh(PYTHON=str(python), STEPS="tests train data", LOGS=str(tmp_path))
    assert done.returncode == 1
    assert "no such luck" in done.stdout
    assert "all is well" in done.stdout
    table = done.stdout.partition("## All steps")[2]
    said = [(cells[1].strip(), cells[2].strip()) for line in table.splitlines() if len(cells := line.split("|")) > 3]
    assert {("tests", "**failed with 3**"), ("train", "done"), ("data", "**failed with 3**")} <= {*said}


def test_the_small_size_is_that_of_the_model_that_train_py_trains(composed):
    """The same shapes of U-Net and branch; and the same heads, which no shape tells."""

    def shapes(module: torch.nn.Module) -> dict[str, torch.Size]:
        return {name: value.shape for name, value in module.state_dict().items()}

    cfg, measured = composed(), build(Sizes(**training.MAIN_JOB), controls=1)
    with torch.device("meta"):
        unet = instantiate(cfg.model.unet)
        branch = ControlNet.from_unet(unet, hint_widths=tuple(cfg.control.hint_widths))
    assert shapes(measured.diffusion.unet) == shapes(unet)
    assert shapes(measured.controls[0]) == shapes(branch)
    assert measured.diffusion.unet.config.untold() == unet.config.untold()
    assert training.PIXELS["small", "cpu"] == cfg.size
    assert training.BATCH["small"] == cfg.batch_size
