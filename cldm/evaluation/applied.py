"""Branches as evaluate.py applies them: which ones, and how each."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from cldm.branches.controlnet import Branch
from cldm.conditions import Condition
from cldm.runs.building import instantiate
from cldm.runs.recorded import FILE
from cldm.runs.trained import checkpoints_of, is_pooled, published
from cldm.sampling.control import ControlUnit, check_settings
from cldm.sampling.jobs import of_kind
from ldm.files import content

UNIT = {"scale": 1.0, "start": 0.0, "end": 1.0, "mode": "balanced", "weighting": None}
"""How a branch is applied, see ControlUnit: keys of the config for the first, of the entries of `more` for others."""


@dataclass(frozen=True)
class Applied:
    """A trained branch, and how it is applied: the keys of UNIT."""

    path: Path
    training: DictConfig
    settings: dict[str, Any]

    @cached_property
    def condition(self) -> Condition:
        return instantiate(self.training.condition, _convert_="all")

    @cached_property
    def sha256(self) -> str:
        """Of its file, or of the files of its folder."""
        return content(self.path)

    @cached_property
    def metadata(self) -> dict[str, str]:
        return published(self.path).metadata

    @cached_property
    def pooled(self) -> bool:
        return is_pooled(self.path)

    @property
    def run(self) -> Path | None:
        """The folder of the run that wrote the file; None for a file of another name, which only lies there."""
        return self.path.parent if self.path.name == FILE else None

    def unit(self, net: Branch, hints: Tensor) -> ControlUnit:
        """What is to be added while images of these hints are drawn."""
        return ControlUnit(net, hints, pool=self.pooled, **self.settings)


def branches_of(cfg: DictConfig, checkpoint: str | None) -> list[Applied]:
    """The branch of a checkpoint, and those that `more` adds to it."""
    given: Any = OmegaConf.to_container(cfg, resolve=True)
    settings = [{key: given[key] for key in UNIT}]
    of_kind({"negative": given["negative"]})
    seeds = given["noise_seeds"]
    if not isinstance(seeds, list) or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in seeds):
        raise ValueError(f"noise_seeds must be whole numbers from 0 on in brackets, got {seeds}")
    for entry in given["more"]:
        known = ("checkpoint", "condition", *UNIT)
        if not isinstance(entry, dict) or not {"checkpoint"} <= {*entry} <= {*known}:
            raise ValueError(f"an entry of more has a checkpoint and any of {', '.join(known[1:])}; got {entry}")
        settings.append(UNIT | {key: value for key, value in entry.items() if key in UNIT})
    for unit in settings:
        of_kind(unit)
        check_settings(**{key: value for key, value in unit.items() if key != "scale"})
    paths, trainings = checkpoints_of(checkpoint, cfg)
    return [Applied(*parts) for parts in zip(paths, trainings, settings, strict=True)]
