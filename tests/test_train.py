"""Promises of the entry point: resuming, looking and logging change nothing, and a run folder tells all."""

import csv
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException
from safetensors.torch import load_file, save_file
from tqdm import tqdm

import train
from cldm.runs.building import instantiate
from cldm.runs.configs import notes_told_once, with_choices
from cldm.runs.folder import ChangedConfig, Refused, attempt, attempts
from cldm.runs.listing import read
from cldm.runs.metrics import curves
from cldm.runs.naming import differences, stable
from cldm.runs.trained import find_checkpoint, load_model
from cldm.training import fitting
from cldm.training.callbacks import Guard
from cldm.training.fitting import loggers_of
from ldm.files import content
from ldm.training.autoencoder import AutoencoderTraining
from ldm.training.diffusion import DiffusionTraining
from ldm.weights import fingerprint, read_metadata, save_weights
from tests import processes, wandb_records
from tests.wandb_records import exit_code, finished_records

ROOT = Path(__file__).resolve().parents[1]
CONSTANT_RATE = "stage.module.cosine=false"  # a cosine of four steps is another one than that of two steps
EVERY_TWO = ["trainer.callbacks.watch.every=2", "trainer.callbacks.checkpoint.every_n_train_steps=2"]

STAGES = {"diffusion": DiffusionTraining, "autoencoder": AutoencoderTraining}  # control: two_and_two


def checkpoint(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def state(run: Path, callback: str) -> dict[str, Any]:
    """What a callback left in the last checkpoint."""
    callbacks = checkpoint(run)["callbacks"]
    (name,) = (name for name in callbacks if name.startswith(callback))
    return callbacks[name]


def assert_equal_tensors(a: Any, b: Any) -> None:
    """Nested containers that agree in everything, tensors bit for bit."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            assert_equal_tensors(a[name], b[name])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal_tensors(x, y)
    else:
        assert a == b


def assert_same_training(a: Path, b: Path) -> None:
    """The same weights, optimizer state and average, bit for bit."""
    one, other = checkpoint(a), checkpoint(b)
    for part in ("global_step", "state_dict", "optimizer_states", "lr_schedulers"):
        assert_equal_tensors(one[part], other[part])
    assert_equal_tensors(state(a, "EMA"), state(b, "EMA"))


def assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """The same weights after a few steps, trained by another number of processes.

    Gradients are summed in another order: a rounding of float32, which Adam's division enlarges where a gradient is
    next to nothing. The tolerance is a twentieth of one step (optimizer.lr = 4e-3).
    """
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(
            found[name], wanted[name], rtol=0, atol=2e-4, msg=lambda told, n=name: f"{n}: {told}"
        )


@contextmanager
def power_cut(module: type, step: int) -> Iterator[None]:
    """Training dies in optimizer step `step`."""

    original = module.training_step

    def training_step(self, batch, batch_idx):
        if self.global_step == step:
            raise RuntimeError("power cut")
        return original(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "training_step", training_step)
        yield


@pytest.fixture(scope="module")
def small(small, narrow) -> list[str]:
    return [*small, *narrow]


@pytest.fixture(scope="module")
def base(composed, small, fill_zeros, tmp_path_factory) -> Path:
    """Weights of a base model that answers: a fresh U-Net's output layer is zero and passes no gradient on."""
    torch.manual_seed(0)
    model = instantiate(composed(*small).model, _convert_="all")
    fill_zeros(model)
    return save_weights(model, tmp_path_factory.mktemp("base") / "base.safetensors")


@pytest.fixture(scope="module")
def run(composed, small, base, tmp_path_factory):
    """`run(name, *overrides)` trains in process and returns the run folder; `resume=True` goes on in it.

    A name is the test's own, whatever others call theirs; a whole path is a folder that tests share.
    """
    runs = tmp_path_factory.mktemp("runs")

    def place_of(name: str | Path) -> Path:
        test = re.sub(r"\W", "_", os.environ["PYTEST_CURRENT_TEST"].split("::")[-1].rpartition(" ")[0])
        return runs / test / name

    def go(name: str | Path, *overrides: str, resume: bool = False) -> Path:
        folder = place_of(name)
        place = f"resume={folder}" if resume else f"run_dir={folder}"
        train.train(composed(*small, f"base={base}", *overrides, place))
        return folder

    go.folder = place_of
    return go


@pytest.fixture(scope="module")
def straight(run) -> Path:
    """Four optimizer steps of the main job without any interruption."""
    return run("straight", "steps=4", *EVERY_TWO)


def test_training_moves_the_branch_and_the_average_follows(straight):
    weights, average = checkpoint(straight)["state_dict"], state(straight, "EMA")["average"]
    assert weights.keys() == average.keys()
    assert all(name.startswith("control.") for name in weights)
    zero = [name for name in weights if "zero_conv" in name]
    assert len(zero) == 2 * (2 + 1)  # of two blocks and the middle, weight and bias
    assert all(weights[name].any() for name in zero)
    assert not any(torch.equal(weights[name], average[name]) for name in zero)


def test_the_exported_file_is_the_average_and_says_what_it_is(straight):
    exported = load_file(straight / "control.safetensors")
    average = state(straight, "EMA")["average"]
    assert_equal_tensors({f"control.{name}": value for name, value in exported.items()}, average)
    facts = read_metadata(straight / "control.safetensors")
    expected = {
        "stage": "control",
        "model": "tiny",
        "control": "controlnet",
        "condition": "canny",
        "steps": "4",
    }
    assert expected.items() <= facts.items()
    assert set(facts) >= {"seed", "base", "commit", "command"}


def test_a_checkpoint_alone_says_what_run_it_belongs_to(straight):
    for name in ("last", "best"):
        told = torch.load(straight / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert told["config"] == OmegaConf.to_container(OmegaConf.load(straight / "config.yaml"))
        assert told["parts"]["unet"]["trainable"] == 0
        assert {"commit", "base_fingerprint", "effective_batch"} <= told.keys()
        assert not any(key.startswith("diffusion.") for key in told["state_dict"])


@pytest.mark.slow
def test_two_and_two_steps_are_four_bit_for_bit(run):
    straight = run("constant", "steps=4", CONSTANT_RATE, *EVERY_TWO)
    half = run("half", "steps=2", CONSTANT_RATE, *EVERY_TWO)
    assert checkpoint(half)["global_step"] == 2
    run("half", "steps=4", CONSTANT_RATE, *EVERY_TWO, resume=True)
    assert_same_training(straight, half)
    assert repr(state(half, "Watch")) == repr(state(straight, "Watch"))  # nan is nan
    assert_equal_tensors(load_file(half / "control.safetensors"), load_file(straight / "control.safetensors"))
    assert {p.name for p in half.glob("metrics*.csv")} == {"metrics.csv", "metrics.1.csv"}
    results = [json.loads((folder / "results.json").read_text()) for folder in (half, straight)]
    assert results[0]["fidelity"] == results[1]["fidelity"]
    assert results[0]["steps"] == results[1]["steps"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_died_goes_on_as_if_it_had_not(run, stage):
    options = [f"stage={stage}", "steps=4", *EVERY_TWO]
    expected = run(stage, *options)
    with power_cut(STAGES[stage], step=3), pytest.raises(RuntimeError, match="power cut"):
        run("cut_" + stage, *options)
    cut = run.folder(f"cut_{stage}")
    assert checkpoint(cut)["global_step"] == 2  # step 3 is lost and done again
    assert not (cut / "DONE.json").exists()
    run("cut_" + stage, *options, resume=True)
    assert_same_training(expected, cut)
    exported = [load_file(folder / f"{stage}.safetensors") for folder in (expected, cut)]
    assert_equal_tensors(*exported)
    assert repr(state(cut, "Watch")) == repr(state(expected, "Watch"))  # nan is nan
    assert state(cut, "Watch")["history"]["step"] == [0, 2, 4]
    assert (cut / "DONE.json").exists()


@pytest.mark.slow
def test_the_same_command_again_goes_on_and_then_does_nothing(run, straight, capsys):
    options = ["steps=4", *EVERY_TWO]
    with power_cut(DiffusionTraining, step=3), pytest.raises(RuntimeError, match="power cut"):
        run("again", *options)
    folder = run.folder("again")
    assert json.loads((folder / "FAILED.json").read_text())["reason"] == "RuntimeError: power cut"
    run("again", *options)
    assert_same_training(straight, folder)
    assert not (folder / "FAILED.json").exists()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    capsys.readouterr()
    run("again", *options)
    assert "already done" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    told = [(line["event"], line.get("resumed"), line.get("reason")) for line in attempts(folder)]
    first, second = [("start", False, None), ("stopped", None, "RuntimeError: power cut")], [("start", True, None)]
    assert told == [*first, *second, ("done", None, None)]


def test_another_configuration_in_the_same_folder_is_refused_with_the_difference(run, straight):
    before = (straight / "config.yaml").read_text()
    with pytest.raises(ChangedConfig, match=r"optimizer.lr: 0.004 -> 0.5.*steps: 4 -> 5"):
        run(straight, "steps=5", "optimizer.lr=0.5", *EVERY_TWO)
    assert (straight / "config.yaml").read_text() == before
    assert (straight / "DONE.json").exists()


@pytest.mark.slow
def test_another_base_under_the_same_name_is_no_run_that_was_done(run, base, tmp_path):
    own = tmp_path / "base.safetensors"
    shutil.copyfile(base, own)
    options = ["steps=1", "stage.report_items=0", f"base={own}"]
    folder = run("own_base", *options)
    assert json.loads((folder / "inputs.json").read_text()) == {"base": content(base)}
    save_file({name: tensor * 1.5 for name, tensor in load_file(own).items()}, own, read_metadata(own))
    with pytest.raises(ChangedConfig, match="another content of what base names; choose another run_dir"):
        run("own_base", *options)
    (folder / "DONE.json").unlink()  # a run that was cut off does not go on with it either
    with pytest.raises(ChangedConfig, match="another content of what base names"):
        run("own_base", *options)


def test_of_processes_that_start_together_the_first_one_has_the_loggers(composed, small, tmp_path, monkeypatch):
    """Each would rename metrics.csv and choose an id for W&B."""
    cfg = composed(*small, "logger=csv", f"run_dir={tmp_path}")
    (tmp_path / "metrics.csv").write_text("step")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert loggers_of(cfg) == []
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    (logger,) = loggers_of(cfg)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]  # nothing is logged yet
    logger.log_metrics({"loss": 1.0}, 1)
    assert "metrics.1.csv" in {path.name for path in tmp_path.iterdir()}


def test_resuming_takes_the_overrides_of_the_run_and_those_typed_on_top(run, straight, composed):
    cfg = composed(f"resume={straight}", "optimizer.lr=0.5")
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        again = train.resumption(cfg)
    recorded = OmegaConf.load(straight / "config.yaml")
    changed = differences(stable(recorded), stable(again))
    assert changed == ["optimizer.lr: 0.004 -> 0.5"]
    assert again.run_dir == str(straight)


def test_keys_of_the_stage_of_a_run_can_be_typed_on_its_resumption(tmp_path):
    (tmp_path / "overrides.yaml").write_text(
        json.dumps(["stage=diffusion", "data=stickers", "model=stickers", "steps=9"])
    )
    typed = [f"resume={tmp_path}", "model=tiny", "stage.module.pure_noise=0.4"]
    words = with_choices(typed)
    assert words == ["stage=diffusion", "data=stickers", *typed]
    assert with_choices(["--cfg", "job", *typed]) == ["--cfg", "job", *words]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        assert compose("train", words).stage.module.pure_noise == 0.4
    assert with_choices(["steps=3"]) == ["steps=3"]


@pytest.mark.slow
def test_what_is_typed_on_a_resumption_is_what_trains_and_its_seconds_are_summed(run):
    folder = run("retuned", "steps=2", CONSTANT_RATE)
    first = checkpoint(folder)["seconds"]
    run("retuned", "steps=4", CONSTANT_RATE, "optimizer.lr=1e-5", "optimizer.weight_decay=0.5", resume=True)
    (group,) = checkpoint(folder)["optimizer_states"][0]["param_groups"]
    assert (group["lr"], group["initial_lr"], group["weight_decay"]) == (1e-5, 1e-5, 0.5)
    assert checkpoint(folder)["lr_schedulers"][0]["base_lrs"] == [1e-5]
    assert OmegaConf.load(folder / "config.yaml").optimizer.lr == 1e-5
    changed = ("optimizer.lr: 0.004 -> 1e-05", "optimizer.weight_decay: 0.01 -> 0.5")
    assert read(folder).switches == [(2, changed)]
    results = json.loads((folder / "results.json").read_text())
    assert checkpoint(folder)["seconds"] > first > 0
    assert results["train_seconds"] >= round(checkpoint(folder)["seconds"], 1)
    assert results["setup_seconds"] > 0
    assert results["commits"] == [results["commit"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("steps=1", "finished at step 2"),
        ("seed=3", "a run of seed 0, not 3"),
        ("control=lite", "holds a run of another model"),
        ("stage.module.middle_only=true", "does not fit what this stage trains"),
        ("stage.module.locking=decoder", "does not fit what this stage trains"),
        ("optimizer._target_=torch.optim.Adamax", "holds the moments of AdamW"),
    ],
)
def test_a_resumption_that_cannot_be_meant_is_refused_and_changes_nothing(run, typed, said):
    folder = run("asked", "steps=2", "stage.report_items=0", "~optimizer.fused")
    names = ("config.yaml", "results.json", "DONE.json", "inputs.json", "metrics.csv")
    before = {name: (folder / name).read_text() for name in names}
    with pytest.raises(Refused, match=said):
        run("asked", "steps=3", "stage.report_items=0", "~optimizer.fused", typed, resume=True)
    assert {name: (folder / name).read_text() for name in before} == before
    assert not (folder / "metrics.1.csv").exists()


@pytest.mark.slow
def test_a_finished_run_is_not_given_another_configuration_without_training(run):
    folder = run("finished", "steps=2", "stage.report_items=0")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(Refused, match=r"finished at step 2: under .*lr: 0\.004 -> 1e-05.* ask for more steps"):
        run("finished", "steps=2", "stage.report_items=0", "optimizer.lr=1e-5", resume=True)
    assert {path: path.read_bytes() for path in before} == before
    run("finished", "steps=2", "stage.report_items=0", resume=True)  # the same again


@pytest.mark.slow
def test_a_run_that_is_not_there_is_told_with_its_seeds(tmp_path):
    (tmp_path / "run" / "seed-3").mkdir(parents=True)
    (tmp_path / "run" / "seed-3" / "config.yaml").touch()
    for key in ("resume", "reproduce"):
        done = command(f"{key}={tmp_path / 'run'}", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert (
            done.stderr == f"{key}={tmp_path / 'run'}: there is no run; did you mean {tmp_path / 'run' / 'seed-3'}?\n"
        )
    done = command("-m", f"resume={tmp_path / 'run' / 'seed-3'}", "optimizer.lr=1e-3,1e-4", cwd=tmp_path)
    assert done.returncode == 1
    assert "resume= goes on with one run: leave out -m" in done.stderr


def test_a_gpu_that_is_not_there_is_one_sentence_and_no_folder(composed, small, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(Refused, match=r"the trainer of trainer=\.\.\. cannot be made here: .*gpu"):
        train.train(composed(*small, "trainer=gpu", f"run_dir={tmp_path / 'run'}"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_run_folders_of_a_base_are_bases_and_no_branches(run, composed, small, tmp_path):
    quick = ["steps=1", "trainer.callbacks.watch.count=1"]
    folder = run("autoencoder", "stage=autoencoder", *quick)
    told = read_metadata(folder / "autoencoder.safetensors")
    assert not {"base", "condition", "control", "polarity", "extractor"} & told.keys()
    for key in ("base", "init_from"):
        with pytest.raises(Refused, match=r"autoencoder\.safetensors has no (ControlNet|text encoder|U-Net); it holds"):
            train.train(composed(*small, f"{key}={folder}", f"run_dir={tmp_path / key}"))
    with pytest.raises(SystemExit, match=r"is a run of stage=autoencoder; name one of stage=control"):
        find_checkpoint(str(folder))
    base = run("base_of_it", "stage=diffusion", f"base={folder}", *quick)
    assert "autoencoder" in read_metadata(base / "diffusion.safetensors")["base"]


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["color_grid", "none"])
def test_an_autoencoder_trains_whatever_the_condition(run, condition):
    folder = run(f"autoencoder_{condition}", "stage=autoencoder", f"condition={condition}", "steps=1",
                 "trainer.callbacks.watch.count=1")  # fmt: skip
    assert "psnr" in json.loads((folder / "results.json").read_text())["fidelity"]


def test_a_resumption_under_another_condition_is_refused_before_anything_changes(run, straight):
    before = (straight / "config.yaml").read_text()
    with pytest.raises(Refused, match=r"of another condition .*start a new run from its weights with init_from="):
        run(straight, "steps=6", "condition=color_grid", resume=True)
    assert (straight / "config.yaml").read_text() == before


@pytest.mark.parametrize(
    "typed", ["model.schedule.prediction=v", "model.unet.config.heads=1", "control.hint_channels=1"]
)
def test_a_resumption_of_another_model_is_refused_before_anything_changes(run, straight, typed):
    before = (straight / "config.yaml").read_text()
    with pytest.raises(Refused, match=rf"another model \({typed.split('=')[0]}: .*start a new run from its weights"):
        run(straight, "steps=6", typed, resume=True)
    assert (straight / "config.yaml").read_text() == before


@pytest.mark.slow
def test_the_logged_curve_of_a_resumed_run_is_that_of_a_straight_one(run):
    often = [CONSTANT_RATE, "trainer.log_every_n_steps=1", "stage.report_items=0"]
    straight = run("curve", "steps=5", *often)
    cut = run("cut_curve", "steps=2", *often)
    for steps in (4, 5):
        run("cut_curve", f"steps={steps}", *often, resume=True)
    one, other = (curves(folder, ["train/loss"])["train/loss"] for folder in (straight, cut))
    assert one.steps == other.steps == [1, 2, 3, 4, 5]
    assert one.values == other.values
    assert one.samples == other.samples == [2.0, 4.0, 6.0, 8.0, 10.0]


@pytest.mark.slow
def test_samples_of_a_resumption_with_another_batch_size_are_added_to_those_before(run):
    folder = run("batches", "steps=2", CONSTANT_RATE, "trainer.log_every_n_steps=1", "stage.report_items=0")
    more = ["steps=4", CONSTANT_RATE, "trainer.log_every_n_steps=1", "stage.report_items=0", "batch_size=3"]
    run("batches", *more, resume=True)
    (seen,) = (
        [float(row["samples_seen"]) for row in csv.DictReader(file.open()) if row["samples_seen"]]
        for file in [folder / "metrics.csv"]
    )
    assert [*dict.fromkeys(seen)] == [2 * 2, 2 * 2 + 3, 2 * 2 + 2 * 3]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t", "a.b", "1"])
def test_a_run_folder_of_any_name_is_found_again(composed, small, base, tmp_path, monkeypatch, capsys, name):
    """A folder's name was taken out of the whole configuration, letters of words included."""
    monkeypatch.chdir(tmp_path)
    options = [*small, f"base={base}", "steps=1", "stage.report_items=0", f"run_dir='{name}'"]
    train.train(composed(*options))
    train.train(composed(*options))
    assert "already done" in capsys.readouterr().out


def test_where_a_run_lies_is_no_part_of_what_it_is(composed):
    one, other = (stable(composed("model=tiny", f"run_dir={place}/r")) for place in ("/somewhere", "/elsewhere"))
    assert one == other


@pytest.mark.parametrize("place", [ROOT / "runs" / "r", "runs/r", "/elsewhere/r"])
@pytest.mark.parametrize("again", ["run_dir={}", "resume={}"])
def test_a_run_goes_on_without_a_difference_however_its_folder_was_written(composed, place, again):
    recorded = OmegaConf.create(OmegaConf.to_yaml(composed("model=tiny", f"run_dir={place}"), resolve=True))
    for written in {str(place), os.path.relpath(place, ROOT)}:
        assert differences(stable(recorded), stable(composed("model=tiny", again.format(written)))) == []


@pytest.mark.slow
def test_a_resumption_that_fails_before_it_trains_leaves_the_finished_run_as_it_was(run, straight, capsys):
    names = ("config.yaml", "overrides.yaml", "DONE.json", "checkpoints/last.ckpt")
    before = {name: (straight / name).read_bytes() for name in names}
    with power_cut(DiffusionTraining, step=4), pytest.raises(RuntimeError, match="power cut"):
        run(straight, "steps=6", *EVERY_TWO, resume=True)
    assert "with a difference:\n  steps: 4 -> 6" in capsys.readouterr().out
    assert {name: (straight / name).read_bytes() for name in names} == before
    assert not (straight / "FAILED.json").exists()
    run(straight, "steps=4", *EVERY_TWO)
    assert "already done" in capsys.readouterr().out


def test_ctrl_c_during_training_asks_for_a_stop_that_saves_and_the_second_one_stops_at_once(monkeypatch):
    asked = []
    monkeypatch.setattr(os, "kill", lambda pid, number: asked.append((pid, number)))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        guard = Guard("checkpoints")
        guard.setup(pl.Trainer(logger=False), pl.LightningModule(), "fit")
        signal.raise_signal(signal.SIGINT)
        assert asked == [(os.getpid(), signal.SIGTERM)]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        guard.setup(pl.Trainer(logger=False), pl.LightningModule(), "fit")
        guard.teardown(pl.Trainer(logger=False), pl.LightningModule(), "fit")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_folder_in_use_is_refused(composed, small, base, tmp_path):
    cfg = composed(*small, f"base={base}", "steps=1", f"run_dir={tmp_path}")
    with attempt(cfg), pytest.raises(ValueError, match=rf"in use by another job \(process {os.getpid()} on "):
        train.train(cfg)


def test_an_attempt_notes_the_step_that_it_goes_on_from_its_file_of_metrics_and_a_change_undone(
    composed, small, base, tmp_path
):
    options = [*small, f"base={base}", f"run_dir={tmp_path}"]
    with attempt(composed(*options)):
        (tmp_path / "checkpoints").mkdir()
        torch.save({"global_step": 10}, tmp_path / "checkpoints" / "last.ckpt")
        (tmp_path / "metrics.csv").write_text("step,train/loss\n20,1\n")
    with (
        pytest.raises(ValueError, match="no data"),
        attempt(composed(*options, f"resume={tmp_path}", "optimizer.lr=9")),
    ):
        raise ValueError("no data")
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"half a checkpoi")
    with attempt(composed(*options)):
        pass
    starts = [line for line in attempts(tmp_path) if line["event"] == "start"]
    assert [(line["step"], line["metrics"]) for line in starts] == [(0, 0), (10, 1), (None, 1)]
    assert [line.get("undone") for line in attempts(tmp_path) if line["event"] == "stopped"] == [True]
    assert read(tmp_path).switches == []


@pytest.mark.slow
def test_looking_and_logging_do_not_disturb_training(run, straight):
    """`straight` looks every 2 steps and logs every 10."""
    often = run("often", "steps=4", "trainer.callbacks.watch.every=1", "trainer.log_every_n_steps=1")
    assert state(often, "Watch")["history"]["step"] == [0, 1, 2, 3, 4]
    assert_same_training(often, straight)
    seldom = run("seldom", "steps=4", "trainer.callbacks.watch.every=1000", "trainer.callbacks.watch.count=1")
    assert state(seldom, "Watch")["history"]["step"] == [0, 4]
    assert_same_training(seldom, straight)


@pytest.mark.slow
def test_init_from_a_run_folder_starts_at_its_weights(run, straight):
    # a rate of zero leaves the weights as they were read
    other = run("init", "steps=1", f"init_from={straight}", "optimizer.lr=0")
    assert_equal_tensors(load_file(other / "control.safetensors"), load_file(straight / "control.safetensors"))


@pytest.mark.slow
def test_a_file_names_what_it_was_trained_from(run, straight):
    second = run("second", "steps=1", f"init_from={straight}", "optimizer.lr=0")
    third = run("third", "steps=1", f"init_from={second}", "optimizer.lr=0")
    told = [read_metadata(folder / "control.safetensors") for folder in (straight, second, third)]
    lineage = [json.loads(metadata["ancestors"]) for metadata in told]
    assert [[ancestor["steps"] for ancestor in ancestors] for ancestors in lineage] == [[], ["4"], ["4", "1"]]
    assert lineage[2][0]["command"] == told[0]["command"]


@pytest.mark.slow
@pytest.mark.parametrize("locking", ["decoder", "scratch"])
def test_a_base_that_trains_too_is_exported_beside_the_branch_and_drawn_with(run, base, small, composed, locking):
    unlocked = [f"stage.module.locking={locking}", "steps=3", "optimizer.lr=0.01"]
    folder = run(locking, *unlocked, "trainer.callbacks.export.dtype=float16")
    assert {"locking": locking}.items() <= read_metadata(folder / "control.safetensors").items()
    before, after = load_file(base), load_file(folder / "base.safetensors")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name].half(), after[name])}
    assert moved
    assert all(name.startswith("unet.decoder." if locking == "decoder" else "unet.") for name in moved)
    average = state(folder, "EMA")["average"]
    held = {name: average[f"diffusion.{name}"].half() for name in after if f"diffusion.{name}" in average}
    assert held.keys() >= moved
    assert_equal_tensors({name: after[name] for name in held}, held)

    path = folder / "control.safetensors"
    drawn, _ = load_model(path, composed(*small, f"base={base}"))
    assert fingerprint(drawn) == read_metadata(path)["base_fingerprint"]
    assert_equal_tensors({name: t.half() for name, t in drawn.state_dict().items()}, after)


@pytest.mark.slow
def test_a_branch_does_not_go_without_the_base_it_was_trained_with(run, small, composed, base, tmp_path):
    folder = run("tuned", "stage.module.locking=unlocked", "steps=1")
    with pytest.raises(ValueError, match=r"start with base=.*base.safetensors too"):
        run("from_tuned", "steps=1", f"init_from={folder}")
    tuned = folder / "base.safetensors"
    other = run("on_tuned", "steps=1", f"init_from={folder}", f"base={tuned}", "optimizer.lr=0")
    assert_equal_tensors(load_file(other / "control.safetensors"), load_file(folder / "control.safetensors"))
    facts = [read_metadata(path / "control.safetensors")["base_fingerprint"] for path in (folder, other)]
    assert facts[0] == facts[1]
    tuned.rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(ValueError, match=r"base.safetensors is missing; keep the two files together"):
        load_model(folder / "control.safetensors", composed(*small, f"base={base}"))


def test_resuming_what_never_was_is_refused(composed, small, tmp_path):
    with pytest.raises(Refused, match="no checkpoint at"):
        train.train(composed(*small, f"resume={tmp_path / 'none'}"))


@pytest.mark.slow
def test_the_three_stages_in_a_chain_build_on_each_other(composed, small, tmp_path):
    cfg = composed("model=tiny", f"run_dir={tmp_path}", "seed=5")
    short = [*small, "steps=1"]
    cfg.chain = [[f"stage={stage}", *short] for stage in ("autoencoder", "diffusion", "control")]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        train.train_chain(cfg)
    files = {name: load_file(tmp_path / name / f"{name}.safetensors") for name in ("autoencoder", "diffusion")}
    trained = files["autoencoder"]
    assert trained["autoencoder.scale"] != 0.18215
    assert_equal_tensors(trained, {name: files["diffusion"][name] for name in trained})
    for stage in ("autoencoder", "diffusion", "control"):
        results = json.loads((tmp_path / stage / "results.json").read_text())
        assert results["stage"] == stage
        assert results["seed"] == 5
        assert results["fidelity"]
    assert OmegaConf.load(tmp_path / "control" / "config.yaml").base == str(
        tmp_path / "diffusion" / "diffusion.safetensors"
    )


@pytest.mark.slow
def test_wandb_runs_offline_without_a_key_and_never_asks(composed, small, tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_SILENT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked something"))
    options = [*small, "logger=wandb", "steps=2", "trainer.log_every_n_steps=1", "group=mine", "tags=[a,b]",
               "logger.wandb.log_model=true"]  # fmt: skip
    train.train(composed(*options, f"run_dir={tmp_path / 'run'}"))
    (offline,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert offline.name.endswith((tmp_path / "run" / "wandb_id").read_text())
    assert [*offline.glob("*.wandb")]
    assert (tmp_path / "run" / "metrics.csv").exists()
    records = finished_records(next(offline.glob("*.wandb")))
    (told,) = (record.run for record in records if record.HasField("run"))
    assert (told.run_group, told.job_type, [*told.tags]) == ("mine", "control", ["a", "b"])
    config, history = wandb_records.config(records), wandb_records.history(records)
    assert config["steps"] == 2
    assert config["effective_batch"] == 2
    assert config["parts"]["unet"]["trainable"] == 0 < config["parts"]["control"]["trainable"]
    assert [config["parts"][part]["mode"] for part in ("unet", "control")] == ["eval", "train"]
    steps = [row["trainer/global_step"] for row in history if "train/loss" in row]
    assert steps == sorted(set(steps))
    assert len(steps) == 2
    assert any("val/loss_0-250" in row for row in history)
    assert exit_code(records) == 0
    shown = [row for row in history if "val/000/sample.filenames" in row]
    manifest = (tmp_path / "run" / "previews" / "manifest.jsonl").read_text().splitlines()
    assert len([name for name in shown[0] if name.endswith(".filenames")]) == 2 * 2  # the hints, once, and the samples
    assert len([name for name in shown[-1] if name.endswith(".filenames")]) == 2
    for row, line in zip(shown, map(json.loads, manifest), strict=True):
        for i, caption in enumerate(line["captions"]):
            assert row[f"val/{i:03}/sample.captions"] == [f"step {line['step']}: {caption}"]
            (name,) = row[f"val/{i:03}/sample.filenames"]
            pixels = np.asarray(Image.open(offline / "files" / name))
            assert pixels.shape == (64, 64, 3)
            assert pixels.std() > 0
    for row in history:
        if {"train/loss", "watch/edge_f1_1px", "hint_use"} & row.keys():
            assert row["samples_seen"] == 2 * row["trainer/global_step"]
            assert row["train_seconds"] >= 0
    paces = [row["pace/seconds_per_step"] * row["pace/samples_per_second"] for row in history if "train/loss" in row]
    assert paces == pytest.approx([2, 2])  # samples of a step
    losses = [row["train/loss"] for row in history if "train/loss" in row]
    summed = wandb_records.summary(next(offline.glob("*.wandb")))
    assert summed["train/loss"] == pytest.approx({"min": min(losses), "max": max(losses), "last": losses[-1]})
    assert {"min", "max", "last"} <= summed["watch/edge_f1_1px"].keys()

    (weights,) = (record.artifact for record in records if record.HasField("artifact"))
    assert (weights.name, weights.type) == (f"control-{told.run_id}", "model")
    assert {"config.yaml", "control.safetensors", "checkpoints/last.ckpt"} <= {
        entry.path for entry in weights.manifest.contents
    }

    with power_cut(DiffusionTraining, step=1), pytest.raises(RuntimeError, match="power cut"):
        train.train(composed(*options, f"run_dir={tmp_path / 'other'}"))  # the next job of the same process
    (other,) = (tmp_path / "other" / "wandb").glob("offline-run-*/*.wandb")
    assert exit_code(finished_records(other)) == 1
    assert len([*(tmp_path / "run" / "wandb").glob("offline-run-*")]) == 1  # a run of its own


@pytest.mark.slow
def test_tensorboard_gets_figures_and_pictures(composed, small, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = [*small, "logger=tensorboard", "steps=2", "trainer.log_every_n_steps=1", f"run_dir={tmp_path}"]
    train.train(composed(*options))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("watch/edge_f1_1px")] == [0, 2]
    assert [event.step for event in events.Scalars("val/loss_750-1000")] == [0, 2]
    assert len(events.Scalars("train/loss")) == 2
    assert [event.step for event in events.Images("preview")] == [0, 2]
    assert [event.step for event in events.Images("convergence")] == [2]
    assert (tmp_path / "metrics.csv").exists()


# ------------------------------------------------------------------ the command


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=cwd, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=900,
    )  # fmt: skip


@pytest.mark.slow
def test_a_run_that_is_refused_leaves_no_folder_but_what_was_there_stays(small, composed, tmp_path, monkeypatch):
    folder = tmp_path / "runs" / "a" / "seed-0"
    wrong = composed(*small, "condition=truth", "condition.map=depth", f"run_dir={folder}")
    opened: list[str] = []
    monkeypatch.setattr(fitting, "loggers_of", lambda cfg: opened.append("a run in MLflow, left RUNNING") or [])
    with pytest.raises(Refused, match="a map that stickers have"):
        train.train(wrong)
    assert not folder.parent.exists()
    for mine in (folder.parent / "notes.txt", folder / "notes.txt"):
        mine.parent.mkdir(parents=True, exist_ok=True)
        mine.write_text("mine")
        with pytest.raises(Refused, match="a map that stickers have"):
            train.train(wrong)
        assert mine.read_text() == "mine"
    assert not opened


@pytest.mark.parametrize(
    ("typed", "said"),
    [("optimizer.betas=[0.9]", r"optimizer={'lr'.*'betas': \[0.9\].*: "), ("optimizer.lr=-1", "Invalid learning rate")],
)
def test_what_the_optimizer_does_not_take_is_refused_before_anything_is_drawn(small, composed, tmp_path, typed, said):
    with pytest.raises(Refused, match=said):
        train.train(composed(*small, typed, f"run_dir={tmp_path / 'run'}"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("+trainer.limit_train_batches=3", "trainer.limit_train_batches=3: Lightning would repeat the first batches"),
        ("+trainer.limit_train_batches=1", "trainer.limit_train_batches=1: Lightning would repeat"),
        ("+trainer.limit_train_batches=0", "trainer.limit_train_batches=0: Lightning would repeat"),
        ("+trainer.overfit_batches=1", "trainer.overfit_batches=1: Lightning would repeat"),
        ("+trainer.fast_dev_run=true", "trainer.fast_dev_run=True"),
        ("trainer.precision=64-true", "trainer.precision must be one of 32-true, bf16-mixed, 16-mixed, got 64-true"),
        ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val must be a number from 0 on"),
        ("trainer.gradient_clip_val=abc", "trainer.gradient_clip_val must be a number from 0 on, or null, got 'abc'"),
    ],
)
def test_what_lightning_takes_but_would_falsify_a_number_is_refused(small, composed, base, tmp_path, typed, said):
    with pytest.raises(Refused, match=re.escape(said)):
        train.train(composed(*small, f"base={base}", typed, f"run_dir={tmp_path / 'run'}"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_whose_time_is_up_is_not_done_and_goes_on(run):
    with pytest.raises(SystemExit, match=r"training stopped at step \d+ of 4000: trainer.max_time") as ended:
        run("r", "steps=4000", "+trainer.max_time={seconds: 1}")
    assert not (run.folder("r") / "DONE.json").exists()
    more = int(str(ended.value).split()[4]) + 1
    folder = run("r", f"steps={more}", "+trainer.max_time={hours: 1}", resume=True)
    assert json.loads((folder / "results.json").read_text())["steps"] == more


@pytest.mark.slow
def test_callbacks_that_are_null_are_left_out(run):
    folder = run("r", "steps=1", *(f"trainer.callbacks.{name}=null" for name in ("ema", "export", "watch", "hint_use")))
    assert (folder / "DONE.json").exists()
    assert not (folder / "control.safetensors").exists()


@pytest.mark.slow
def test_looks_that_measure_otherwise_begin_a_curve_and_a_record_of_their_own(run):
    """Else a figure of fewer, easier items would stay the best, and another measure would look like progress."""
    often = ["trainer.callbacks.watch.every=1", "trainer.callbacks.hint_use.every=1"]
    run("r", "steps=2", *often, "trainer.callbacks.watch.count=1")
    again = [*often, "trainer.callbacks.watch.count=2"]
    folder = run("r", "steps=4", *again, "condition.low=5", "condition.high=10", resume=True)
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    [looks] = [state["history"] for name, state in saved.items() if name.startswith("Watch")]
    [record] = [state["record"] for name, state in saved.items() if name.startswith("Checkpoints")]
    [use] = [state["history"] for name, state in saved.items() if name.startswith("HintUse")]
    assert looks["step"] == use["step"] == [3, 4]
    lines = [json.loads(line) for line in (folder / "previews" / "manifest.jsonl").read_text().splitlines()]
    assert [line.get("step", f"from {line.get('resumed')}") for line in lines] == [0, 1, 2, "from 2", 3, 4]
    assert record["value"] == max(looks[record["figure"]])


def test_a_warning_is_told_once_whatever_libraries_do_to_its_memory(monkeypatch, capsys):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # as it was, afterwards
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        notes_told_once()
        for text in ("a.png cannot be read", "b.png cannot be read", "a.png cannot be read"):
            warnings.warn(text, stacklevel=1)
    assert capsys.readouterr().err == "note: a.png cannot be read\nnote: b.png cannot be read\n"


def test_an_unknown_key_stops_the_command(tmp_path):
    done = command("foo=1", "stpes=2", cwd=tmp_path)
    assert done.returncode != 0
    assert "Could not override 'foo'" in done.stderr
    assert "there is no key stpes; did you mean steps?" in done.stderr
    assert not [*tmp_path.iterdir()]
    assert "there is no condition=cany; did you mean condition=canny?" in command("condition=cany", cwd=tmp_path).stderr


@pytest.mark.slow
def test_the_main_job_end_to_end_in_short(small, tmp_path):
    folder = tmp_path / "run"
    arguments = [*small, "steps=6", "sampler.steps=3", "data.cache=cache", f"run_dir={folder}"]
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    files = {"config.yaml", "attempts.jsonl", "results.json", "DONE.json", "control.safetensors", "grid.png",
             "convergence.png", "metrics.csv"}  # fmt: skip
    assert files <= {path.name for path in folder.iterdir()}
    assert not [*folder.rglob("*.partial*")]
    assert {path.name for path in tmp_path.iterdir()} == {"run", "cache"}  # nothing outside

    results = json.loads((folder / "results.json").read_text())
    assert {"condition", "fidelity", "steps", "train_seconds", "setup_seconds", "commit"} <= results.keys()
    assert results["condition"] == "canny"
    assert results["steps"] == 6
    assert checkpoint(folder)["seconds"] > 0
    assert results["train_seconds"] >= round(checkpoint(folder)["seconds"], 1)
    assert results["setup_seconds"] > 0
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?|unknown", results["commit"])
    shown = {"edge_f1_1px", "edge_f1_2px", "concept", "category", "color_distance", "ground"}
    assert shown <= results["fidelity"].keys()
    for name, scores in results["fidelity"].items():
        assert [*scores] == ["base", "control", "no prompt", "unseen", "ceiling"]
        largest = 300 if name == "color_distance" else 1
        assert all(value is None or 0 <= value <= largest for value in scores.values()), name

    begun, ended = attempts(folder)
    assert {"command", "commit", "python", "torch", "host", "pid", "when"} <= begun.keys()
    assert "steps=6" in begun["command"]
    assert (begun["event"], ended["event"]) == ("start", "done")
    cfg = OmegaConf.load(folder / "config.yaml")
    assert OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)["steps"] == 6
    assert "${" not in (folder / "config.yaml").read_text()
    assert json.loads((folder / "DONE.json").read_text())["steps"] == 6
    assert (folder / "DONE.json").stat().st_mtime_ns >= (folder / "results.json").stat().st_mtime_ns

    assert checkpoint(folder)["global_step"] == 6
    for picture in [folder / "grid.png", folder / "convergence.png", *(folder / "previews").glob("*.png")]:
        Image.open(picture).verify()
    lines = [json.loads(line) for line in (folder / "previews" / "manifest.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 6]
    assert all((folder / "previews" / line["file"]).exists() for line in lines)
    with open(folder / "metrics.csv") as file:
        rows = [*csv.DictReader(file)]
    assert any(row.get("watch/edge_f1_1px") for row in rows)

    told = (
        "edge F1, 1 px",
        "concept right",
        "base",
        "control",
        "no prompt",
        "unseen",
        "ceiling",
        f"run folder: {folder}",
    )
    assert all(words in done.stdout for words in told), done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_job_told_to_stop_saves_exits_143_and_goes_on_as_if_it_had_not(small, base, forked, tmp_path):
    script = f"""
import os, runpy, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from ldm.training.diffusion import DiffusionTraining
original = DiffusionTraining.training_step
def step(self, batch, batch_idx):
    if self.global_step == 3:
        os.kill(os.getpid(), signal.SIGUSR1)  # as a cluster does before the time is up
    return original(self, batch, batch_idx)
DiffusionTraining.training_step = step
runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
"""
    short = ["steps=6", "threads=1", "stage.report_items=0", "trainer.callbacks.watch.count=1"]
    options = [*small, f"data.cache={tmp_path / 'cache'}", f"base={base}", *short]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    arguments = [sys.executable, "-c", script, *options, "run_dir=stopped"]
    told = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    stopped = tmp_path / "stopped"
    assert told.returncode == 143, told.stderr
    assert checkpoint(stopped)["global_step"] == 4
    assert not (stopped / "DONE.json").exists()
    assert not (stopped / "FAILED.json").exists()
    assert read(stopped).state == "stopped: asked to end"
    assert "asked to end: stopped/checkpoints/last.ckpt is saved; the same command goes on" in told.stdout
    done = processes.run([sys.executable, str(ROOT / "train.py"), *options, "run_dir=stopped"], tmp_path, environment)
    assert done.returncode == 0, done.stderr
    assert forked("straight", *short).wait(600)
    names = [tmp_path / name / "control.safetensors" for name in ("stopped", "straight")]
    assert_equal_tensors(*[load_file(path) for path in names])


ACCUMULATED = ["steps=4", "trainer.accumulate_grad_batches=2", "trainer.callbacks.watch.every=100"]


@pytest.fixture(scope="module")
def accumulated(run) -> Path:
    """Four optimizer steps of two micro-batches."""
    return run("accumulated", *ACCUMULATED)


@pytest.mark.slow
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no room"), SIGTERMException()])
def test_what_stops_amid_an_accumulated_step_is_saved_and_that_step_done_again(run, accumulated, error, capsys):
    original, name = DiffusionTraining.training_step, f"stopped_{type(error).__name__}"

    def step(self, batch, batch_idx):
        if batch_idx == 5:  # the second half of step 3
            raise error
        return original(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionTraining, "training_step", step)
        with pytest.raises(type(error)):
            run(name, *ACCUMULATED)
    folder = run.folder(name)
    assert checkpoint(folder)["global_step"] == 2
    if isinstance(error, torch.OutOfMemoryError):
        told = capsys.readouterr().err
        assert "out of memory at step 2; its state is in" in told
        assert "accumulate_grad_batches" in told
    run(name, *ACCUMULATED)
    assert_same_training(folder, accumulated)


@pytest.mark.slow
def test_memory_that_runs_out_within_an_optimizer_step_leaves_the_last_good_checkpoint(run):
    def step(self, closure):
        closure()
        raise torch.OutOfMemoryError("no room")

    last = run("full", "steps=2", "trainer.callbacks.watch.every=100") / "checkpoints" / "last.ckpt"
    before = last.stat().st_mtime_ns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        with pytest.raises(torch.OutOfMemoryError):
            run("full", "steps=4", resume=True)
    assert last.stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["optimizer._target_=torch.optim.RAdam", "~optimizer.fused"],
        ["optimizer._target_=torch.optim.SGD", "~optimizer.fused", "~optimizer.betas", "+optimizer.momentum=0.9"],
    ],
)
def test_any_optimizer_trains_by_its_name(run, options, request):
    folder = run(request.node.callspec.id, *options, "steps=2")
    assert all(weights.any() for name, weights in checkpoint(folder)["state_dict"].items() if "zero_conv" in name)
    names = set(checkpoint(folder)["optimizer_states"][0]["state"][0])
    assert names == ({"momentum_buffer"} if "SGD" in options[0] else {"exp_avg", "exp_avg_sq", "step"})


@pytest.mark.slow
def test_mixed_precision_holds_what_is_frozen_in_half_and_trains_in_full(run, straight, capsys):
    folder = run("mixed", "steps=4", *EVERY_TWO, "trainer.precision=bf16-mixed")
    table = capsys.readouterr().out
    assert re.search(r"unet +[\d,]+ +0 +[\d.]+ +bfloat16 +eval", table)
    assert re.search(r"control +[\d,]+ +[1-9][\d,]+ +[\d.]+ +float32 +train", table)
    held = checkpoint(folder)
    assert {value.dtype for value in held["state_dict"].values()} == {torch.float32}
    assert {v.dtype for v in state(folder, "EMA")["average"].values()} == {torch.float32}
    # it learns the same as in full precision, within what bfloat16's 8 bits leave of it
    names = [name for name in held["state_dict"] if "zero_conv" in name]
    mixed, full = (
        torch.cat([found["state_dict"][name].flatten() for name in names]) for found in (held, checkpoint(straight))
    )
    assert not torch.equal(mixed, full)
    assert torch.cosine_similarity(mixed, full, dim=0) > 0.9


def test_a_loss_that_is_not_finite_ends_the_run_with_advice_and_the_last_good_state(run):
    original = DiffusionTraining.training_step

    def step(self, batch, batch_idx):
        return original(self, batch, batch_idx) * (float("nan") if self.global_step == 2 else 1.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionTraining, "training_step", step)
        with pytest.raises(FloatingPointError, match=r"the loss is nan at step 3.*Lower optimizer.lr"):
            run("nan", "steps=4", "trainer.callbacks.checkpoint.every_n_train_steps=1")
    kept = checkpoint(run.folder("nan"))
    assert kept["global_step"] == 2
    assert all(value.isfinite().all() for value in kept["state_dict"].values())


# ------------------------------------------------------------------ killed, and several processes

KILLS = int(os.environ.get("KILLS", "10"))  # of one training; 30 by hand
TWO_PROCESSES = ["trainer.devices=2", "trainer.strategy=ddp", "batch_size=1"]


class Forked:
    """`train.py` in processes forked from this one: what happens to them costs no import of everything.

    world: with more than one they are told of each other in the environment, as torchrun does.
    """

    def __init__(self, cfg: Any, world: int = 1):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        context = multiprocessing.get_context("fork")
        arguments = [(cfg, rank, world, port) for rank in range(world)]
        self.processes = [context.Process(target=self._work, args=given) for given in arguments]
        for process in self.processes:
            process.start()

    @staticmethod
    def _work(cfg: Any, rank: int, world: int, port: int) -> None:
        torch.set_num_threads(1)  # threads do not survive a fork
        tqdm.set_lock(threading.RLock())  # the default one is shared with siblings, and lost when its holder is killed
        if world > 1:
            os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0"}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            rank_zero_only.rank = rank  # what importing Lightning reads from the environment
        train.train(cfg)

    def wait(self, seconds: float) -> bool:
        """Whether all have ended well within so many seconds; AssertionError if one has not ended well."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(end - time.monotonic(), 0.0))
        codes = [process.exitcode for process in self.processes]
        assert not any(codes), codes
        return None not in codes

    def kill(self) -> None:
        for process in self.processes:
            process.kill()  # SIGKILL
        for process in self.processes:
            process.join()


@pytest.fixture(scope="module")
def first(run) -> Path:
    """What a process does once, the forked ones find done."""
    return run("first", "steps=1")


@pytest.fixture
def forked(first, composed, small, base, tmp_path):
    """`forked(name, *overrides)` begins a run, or goes on with it, in its own process or processes."""

    def begin(name: str, *overrides: str, world: int = 1) -> Forked:
        options = [*small, f"data.cache={tmp_path / 'cache'}", f"base={base}", *overrides]
        return Forked(composed(*options, f"run_dir={tmp_path / name}"), world)

    return begin


@pytest.mark.slow
def test_killed_at_random_moments_a_run_ends_as_if_it_had_not_been(forked, tmp_path):
    options = ["steps=6", "trainer.callbacks.watch.every=3", "trainer.callbacks.checkpoint.every_n_train_steps=1"]
    began = time.monotonic()
    assert forked("straight", *options).wait(600)
    long, moments = time.monotonic() - began, random.Random(0)
    straight, kills, runs = tmp_path / "straight", 0, 0
    while kills < KILLS:
        name = f"killed_{runs}"
        while True:
            processes = forked(name, *options)
            if kills < KILLS and not processes.wait(moments.uniform(0, long / 2)):  # some kills for each run
                processes.kill()
                kills += 1
            elif processes.wait(600):
                break
        assert_same_training(straight, tmp_path / name)
        results = [json.loads((folder / "results.json").read_text()) for folder in (straight, tmp_path / name)]
        assert results[0]["fidelity"] == results[1]["fidelity"]
        assert repr(state(tmp_path / name, "Watch")) == repr(state(straight, "Watch"))
        runs += 1
    print(f"{kills} kills over {runs} runs of {long:.1f} s")


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch_and_go_on_after_a_kill(forked, tmp_path):
    options = ["steps=4", *EVERY_TWO, "stage.module.locking=decoder", "trainer.log_every_n_steps=1"]
    assert forked("one", *options).wait(600)
    assert forked("two", *options, *TWO_PROCESSES, world=2).wait(600)
    logged = [curves(tmp_path / name, ["train/loss"])["train/loss"] for name in ("one", "two")]
    assert logged[0].steps == logged[1].steps
    assert logged[0].values == pytest.approx(logged[1].values, rel=1e-4)  # of the whole batch, not of one process
    one, two = (checkpoint(tmp_path / name)["state_dict"] for name in ("one", "two"))
    assert_close(one, two)
    figures = [json.loads((tmp_path / name / "results.json").read_text())["fidelity"] for name in ("one", "two")]
    assert figures[0].keys() == figures[1].keys()

    cut = forked("cut", *options, *TWO_PROCESSES, world=2)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    while not last.exists():
        assert not cut.wait(0.02)
    cut.kill()
    assert checkpoint(tmp_path / "cut")["global_step"] == 2
    assert forked("cut", *options, *TWO_PROCESSES, world=2).wait(600)
    assert_same_training(tmp_path / "two", tmp_path / "cut")


@pytest.mark.slow
def test_shared_out_weights_train_as_whole_ones_and_their_checkpoint_goes_on_in_one_process(
    forked, tmp_path, monkeypatch
):
    original = fitting.gathered

    def gathered(cfg, module):
        trainer = module.trainer
        of_unet = [*module.diffusion.unet.parameters()]
        held = sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in of_unet)
        optimizer = sum(s["exp_avg"].to_local().numel() for s in trainer.optimizers[0].state.values())
        share = [
            held / sum(p.numel() for p in of_unet),
            optimizer / sum(p.numel() for p in module.control.parameters()),
        ]
        (tmp_path / f"share_{trainer.global_rank}").write_text(json.dumps(share))
        return original(cfg, module)

    monkeypatch.setattr(fitting, "gathered", gathered)
    # weights in another layout are summed in another order, which Adam's first steps make much of
    quick = [*EVERY_TWO, CONSTANT_RATE, "stage.report_items=0", "stage.module.channels_last=false"]
    assert forked("one", "steps=4", *quick).wait(600)
    shared = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.devices=2"]
    shared += ["batch_size=1", *quick]
    assert forked("two", "steps=2", *shared, world=2).wait(600)
    shares = [json.loads((tmp_path / f"share_{rank}").read_text()) for rank in (0, 1)]
    assert all(0.4 < part < 0.6 for share in shares for part in share), shares

    assert not any(name.startswith("diffusion.") for name in checkpoint(tmp_path / "two")["state_dict"])
    average = state(tmp_path / "two", "EMA")["average"]
    exported = load_file(tmp_path / "two" / "control.safetensors")
    assert_equal_tensors({f"control.{name}": value for name, value in exported.items()}, average)

    shutil.copytree(tmp_path / "two", tmp_path / "alone")
    assert forked("two", "steps=4", *shared, f"resume={tmp_path / 'two'}", world=2).wait(600)
    assert forked("alone", "steps=4", *quick, f"resume={tmp_path / 'alone'}").wait(600)
    wanted, looks = checkpoint(tmp_path / "one"), state(tmp_path / "one", "Watch")["history"]
    for name in ("two", "alone"):
        found = checkpoint(tmp_path / name)
        assert found["global_step"] == 4
        assert_close(found["state_dict"], wanted["state_dict"])
        assert_close(state(tmp_path / name, "EMA")["average"], state(tmp_path / "one", "EMA")["average"])
        states = [held["optimizer_states"][0] for held in (found, wanted)]
        assert states[0]["param_groups"] == states[1]["param_groups"]
        assert {i: {*held} for i, held in states[0]["state"].items()} == {
            i: {*held} for i, held in states[1]["state"].items()
        }
        assert state(tmp_path / name, "Watch")["history"]["loss"] == pytest.approx(looks["loss"], rel=1e-3)
        assert (tmp_path / name / "DONE.json").exists()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_process_ends_both_with_the_state_saved(forked, tmp_path, monkeypatch):
    original = DiffusionTraining.training_step

    def step(self, batch, batch_idx):
        bad = self.global_step == 2 and self.global_rank == 1
        return original(self, batch, batch_idx) * (float("nan") if bad else 1.0)

    monkeypatch.setattr(DiffusionTraining, "training_step", step)
    pair = forked("nan", "steps=4", "trainer.callbacks.watch.every=100", *TWO_PROCESSES, world=2)
    for process in pair.processes:
        process.join(120)
    assert [process.exitcode for process in pair.processes] == [1, 1]  # neither waits for the other
    reason = json.loads((tmp_path / "nan" / "FAILED.json").read_text())["reason"]
    assert re.search(r"the loss is .* at step 3; its state is in .*last.ckpt. Lower optimizer.lr", reason)
    kept = checkpoint(tmp_path / "nan")
    assert kept["global_step"] == 2
    assert all(value.isfinite().all() for value in kept["state_dict"].values())
