"""Promises of guidance: linear in the scale, one call for both halves, rescaled per image, exact outside a mask."""

import pytest
import torch
from torch import Tensor

from ldm.guidance import classifier_free_guidance, known_outside
from ldm.samplers import ddim, dpmpp_2m, euler, heun, initial_noise, pndm, unipc
from ldm.schedule import NoiseSchedule


@pytest.fixture
def halves() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.randn(2, 4, 3, 3, generator=rng), torch.randn(2, 4, 3, 3, generator=rng)


Z, T = torch.zeros(2, 4, 3, 3), torch.tensor([10, 10])


def guided(halves: tuple[Tensor, Tensor], scale: float, rescale: float = 0.0) -> Tensor:
    return classifier_free_guidance(lambda z, t: torch.cat(halves), scale, rescale)(Z, T)


def test_scale_one_is_the_prompt_and_scale_zero_the_negative_prompt(halves):
    torch.testing.assert_close(guided(halves, 1.0), halves[1])
    assert torch.equal(guided(halves, 0.0), halves[0])


def test_guidance_is_linear_in_the_scale(halves):
    uc, c = halves
    for scale in (-1.0, 0.5, 2.0, 7.5):
        torch.testing.assert_close(guided(halves, scale), uc + scale * (c - uc))


def test_the_model_is_called_once_on_the_latents_as_they_are():
    calls = []

    def model(z: Tensor, t: Tensor) -> Tensor:
        calls.append((z, t))
        return torch.cat([z, z + 1])

    out = classifier_free_guidance(model, 3.0)(Z, T)
    assert torch.equal(out, Z + 3)
    assert len(calls) == 1
    assert calls[0][0] is Z


def test_a_half_precision_model_is_combined_in_float32(halves):
    low = tuple(half.bfloat16() for half in halves)
    out = guided(low, 7.5)
    assert out.dtype == torch.float32
    assert torch.equal(out, low[0].float() + 7.5 * (low[1].float() - low[0].float()))


def test_equal_halves_make_guidance_a_no_op_exactly(halves):
    for rescale in (0.0, 0.7):
        assert torch.equal(guided((halves[1], halves[1]), 7.5, rescale), halves[1])


def test_rescale_brings_each_images_deviation_back(halves):
    inflated, full, half = (guided(halves, 7.5, phi).std((1, 2, 3)) for phi in (0.0, 1.0, 0.5))
    torch.testing.assert_close(full, halves[1].std((1, 2, 3)))
    torch.testing.assert_close(half, (inflated + full) / 2)
    with pytest.raises(ValueError, match=r"sampler\.rescale"):
        guided(halves, 7.5, 1.5)


@pytest.mark.parametrize("sampler", [ddim, euler, heun, dpmpp_2m, unipc, pndm])
def test_outside_the_mask_every_sampler_arrives_at_the_known_latents(sampler):
    """From a noised image, a deterministic sampler follows the image's own path there and the model's inside."""
    schedule, timesteps = NoiseSchedule(), NoiseSchedule().timesteps(12)
    z0 = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    noise = initial_noise([5], (4, 8, 8))
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:6] = 1
    start = schedule.add_noise(z0, noise, timesteps[:1])
    model = lambda z, t: 0.9 * z  # noqa: E731
    out = sampler(known_outside(model, z0, mask, schedule), start, timesteps, schedule)
    left = 0.03 if sampler in (ddim, pndm) else 0.0  # these arrive at the noise of timestep 0
    outside, inside = (out - z0)[..., :2], (out - z0)[..., 2:6]
    assert outside.abs().max() <= 4 * left + 1e-4
    assert inside.abs().max() > 0.5
