"""What a run was trained on: the same images as its training set, and nothing that a record names is built."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cldm.conditions.plain import Unchanged
from cldm.data.folder import folder_data
from cldm.evaluation.seen import training_images
from cldm.worlds import get_world
from cldm.worlds.dataset import WorldDataset

SCENES = {"_target_": "cldm.worlds.datamodule.world_data", "world": "scenes", "train_count": 3, "size": 64,
          "family": "control", "seed": 5}  # fmt: skip


def test_scenes_are_those_of_the_training_set_at_most_as_many_as_asked_for() -> None:
    trained = WorldDataset(get_world("scenes"), 3, 64, "control", 5).__getitems__(range(3))["image"]
    assert torch.equal(training_images(SCENES, 100), trained)
    assert torch.equal(training_images(SCENES, 2), trained[:2])


def test_pictures_are_of_the_training_set_and_not_held_out(tmp_path: Path) -> None:
    for i in range(6):
        Image.fromarray(np.full((70, 64, 3), 40 * i, dtype=np.uint8)).save(tmp_path / f"{i}.png")
    trained = folder_data(Unchanged(), None, str(tmp_path), 64, batch_size=1, val_count=2).train
    wanted = {round(trained[i]["image"].mean().item(), 3) for i in range(4)}
    data = {"_target_": "cldm.data.folder.folder_data", "path": str(tmp_path), "size": 64, "val_count": 2,
            "val_path": None}  # fmt: skip
    found = training_images(data, 100)
    assert found.shape == (4, 3, 64, 64)
    assert {round(image.mean().item(), 3) for image in found} == wanted
    assert len(training_images(data, 3)) == 3
    with pytest.raises(FileNotFoundError):
        training_images({**data, "path": str(tmp_path / "gone")}, 3)


def test_what_a_record_names_is_not_built() -> None:
    assert training_images({"_target_": "os.system", "command": "touch ran"}, 3) is None
    assert training_images({}, 3) is None
