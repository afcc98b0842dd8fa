"""Euler's method on the probability flow of Karras et al. 2022 (arXiv:2206.00364), dx / dsigma = eps."""

import torch
from torch import Tensor

from ldm.samplers.contract import Callback, Denoiser, PerImageNoise, evaluate, sigma, widened
from ldm.schedule import NoiseSchedule


@torch.no_grad()
def euler(
    denoiser: Denoiser,
    z: Tensor,
    timesteps: Tensor,
    schedule: NoiseSchedule,
    generator: PerImageNoise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Sample along `timesteps`; see `ldm.samplers` for the contract. Deterministic: the generator is not used.

    x = z / sqrt(abar) has the noise level sigma. The same path as `ddim(eta=0, final_alpha=1.0)`.
    """
    dtype, z = z.dtype, widened(z)
    for i, (t, a, a_prev) in enumerate(schedule.steps_along(timesteps, final_alpha=1.0)):
        x = z / a**0.5
        x = x + (sigma(a_prev) - sigma(a)) * evaluate(denoiser, z, t, dtype)
        z = a_prev**0.5 * x
        if callback is not None:
            callback(i, z)
    return z.to(dtype)
