"""Two of every command on one folder at once: one of them does the work, the other waits or is told in one sentence.

SIDE_BY_SIDE=20 repeats each pair; CI does it once.
"""

import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import initialize_config_dir
from PIL import Image
from safetensors.torch import load_file

import train
from cldm.commands import cli
from cldm.evaluation import measuring
from cldm.runs.building import instantiate
from cldm.runs.checkout import REPOSITORY
from cldm.runs.folder import Refused
from cldm.sampling import drawing
from ldm.files import InUse
from ldm.weights import save_weights

TIMES = int(os.environ.get("SIDE_BY_SIDE", "1"))
DONE, TOLD, BROKEN = 0, 3, 1  # exit codes of a process


def _child(work: Callable[[], Any], barrier: Any, said: Path) -> None:
    torch.set_num_threads(1)  # threads do not survive a fork
    barrier.wait()
    code = BROKEN
    with open(said, "w") as sys.stderr:
        try:
            code = TOLD if work() == 1 else DONE  # cli.main returns its exit code
        except (SystemExit, InUse, Refused) as error:
            print(error, file=sys.stderr)
            code = TOLD
        except BaseException:
            traceback.print_exc()
    os._exit(code)


def with_configs(command: Callable[[Any], Any], cfg: Any) -> Any:
    """Call a command as its script does, with Hydra at hand to compose the configuration of the training."""
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        return command(cfg)


def at_once(work: Callable[[], Any], folder: Path, reason: str = "is in use by another") -> None:
    """Run `work` in two processes that start together; at least one is done, the other at most says why not."""
    fork = multiprocessing.get_context("fork")
    barrier, words = fork.Barrier(2), [folder / f"said_{i}.txt" for i in range(2)]
    pair = [fork.Process(target=_child, args=(work, barrier, said)) for said in words]
    for process in pair:
        process.start()
    for process in pair:
        process.join(300)
    codes, texts = [process.exitcode for process in pair], [said.read_text() for said in words]
    assert DONE in codes, texts
    for code, text in zip(codes, texts, strict=True):
        assert code in (DONE, TOLD), text
        if code == TOLD:
            assert reason in text
            assert "Traceback" not in text


@pytest.fixture(scope="module")
def shipped(composed, small, fill_zeros, tmp_path_factory) -> Path:
    """A tiny base, a run folder of one step beside it, and what a process imports only once."""
    folder = tmp_path_factory.mktemp("side")
    torch.manual_seed(0)
    model = instantiate(composed("model=tiny").model, _convert_="all")
    fill_zeros(model)
    save_weights(model, folder / "base.safetensors")
    train.train(composed(*small, f"base={folder}/base.safetensors", "steps=1", f"run_dir={folder}/run"))
    return folder


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if ".partial" in path.name]


@pytest.mark.slow
@pytest.mark.parametrize("time", range(TIMES))
def test_two_trainings_of_one_run_folder_leave_one_whole_run(composed, small, shipped, tmp_path, time):
    cfg = composed(*small, f"base={shipped}/base.safetensors", "steps=2", f"run_dir={tmp_path}/run",
                   f"data.cache={tmp_path}/cache")  # fmt: skip
    at_once(lambda: train.train(cfg), tmp_path)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["steps"] == 2
    assert load_file(tmp_path / "run" / "control.safetensors")
    assert not leftovers(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("time", range(TIMES))
def test_two_evaluations_into_one_folder_leave_whole_results(composed, shipped, tmp_path, time):
    cfg = composed(f"checkpoint={shipped}/run", f"base={shipped}/base.safetensors", "items=2", "noise_seeds=[0]",
                   "sampler.steps=1", "prompts=[none]", "nearest=0", "reference=4", f"cache={tmp_path}/cache",
                   f"out={tmp_path}/out", name="evaluate")  # fmt: skip
    at_once(lambda: with_configs(measuring.evaluate, cfg), tmp_path)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["n"] == 2
    pictures = [*(tmp_path / "out" / "images" / "none").glob("*.png")]
    assert len(pictures) == 2
    for picture in pictures:
        Image.open(picture).load()
    assert not leftovers(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("time", range(TIMES))
def test_two_evaluations_of_different_branches_share_one_cache_of_the_base(composed, shipped, tmp_path, time):
    cfgs = [
        composed(f"checkpoint={shipped}/run", f"base={shipped}/base.safetensors", "items=2", "noise_seeds=[0]",
                 "sampler.steps=1", "prompts=[none]", "nearest=0", "reference=4", f"cache={tmp_path}/cache",
                 f"out={tmp_path}/{name}", name="evaluate")
        for name in "ab"
    ]  # fmt: skip
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(2)
    said = [tmp_path / f"said_{i}.txt" for i in range(2)]
    pair = [
        fork.Process(target=_child, args=(lambda cfg=cfg: with_configs(measuring.evaluate, cfg), barrier, path))
        for cfg, path in zip(cfgs, said, strict=True)
    ]
    for process in pair:
        process.start()
    for process in pair:
        process.join(300)
    assert [process.exitcode for process in pair] == [DONE, DONE], [path.read_text() for path in said]
    one, other = (json.loads((tmp_path / name / "results.json").read_text()) for name in "ab")
    assert one["metrics"] == other["metrics"]
    assert one["base"] == other["base"]


@pytest.mark.slow
@pytest.mark.parametrize("time", range(TIMES))
def test_two_job_lists_into_one_folder_draw_every_image_once(composed, shipped, tmp_path, time):
    (tmp_path / "jobs.jsonl").write_text('{"name": "one"}\n{"name": "two", "seed": 5}\n')
    cfg = composed(f"checkpoint={shipped}/run", f"base={shipped}/base.safetensors", "sampler.steps=1", "count=1",
                   f"jobs={tmp_path}/jobs.jsonl", f"out={tmp_path}/out", name="sample")  # fmt: skip
    at_once(lambda: with_configs(drawing.sample, cfg), tmp_path)
    for picture in ("one/seed_0.png", "two/seed_5.png"):
        Image.open(tmp_path / "out" / picture).load()
    assert not leftovers(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("time", range(TIMES))
def test_two_caches_or_annotations_into_one_folder_leave_one_whole_one(shipped, tmp_path, time):
    pictures = tmp_path / "fill"
    draw = ["annotate", "--fill50k", "6", str(pictures)]
    at_once(lambda: cli.main(draw), tmp_path)
    assert len([*(pictures / "source").glob("*.png")]) == 6
    command = ["cache", str(tmp_path / "cache"), "model=tiny", f"base={shipped}/base.safetensors", "data=fill50k",
               f"data.path={pictures}", "data.val_count=2"]  # fmt: skip
    at_once(lambda: cli.main(command), tmp_path)
    assert cli.main(command) == 0  # whole: nothing is left to do
    assert not leftovers(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("time", range(TIMES))
def test_two_conversions_or_reports_of_one_name_leave_one_whole_one(shipped, tmp_path, time):
    branch = str(shipped / "run" / "control.safetensors")
    for layout, name in (("diffusers", "folder"), ("original", "file.safetensors")):
        command = ["convert", "--to", layout, branch, str(tmp_path / name)]
        at_once(lambda command=command: cli.main(command), tmp_path, "exists; remove it or choose another name")
    for file in (tmp_path / "file.safetensors", tmp_path / "folder" / "diffusion_pytorch_model.safetensors"):
        assert load_file(file)
    at_once(lambda: cli.main(["report", str(shipped / "run"), "--out", str(tmp_path / "page.html")]), tmp_path)
    assert (tmp_path / "page.html").read_text().rstrip().endswith("</html>")
    assert not leftovers(tmp_path)
