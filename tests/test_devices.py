"""Training and sampling make every tensor where the model lies, and ask it for no value on the way.

The "GPU" is PyTorch's meta device: it computes shapes alone, and refuses `.item()`, which on a GPU would wait for it.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ldm.random
from cldm.branches.controlnet import ControlNet
from cldm.runs.building import instantiate
from cldm.sampling.control import ControlUnit
from cldm.training.control_ldm import ControlLDM
from ldm.batch import Batch
from ldm.schedule import NoiseSchedule
from ldm.training.diffusion import DiffusionTraining

PROMPTS = ["a bear on a mint background", "a duck left of a pear"]
MOVES = ("aten::_to_copy", "aten::copy_")


class OneDevice(TorchDispatchMode):
    """Fails where an operation gets tensors of two devices; numbers (tensors without dimensions) may lie anywhere."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) and t.ndim]
        devices = {t.device.type for t in given}
        assert len(devices) < 2 or func._schema.name in MOVES, f"{func} gets tensors on {devices}"
        return func(*args, **(kwargs or {}))


class Elsewhere(torch.Generator):
    """A generator of the CPU that says that it is one of the second device, which has none."""

    @property
    def device(self) -> torch.device:
        return torch.device("meta")


def stand_in(*keys: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    kind = torch.Generator if torch.device(device).type == "cpu" else Elsewhere
    return kind().manual_seed(ldm.random.stable_seed(*keys))


@contextmanager
def second_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """A device beside the CPU."""
    for module in ("ldm.training.stage", "ldm.training.diffusion", "cldm.training.control_ldm", "ldm.random"):
        monkeypatch.setattr(f"{module}.generator", stand_in)
    with OneDevice():
        yield torch.device("meta")


def batch_on(device: torch.device, **more: torch.Tensor) -> Batch:
    parts = {"hint": torch.rand(2, 3, 64, 64), "id": torch.arange(2), **more}
    return Batch(caption=PROMPTS, **{name: part.to(device) for name, part in parts.items()})


def one_step(module, batch: Batch) -> None:
    """Forward, backward, optimizer."""
    module.log = module.log_dict = lambda *_, **__: None
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], foreach=True)
    loss = module.training_step(batch, 0)
    loss.backward()
    optimizer.step()
    assert loss.device == batch["id"].device


@pytest.mark.parametrize("source", ["moments", "image"])
@pytest.mark.parametrize("locking", ["locked", "decoder"])
def test_a_step_of_control_stays_on_its_device(diffusion, monkeypatch, source, locking):
    control = ControlNet.from_unet(diffusion.unet)
    module = ControlLDM(diffusion, control, functools.partial(torch.optim.AdamW, lr=1e-3), locking=locking)
    content = {"moments": torch.randn(2, 8, 8, 8)} if source == "moments" else {"image": torch.rand(2, 3, 64, 64)}
    with second_device(monkeypatch) as device:
        module.to(device)
        one_step(module, batch_on(device, **content))


def test_a_step_of_the_base_stays_on_its_device(diffusion, monkeypatch):
    module = DiffusionTraining(diffusion, functools.partial(torch.optim.AdamW, lr=1e-3), min_snr_gamma=5.0)
    with second_device(monkeypatch) as device:
        module.to(device)
        one_step(module, batch_on(device, image=torch.rand(2, 3, 64, 64)))


@pytest.mark.parametrize(
    "name", ["ddim", "ddpm", "euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "pndm"]
)
def test_sampling_stays_on_its_device(composed, narrow_diffusion, monkeypatch, name):
    sampling = instantiate(composed(f"sampler={name}", "sampler.steps=4").sampler, _convert_="all")
    # what is asked once, before the first step, is asked of a schedule on the CPU
    along = sampling.sampler
    schedule = NoiseSchedule()
    there = replace(sampling, sampler=lambda eps, z, t, _, **more: along(eps, z, t, schedule, **more))
    monkeypatch.setattr(torch, "equal", lambda a, b: False)
    control = ControlNet.from_unet(narrow_diffusion.unet)
    with second_device(monkeypatch) as device:
        narrow_diffusion.to(device), control.to(device)
        unit = ControlUnit(control, torch.rand(2, 3, 64, 64, device=device), end=0.5, mode="prompt")
        given = torch.rand(1, 3, 64, 64, device=device), torch.ones(1, 1, 64, 64, device=device)
        drawn = there(narrow_diffusion, PROMPTS, [0, 1], (64, 64), unit, "blurry", given[0], 0.75, given[1])
    assert drawn.device == device
