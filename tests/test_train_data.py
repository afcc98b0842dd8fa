"""Promises of training on pictures: a run that died goes on exactly, from files, with augmentation, or from a cache."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import train
from cldm.conditions.canny import Canny
from cldm.data.cache import build_cache
from cldm.data.fill50k import write_fill50k
from cldm.data.folder import FolderDataset
from cldm.data.listing import ITEMS, Item
from cldm.runs.building import instantiate
from cldm.runs.checkout import REPOSITORY
from cldm.runs.folder import ChangedConfig, Refused, attempt, results_of
from cldm.runs.inputs import inputs
from cldm.training.control_ldm import ControlLDM
from cldm.training.fitting import record_items
from ldm.files import write_json
from ldm.training.diffusion import DiffusionTraining
from ldm.weights import save_weights

SMALL = ["model=tiny", "logger=csv", "batch_size=2", "sampler.steps=1", "trainer.callbacks.watch.count=2", "seed=4",
         "trainer.callbacks.progress.refresh_rate=0", "trainer.callbacks.watch.every=2",
         "trainer.callbacks.checkpoint.every_n_train_steps=2", "steps=4", "stage.module.hint_dropout=0.3"]  # fmt: skip


@pytest.fixture(scope="module")
def places(composed, fill_zeros, tmp_path_factory):
    """Pictures, a cache of them, and the base model that both belong to, as overrides by name."""
    folder = tmp_path_factory.mktemp("places")
    pictures = write_fill50k(9, folder / "fill", side=72)
    model = instantiate(composed("model=tiny").model, _convert_="all")
    fill_zeros(model)
    base = f"base={save_weights(model, folder / 'base.safetensors')}"
    data = ["data=folder", f"data.path={pictures}", "data.val_count=2"]
    cfg = composed("model=tiny", *data)
    made = instantiate(cfg.data, _convert_="all")(condition=instantiate(cfg.condition), model=model)
    build_cache(made.train, made.validation, model, folder / "cache")
    augmented = ["data.on_the_fly=true", "data.augment.flip=0.5", "data.augment.random_crop=true",
                 "data.augment.vary=true", "condition=scribble"]  # fmt: skip
    return {
        "fill50k": [base, "data=fill50k", *data[1:]],
        "augmented": [base, *data, *augmented],
        "cached": [base, "data=cached", f"data.path={folder / 'cache'}"],
    }


def checkpoint(run: Path) -> dict:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fill50k", "augmented", "cached"])
def test_a_run_on_pictures_that_died_goes_on_as_if_it_had_not(composed, places, tmp_path, monkeypatch, name):
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    results = train.train(composed(*SMALL, *places[name], f"run_dir={straight}"))
    assert "edge_f1_1px" in results["fidelity"]
    assert (straight / "grid.png").exists()
    pictures = Path(places["fill50k"][2].removeprefix("data.path="))
    told = json.loads((straight / ITEMS).read_text())  # a cache names the pictures that it was made of
    assert {*told["trained"], *told["held_out"]} == {str(path) for path in (pictures / "target").iterdir()}
    assert (len(told["trained"]), len(told["held_out"])) == (7, 2)
    step = DiffusionTraining.training_step

    def power_cut(self, batch, batch_idx):
        if self.global_step == 3:
            raise RuntimeError("power cut")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DiffusionTraining, "training_step", power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        train.train(composed(*SMALL, *places[name], f"run_dir={cut}"))
    monkeypatch.undo()
    assert checkpoint(cut)["global_step"] == 2
    train.train(composed(*SMALL, *places[name], f"resume={cut}"))
    one, other = checkpoint(straight)["state_dict"], checkpoint(cut)["state_dict"]
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


OWN = [*SMALL[1:-1], "steps=2", "stage.module.warmup_steps=1", "data.val_count=2"]


@pytest.mark.slow
def test_the_commands_of_docs_own_model_train_the_three_stages_on_a_folder(composed, places, tmp_path):
    """As written, at tiny size: autoencoder, base, ControlNet, each from the file of the one before."""
    page = (REPOSITORY / "docs" / "own_model.md").read_text()
    pictures = next(word for word in places["fill50k"] if word.startswith("data.path="))
    places_here = {"model=scenes": "model=tiny", "size=128": "size=64", "data.path=photos": pictures}
    commands = [line.split()[2:] for line in page.splitlines() if line.startswith("python train.py stage=")]
    commands += [line.split()[2:] for line in page.splitlines() if line.startswith("python train.py model=")]
    assert len(commands) == 3
    found = []
    for number, words in enumerate(commands):
        words = [places_here.get(word, word).replace("runs/own", str(tmp_path)) for word in words]
        found.append(train.train(composed(f"run_dir={tmp_path}/{number}", *words, *OWN)))
    first, second, third = found
    assert {"psnr", "ssim", "edge_f1_1px"} <= first["fidelity"].keys()
    assert second["fidelity"]["loss"] > 0
    assert (tmp_path / "base" / "grid.png").exists()
    assert "edge_f1_1px" in third["fidelity"]
    told = json.loads((tmp_path / "2" / "items.json").read_text())  # evaluate.py measures on none of the trained ones
    assert (len(told["trained"]), len(told["held_out"])) == (7, 2)
    assert not {*told["trained"]} & {*told["held_out"]}


def test_what_an_earlier_attempt_was_trained_on_stays_trained_on(tmp_path):
    items = [Item(name, Path(f"/pictures/{name}.png")) for name in "abc"]

    def data(train, held_out):
        return SimpleNamespace(train=FolderDataset(train, 64, Canny()), validation=FolderDataset(held_out, 64, Canny()))

    other = [Item("e", Path("/pictures/e.png"))]
    record_items(tmp_path / ITEMS, data(items[:2], items[2:]))
    record_items(tmp_path / ITEMS, data(items[1:], other))
    told = json.loads((tmp_path / ITEMS).read_text())
    assert told["trained"] == [f"/pictures/{name}.png" for name in "abc"]
    later = tmp_path / "later" / ITEMS  # a run that starts from its weights
    later.parent.mkdir()
    record_items(later, data([Item("d", Path("/pictures/d.png"))], []), [tmp_path / "control.safetensors"])
    assert json.loads(later.read_text())["trained"] == [f"/pictures/{name}.png" for name in "abcd"]
    before = later.read_text()
    with pytest.raises(Refused, match=r"1 of the 2 held-out pictures were trained on, .* \(/pictures/b.png, \.\.\.\)"):
        record_items(later, data([Item("d", Path("/pictures/d.png"))], [items[1], *other]))
    assert later.read_text() == before


def test_dropped_hints_are_black_and_only_those(diffusion, random_items, monkeypatch):
    from cldm.branches.controlnet import ControlNet

    seen = []
    monkeypatch.setattr(DiffusionTraining, "training_step", lambda self, batch, _: seen.append(batch["hint"]))
    control = ControlNet.from_unet(diffusion.unet, hint_widths=(4, 4, 8, 8))
    batch = random_items(8).__getitems__(range(8))
    for rate in (0.0, 0.5, 1.0):
        ControlLDM(diffusion, control, torch.optim.SGD, hint_dropout=rate).training_step(batch, 0)
    black = [[not hint.any() for hint in hints] for hints in seen]
    assert [sum(b) for b in black][::2] == [0, 8]
    assert 0 < sum(black[1]) < 8
    kept = [i for i, dropped in enumerate(black[1]) if not dropped]
    assert torch.equal(seen[1][kept], batch["hint"][kept])
    assert torch.equal(seen[0], batch["hint"])
    with pytest.raises(ValueError, match=r"stage\.module\.hint_dropout is a probability"):
        ControlLDM(diffusion, control, torch.optim.SGD, hint_dropout=2)


def test_pictures_that_changed_under_a_finished_run_are_no_run_that_was_done(composed, places, tmp_path):
    pictures = write_fill50k(6, tmp_path / "fill", side=72)
    base = next(word for word in places["augmented"] if word.startswith("base="))
    cfg = composed(*SMALL, base, "data=folder", f"data.path={pictures}", "data.val_count=2", f"run_dir={tmp_path}/run")
    with attempt(cfg) as run:
        write_json(run.folder / "DONE.json", {})
        write_json(run.folder / "results.json", {"loss": 1.0})
    assert results_of(cfg) == {"loss": 1.0}
    (pictures / ".DS_Store").write_text("not a picture")
    assert results_of(cfg) == {"loss": 1.0}
    picture = next(pictures.rglob("*.png"))
    picture.write_bytes(picture.read_bytes() + b"0")
    for start in (lambda: results_of(cfg), lambda: attempt(cfg).__enter__()):
        with pytest.raises(ChangedConfig, match=r"another content of what data\.path names"):
            start()


def test_pictures_that_change_under_a_run_are_noticed_however_they_are_named(tmp_path):
    """Names and sizes of what a list, shards or val_path name; of a cache its index."""

    def told(**data):
        return inputs(OmegaConf.create({"data": {name: str(value) for name, value in data.items()}}))

    def image(path, side):
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (side, side), (side, 0, 0)).save(path)

    image(tmp_path / "pictures" / "a.png", 8)
    image(tmp_path / "val" / "b.png", 8)
    listed = tmp_path / "list.jsonl"
    listed.write_text('{"image": "pictures/a.png", "text": "a"}\n')
    for name in ("s-0.tar", "s-1.tar"):
        (tmp_path / name).write_bytes(b"1")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "index.json").write_text("{}")
    places = {"path": listed, "val_path": tmp_path / "val", "urls": tmp_path / "s-{0..1}.tar"}
    before, cache = told(**places), told(path=tmp_path / "cache")
    assert len(before) == 3
    assert told(**places) == before
    image(tmp_path / "pictures" / "a.png", 300)
    image(tmp_path / "val" / "b.png", 300)
    (tmp_path / "s-1.tar").write_bytes(b"12")
    (tmp_path / "cache" / "index.json").write_text("[]")
    now = told(**places)
    assert now.keys() == before.keys()
    assert not {*now.items()} & {*before.items()}
    assert told(path=tmp_path / "cache") != cache
