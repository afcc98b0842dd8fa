"""Promises of what configurations may call: ours, what builds here of others, what was typed, and nothing else."""

import re

import pytest
import torch
from omegaconf import OmegaConf

from cldm.runs import building
from cldm.runs.building import instantiate
from cldm.runs.checkout import REPOSITORY
from cldm.runs.recorded import recorded_values


def test_a_target_in_a_list_runs_nothing(tmp_path):
    evil = {"_target_": "os.mkdir", "path": str(tmp_path / "evil")}
    config = {"_target_": "cldm.conditions.plain.Threshold", "threshold": 128, "others": [1, [evil]]}
    for given in (config, OmegaConf.create(config)):
        with pytest.raises(ValueError, match=r"_target_=os\.mkdir is not called: a configuration may name what builds"):
            instantiate(given)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "name",
    [
        "builtins.eval", "subprocess.run", "torch.load", "torch.hub.load", "numpy.load",
        "cldm.data.folder.np.load", "cldm.worlds.dataset.torch.load", "torch.optim.sgd.torch.load",  # found in ours
        "pytorch_lightning.callbacks.os.system", "pytorch_lightning.strategies.torch.load",
        "ldm.files.write_text", "cldm.runs.parallel.run_all", "cldm.data.annotate.os.system",
        "cldm.data", "cldm.data.nothing",
    ],
)  # fmt: skip
def test_what_builds_nothing_here_is_refused(name):
    with pytest.raises(ValueError, match=f"_target_={re.escape(name)}"):
        instantiate({"_target_": name})


def test_a_run_folder_from_elsewhere_makes_nothing_run(tmp_path):
    evil = f"{{_target_: os.mkdir, path: {tmp_path}/evil}}"
    (tmp_path / "config.yaml").write_text(
        f"size: [{evil}]\ncondition: {{low: [{evil}], high: 9, name: [{evil}, a], sizes: [[{evil}]], {evil[1:-1]}}}\n"
        f"model: {{unet: [{evil}], scale: {evil}, mult: [3, 4]}}\ncontrol: {evil}\n"
    )
    ours = {
        "size": 128,
        "condition": {
            "_target_": "collections.Counter",
            "low": 1,
            "high": 2,
            "name": "canny",
            "sizes": [1],
            "flag": True,
        },
        "model": {"unet": {"channels": 4}, "scale": 0.5, "mult": [1, 2]},
        "control": {"_target_": "collections.Counter", "rate": 1},
    }
    found = OmegaConf.to_container(recorded_values(tmp_path / "control.safetensors", OmegaConf.create(ours)))
    expected = {**ours, "condition": {**ours["condition"], "high": 9}, "model": {**ours["model"], "mult": [3, 4]}}
    assert found == expected
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("ours", "recorded", "expected"),
    [(0.5, 1, 1), (1, 0.5, 0.5), (None, "a", "a"), (None, [1, "a"], [1, "a"]), ("a", None, None), (1, "many", 1),
     (128, [64, 96], [64, 96]), (True, 1, True), ([1, 2], 3, 3), ([1, 2], [[1]], [1, 2]), ("a", ["b", 1], "a"),
     ({"a": 1}, 2, {"a": 1})],
)  # fmt: skip
def test_recorded_values_are_scalars_and_lists_of_scalars_of_our_type(tmp_path, ours, recorded, expected):
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml({"condition": {"value": recorded}}))
    found = recorded_values(tmp_path / "control.safetensors", OmegaConf.create({"condition": {"value": ours}}))
    assert OmegaConf.to_container(found) == {"condition": {"value": expected}}


def test_every_target_of_the_configurations_is_allowed_by_its_room():
    names = {
        name for path in (REPOSITORY / "configs").rglob("*.yaml") for name in building._TARGET.findall(path.read_text())
    } - {"cldm.runs.sweeps.SweepSummary"}  # Hydra's own callback
    assert len(names) > 50
    assert all(building._begins(name, (*building.OURS, *building.OTHERS)) for name in names)
    for name in names - {"pytorch_lightning.loggers.TensorBoardLogger"}:
        building._resolved(name)


def test_what_the_user_types_is_called(monkeypatch):
    monkeypatch.setattr(building, "_typed", set())
    with pytest.raises(ValueError, match="type _target_="):
        instantiate({"_target_": "collections.Counter"})
    building.allow(["optimizer._target_=collections.Counter", "+x={_target_: fractions.Fraction, a: 1}"])
    assert instantiate({"_target_": "collections.Counter"}) == {}
    assert instantiate({"_target_": "fractions.Fraction"}) == 0


def test_optimizers_are_built():
    made = instantiate({"_target_": "torch.optim.RAdam", "_partial_": True, "lr": 0.5}, _convert_="all")
    assert made([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"] == 0.5
