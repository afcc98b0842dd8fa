"""DPM-Solver++ of second order, multistep: Lu et al. 2022, arXiv:2211.01095 (2M, and the SDE variant)."""

import math

import torch
from torch import Tensor

from ldm.samplers.contract import Callback, Denoiser, PerImageNoise, evaluate, half_log_snr, required, widened
from ldm.schedule import NoiseSchedule


def dpmpp_2m(
    denoiser: Denoiser,
    z: Tensor,
    timesteps: Tensor,
    schedule: NoiseSchedule,
    generator: PerImageNoise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Sample along `timesteps`; see `ldm.samplers` for the contract. Deterministic: the generator is not used.

    Algorithm 2 of the paper; the first and the last step, which arrives at the predicted z0, are of first order.
    """
    return _sample(denoiser, z, timesteps, schedule, None, callback)


def dpmpp_2m_sde(
    denoiser: Denoiser,
    z: Tensor,
    timesteps: Tensor,
    schedule: NoiseSchedule,
    generator: PerImageNoise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """`dpmpp_2m` of the diffusion SDE (the paper's appendix on SDE-DPM-Solver++): draws noise in every step."""
    return _sample(denoiser, z, timesteps, schedule, required(generator, "dpmpp_2m_sde"), callback)


@torch.no_grad()
def _sample(
    denoiser: Denoiser,
    z: Tensor,
    timesteps: Tensor,
    schedule: NoiseSchedule,
    noise: PerImageNoise | None,
    callback: Callback | None,
) -> Tensor:
    dtype, z = z.dtype, widened(z)
    last_z0, last_h = z, 0.0  # of the step before; h = 0 where there was none
    for i, (t, a, a_prev) in enumerate(schedule.steps_along(timesteps, final_alpha=1.0)):
        eps = evaluate(denoiser, z, t, dtype)
        z0 = (z - (1 - a) ** 0.5 * eps) / a**0.5
        h = half_log_snr(a_prev) - half_log_snr(a)
        # z0 half a step ahead, extrapolated along lambda; the last step's h is infinite
        ahead = z0 + h / (2 * last_h) * (z0 - last_z0) if last_h and h < math.inf else z0
        rate = 2 * h if noise else h  # the SDE forgets the old noise twice as fast
        z = ((1 - a_prev) / (1 - a)) ** 0.5 * math.exp(h - rate) * z if h < math.inf else torch.zeros_like(z)
        z = z - a_prev**0.5 * math.expm1(-rate) * ahead
        if noise is not None and a_prev < 1:
            z = z + ((1 - a_prev) * -math.expm1(-2 * h)) ** 0.5 * noise.like(z)
        if callback is not None:
            callback(i, z)
        last_z0, last_h = z0, h
    return z.to(dtype)
