"""ControlNet files in every published form, and the commands that convert, transfer and inspect them."""

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cldm.branches.controlnet import ControlNet
from cldm.branches.interop import control_table, control_tensors, load_control, understand_control
from cldm.commands.cli import main
from ldm.autoencoder import AutoencoderKL
from ldm.interop.published import read
from ldm.interop.understand import Understood, understand
from ldm.interop.write import original_tensors, schedule_tensors
from ldm.schedule import NoiseSchedule
from ldm.text_encoder import TextEncoder
from ldm.unet import UNet, UNetConfig, UNetEncoder
from ldm.weights import read_metadata, save_weights, shapes

FAMILIES = ["sd1", "sd2", "odd"]
TOLERANCE = 1e-4


def convert(*arguments: object) -> int:
    return main(["convert", *map(str, arguments)])


def branch(path: Path) -> nn.Module:
    """The ControlNet of a file, with its weights."""
    found = understand_control(read(path))
    module = found.module.to_empty(device="cpu")
    module.load_state_dict(found.state, strict=True)
    return module.eval()


@pytest.fixture(scope="session")
def folders(reference, tmp_path_factory) -> dict[str, Path]:
    """Per family, a ControlNet's folder as diffusers saves it."""
    made = {}
    for family in FAMILIES:
        made[family] = tmp_path_factory.mktemp(f"control_{family}")
        reference("control", family).save_pretrained(made[family])
    return made


@pytest.fixture(scope="session")
def pipelines(reference, tmp_path_factory) -> dict[str, Path]:
    """Per family, a whole model with a branch as a folder: unet/, vae/, text_encoder/, controlnet/."""
    made = {}
    for family in FAMILIES:
        made[family] = tmp_path_factory.mktemp(f"pipeline_{family}")
        for sub, kind in (
            ("unet", "unet"),
            ("vae", "autoencoder"),
            ("text_encoder", "text"),
            ("controlnet", "control"),
        ):
            reference(kind, family).save_pretrained(made[family] / sub)
    return made


@pytest.fixture(scope="session")
def originals(pipelines, tmp_path_factory) -> dict[str, Path]:
    """The same as files in the original layout, with every table, without metadata."""
    made = {}
    for family in ("sd1", "sd2"):
        path = tmp_path_factory.mktemp("original") / "a.safetensors"
        assert convert(pipelines[family], path, "--to", "original", "--prediction", "eps") == 0
        made[family] = path.with_name("plain.safetensors")
        save_file(load_file(path), made[family])
    return made


@pytest.fixture
def inputs(family: str) -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(1)
    z, context = torch.randn(2, 4, 16, 24, generator=rng), torch.randn(2, 7, 64, generator=rng)
    return z, torch.tensor([3, 981]), context, torch.rand(2, 3, 128, 192, generator=rng)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    assert b.std() > 0.01  # numbers that could differ
    return (a - b).abs().max().item()


def residuals(net: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """All 13 of ours or of diffusers', the middle last."""
    z, t, context, hint = inputs
    if isinstance(net, ControlNet):
        found = net(z, t, context, hint)
        return [*found.skips, found.middle]
    down, middle = net(z, t, context, controlnet_cond=hint, return_dict=False)
    return [*down, middle]


# ------------------------------------------------------------------ names and numbers


@pytest.mark.parametrize(("linear", "count"), [(False, 361_279_120), (True, 364_228_240)])
def test_the_branches_have_the_published_sizes_and_340_tensors(linear, count):
    options = {"context_channels": 1024, "heads": None, "linear_projections": True} if linear else {}
    with torch.device("meta"):
        control = ControlNet(UNetEncoder(UNetConfig(**options)))
    assert sum(p.numel() for p in control.parameters()) == count
    shapes = {s.name: s.shape for s in control_table(control, "original")}
    assert len(shapes) == len(control_table(control, "diffusers")) == 340
    assert shapes["input_hint_block.14.weight"] == (320, 256, 3, 3)
    assert shapes["zero_convs.11.0.weight"] == shapes["middle_block_out.0.weight"] == (1280, 1280, 1, 1)
    own = [name for name in shapes if name.startswith(("input_hint_block.", "zero_convs.", "middle_block_out."))]
    assert len(own) == 42
    assert sum(torch.Size(shapes[name]).numel() for name in own) == 12_566_160


def test_full_files_have_1483_and_1581_tensors():
    with torch.device("meta"):
        for linear, text, count in (
            (False, TextEncoder(), 1483),
            (True, TextEncoder(49408, 1024, 24, 16, activation="gelu", skip_last=1, projection=True), 1581),
        ):
            options = {"context_channels": 1024, "heads": None, "linear_projections": True} if linear else {}
            unet, autoencoder = UNet(UNetConfig(**options)), AutoencoderKL()
            parts = {"unet": unet, "autoencoder": autoencoder, "text": text}
            understood = [Understood(part, {**part.state_dict()}, {}) for part in parts.values()]
            names = {name for part in understood for name in original_tensors(part)}
            control = ControlNet(unet.encoder)
            names |= control_tensors(Understood(control, {**control.state_dict()}, {})).keys()
            assert len(names | schedule_tensors(NoiseSchedule()).keys()) == count


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_branch_of_diffusers_loads_strictly_and_gives_its_residuals(folders, reference, inputs, family):
    ours, theirs = residuals(branch(folders[family]), inputs), residuals(reference("control", family), inputs)
    assert len(ours) == len(theirs) == (13 if family != "odd" else 7)
    assert max(difference(a, b) for a, b in zip(ours, theirs, strict=True)) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_the_controlled_model_gives_diffusers_numbers(pipelines, originals, reference, inputs, family):
    z, t, context, hint = inputs
    unet_theirs, control_theirs = reference("unet", family), reference("control", family)
    down, middle = control_theirs(z, t, context, controlnet_cond=hint, return_dict=False)
    theirs = unet_theirs(
        z, t, context, down_block_additional_residuals=down, mid_block_additional_residual=middle
    ).sample
    for path in (places[family] for places in (pipelines, originals) if family in places):
        found = understand(read(path), "unet")
        unet = found.module.to_empty(device="cpu")
        unet.load_state_dict(found.state)
        control = branch(path)(z, t, context, hint)
        assert difference(unet(z, t, context, control), theirs) < TOLERANCE
        assert difference(unet(z, t, context), theirs) > 0.01


@torch.no_grad()
@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_an_exported_branch_loads_in_diffusers_from_folder_and_single_file(
    folders, reference, tmp_path, inputs, family
):
    """Trained here, saved in this project's own layout, converted twice."""
    diffusers = pytest.importorskip("diffusers")
    trained, config = branch(folders[family]), understand_control(read(folders[family])).settings
    metadata = {"condition": "canny", "settings": json.dumps({"control": config})}
    save_weights(trained, tmp_path / "control.safetensors", metadata)
    expected = residuals(trained, inputs)
    assert convert(tmp_path / "control.safetensors", tmp_path / "folder", "--to", "diffusers") == 0
    assert convert(tmp_path / "control.safetensors", tmp_path / "file.safetensors", "--to", "original") == 0
    folder = diffusers.ControlNetModel.from_pretrained(tmp_path / "folder")
    file = diffusers.ControlNetModel.from_single_file(
        str(tmp_path / "file.safetensors"), config=str(tmp_path / "folder"), local_files_only=True
    )
    for theirs in (folder, file):
        found = residuals(theirs.eval(), inputs)
        assert max(difference(a, b) for a, b in zip(found, expected, strict=True)) < TOLERANCE
    assert read_metadata(tmp_path / "file.safetensors")["condition"] == "canny"


# ------------------------------------------------------------------ convert


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_original_to_diffusers_to_original_is_bit_exact(originals, tmp_path, family):
    told = ("--prediction", "v") if family == "sd2" else ()
    assert convert(originals[family], tmp_path / "folder", "--to", "diffusers", *told) == 0
    assert convert(tmp_path / "folder", tmp_path / "back.safetensors", "--to", "original") == 0
    assert convert(tmp_path / "back.safetensors", tmp_path / "again", "--to", "diffusers") == 0
    assert convert(tmp_path / "again", tmp_path / "last.safetensors", "--to", "original") == 0
    first = load_file(originals[family])
    for name in ("back", "last"):
        found = load_file(tmp_path / f"{name}.safetensors")
        assert first.keys() == found.keys()
        assert all(torch.equal(first[k], v) and first[k].dtype == v.dtype for k, v in found.items())


def test_a_converted_folder_is_a_pipeline_of_diffusers(originals, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    assert convert(originals["sd1"], tmp_path / "folder", "--to", "diffusers") == 0
    pipeline = diffusers.StableDiffusionControlNetPipeline.from_pretrained(tmp_path / "folder", local_files_only=True)
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    pipeline.set_progress_bar_config(disable=True)
    hint = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    images = pipeline("a cat", image=hint, num_inference_steps=1, height=64, width=64, output_type="pt").images
    assert images.shape == (1, 3, 64, 64)


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)]
)
def test_precisions_are_written_as_asked(folders, tmp_path, name, dtype):
    assert convert(folders["sd1"], tmp_path / "a.safetensors", "--to", "original", "--dtype", name) == 0
    assert {t.dtype for t in load_file(tmp_path / "a.safetensors").values()} == {dtype}
    assert convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--to", "original") == 0
    assert {t.dtype for t in load_file(tmp_path / "b.safetensors").values()} == {dtype}


def test_parts_are_taken_out_of_a_full_file(originals, tmp_path):
    full = load_file(originals["sd1"])
    starts = {"control": "control_model.", "unet": "model.diffusion_model.", "text": "cond_stage_model."}
    for part, start in starts.items():
        assert convert(originals["sd1"], tmp_path / f"{part}.safetensors", "--to", "original", "--part", part) == 0
        found = load_file(tmp_path / f"{part}.safetensors")
        assert found.keys() == {name for name in full if name.startswith(start)}
    assert convert(originals["sd1"], tmp_path / "vae.safetensors", "--to", "original", "--part", "vae") == 0
    vae = load_file(tmp_path / "vae.safetensors")  # without prefix, as the web UI wants it
    assert {f"first_stage_model.{name}" for name in vae} == {n for n in full if n.startswith("first_stage_model.")}
    assert convert(originals["sd1"], tmp_path / "unet", "--to", "diffusers", "--part", "unet") == 0
    assert (tmp_path / "unet" / "config.json").is_file()


def test_metadata_says_what_a_branch_is(folders, tmp_path, capsys):
    typed = ("--set", "condition=canny", "--set", "polarity=white on black")
    assert convert(folders["sd2"], tmp_path / "a.safetensors", "--to", "original", *typed) == 0
    metadata = read_metadata(tmp_path / "a.safetensors")
    told = {"condition": "canny", "polarity": "white on black", "channels": "3", "pooling": "false"}
    assert told.items() <= metadata.items()
    assert metadata["base_family"] == "Stable Diffusion 2.x"
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "a.safetensors")]) == 0
    printed = capsys.readouterr().out
    assert "polarity      white on black" in printed
    assert "problems      none" in printed


def test_what_a_whole_model_says_of_itself_survives_both_ways(originals, tmp_path):
    told = {"artwork": "by somebody, CC BY-SA 4.0", "commit": "c0ffee"}
    typed = [word for key, value in told.items() for word in ("--set", f"{key}={value}")]
    assert convert(originals["sd1"], tmp_path / "folder", "--to", "diffusers", *typed) == 0
    assert convert(tmp_path / "folder", tmp_path / "back.safetensors", "--to", "original") == 0
    assert told.items() <= read_metadata(tmp_path / "back.safetensors").items()
    weights = tmp_path / "folder" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(weights), weights)  # a part from elsewhere: of the whole nothing is known
    assert convert(tmp_path / "folder", tmp_path / "mixed.safetensors", "--to", "original") == 0
    assert not told.keys() & read_metadata(tmp_path / "mixed.safetensors").keys()


def test_what_a_branch_predicts_is_written_where_it_is_told(folders, tmp_path, capsys):
    arguments = ("--to", "original", "--prediction", "v", "--zero-snr")
    assert convert(folders["sd2"], tmp_path / "a.safetensors", *arguments) == 0
    assert read(tmp_path / "a.safetensors").schedule == {"prediction": "v", "zero_snr": True}
    assert read_metadata(tmp_path / "a.safetensors")["prediction"] == "v"
    assert convert(tmp_path / "a.safetensors", tmp_path / "b", "--to", "diffusers", "--prediction", "eps") == 1
    assert "says prediction=v, the command says eps" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["settings", "format", "prediction"])
def test_metadata_that_convert_writes_itself_cannot_be_typed(folders, tmp_path, capsys, key):
    assert convert(folders["sd1"], tmp_path / "a.safetensors", "--to", "original", "--set", f"{key}=foo") == 1
    assert f"--set {key}=: convert writes this key itself" in capsys.readouterr().err
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.slow
def test_a_run_folder_is_converted_and_moved(originals, folders, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "attempts.jsonl").touch()
    assert convert(folders["sd1"], run / "control.safetensors", "--to", "original") == 0
    assert convert(run, tmp_path / "a", "--to", "diffusers") == 0
    bases = ["--from-base", str(originals["sd1"]), "--to-base", str(originals["sd1"])]
    assert main(["transfer", str(run), *bases, str(tmp_path / "b.safetensors")]) == 0
    sizes = [shapes(understand_control(read(tmp_path / name)).state) for name in ("a", "b.safetensors")]
    assert sizes[0] == sizes[1]


def test_pooling_survives_both_ways(folders, tmp_path):
    config = json.loads((folders["sd1"] / "config.json").read_text())
    folder = tmp_path / "shuffle"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**config, "global_pool_conditions": True}))
    weights = "diffusion_pytorch_model.safetensors"
    (folder / weights).write_bytes((folders["sd1"] / weights).read_bytes())
    assert convert(folder, tmp_path / "a.safetensors", "--to", "original") == 0
    assert convert(tmp_path / "a.safetensors", tmp_path / "back", "--to", "diffusers") == 0
    assert json.loads((tmp_path / "back" / "config.json").read_text())["global_pool_conditions"] is True
    with pytest.raises(ValueError, match="averages its residuals over space"):  # not silently a different model
        load_control(branch(folders["sd1"]), folder)


@pytest.mark.parametrize(
    ("dst", "to", "message"),
    [
        ("out.safetensors", "diffusers", "a folder: DST must not end like a file"),
        ("out", "original", "a file: end DST with .safetensors"),
        ("there.safetensors", "original", "there.safetensors exists; remove it or choose another name"),
    ],
)
def test_a_target_that_cannot_be_is_refused_first(folders, tmp_path, capsys, dst, to, message):
    (tmp_path / "there.safetensors").write_bytes(b"mine")
    assert convert(folders["sd1"], tmp_path / dst, "--to", to) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["there.safetensors"]
    assert (tmp_path / "there.safetensors").read_bytes() == b"mine"


def test_a_write_that_fails_leaves_nothing(folders, tmp_path, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("ldm.weights.save_file", full)
    for dst, to in (("a.safetensors", "original"), ("a", "diffusers")):
        assert convert(folders["sd1"], tmp_path / dst, "--to", to) == 1
    assert "No space left" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


# ------------------------------------------------------------------ forms of a branch


def forms(originals: dict[str, Path], folder: Path) -> dict[str, Path]:
    """The same branch as every form that stands alone or on its base."""
    full = load_file(originals["sd1"])
    bare = {k.removeprefix("control_model."): v for k, v in full.items() if k.startswith("control_model.")}
    locked = {k.removeprefix("model.diffusion_model."): v for k, v in full.items() if "diffusion_model." in k}
    difference = {k: v - locked[k] if k in locked else v for k, v in bare.items()}
    files = {
        "prefixed": {f"control_model.{k}": v for k, v in bare.items()},
        "bare": bare,
        "difference": {**difference, "difference": torch.ones(())},
        "full": full,
    }  # fmt: skip
    files["difference with prefix"] = {f"control_model.{k}": v for k, v in difference.items()}
    files["difference with prefix"]["difference"] = torch.ones(())
    folder.mkdir(exist_ok=True)
    for name, state in files.items():
        save_file(state, folder / f"{name}.safetensors")
    torch.save({"state_dict": files["prefixed"]}, folder / "pickle.pth")
    return {path.stem: path for path in folder.iterdir()}


def test_every_form_of_a_branch_is_the_same_branch(originals, folders, tmp_path):
    expected = understand_control(read(folders["sd1"])).state
    weights = folders["sd1"] / "diffusion_pytorch_model.safetensors"
    found = forms(originals, tmp_path / "forms")
    for name, path in {**found, "folder": folders["sd1"], "diffusers file": weights}.items():
        base = read(originals["sd1"]) if name.startswith("difference") else None
        state = understand_control(read(path), base).state
        assert state.keys() == expected.keys()
        for key, tensor in state.items():
            torch.testing.assert_close(tensor, expected[key], rtol=0, atol=1e-6 if base else 0)


@pytest.mark.parametrize("form", ["prefixed", "folder"])
def test_whichever_tensor_of_a_branch_is_missing_or_misshapen_it_is_refused(originals, folders, tmp_path, form):
    path = folders["sd1"] if form == "folder" else forms(originals, tmp_path / "forms")[form]
    published = read(path)
    part = published.parts["control"]
    for key in [*part.state][:: len(part.state) // 12]:
        for broken in ({k: v for k, v in part.state.items() if k != key}, {**part.state, key: torch.zeros(3, 1)}):
            with pytest.raises(ValueError, match=r"ControlNet|control"):
                understand_control(replace(published, parts={"control": replace(part, state=broken)}))


def test_a_form_that_needs_its_base_asks_for_it(originals, tmp_path, capsys):
    path = forms(originals, tmp_path / "forms")["difference"]
    assert convert(path, tmp_path / "a.safetensors", "--to", "original") == 1
    assert "holds changes to its base; give --base" in capsys.readouterr().err
    assert convert(path, tmp_path / "a.safetensors", "--to", "original", "--base", originals["sd1"]) == 0
    assert convert(path, tmp_path / "b.safetensors", "--to", "original", "--base", originals["sd2"]) == 1
    assert "is it its base?" in capsys.readouterr().err


def test_a_control_lora_is_its_base_plus_the_product(originals, tmp_path):
    full = load_file(originals["sd1"])
    bare = {k.removeprefix("control_model."): v for k, v in full.items() if k.startswith("control_model.")}
    locked = {k.removeprefix("model.diffusion_model."): v for k, v in full.items() if "diffusion_model." in k}
    own = ("input_hint_block.", "zero_convs.", "middle_block_out.")
    rng = torch.Generator().manual_seed(0)
    lora, expected = {k: v for k, v in bare.items() if k.startswith(own)}, {}
    for name in ("input_blocks.1.0.in_layers.2", "input_blocks.1.1.transformer_blocks.0.attn1.to_q"):
        weight = locked[f"{name}.weight"]
        up = torch.randn(weight.shape[0], 2, *[1] * (weight.ndim - 2), generator=rng)
        down = torch.randn(2, *weight.shape[1:], generator=rng)
        lora |= {f"{name}.up": up, f"{name}.down": down}
        expected[f"{name}.weight"] = weight + torch.einsum("or,r...->o...", up.flatten(1), down)
    lora["input_blocks.1.0.in_layers.0.bias"] = expected["input_blocks.1.0.in_layers.0.bias"] = torch.ones(32)
    save_file({**lora, "lora_controlnet": torch.zeros(())}, tmp_path / "lora.safetensors")
    assert convert(tmp_path / "lora.safetensors", tmp_path / "a.safetensors", "--to", "original", "--base",
                   originals["sd1"]) == 0  # fmt: skip
    found = load_file(tmp_path / "a.safetensors")
    for name in bare:
        wanted = expected.get(name, bare[name] if name.startswith(own) else locked.get(name))
        torch.testing.assert_close(found[f"control_model.{name}"], wanted, rtol=1e-5, atol=1e-5)


def test_loading_a_branch_of_another_family_is_refused_in_one_sentence(folders, reference, tmp_path):
    with torch.device("meta"):
        control = ControlNet(UNetEncoder(UNetConfig(context_channels=1024, linear_projections=True, heads=None)))
    with pytest.raises(ValueError, match=r"is a ControlNet for Stable Diffusion 1\.x \(context of 64 channels\), this "
                       r"model is Stable Diffusion 2\.x \(1024\)"):  # fmt: skip
        load_control(control, folders["sd1"])


# ------------------------------------------------------------------ transfer


def test_transfer_adds_the_offset_of_the_bases_to_what_is_shared(originals, pipelines, reference, tmp_path):
    reference("unet", "sd1", seed=5).save_pretrained(tmp_path / "other" / "unet")
    arguments = ["--from-base", originals["sd1"], "--to-base", tmp_path / "other", tmp_path / "moved.safetensors"]
    assert main(["transfer", str(originals["sd1"]), *map(str, arguments)]) == 0
    moved = understand_control(read(tmp_path / "moved.safetensors")).state
    before = understand_control(read(originals["sd1"])).state
    a, b = (understand(read(p), "unet").state for p in (originals["sd1"], tmp_path / "other"))
    for name, tensor in moved.items():
        offset = b[name] - a[name] if name.startswith("encoder.") else 0
        torch.testing.assert_close(tensor, before[name] + offset, rtol=0, atol=1e-6)
    assert not torch.equal(moved["encoder.conv_in.weight"], before["encoder.conv_in.weight"])
    assert read_metadata(tmp_path / "moved.safetensors")["base"] == "other"


def test_transfer_from_a_base_to_itself_changes_nothing(originals, tmp_path):
    same = tmp_path / "same.safetensors"
    arguments = ["--from-base", originals["sd1"], "--to-base", originals["sd1"], same]
    assert main(["transfer", str(originals["sd1"]), *map(str, arguments)]) == 0
    moved, before = (understand_control(read(path)).state for path in (same, originals["sd1"]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in moved.items())


def test_transfer_to_the_other_family_is_refused(originals, tmp_path, capsys):
    arguments = ["--from-base", originals["sd1"], "--to-base", originals["sd2"], tmp_path / "moved.safetensors"]
    assert main(["transfer", str(originals["sd1"]), *map(str, arguments)]) == 1
    assert "is no base of this branch" in capsys.readouterr().err
    assert not (tmp_path / "moved.safetensors").exists()


# ------------------------------------------------------------------ wrong files


class Malicious:
    """A pickle that runs a command when it is loaded without care."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


def wrong_files(originals: dict[str, Path], folder: Path) -> dict[str, tuple[bytes | dict, str]]:
    good = originals["sd1"].read_bytes()
    state = load_file(originals["sd1"])
    vae = {k: v for k, v in state.items() if k.startswith("first_stage_model.")}
    sdxl = {**vae, "conditioner.embedders.0.transformer.x": torch.zeros(1)}
    lora = {"lora_unet_down_blocks_0.lora_up.weight": torch.zeros(2, 2)}
    return {
        "truncated.safetensors": (good[: len(good) // 2], "damaged safetensors file, perhaps cut short"),
        "header.safetensors": (good[:50], "damaged safetensors file, perhaps cut short"),
        "lora.safetensors": (lora, "is a LoRA"),
        "peft.safetensors": ({"unet.down_blocks.0.lora_A.weight": torch.zeros(2, 2)}, "is a LoRA"),
        "vae.safetensors": (vae, "has no ControlNet; it holds: autoencoder (original layout)"),
        "sdxl.safetensors": (sdxl, "is a Stable Diffusion XL model"),
        "flux.safetensors": ({"double_blocks.0.x": torch.zeros(1)}, "is a diffusion transformer"),
        "last.safetensors": ({"control.hint_encoder.0.weight": torch.zeros(1)}, "is a training checkpoint of this"),
        "foreign.safetensors": ({"layer.weight": torch.zeros(1)}, "its 1 tensors begin with layer.weight"),
        "empty.safetensors": (b"", "is empty (0 bytes)"),
        "none.safetensors": ({}, "holds no tensors"),
        "page.safetensors": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page, not weights"),
        "lfs.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a Git LFS pointer"),
        "noise.ckpt": (b"\x00" * 4000, "is neither a safetensors file nor a PyTorch checkpoint"),
        "cut.pth": (b"PK\x03\x04" + b"\x00" * 300, "is a damaged PyTorch checkpoint"),
        "evil.pth": (pickle.dumps(Malicious(folder / "owned")), "is a pickle that holds more than tensors"),
    }


@pytest.mark.parametrize("command", ["convert", "inspect"])
def test_every_wrong_file_ends_in_one_clear_message_and_writes_nothing(originals, tmp_path, capsys, command):
    for name, (content, message) in wrong_files(originals, tmp_path).items():
        path = tmp_path / name
        path.write_bytes(content) if isinstance(content, bytes) else save_file(content, path)
        before = {*tmp_path.iterdir()}
        arguments = ["--to", "original", "--part", "control"] if command == "convert" else []
        target = [str(tmp_path / "out.safetensors")] if command == "convert" else []
        if command == "inspect" and name == "vae.safetensors":
            continue  # nothing is wrong with it
        assert main([command, str(path), *target, *arguments]) == 1, name
        error = capsys.readouterr().err
        assert [line for line in error.splitlines() if line.startswith("error: ")] == error.splitlines()[-1:], error
        assert message in error, error
        assert {*tmp_path.iterdir()} == before
    assert not (tmp_path / "owned").exists()


def test_a_malicious_zip_pickle_is_refused_with_its_reason(tmp_path, capsys):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "x": Malicious(tmp_path / "owned")}, tmp_path / "evil.ckpt")
    assert convert(tmp_path / "evil.ckpt", tmp_path / "out", "--to", "diffusers") == 1
    error = capsys.readouterr().err
    assert "it asks for posix.system" in error
    assert "take the .safetensors edition" in error
    assert [path.name for path in tmp_path.iterdir()] == ["evil.ckpt"]


def test_folders_that_are_no_models_are_told(tmp_path, capsys, folders):
    (tmp_path / "empty").mkdir()
    assert convert(tmp_path / "empty", tmp_path / "a.safetensors", "--to", "original") == 1
    assert "is no diffusers folder" in capsys.readouterr().err
    assert convert(tmp_path / "absent", tmp_path / "a.safetensors", "--to", "original") == 1
    assert "no weights at" in capsys.readouterr().err
    (tmp_path / "sdxl").mkdir()
    (tmp_path / "sdxl" / "config.json").write_text('{"_class_name": "SD3Transformer2DModel"}')
    assert convert(tmp_path / "sdxl", tmp_path / "a.safetensors", "--to", "original") == 1
    assert "describes SD3Transformer2DModel" in capsys.readouterr().err


# ------------------------------------------------------------------ inspect


def test_inspect_tells_layout_parts_counts_family_and_prediction(originals, capsys):
    assert main(["inspect", str(originals["sd1"])]) == 0
    printed = capsys.readouterr().out
    control = [t for k, t in load_file(originals["sd1"]).items() if k.startswith("control_model.")]
    count = f"{sum(t.numel() for t in control):,} parameters in {len(control)} tensors, float32"
    sizes = "Stable Diffusion 1.x, widths (32, 64, 64, 64), context 64, 8 heads, hint of 3 channels"
    for text in ("layout        original", count, sizes, "prediction    eps (as all of Stable Diffusion 1.x)"):
        assert text in printed
    assert main(["inspect", str(originals["sd2"])]) == 0
    assert "prediction    not said by the file" in capsys.readouterr().out


def test_inspect_tells_what_stands_on_a_base_and_what_is_our_own(originals, tmp_path, capsys):
    assert main(["inspect", str(forms(originals, tmp_path / "forms")["difference"])]) == 0
    assert "a difference (its base tells the rest: --base FILE)" in capsys.readouterr().out
    shipped = Path(__file__).resolve().parents[2] / "configs" / "model" / "scenes.safetensors"
    assert main(["inspect", str(shipped)]) == 0
    printed = capsys.readouterr().out
    assert "layout        this project's own" in printed
    assert "U-Net" in printed
    assert convert(shipped, tmp_path / "a.safetensors", "--to", "original", "--prediction", "v") == 1
    error = capsys.readouterr().err
    assert "patches of 2 pixels has no published form" in error or "only the configuration it was" in error


def test_inspect_takes_a_run_folder_and_cuts_long_facts_into_lines(originals, tmp_path, capsys):
    facts = {"metrics": json.dumps({f"metric_{i}": {"control": "9" * 100 * i} for i in range(3)}), "note": "[as it is"}
    save_file(load_file(originals["sd1"]), tmp_path / "control.safetensors", facts)
    assert main(["inspect", str(tmp_path)]) == 1  # not a run folder
    capsys.readouterr()
    (tmp_path / "attempts.jsonl").write_text("")
    assert main(["inspect", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'control.safetensors'}\n" in printed
    assert [line.split(":")[0].split()[-1] for line in printed.splitlines() if "metric_" in line] == [
        f"metric_{i}" for i in range(3)
    ]
    assert "[as it is" in printed
    assert " ... (" in printed
    assert max(map(len, printed.splitlines())) < 200


def test_inspect_lists_what_does_not_fit(originals, tmp_path, capsys):
    state = {k: v for k, v in load_file(originals["sd1"]).items() if not k.endswith("zero_convs.3.0.bias")}
    save_file(state, tmp_path / "a.safetensors")
    assert main(["inspect", str(tmp_path / "a.safetensors")]) == 1
    captured = capsys.readouterr()
    assert "1 missing (zero_convs.3.0.bias)" in captured.err
    assert "error" not in captured.out
    assert "U-Net" in captured.out


def test_the_schedule_tables_are_those_of_the_schedule():
    schedule = NoiseSchedule()
    tables = schedule_tensors(schedule)
    assert len(tables) == 13
    torch.testing.assert_close(tables["alphas_cumprod"], schedule.alphas_cumprod, rtol=1e-6, atol=0)
    assert tables["posterior_mean_coef1"][0] == 1.0
