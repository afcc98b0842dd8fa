"""The road of docs/bring_your_own.md, at toy size: weights of others in, a ControlNet for others out."""

import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from safetensors.torch import load_file, save_file

import train
from cldm.branches.interop import understand_control
from cldm.commands.cli import main
from cldm.runs.checkout import REPOSITORY
from cldm.runs.trained import load_model, training_config
from cldm.sampling import drawing as sample
from ldm.interop.published import read
from ldm.interop.understand import understand
from ldm.weights import read_metadata

CONFIGS = str(REPOSITORY / "configs")


@pytest.fixture(scope="module")
def base(reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights as people download them: one original file of a small Stable Diffusion 1."""
    folder = tmp_path_factory.mktemp("download")
    for sub, kind in (("unet", "unet"), ("vae", "autoencoder"), ("text_encoder", "text")):
        reference(kind, "sd1").save_pretrained(folder / "diffusers" / sub)
    assert main(["convert", str(folder / "diffusers"), str(folder / "sd.safetensors"), "--to", "original"]) == 0
    return folder / "sd.safetensors"


@pytest.fixture(scope="module")
def run(base: Path, composed, small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of training on it."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    mine = [item for item in small if not item.startswith("model=")]
    train.train(
        composed(*mine, "model=pretrained", f"model.path={base}", "size=64", "steps=2", f"run_dir={folder}",
                 "data.keep=[image,hint]", "trainer.callbacks.ema.decay=0")
    )  # fmt: skip
    return folder


@pytest.mark.slow
def test_a_branch_trained_on_downloaded_weights_goes_to_diffusers_and_to_the_original_layout(run: Path, base: Path):
    diffusers = pytest.importorskip("diffusers")
    trained = run / "control.safetensors"
    facts = read_metadata(trained)
    assert facts["prediction"] == "eps"
    assert facts["base"] == str(base)
    assert facts["polarity"] == "white_on_black"
    assert "Canny(low=100" in facts["extractor"]
    assert facts["resolution"] == "64"
    assert facts["pooling"] == "false"
    for to, name in (("original", "mine.safetensors"), ("diffusers", "mine")):
        assert main(["convert", str(trained), str(run / name), "--to", to]) == 0
    theirs = diffusers.ControlNetModel.from_pretrained(run / "mine").state_dict()
    assert len(theirs) == len(load_file(run / "mine.safetensors"))
    ours, expected = understand_control(read(run / "mine")).state, load_file(trained)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.items())
    assert read_metadata(run / "mine.safetensors")["extractor"] == facts["extractor"]


@pytest.mark.parametrize("name", ["control.safetensors", "converted.safetensors"])
def test_sample_draws_with_the_branch_in_its_own_and_in_the_original_layout(
    run: Path, base: Path, tmp_path: Path, name
):
    path = run / name
    if not path.exists():
        assert main(["convert", str(run / "control.safetensors"), str(path), "--to", "original"]) == 0
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        cfg = compose("sample", [f"checkpoint={path}", f"base={base}", "sampler.steps=1", "count=1", f"out={tmp_path}"])
        training = training_config(path, cfg.base)
        assert training.model.path == str(base)
        diffusion, control = load_model(path, training)
    expected = load_file(run / "control.safetensors")
    assert all(torch.equal(tensor, expected[key]) for key, tensor in control.state_dict().items())
    assert diffusion.unet.config.heads == 8


@pytest.mark.slow
def test_training_goes_on_from_a_published_branch(run: Path, base: Path, composed, small, tmp_path: Path):
    published = tmp_path / "control.pth"
    found = load_file(run / "control.safetensors")
    assert main(["convert", str(run / "control.safetensors"), str(tmp_path / "a.safetensors"), "--to", "original"]) == 0
    torch.save(load_file(tmp_path / "a.safetensors"), published)
    mine = [item for item in small if not item.startswith("model=")]
    train.train(
        composed(*mine, "model=pretrained", f"model.path={base}", "size=64", "steps=1", f"run_dir={tmp_path}/b",
                 "data.keep=[image,hint]", "trainer.callbacks.ema.decay=0", f"init_from={published}",
                 "optimizer.lr=0", "optimizer.weight_decay=0")
    )  # fmt: skip
    again = load_file(tmp_path / "b" / "control.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in found.items())


@pytest.mark.slow
def test_a_downloaded_base_is_fine_tuned_itself(base: Path, composed, small, tmp_path: Path):
    mine = [item for item in small if not item.startswith("model=")]
    train.train(
        composed(*mine, "stage=diffusion", "model=pretrained", f"model.path={base}", "size=64", "steps=1",
                 f"run_dir={tmp_path}", "data.keep=[image,labels]", "trainer.callbacks.ema.decay=0",
                 f"init_from={base}", "optimizer.lr=0", "optimizer.weight_decay=0")
    )  # fmt: skip
    tuned, published = load_file(tmp_path / "diffusion.safetensors"), read(base)
    for part, name in (("unet.", "unet"), ("conditioner.text_encoder.", "text"), ("autoencoder.", "autoencoder")):
        for key, tensor in understand(published, name).state.items():
            assert torch.equal(tuned[part + key], tensor)
    file = str(tmp_path / "diffusion.safetensors")
    assert main(["inspect", file]) == 0
    assert main(["convert", file, str(tmp_path / "tuned.safetensors"), "--to", "original"]) == 0
    assert main(["convert", file, str(tmp_path / "tuned"), "--to", "diffusers"]) == 0
    again, downloaded = load_file(tmp_path / "tuned.safetensors"), load_file(base)
    assert again.keys() == downloaded.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in downloaded.items())
    assert (tmp_path / "tuned" / "model_index.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["control.pth", "control"])
def test_sample_draws_with_the_controlnets_of_others_once_told_what_they_are(
    run: Path, base: Path, tmp_path: Path, form
):
    """A pickle of the original code, and a diffusers folder that pools: neither says what it was trained with."""
    trained, path = str(run / "control.safetensors"), tmp_path / form
    assert main(["convert", trained, str(tmp_path / "a.safetensors"), "--to", "original"]) == 0
    assert main(["convert", trained, str(tmp_path / "control"), "--to", "diffusers"]) == 0
    if form == "control.pth":
        torch.save(load_file(tmp_path / "a.safetensors"), path)
    else:
        weights, config = path / "diffusion_pytorch_model.safetensors", path / "config.json"
        save_file(load_file(weights), weights)  # without our metadata
        config.write_text(
            config.read_text().replace('"global_pool_conditions": false', '"global_pool_conditions": true')
        )
    arguments = [f"checkpoint={path}", f"base={base}", "sampler.steps=1", "count=1", f"out={tmp_path}/out"]
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        with pytest.raises(
            SystemExit,
            match=r"does not say which model and condition .* add trained.model=sd15 .*trained.condition=canny",
        ):
            sample.sample(compose("sample", arguments))
        told = compose("sample", [*arguments, "trained.model=pretrained", "trained.condition=canny", "size=64"])
        settings = json.loads(Image.open(sample.sample(told) / "seed_0.png").text["settings"])  # type: ignore[attr-defined]
    assert settings["units"][0]["pool"] == (form == "control")


def test_a_checkpoint_may_name_configs_of_this_repository_only(run: Path, base: Path, tmp_path: Path):
    tensors = load_file(run / "control.safetensors")
    for name in ("../../evil", "canny+x=1", "no_such"):
        facts = {**read_metadata(run / "control.safetensors"), "condition": name}
        save_file(tensors, tmp_path / "control.safetensors", facts)
        with (
            initialize_config_dir(CONFIGS, version_base="1.3"),
            pytest.raises(SystemExit, match="there is no condition="),
        ):
            sample.sample(compose("sample", [f"checkpoint={tmp_path}", f"base={base}"]))
