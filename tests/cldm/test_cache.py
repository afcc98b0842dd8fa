"""Promises of the cache: the same loss, nothing encoded twice, and no run on a cache that is not its own."""

import json
import shutil
import subprocess
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

from cldm.branches.controlnet import ControlNet
from cldm.commands import cli
from cldm.conditions import get_condition
from cldm.conditions.canny import Canny
from cldm.data import cache as cache_module
from cldm.data.cache import CachedDataset, build_cache, cached_data
from cldm.data.fill50k import write_fill50k
from cldm.data.folder import FolderDataset, folder_data
from cldm.data.transforms import Augment
from cldm.runs.trained import built_for
from cldm.training.control_ldm import ControlLDM


@pytest.fixture(scope="module")
def fill(tmp_path_factory):
    return write_fill50k(11, tmp_path_factory.mktemp("fill"), side=64)


@pytest.fixture(scope="module")
def plain(fill):
    """The data without a cache: 8 items to train on, 3 held out; two captions are alike."""
    data = folder_data(Canny(), None, str(fill), 64, batch_size=4, val_count=3, seed=5)
    object.__setattr__(data.train.items[2], "caption", data.train.items[0].caption)
    return data


@pytest.fixture(scope="module")
def folder(plain, make_diffusion, tmp_path_factory):
    return build_cache(plain.train, plain.validation, make_diffusion(), tmp_path_factory.mktemp("cache"), 4, 3)


@pytest.mark.filterwarnings("ignore:the model (does not know|knows)")
def test_a_cached_batch_holds_what_the_model_would_make(plain, folder, diffusion):
    cached = cached_data(Canny(), diffusion, str(folder), 4, 64)
    one, other = plain.train.__getitems__([5, 0, 7]), cached.train.__getitems__([5, 0, 7])
    assert other.keys() == {"moments", "hint", "context", "caption", "id"}
    assert one["caption"] == other["caption"]
    assert torch.equal(one["id"], other["id"])
    assert torch.equal(one["hint"], other["hint"])
    with torch.no_grad():
        moments, context = diffusion.autoencoder.moments(one["image"]), diffusion.context(one["caption"])
    torch.testing.assert_close(other["moments"], moments, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(other["context"], context, rtol=1e-3, atol=1e-3)
    held_out = cached.validation.__getitems__([0, 1, 2])
    expected = plain.validation.__getitems__([0, 1, 2])
    assert torch.equal(held_out["image"], expected["image"])
    assert torch.equal(held_out["hint"], expected["hint"])
    assert held_out["caption"] == expected["caption"]


def losses(data, diffusion, control, batches) -> torch.Tensor:
    module = ControlLDM(diffusion, control, torch.optim.SGD, prompt_dropout=0.5, seed=3)
    module.log = lambda *_, **__: None
    return torch.stack([module.training_step(data.train.__getitems__(b), i) for i, b in enumerate(batches)]).detach()


@pytest.mark.filterwarnings("ignore:the model (does not know|knows)")
@pytest.mark.filterwarnings("ignore:You are trying to")
def test_training_on_the_cache_has_the_same_losses(plain, folder, diffusion, fill_zeros):
    """Within 1e-3: moments and contexts are rounded to float16, nothing else differs."""
    control = ControlNet.from_unet(diffusion.unet, hint_widths=(4, 4, 8, 8))
    fill_zeros(control)
    cached = cached_data(Canny(), diffusion, str(folder), 4, 64)
    batches = [[0, 5, 2, 7], [1, 3, 4, 6], [7, 0, 1, 2]]
    one, other = (losses(data, diffusion, control, batches) for data in (plain, cached))
    assert one.std() > 0
    assert ((one - other).abs() / one).max() < 1e-3


def test_captions_are_encoded_once_each(plain, folder):
    cached = CachedDataset(folder)
    assert len(cached.texts) == len(set(cached.texts)) == 7
    assert len(cached) == 8
    assert cached.captions[0] == cached.captions[2]


def test_a_killed_build_goes_on_and_ends_the_same(plain, folder, make_diffusion, tmp_path, monkeypatch):
    diffusion, calls = make_diffusion(), []
    moments = diffusion.autoencoder.moments

    def die_in_the_third(x):
        calls.append(len(x))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return moments(x)

    monkeypatch.setattr(diffusion.autoencoder, "moments", die_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        build_cache(plain.train, plain.validation, diffusion, tmp_path, 4, 3)
    with pytest.raises(FileNotFoundError, match="unfinished, run the same command again"):
        CachedDataset(tmp_path)
    build_cache(plain.train, plain.validation, diffusion, tmp_path, 4, 3)
    assert calls == [3, 3, 2, 2]  # the two finished shards were not encoded again
    files = {path.name for path in folder.iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == files
    assert all((tmp_path / name).read_bytes() == (folder / name).read_bytes() for name in files)


def test_what_would_mix_items_of_two_builds_is_refused(plain, folder, make_diffusion, fill, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "cache")
    before = {path.name: path.read_bytes() for path in copy.iterdir()}

    def build(validation: FolderDataset, shard_size: int) -> None:
        build_cache(plain.train, validation, make_diffusion(), copy, 4, shard_size)

    with pytest.raises(ValueError, match=r"the number of items in a file differs \(`--shard-size`\): 3 there, 4 now"):
        build(plain.validation, 4)
    with pytest.raises(ValueError, match="--shard-size must be at least 1, got 0"):
        build(plain.validation, 0)
    others = FolderDataset([replace(item, caption="another") for item in plain.validation.items], 64, Canny())
    with pytest.raises(ValueError, match="the held-out pictures or captions differ"):
        build(others, 3)
    pictures = shutil.copytree(fill, tmp_path / "fill")
    held_out = [replace(item, image=pictures / item.image.relative_to(fill)) for item in plain.validation.items]
    Image.new("RGB", (64, 64), "red").save(held_out[0].image)  # another content under the same name
    with pytest.raises(ValueError, match="the held-out pictures or captions differ"):
        build(FolderDataset(held_out, 64, Canny()), 3)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_a_broken_picture_has_no_item_and_lends_none_its_caption(fill, make_diffusion, tmp_path):
    pictures = shutil.copytree(fill, tmp_path / "fill")
    data = folder_data(Canny(), None, str(pictures), 64, batch_size=4, val_count=3)
    captions = [item.caption for item in data.train.items]
    data.train.items[4].image.write_bytes(b"broken")
    with pytest.warns(UserWarning, match="1 of 8 training pictures cannot be used .*; they are left out"):
        build_cache(data.train, data.validation, make_diffusion(), tmp_path / "cache", 4, 3)
    cached = CachedDataset(tmp_path / "cache")
    kept = [i for i in range(8) if i != 4]
    found = cached.__getitems__(range(len(cached)))
    assert found["caption"] == [captions[i] for i in kept]
    with torch.no_grad():
        fresh = folder_data(Canny(), None, str(fill), 64, batch_size=4, val_count=3)
        expected = make_diffusion().autoencoder.moments(fresh.train.__getitems__(kept)["image"])
    torch.testing.assert_close(found["moments"], expected, rtol=1e-3, atol=1e-3)


def perturbed(module: nn.Module) -> None:
    with torch.no_grad():
        next(module.parameters()).add_(1e-2)


def test_a_cache_that_does_not_fit_is_refused_with_the_reason(plain, folder, make_diffusion, tmp_path):
    for part, reason in (("autoencoder", "VAE's encoder has other weights"), ("conditioner", "text encoder has other")):
        model = make_diffusion()
        perturbed(model.autoencoder.encoder if part == "autoencoder" else model.conditioner)
        with pytest.raises(ValueError, match=reason):
            cached_data(Canny(), model, str(folder), 4, 64)
        with pytest.raises(ValueError, match=reason):
            build_cache(plain.train, plain.validation, model, folder, 4, 3)
    with pytest.raises(ValueError, match=r"condition or its parameters differ.*low=100.*low=50"):
        cached_data(Canny(low=50), make_diffusion(), str(folder), 4, 64)
    other = FolderDataset(plain.train.items, 128, Canny())
    with pytest.raises(ValueError, match=r"resolution or the buckets differ.*\(64, 64\) there, \(128, 128\) now"):
        build_cache(other, plain.validation, make_diffusion(), folder, 4, 3)
    fewer = FolderDataset(plain.train.items[1:], 64, Canny())
    with pytest.raises(ValueError, match="pictures or captions differ"):
        build_cache(fewer, plain.validation, make_diffusion(), folder, 4, 3)
    flipped = FolderDataset(plain.train.items, 64, Canny(), augment=Augment(flip=0.5))
    with pytest.raises(ValueError, match=r"data\.augment\.flip=0"):
        build_cache(flipped, plain.validation, make_diffusion(), tmp_path, 4, 3)
    with pytest.raises(FileNotFoundError, match="no cache"):
        cached_data(Canny(), make_diffusion(), str(tmp_path / "none"), 4, 64)
    with pytest.raises(ValueError, match=r"was made with size=\[64, 64\], size is 128 now"):
        cached_data(Canny(), make_diffusion(), str(folder), 4, 128)
    assert json.loads((folder / cache_module.KEY).read_text())["vae"]


def test_a_picture_that_was_edited_is_another_one_though_its_file_has_the_same_size(make_diffusion, tmp_path):
    write_fill50k(4, tmp_path / "fill", side=64)
    data = folder_data(Canny(), None, str(tmp_path / "fill"), 64, batch_size=2, val_count=1)
    build_cache(data.train, data.validation, make_diffusion(), tmp_path / "cache", 2)
    pictures = [item.hint for item in data.train.items]
    edited = bytearray(pictures[0].read_bytes())
    edited[-1] ^= 1
    pictures[0].write_bytes(edited)
    with pytest.raises(ValueError, match="pictures or captions differ"):
        build_cache(data.train, data.validation, make_diffusion(), tmp_path / "cache", 2)


def test_buckets_and_holes_go_through_the_cache(plain, make_diffusion, tmp_path):
    inpaint = get_condition("inpaint")
    items = plain.train.items[:4]
    data = FolderDataset(items, 64, inpaint, on_the_fly=True, buckets=[(64, 64), (32, 64)])
    data.groups = [0, 1, 0, 1]
    held_out = FolderDataset(plain.validation.items, 64, inpaint, on_the_fly=True)
    cached = CachedDataset(build_cache(data, held_out, make_diffusion(), tmp_path, 2, 8))
    assert cached.groups == [0, 1, 0, 1]
    assert cached.__getitems__([1, 3])["moments"].shape[-2:] == (4, 8)
    hint = cached.__getitems__([0])["hint"]
    assert (hint == -1).any()
    torch.testing.assert_close(hint, data[0]["hint"], rtol=1e-3, atol=1e-3)


def test_the_command_prints_a_line_that_trains_on_the_cache_when_pasted(composed, fill, tmp_path, capsys):
    out = tmp_path / "cache ü, it's $(new) = {1}"
    data = ["data=fill50k", f"data.path={fill}", "data.val_count=2", "data.size=64"]
    assert cli.main(["cache", str(out), "model=tiny", "condition.low=50", *data]) == 0
    line = capsys.readouterr().out.splitlines()[-1].removeprefix("train with: ")
    command = ["bash", "-c", f'python() {{ printf "%s\\0" "$@"; }}; {line}']
    program, *overrides, _ = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\0")
    assert program == "train.py"
    from hydra.utils import instantiate

    cfg = composed(*overrides)
    assert cfg.data.path == str(out)
    data = instantiate(cfg.data, _convert_="all")(condition=instantiate(cfg.condition), model=built_for(cfg, None))
    assert len(data.train) == 9


def test_the_command_builds_what_the_config_reads(composed, fill, tmp_path, capsys):
    options = ["model=tiny", "seed=2"]
    command = ["cache", str(tmp_path), *options, "data=fill50k", f"data.path={fill}", "data.val_count=2"]
    assert cli.main(command) == 0
    assert "9 items in" in capsys.readouterr().out
    from hydra.utils import instantiate

    cfg = composed(*options, "data=cached", f"data.path={tmp_path}", "batch_size=3")
    model = built_for(cfg, None)  # as train.py builds it: a random base is the same for every seed
    data = instantiate(cfg.data, _convert_="all")(condition=instantiate(cfg.condition), model=model)
    assert len(data.train) == 9
    assert not {*data.train.pictures} & {*data.train.held_out}
    assert (len(data.train.pictures), len(data.train.held_out)) == (9, 2)
    assert data.batch_size == 3
    assert cli.main(["cache", str(tmp_path), "model=tiny", "data=scenes", "data.train_count=1", "data.val_count=1",
                     "data.cache=null", "size=64"]) == 1  # fmt: skip
    assert "scenes keeps a cache of its own" in capsys.readouterr().err
