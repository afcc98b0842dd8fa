"""Tiny models, a data set without a renderer, and composed configurations, shared by the tests."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict
from torch import nn

import train  # noqa: F401  (registers the config resolvers)
from cldm.data.scenes import WORDS
from ldm.autoencoder import AutoencoderKL
from ldm.batch import Batch
from ldm.conditioner import Conditioner
from ldm.diffusion import LatentDiffusion
from ldm.random import generator
from ldm.schedule import NoiseSchedule
from ldm.text_encoder import TextEncoder
from ldm.unet import UNet, UNetConfig

ROOT = Path(__file__).resolve().parents[1]


@torch.no_grad()
def _fill_zeros(module: nn.Module) -> None:
    """Give random values to parameters that start as zero.

    A fresh U-Net silences its output, its ResBlocks and its transformers, and would hide what a control does.
    """
    for parameter in module.parameters():
        if not parameter.any():
            parameter.normal_(std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1)


@pytest.fixture(scope="session")
def fill_zeros() -> Callable[[nn.Module], None]:
    return _fill_zeros


@pytest.fixture(scope="session")
def make_diffusion() -> Callable[..., LatentDiffusion]:
    """A factory of tiny models in Stable Diffusion's topology (f = 8, 12 + 1 blocks), none of it zero."""

    def make(prediction: str = "eps", seed: int = 0) -> LatentDiffusion:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = UNetConfig(channels=8, channel_mult=(1, 1, 2, 2), context_channels=16, heads=2, groups=4)
            diffusion = LatentDiffusion(
                AutoencoderKL(8, (1, 1, 1, 1), res_blocks=1, groups=4, scale=1.0),
                Conditioner(TextEncoder(34, 16, layers=1, heads=2, context_length=24), vocabulary=WORDS),
                UNet(config),
                NoiseSchedule(prediction=prediction),
            )
            _fill_zeros(diffusion.unet)
        return diffusion.eval()

    return make


@pytest.fixture
def diffusion(make_diffusion: Callable[..., LatentDiffusion]) -> LatentDiffusion:
    return make_diffusion()


class RandomItems:
    """Moments, hints and captions that depend on the item's number alone; 64 px, 8 x 8 latents."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        rngs = [generator("item", i) for i in indices]
        return Batch(
            moments=torch.stack([torch.randn(8, 8, 8, generator=rng) for rng in rngs]),
            hint=torch.stack([torch.rand(3, 64, 64, generator=rng) for rng in rngs]),
            caption=["a red star on a mint background"] * len(rngs),
            id=torch.as_tensor(indices),
        )


@pytest.fixture(scope="session")
def random_items() -> Callable[[int], RandomItems]:
    return RandomItems


@pytest.fixture(scope="session")
def composed() -> Callable[..., DictConfig]:
    """`composed("model=tiny", ...)`: the configuration that `python train.py model=tiny ...` would get."""

    def make(*overrides: str, name: str = "train") -> DictConfig:
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            cfg = compose(name, overrides=[*overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg

    return make


@pytest.fixture(scope="session")
def small() -> list[str]:
    """Overrides that shrink a run to seconds."""
    return [
        "model=tiny",
        "logger=csv",
        "batch_size=2",
        "data.train_count=6",
        "data.val_count=2",
        "data.cache=null",
        "sampler.steps=1",
        "trainer.callbacks.watch.count=2",
        "trainer.callbacks.progress.refresh_rate=0",
    ]
