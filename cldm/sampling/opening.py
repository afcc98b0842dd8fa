"""Checkpoints opened for drawing: first without weights, to check jobs with; then the networks that draw."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from cldm.branches.controlnet import Branch
from cldm.conditions import Condition
from cldm.runs.building import instantiate
from cldm.runs.trained import checkpoints_of, device_and_precision, is_pooled, load_models, to_work
from ldm.blocks import without_weights
from ldm.diffusion import LatentDiffusion


@dataclass(frozen=True)
class Opened:
    """Checkpoints, one or several, without their weights.

    trainings: the configs they were trained with. pools: whether each says that its residuals are averaged over the
    image. skeleton, branches: networks without memory, which know sizes and numbers.
    """

    paths: list[Path]
    trainings: list[DictConfig]
    conditions: list[Condition]
    pools: list[bool]
    skeleton: LatentDiffusion
    branches: list[Branch]


def open_checkpoints(cfg: DictConfig) -> Opened:
    """Those that a configuration of sample.py names; SystemExit says which are none."""
    paths, trainings = checkpoints_of(cfg.checkpoint, cfg)
    pools = [is_pooled(path) for path in paths]
    conditions = [instantiate(training.condition, _convert_="all") for training in trainings]
    with without_weights():
        skeleton: LatentDiffusion = instantiate(trainings[0].model, _convert_="all")
        branches = [instantiate(training.control, _convert_="all")(skeleton.unet) for training in trainings]
    return Opened(paths, trainings, conditions, pools, skeleton, branches)


@dataclass(frozen=True)
class Networks:
    """What draws: the base, and a branch for each checkpoint."""

    diffusion: LatentDiffusion
    branches: list[Branch]


def load_networks(opened: Opened, cfg: DictConfig) -> Networks:
    """Read the weights, and bring them to the device and the precision that the configuration asks for."""
    device, precision = device_and_precision(cfg)
    diffusion, nets = load_models(opened.paths, opened.trainings)
    to_work((diffusion, *nets), "cpu" if cfg.sampler.low_memory else device, precision)
    return Networks(diffusion, nets)
