"""PNDM with linear multistep (PLMS): Liu et al. 2022, arXiv:2202.09778, the sampler Stable Diffusion 1 ships with."""

import torch
from torch import Tensor

from ldm.samplers.contract import Callback, Denoiser, PerImageNoise, evaluate, widened
from ldm.schedule import NoiseSchedule

ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Weights of the newest, second newest, ... eps, for as many as there are (equation 12 for four)."""


@torch.no_grad()
def pndm(
    denoiser: Denoiser,
    z: Tensor,
    timesteps: Tensor,
    schedule: NoiseSchedule,
    generator: PerImageNoise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Sample along `timesteps`; see `ldm.samplers` for the contract. Deterministic: the generator is not used.

    The first step takes the mean of eps at both of its ends (improved Euler), later ones extrapolate from up to
    four past eps. n steps are n + 1 evaluations, as in diffusers' `skip_prk_steps=True`. Arrives at abar_0.
    """
    dtype, z = z.dtype, widened(z)
    steps = list(schedule.steps_along(timesteps, schedule.alphas_cumprod[0].item()))
    history: list[Tensor] = []
    for i, (t, a, a_prev) in enumerate(steps):
        history = [evaluate(denoiser, z, t, dtype), *history[:3]]
        eps = sum((w * e for w, e in zip(ADAMS_BASHFORTH[len(history) - 1], history, strict=True)), torch.zeros_like(z))
        if i == 0 and len(steps) > 1:
            eps = (eps + evaluate(denoiser, _transfer(z, eps, a, a_prev), steps[1][0], dtype)) / 2
        z = _transfer(z, eps, a, a_prev)
        if callback is not None:
            callback(i, z)
    return z.to(dtype)


def _transfer(z: Tensor, eps: Tensor, a: float, a_prev: float) -> Tensor:
    """Equation 11: DDIM's deterministic step."""
    return (a_prev / a) ** 0.5 * (z - (1 - a) ** 0.5 * eps) + (1 - a_prev) ** 0.5 * eps
