"""Tiny models, a data set without a renderer, and composed configurations, shared by the tests."""

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # a process per core; read when torch is imported, here and in the runs started

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict
from torch import nn

from cldm.runs.building import instantiate
from cldm.runs.configs import register_resolvers
from cldm.training import fitting
from cldm.worlds.scenes import WORDS
from ldm.autoencoder import AutoencoderKL
from ldm.batch import Batch
from ldm.conditioner import Conditioner
from ldm.diffusion import LatentDiffusion
from ldm.random import generator
from ldm.schedule import NoiseSchedule
from ldm.text_encoder import TextEncoder
from ldm.unet import UNet, UNetConfig
from ldm.weights import save_weights

ROOT = Path(__file__).resolve().parents[1]

register_resolvers()  # as every command does

# torch.compile leads autograd to believe in a GPU, for which its first backward pass would start threads; no process
# forked from this one could do another (test_train.py)
torch.ones((), requires_grad=True).backward()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long tests first, some for each process that shares the work, so that all end together.

    `--dist worksteal` gives each a stretch of the list, from whose end the others take what is left.
    """
    shares = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    slow = [item for item in items if item.get_closest_marker("slow")]
    fast = [item for item in items if not item.get_closest_marker("slow")]
    length = -(-len(fast) // shares)
    items[:] = [
        item for i in range(shares) for item in (*slow[i::shares], *fast[i * length : (i + 1) * length])
    ]  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def _cost_counted_once() -> Iterator[None]:
    """Counting the operations of a network takes more than a second: runs with networks of the same sizes share it."""
    count, counted = fitting.control_cost, {}

    def control_cost(diffusion: LatentDiffusion, control: nn.Module, size: tuple[int, int]) -> dict[str, float]:
        shapes = tuple(p.shape for network in (diffusion.unet, control) for p in network.parameters())
        key = (type(control), size, diffusion.conditioner.text_encoder.context_length, shapes)
        if key not in counted:
            counted[key] = count(diffusion, control, size)
        return dict(counted[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "control_cost", control_cost)
        yield


@pytest.fixture(scope="session", autouse=True)
def _yaml_parsed_once() -> Iterator[None]:
    """A third of the time that composing a configuration takes; files are read anew, their text is the key."""
    parse, parsed = yaml.load, {}

    def load(stream: Any, Loader: Any) -> Any:
        text = stream.read() if hasattr(stream, "read") else stream
        key = (text, Loader.__name__)
        if key not in parsed:
            parsed[key] = pickle.dumps(parse(text, Loader=Loader))
        return pickle.loads(parsed[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml, "load", load)
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch on one CPU thread: the many small operations of drawing are three times slower on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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

    def make(prediction: str = "eps", seed: int = 0, narrow: bool = False) -> LatentDiffusion:
        """narrow: with the least U-Net that has every kind of block, where each of them is slow: down, middle with
        attention, up, and a decoder block with attention, which reads an encoder output beside its input."""
        shape = {"channel_mult": (1, 1, 2, 2)}
        if narrow:
            shape = {"channel_mult": (1, 1), "attention": (True, False), "res_blocks": 0}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            diffusion = LatentDiffusion(
                AutoencoderKL(8, (1, 1, 1, 1), res_blocks=1, groups=4, scale=1.0),
                Conditioner(TextEncoder(34, 16, layers=1, heads=2, context_length=24), vocabulary=WORDS),
                UNet(UNetConfig(channels=8, context_channels=16, heads=2, groups=4, **shape)),
                NoiseSchedule(prediction=prediction),
            )
            _fill_zeros(diffusion.unet)
        return diffusion.eval()

    return make


@pytest.fixture
def diffusion(make_diffusion: Callable[..., LatentDiffusion]) -> LatentDiffusion:
    return make_diffusion()


@pytest.fixture
def narrow_diffusion(make_diffusion: Callable[..., LatentDiffusion]) -> LatentDiffusion:
    return make_diffusion(narrow=True)


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


@pytest.fixture(scope="session")
def narrow() -> list[str]:
    """Overrides of model=tiny: every kind of block once. What a step costs there is the number of its tensors."""
    shape = ["channel_mult=[1,1]", "attention=[true,false]"]
    return [*(f"model.unet.config.{item}" for item in shape), "++model.unet.config.res_blocks=0"]


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """`make_run(folder, seed)`: weights of a tiny base, and of a branch that is no longer silent, as a run folder."""

    def make(folder: Path, seed: int = 0) -> Path:
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            cfg = compose("train", overrides=["model=tiny"])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            base = instantiate(cfg.model, _convert_="all")
            _fill_small(base)
            torch.manual_seed(seed)
            control = instantiate(cfg.control, _convert_="all")(base.unet)
            _fill_small(control)
        save_weights(base, folder / "base.safetensors")
        metadata = {"stage": "control", "model": "tiny", "control": "controlnet", "condition": "canny"}
        save_weights(control, folder / "control.safetensors", metadata)
        return folder

    return make


def _fill_small(module: nn.Module) -> None:
    """Give small random values to parameters that start as zero and would hide everything."""
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)


# ------------------------------------------------------------------ small models of diffusers and transformers

FAMILIES: dict[str, dict[str, Any]] = {
    # as published files have them, in small: 8 heads and convolutions, heads of 64 channels and linear layers
    "sd1": {"block_out_channels": (32, 64, 64, 64), "attention_head_dim": 8},
    "sd2": {
        "block_out_channels": (64, 128, 128, 128),
        "attention_head_dim": (1, 2, 2, 2),
        "use_linear_projection": True,
    },
    "odd": {
        "block_out_channels": (48, 96, 144),
        "attention_head_dim": 6,
        "layers_per_block": 1,
        "norm_num_groups": 16,
        "transformer_layers_per_block": 2,
    },
}


@torch.no_grad()
def _randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter, the zero-initialised ones too, its own random value that depends on the seed alone."""
    rng = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        noise = torch.randn(p.shape, generator=rng)
        scale = "norm" in name and name.endswith("weight")
        p.copy_(noise * p[0].numel() ** -0.5 if p.ndim > 1 else scale + 0.2 * noise)
    return module.eval()


def _options(family: str) -> dict[str, Any]:
    options = {"layers_per_block": 2, "norm_num_groups": 32, "cross_attention_dim": 64, **FAMILIES[family]}
    attends = len(options["block_out_channels"]) - 1
    options["down_block_types"] = ("CrossAttnDownBlock2D",) * attends + ("DownBlock2D",)
    return options


@pytest.fixture(scope="session")
def reference() -> Callable[..., nn.Module]:
    """`reference("unet", "sd1")`: a small model of diffusers or transformers with random weights.

    Kinds: unet, control, autoencoder, text. Families: sd1, sd2, odd.
    """
    diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")

    def make(kind: str, family: str = "sd1", seed: int = 0) -> nn.Module:
        options = _options(family)
        if kind == "unet":
            attends = len(options["block_out_channels"]) - 1
            up = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attends
            return _randomise(diffusers.UNet2DConditionModel(up_block_types=up, **options), seed)
        if kind == "control":
            widths = (8, 16, 24, 40)
            branch = diffusers.ControlNetModel(conditioning_embedding_out_channels=widths, **options)
            return _randomise(branch, seed)
        if kind == "autoencoder":
            odd = {"block_out_channels": (24, 48, 48), "layers_per_block": 2, "norm_num_groups": 8}
            usual = {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 1}
            sizes = odd if family == "odd" else usual
            depth = len(sizes["block_out_channels"])
            levels = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
            levels = {key: kinds * depth for key, kinds in levels.items()}
            return _randomise(diffusers.AutoencoderKL(latent_channels=4, **sizes, **levels), seed)
        config = transformers.CLIPTextConfig(
            vocab_size=49408,
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=3 if family == "odd" else 2,
            num_attention_heads=4 if family == "odd" else 1,
            max_position_embeddings=77,
            hidden_act="gelu" if family == "sd2" else "quick_gelu",
        )
        return _randomise(transformers.CLIPTextModel(config), seed)

    return make
