"""Facts of a model that change its pictures travel with every file: written, read back, or refused in one sentence."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image

import train
from cldm.branches.controlnet import ControlNet
from cldm.commands import cli
from cldm.evaluation.clip import ClipScore, says_quick_gelu
from cldm.runs.building import instantiate
from cldm.runs.configs import expand_home, home_typed
from cldm.runs.folder import Refused
from cldm.runs.trained import training_config
from cldm.sampling import drawing, jobs
from cldm.training.control_ldm import ControlLDM
from ldm.diffusion import LatentDiffusion
from ldm.interop import load_base, pretrained, schedules
from ldm.interop.published import read
from ldm.interop.write import schedule_tensors
from ldm.losses import AutoencoderLoss
from ldm.schedule import NoiseSchedule
from ldm.training.autoencoder import AutoencoderTraining
from ldm.training.diffusion import base_facts
from ldm.weights import fingerprint, read_metadata, save_weights
from tests.conftest import ROOT

ZERO = NoiseSchedule(prediction="v", zero_snr=True)
LINEAR = NoiseSchedule(beta_start=0.0001, beta_end=0.02, shape="linear")
ODD = NoiseSchedule(beta_start=0.001, beta_end=0.013)


def model(schedule: NoiseSchedule | None = None, seed: int = 0) -> LatentDiffusion:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("train", overrides=["model=tiny"])
    torch.manual_seed(seed)
    made: LatentDiffusion = instantiate(cfg.model, _convert_="all").eval()
    made.schedule = schedule or made.schedule
    return made


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A base of zero terminal SNR, as stage=diffusion writes it."""
    made = model(ZERO)
    return save_weights(made, tmp_path_factory.mktemp("base") / "base.safetensors", base_facts(made))


# ------------------------------------------------------------------ the noise schedule


@pytest.mark.parametrize("schedule", [NoiseSchedule(), ZERO, LINEAR, ODD, NoiseSchedule(steps=500)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_schedule_is_read_back_from_tables_and_from_diffusers(schedule, dtype):
    told = schedules.from_scheduler({"_class_name": "DDIMScheduler", **schedules.to_scheduler(schedule)}, Path("x"))
    assert told == schedule.told()
    tables = {name: table.to(dtype) for name, table in schedule_tensors(schedule).items()}
    told = schedules.from_tensors(tables, Path("x"))
    again = NoiseSchedule(**{"prediction": schedule.prediction, **told})
    assert torch.allclose(again.alphas_cumprod, schedule.alphas_cumprod, rtol=5e-3, atol=1e-5)
    schedules.check(schedule, told, "x")


def test_zero_snr_is_that_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDIMScheduler(**schedules.to_scheduler(ZERO))
    assert torch.allclose(theirs.alphas_cumprod, ZERO.alphas_cumprod, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"beta_schedule": "squaredcos_cap_v2"}, "shape must be one of"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ({"prediction_type": "sample"}, "prediction_type is 'sample'"),
        ({"rescale_betas_zero_snr": True}, "zero_snr needs prediction=v"),
        ({"beta_start": 0.5, "beta_end": 0.1}, "0 < beta_start <= beta_end"),
    ],
)
def test_a_schedule_that_is_not_here_is_refused(config, says):
    with pytest.raises(ValueError, match=says):
        schedules.from_scheduler(config, Path("scheduler_config.json"))


@pytest.mark.slow
def test_a_base_keeps_its_schedule_through_both_layouts_and_back(base, tmp_path):
    original, folder, again = tmp_path / "a.safetensors", tmp_path / "folder", tmp_path / "b.safetensors"
    assert cli.main(["convert", str(base), str(original), "--to", "original"]) == 0
    assert cli.main(["convert", str(original), str(folder), "--to", "diffusers"]) == 0
    config = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    assert config["rescale_betas_zero_snr"] is True
    assert config["prediction_type"] == "v_prediction"
    assert cli.main(["convert", str(folder), str(again), "--to", "original"]) == 0
    for path in (base, original, folder, again):
        assert NoiseSchedule(**read(path).schedule).told() == ZERO.told()
        with pytest.raises(ValueError, match=r"\(model\.schedule\.(prediction|zero_snr)\)"):
            load_base(model(), path)
        with pytest.raises(ValueError, match=r"zero_snr=True of its noise schedule, this model has False"):
            load_base(model(NoiseSchedule(prediction="v")), path)
        load_base(model(ZERO), path)
    assert torch.equal(pretrained(str(folder)).schedule.alphas_cumprod, ZERO.alphas_cumprod)


def test_marks_of_original_files_are_read():
    tables = {**schedule_tensors(NoiseSchedule()), "v_pred": torch.empty(0), "ztsnr": torch.empty(0)}
    told = schedules.from_tensors(tables, Path("x"))
    assert (told["prediction"], told["zero_snr"]) == ("v", True)


@pytest.mark.slow
def test_a_branch_is_sampled_under_the_schedule_it_was_trained_under(tmp_path):
    """Alone, without the config.yaml of its run; and a base of another schedule is refused."""
    diffusion = model(ZERO)
    control = ControlNet.from_unet(diffusion.unet, hint_widths=(4, 4, 8, 8))
    stage = ControlLDM(diffusion, control, torch.optim.SGD)
    told = {"stage": "control", "model": "tiny", "control": "controlnet", "condition": "canny"}
    path = save_weights(control, tmp_path / "control.safetensors", {**told, **stage.facts()})
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = training_config(path, None)
    assert (cfg.model.schedule.prediction, cfg.model.schedule.zero_snr) == ("v", True)
    converted = tmp_path / "converted.safetensors"
    assert cli.main(["convert", str(path), str(converted), "--to", "original"]) == 0
    assert NoiseSchedule(**read(converted).schedule).told() == ZERO.told()


def test_transfer_says_what_the_new_base_predicts_and_that_the_branch_is_locked(base, tmp_path, capsys):
    diffusion = model()
    control = ControlNet.from_unet(diffusion.unet, hint_widths=(4, 4, 8, 8))
    stage = ControlLDM(diffusion, control, torch.optim.SGD, locking="unlocked")
    with torch.no_grad():
        next(diffusion.unet.parameters()).add_(1)
    old = save_weights(diffusion, tmp_path / "old.safetensors", base_facts(diffusion))
    told = {"stage": "control", "model": "tiny", "condition": "canny", "metrics": "{}"}
    path = save_weights(control, tmp_path / "control.safetensors", {**told, **stage.facts()})
    moved = tmp_path / "moved.safetensors"
    command = ["transfer", str(path), "--from-base", str(old), "--to-base", str(base), str(moved)]
    assert cli.main(command) == 0
    assert "note: A predicts eps, B v" in capsys.readouterr().out
    found = read_metadata(moved)
    assert (found["prediction"], found["locking"], found["condition"]) == ("v", "locked", "canny")
    assert "metrics" not in found
    assert read(moved).schedule["zero_snr"] is True


@pytest.mark.slow
def test_a_branch_that_was_moved_names_its_new_base_and_every_move(base, tmp_path, capsys):
    first, second = model(ZERO), model(ZERO)
    with torch.no_grad():
        next(second.unet.parameters()).add_(1)
    control = ControlNet.from_unet(first.unet, hint_widths=(4, 4, 8, 8))
    told = {"stage": "control", "model": "tiny", **ControlLDM(first, control, torch.optim.SGD).facts()}
    start = save_weights(control, tmp_path / "start.safetensors", told)
    places = [tmp_path / "first.safetensors", tmp_path / "second.safetensors", tmp_path / "as_diffusers"]
    for diffusion, place in zip((first, second), places, strict=False):
        save_weights(diffusion, place, base_facts(diffusion))
    assert cli.main(["convert", str(places[1]), str(places[2]), "--to", "diffusers"]) == 0

    def move(control: Path, a: Path, b: Path, name: str) -> Path:
        arguments = [str(control), "--from-base", str(a), "--to-base", str(b), str(tmp_path / name)]
        assert cli.main(["transfer", *arguments]) == 0
        return tmp_path / name

    moved = move(start, places[0], places[1], "moved.safetensors")
    found = read_metadata(moved)
    assert (found["base_fingerprint"], found["transferred_from"]) == (fingerprint(second), "first.safetensors")
    back = move(moved, places[2], places[0], "back.safetensors")  # the same base in another layout
    found = read_metadata(back)
    assert found["base_fingerprint"] == fingerprint(first) == read_metadata(start)["base_fingerprint"]
    assert found["transferred_from"] == "first.safetensors, as_diffusers"
    assert "was trained on base" not in capsys.readouterr().out
    move(start, places[1], places[0], "wrong.safetensors")
    assert f"was trained on base {fingerprint(first)}, A is {fingerprint(second)}" in capsys.readouterr().out
    move(moved, places[1], places[2], "same.safetensors")
    assert "hold the same weights: the branch stays as it is" in capsys.readouterr().out


# ------------------------------------------------------------------ the autoencoder's scale, CLIP's activation


def test_an_exported_autoencoder_has_the_scale_of_the_weights_in_it_and_training_keeps_its_own():
    diffusion = model()
    stage = AutoencoderTraining(diffusion.autoencoder, AutoencoderLoss(), torch.optim.SGD)
    stage._measured_on = images = torch.rand(8, 3, 64, 64) * 2 - 1
    before = stage.autoencoder.scale.clone()
    with stage.exporting(), torch.no_grad():
        assert stage.autoencoder.encode(images).std().item() == pytest.approx(1, abs=1e-4)
    assert torch.equal(stage.autoencoder.scale, before)


@pytest.fixture
def tiny_clip(tmp_path, monkeypatch) -> Path:
    """A CLIP of two forms, as ViT-L-14 is in open_clip, and its weights."""
    open_clip = pytest.importorskip("open_clip")
    config = {"embed_dim": 16, "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16,
              "patch_size": 16}, "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2,
              "layers": 1}}  # fmt: skip
    for name, quick in (("Two-Forms", False), ("Two-Forms-quickgelu", True)):
        (tmp_path / f"{name}.json").write_text(json.dumps({**config, "quick_gelu": quick}))
    open_clip.add_model_config(tmp_path)
    torch.manual_seed(0)
    path = tmp_path / "weights.pt"
    torch.save(open_clip.create_model("Two-Forms").state_dict(), path)
    return path


def test_clip_weights_of_openai_get_quick_gelu_and_unknown_ones_a_warning(tiny_clip, tmp_path):
    shutil.copy(tiny_clip, tmp_path / "openai.pt")
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with pytest.warns(UserWarning, match=r"does not say whether .* QuickGELU.* set clip\.arch=Two-Forms-quickgelu"):
        plain = ClipScore("Two-Forms", tiny_clip)
    quick = ClipScore("Two-Forms", tmp_path / "openai.pt")
    assert (plain.arch, quick.arch) == ("Two-Forms", "Two-Forms-quickgelu")
    assert not torch.equal(plain(images, ["a", "b"]), quick(images, ["a", "b"]))
    (tmp_path / "sub").mkdir()
    shutil.copy(tiny_clip, tmp_path / "sub" / "open_clip_model.pt")
    (tmp_path / "sub" / "open_clip_config.json").write_text('{"model_cfg": {"quick_gelu": true}}')
    assert says_quick_gelu(tmp_path / "sub" / "open_clip_model.pt") is True
    (tmp_path / "sub" / "open_clip_config.json").write_text('{"model_cfg": {}}')
    assert says_quick_gelu(tmp_path / "sub" / "open_clip_model.pt") is False
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "archive.pt"))
    assert says_quick_gelu(tmp_path / "archive.pt") is True


# ------------------------------------------------------------------ nothing that is not finite is a picture


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    diffusion = model()
    save_weights(diffusion, folder / "base.safetensors", base_facts(diffusion))
    control = ControlNet.from_unet(diffusion.unet, hint_widths=(4, 4, 8, 8))
    told = {"stage": "control", "model": "tiny", "control": "controlnet", "condition": "canny"}
    save_weights(control, folder / "control.safetensors", told)
    return folder


def config(run: Path, *overrides: str) -> DictConfig:
    few = [f"checkpoint={run}", f"base={run}/base.safetensors", "sampler.steps=1", "count=2"]
    return compose("sample", overrides=[*few, *overrides])


def test_a_base_with_a_nan_draws_nothing_and_lists_nothing(run, tmp_path):
    broken = model()
    broken.unet.decoder.conv_out.weight.data[0, 0] = float("nan")
    save_weights(broken, tmp_path / "nan.safetensors", base_facts(broken))
    with (
        initialize_config_dir(str(ROOT / "configs"), version_base="1.3"),
        pytest.raises(ValueError, match=r"nan\.safetensors holds values that are not finite .*conv_out"),
    ):
        drawing.sample(config(run, f"base={tmp_path}/nan.safetensors", f"out={tmp_path}/out"))
    assert not [*(tmp_path / "out").glob("**/*.png"), *(tmp_path / "out").glob("**/*.jsonl")]


def test_an_overflow_while_drawing_is_one_sentence_and_nothing_is_listed(run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "ldm.autoencoder.AutoencoderKL.decode", lambda self, z: torch.full((len(z), 3, 64, 64), float("inf"))
    )
    with (
        initialize_config_dir(str(ROOT / "configs"), version_base="1.3"),
        pytest.raises(ValueError, match=r"the image of seed 0 is not finite .*precision=fp32") as caught,
    ):
        drawing.sample(config(run, f"out={tmp_path}/out"))
    assert "\n" not in str(caught.value)
    assert not [*(tmp_path / "out").glob("**/*.png"), *(tmp_path / "out").glob("**/*.jsonl")]


def test_a_condition_is_computed_once_for_a_photo(run, tmp_path, monkeypatch):
    seen: list[int] = []
    count = jobs.made_hint
    monkeypatch.setattr(jobs, "made_hint", lambda *given: seen.append(1) or count(*given))
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        drawing.sample(config(run, f"photo={ROOT}/docs/hint.png", "batch_size=1", f"out={tmp_path}/out"))
    assert len([*(tmp_path / "out").glob("*.png")]) == 3  # two images and their sheet
    assert len(seen) == 1


def test_pictures_of_one_job_must_lie_over_each_other(run, tmp_path):
    Image.new("RGB", (96, 64), "white").save(tmp_path / "wide.png")
    Image.new("RGB", (64, 64), "white").save(tmp_path / "square.png")
    given = [f"photo={tmp_path}/wide.png", f"image={tmp_path}/wide.png", f"mask={tmp_path}/square.png", "strength=1"]
    with (
        initialize_config_dir(str(ROOT / "configs"), version_base="1.3"),
        pytest.raises(
            SystemExit, match=r"mask .*square.png of 64x64 pixels does not lie over image .*wide.png of 96x64"
        ),
    ):
        drawing.sample(config(run, *given))


# ------------------------------------------------------------------ configurations


@pytest.mark.parametrize("stage", ["control", "diffusion", "autoencoder"])
def test_the_learning_rate_of_a_model_of_others_is_its_own_in_every_stage(composed, stage):
    for name, rate in (("sd15", 1e-5), ("sd21", 1e-5), ("pretrained", 1e-5)):
        optimizer = instantiate(composed(f"stage={stage}", f"model={name}").optimizer)(
            [torch.nn.Parameter(torch.ones(1))]
        )
        assert optimizer.param_groups[0]["lr"] == rate
    typed = composed(f"stage={stage}", "model=sd15", "optimizer.lr=3e-4")
    assert instantiate(typed.optimizer)([torch.nn.Parameter(torch.ones(1))]).param_groups[0]["lr"] == 3e-4


def test_a_home_folder_is_found_in_every_path_and_never_in_a_prompt(composed, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    typed = ["base=~/b.safetensors", "checkpoint='~/r'", "prompt='~/x'", "out=~/o", "photo=~/p.png",
             "more=[{checkpoint: '~/m'}]"]  # fmt: skip
    cfg = composed(*home_typed(typed), name="sample")
    expand_home(cfg)
    found = [cfg.base, cfg.checkpoint, cfg.out, cfg.photo, cfg.more[0].checkpoint]
    assert found == [f"/home/me/{name}" for name in ("b.safetensors", "r", "o", "p.png", "m")]
    assert cfg.prompt == "~/x"
    cfg = composed(*home_typed(["model=sd15", "data=folder", "data.path=~/photos", "base=~/b", "runs=~/runs"]))
    expand_home(cfg)
    assert (cfg.data.path, cfg.base) == ("/home/me/photos", "/home/me/b")
    assert cfg.run_dir.startswith("/home/me/runs/")


def test_too_few_examples_for_a_batch_are_refused_in_one_sentence(composed, small, tmp_path):
    cfg = composed(*small, "batch_size=64", f"run_dir={tmp_path}/run")
    with pytest.raises(Refused, match="6 training samples do not fill one batch of 64 x 1 ranks"):
        train.train(cfg)


@pytest.mark.parametrize(("size", "says"), [("[64,96]", "pictures of stickers are square"), ("[64]", "whole number or"),
                                            ("[64,100]", "multiples of 8")])  # fmt: skip
def test_a_size_that_cannot_be_is_refused_in_one_sentence(composed, small, tmp_path, size, says):
    with pytest.raises(Refused, match=says):
        train.train(composed(*small, f"size={size}", f"run_dir={tmp_path}/run"))
    with pytest.raises(Refused, match="follows it"):
        train.train(composed(*small, "data.size=128", f"run_dir={tmp_path}/other"))
