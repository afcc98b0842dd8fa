"""Euler's method with ancestral noise: k-diffusion's sample_euler_ancestral (Crowson 2022)."""

import torch
from torch import Tensor

from ldm.samplers.contract import Callback, Denoiser, PerImageNoise, evaluate, required, sigma, widened
from ldm.schedule import NoiseSchedule


@torch.no_grad()
def euler_ancestral(
    denoiser: Denoiser,
    z: Tensor,
    timesteps: Tensor,
    schedule: NoiseSchedule,
    generator: PerImageNoise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Sample along `timesteps`; see `ldm.samplers` for the contract. The generator is required.

    Each step goes down to sigma_down < sigma_prev and adds noise sigma_up: down^2 + up^2 = sigma_prev^2.
    """
    noise = required(generator, "euler_ancestral")
    dtype, z = z.dtype, widened(z)
    for i, (t, a, a_prev) in enumerate(schedule.steps_along(timesteps, final_alpha=1.0)):
        s, s_prev = sigma(a), sigma(a_prev)
        up = s_prev * (1 - (s_prev / s) ** 2) ** 0.5
        down = (s_prev**2 - up**2) ** 0.5
        x = z / a**0.5 + (down - s) * evaluate(denoiser, z, t, dtype)
        if up > 0:
            x = x + up * noise.like(x)
        z = a_prev**0.5 * x
        if callback is not None:
            callback(i, z)
    return z.to(dtype)
