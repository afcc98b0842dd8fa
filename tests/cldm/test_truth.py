"""Promises of condition=truth: a world's exact maps are hints, and what has no map is refused in a sentence."""

from pathlib import Path

import numpy as np
import pytest
import torch

import train
from cldm.conditions import HintWarning, warn_if_blank
from cldm.conditions.canny import Canny
from cldm.conditions.truth import Truth
from cldm.data.decoding import decode
from cldm.data.hints import Origin
from cldm.evaluation.measuring import evaluate
from cldm.runs.building import instantiate
from cldm.runs.configs import composed as composed_by
from cldm.runs.configs import configs_at_hand
from cldm.sampling.drawing import sample
from cldm.worlds import WORLDS, get_world
from cldm.worlds.dataset import WorldDataset
from ldm.weights import save_weights

SMALL = ["data=scenes", "model=tiny", "logger=csv", "steps=2", "batch_size=2", "sampler.steps=1", "data.train_count=4",
         "trainer.callbacks.watch.count=2", "data.val_count=2", "stage.report_items=2", "size=64"]  # fmt: skip


def dataset(world: str, condition: object, **settings: object) -> WorldDataset:
    return WorldDataset(get_world(world), 3, 64, "control", keep=("image", "hint"), condition=condition, **settings)


@pytest.mark.parametrize(
    ("world", "name"),
    [("stickers", "segmentation"), ("stickers", "lines"), ("scenes", "depth"), ("scenes", "normals"),
     ("scenes", "keypoints")],
)  # fmt: skip
def test_the_hint_of_an_item_is_the_map_that_its_world_draws(world: str, name: str) -> None:
    made = dataset(world, Truth(name))
    exact = made.world.draw(made.truths, 64, [name])[name].expand(-1, 3, -1, -1)
    hints = made.__getitems__(range(3))["hint"]
    assert hints.std() > 0.01
    torch.testing.assert_close(hints, (exact * 255).round() / 255)
    torch.testing.assert_close(
        made.__getitems__(range(3))["image"], dataset(world, Canny()).__getitems__(range(3))["image"], rtol=0, atol=0
    )


@pytest.mark.parametrize(
    ("world", "name", "told"),
    [
        (
            "stickers",
            "depth",
            "condition.map=depth: set condition.map to a map that stickers have: segmentation, lines",
        ),
        ("stickers", "concepts", "condition.map=concepts: set .*: segmentation, lines"),
        ("scenes", "order", "condition.map=order: .*normals"),
        ("scenes", None, "condition=truth: set condition.map to a map that scenes have: .*depth"),
    ],
)
def test_what_is_no_map_of_the_world_is_refused(world: str, name: str | None, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        dataset(world, Truth(name))


def test_another_map_is_another_cache(tmp_path: Path) -> None:
    for name in ("depth", "normals", "depth"):
        dataset("scenes", Truth(name), cache=tmp_path)
    assert len(list(tmp_path.glob("scenes-*.pt"))) == 2


def test_lines_are_drawn_and_checked_as_lines_and_codes_as_colours() -> None:
    every = {(world, name) for world in WORLDS for name in get_world(world).hint_maps}
    lines = {(world, name) for world, name in every if Truth(name).polarity == "white_on_black"}
    assert lines == {("stickers", "lines"), ("stickers", "edges"), ("scenes", "edges"), ("scenes", "lines"),
                     ("circles", "outline")}  # fmt: skip
    assert all(Truth(name).polarity == "color" for world, name in every - lines)
    for world, name in sorted(lines):
        made = dataset(world, Truth(name)).__getitems__(range(3))["hint"]
        assert 0 < made.mean() < 0.2
        assert warn_if_blank(made, Truth(name).polarity) == ()
        with pytest.warns(HintWarning, match="inverted|saturated"):
            warn_if_blank(1 - made, Truth(name).polarity)


def test_no_picture_has_an_exact_map() -> None:
    assert not Truth("depth").computable
    with pytest.raises(ValueError, match="hint=FILE"):
        Truth("depth")(np.zeros((8, 8, 3), np.uint8))


@pytest.mark.slow
def test_a_branch_trains_on_exact_depth_and_the_judge_measures_it(composed, fill_zeros, tmp_path: Path) -> None:
    model = instantiate(composed("model=tiny").model, _convert_="all")
    fill_zeros(model)
    base = f"base={save_weights(model, tmp_path / 'base.safetensors')}"
    truth = ["condition=truth", "condition.map=depth"]
    results = train.train(composed(*SMALL, *truth, base, f"run_dir={tmp_path / 'run'}"))
    assert "shape_iou" in results["fidelity"]
    assert "edge_f1_1px" not in results["fidelity"]
    measured = ["protocol=scenes", "items=2", "noise_seeds=[0]", "sampler.steps=1", "prompts=[perfect]", "size=64",
                base, f"checkpoint={tmp_path / 'run'}", f"cache={tmp_path / 'cache'}"]  # fmt: skip
    cfg = composed_by(measured, "evaluate")
    with configs_at_hand():
        (folder,) = evaluate(cfg)
    assert '"depth_delta1"' in (folder / "results.json").read_text()
    assert not (folder / "hints").exists()
    origin = Origin.read(decode(next((folder / "items").glob("*_hint.png")), "hint"))
    assert origin
    assert (origin.condition, origin.params["map"]) == ("truth", "depth")
    # the exported file alone, away from its run: it draws from a ready map
    lone = (tmp_path / "run" / "control.safetensors").rename(tmp_path / "lone.safetensors")
    ready = next((folder / "items").glob("*_hint.png"))
    drawing = [f"checkpoint={lone}", base, "sampler.steps=1", "size=64", f"out={tmp_path / 'drawn'}", "prompt=a star"]
    from_map = composed_by([*drawing, f"hint={ready}"], "sample")
    from_photo = composed_by([*drawing, f"photo={ready}"], "sample")
    with configs_at_hand():
        sample(from_map)
        assert list((tmp_path / "drawn").glob("*.png"))
        with pytest.raises((SystemExit, ValueError), match="hint=FILE"):
            sample(from_photo)
