"""Configurations of configs/ outside of the entry points, for the commands of `python -m cldm`."""

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from cldm.run_folder import run_id
from cldm.tracking import REPOSITORY


def register_resolvers() -> None:
    """What the files of configs/ may ask for besides their own values."""
    OmegaConf.register_new_resolver("repository", lambda path: str(REPOSITORY / path), replace=True)
    OmegaConf.register_new_resolver("run_id", lambda *, _root_: run_id(_root_), replace=True)
    OmegaConf.register_new_resolver("else", lambda value, default: value or default, replace=True)


def composed(overrides: Sequence[str], name: str = "train") -> DictConfig:
    """The configuration that `python train.py OVERRIDES` would get."""
    register_resolvers()
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        return compose(name, overrides=[*overrides])
