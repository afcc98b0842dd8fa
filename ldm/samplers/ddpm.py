"""DDPM ancestral sampling: Ho, Jain & Abbeel 2020, arXiv:2006.11239, on any subset of the timesteps."""

import torch
from torch import Tensor

from ldm.samplers.contract import Callback, Denoiser, PerImageNoise, evaluate, required, widened
from ldm.schedule import NoiseSchedule


@torch.no_grad()
def ddpm(
    denoiser: Denoiser,
    z: Tensor,
    timesteps: Tensor,
    schedule: NoiseSchedule,
    generator: PerImageNoise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Sample along `timesteps`; see `ldm.samplers` for the contract. The generator is required.

    Each step draws from the posterior q(z_prev | z, z0) at the predicted z0, with the posterior's own
    variance ("fixed small") and beta respaced to the length of the step (Nichol & Dhariwal 2021,
    arXiv:2102.09672, eq. 19). The last step arrives at abar = 1, where that variance is zero: the noise-free
    last step of Ho et al., algorithm 2. The same as `ddim(eta=1, final_alpha=1.0)` up to rounding.
    """
    noise = required(generator, "ddpm")
    dtype, z = z.dtype, widened(z)
    for i, (t, abar, abar_prev) in enumerate(schedule.steps_along(timesteps, final_alpha=1.0)):
        eps = evaluate(denoiser, z, t, dtype)
        z0 = (z - (1 - abar) ** 0.5 * eps) / abar**0.5  # eq. 15
        alpha = abar / abar_prev
        beta = 1 - alpha
        # eq. 7: mean and variance of q(z_prev | z, z0)
        z = abar_prev**0.5 * beta / (1 - abar) * z0 + alpha**0.5 * (1 - abar_prev) / (1 - abar) * z
        variance = (1 - abar_prev) / (1 - abar) * beta
        if variance > 0:
            z = z + variance**0.5 * noise.like(z)
        if callback is not None:
            callback(i, z)
    return z.to(dtype)
