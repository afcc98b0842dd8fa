"""Heun's method: Karras et al. 2022, arXiv:2206.00364, algorithm 1 (the deterministic sampler)."""

import torch
from torch import Tensor

from ldm.samplers.contract import Callback, Denoiser, PerImageNoise, evaluate, sigma, widened
from ldm.schedule import NoiseSchedule


@torch.no_grad()
def heun(
    denoiser: Denoiser,
    z: Tensor,
    timesteps: Tensor,
    schedule: NoiseSchedule,
    generator: PerImageNoise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Sample along `timesteps`; see `ldm.samplers` for the contract. Deterministic: the generator is not used.

    Second order: every step but the last evaluates the denoiser where Euler's step arrives, too, and takes the
    mean of the two slopes. n steps are 2n - 1 evaluations.
    """
    dtype, z = z.dtype, widened(z)
    steps = list(schedule.steps_along(timesteps, final_alpha=1.0))
    for i, (t, a, a_prev) in enumerate(steps):
        x, h = z / a**0.5, sigma(a_prev) - sigma(a)
        slope = evaluate(denoiser, z, t, dtype)
        if i < len(steps) - 1:
            arrived = a_prev**0.5 * (x + h * slope)
            slope = (slope + evaluate(denoiser, arrived, steps[i + 1][0], dtype)) / 2
        z = a_prev**0.5 * (x + h * slope)
        if callback is not None:
            callback(i, z)
    return z.to(dtype)
