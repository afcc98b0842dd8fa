"""Promises of sampling: a seed names an image, exact step counts, and the hint paid for once."""

from functools import partial

import pytest
import torch

from cldm.control import ControlUnit
from cldm.controlnet import ControlNet
from cldm.generation import Sampling
from ldm.samplers import ddim, ddpm

PROMPTS = ["a red star", "a blue ring on a mint background", ""]
SEEDS = [11, 5, 8]


@pytest.fixture
def unit(diffusion):
    control = ControlNet.from_unet(diffusion.unet).eval()
    with torch.no_grad():
        for conv in [*control.zero_convs, control.zero_conv_middle, control.hint_encoder[-1]]:
            conv.weight.normal_(std=0.05, generator=torch.Generator().manual_seed(2))
    return ControlUnit(control, torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("sampler", [ddim, partial(ddim, eta=1.0), ddpm], ids=["ddim", "ddim_eta_1", "ddpm"])
def test_a_seed_names_an_image_whatever_the_batch(diffusion, unit, sampler):
    sampling = Sampling(sampler, steps=3, guidance=2.0)
    together = sampling(diffusion, PROMPTS, SEEDS, (64, 64), control=unit)
    assert together.shape == (3, 3, 64, 64)
    assert (together.abs() < 1).float().mean() > 0.5  # clamped pixels could not differ
    for i in range(3):
        alone_unit = ControlUnit(unit.net, unit.hint[i : i + 1])
        alone = sampling(diffusion, PROMPTS[i : i + 1], SEEDS[i : i + 1], (64, 64), control=alone_unit)
        assert (alone[0] - together[i]).abs().max() < 1e-5
    other = sampling(diffusion, PROMPTS, [11, 5, 9], (64, 64), control=unit)
    assert (other[:2] - together[:2]).abs().max() < 1e-5
    assert (other[2] - together[2]).abs().max() > 1e-3


def test_the_global_random_state_neither_matters_nor_changes(diffusion):
    sampling = Sampling(ddpm, steps=2)
    torch.manual_seed(0)
    first = sampling(diffusion, PROMPTS[:1], [4], (64, 64))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(sampling(diffusion, PROMPTS[:1], [4], (64, 64)), first)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("guidance", "batch"), [(1.0, 3), (3.0, 6)])
def test_as_many_calls_as_steps_and_one_encoding_of_the_hint(diffusion, unit, guidance, batch):
    calls = {"unet": [], "hint": [], "steps": []}
    diffusion.unet.register_forward_hook(lambda *_: calls["unet"].append(len(_[2])))
    unit.net.hint_encoder.register_forward_hook(lambda *_: calls["hint"].append(len(_[2])))
    sampling = Sampling(ddim, steps=4, guidance=guidance)
    sampling(
        diffusion,
        PROMPTS,
        SEEDS,
        (64, 64),
        control=unit,
        callback=lambda i, z: calls["steps"].append((i, z.shape)),
    )
    assert calls["unet"] == [batch] * 4
    assert calls["hint"] == [3]
    assert calls["steps"] == [(i, (3, 4, 8, 8)) for i in range(4)]


def test_prompt_negative_and_hint_each_change_the_image(diffusion, unit):
    sampling = Sampling(ddim, steps=2, guidance=3.0)
    half = ControlUnit(unit.net, unit.hint[:1])
    base = sampling(diffusion, PROMPTS[:1], [4], (64, 64))
    for other in (
        sampling(diffusion, PROMPTS[1:2], [4], (64, 64)),
        sampling(diffusion, PROMPTS[:1], [4], (64, 64), negative="a blue ring"),
        sampling(diffusion, PROMPTS[:1], [4], (64, 64), control=half),
    ):
        assert (other - base).abs().max() > 1e-4


def test_what_cannot_be_drawn_is_refused_early(diffusion):
    with pytest.raises(ValueError, match="2 prompts but 1 seeds"):
        Sampling(ddim)(diffusion, ["a", "a"], [1], (64, 64))
    with pytest.raises(ValueError, match="multiples of 8"):
        Sampling(ddim)(diffusion, ["a"], [1], (64, 70))
