"""Configurations of configs/ outside of the entry points, for the commands of `python -m cldm`."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

REPOSITORY = Path(__file__).resolve().parent.parent


def register_resolvers() -> None:
    """What the files of configs/ may ask for besides their own values."""
    OmegaConf.register_new_resolver("repository", lambda path: str(REPOSITORY / path), replace=True)
    OmegaConf.register_new_resolver(
        "run_folder",
        lambda resume, name: resume or f"runs/{datetime.now():%Y%m%d-%H%M%S}-{name}",
        replace=True,
        use_cache=True,
    )


def composed(overrides: Sequence[str], name: str = "train") -> DictConfig:
    """The configuration that `python train.py OVERRIDES` would get."""
    register_resolvers()
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        return compose(name, overrides=[*overrides])
