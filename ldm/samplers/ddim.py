"""DDIM: Song, Meng & Ermon 2020, arXiv:2010.02502. Their alpha_t is abar_t here."""

import torch
from torch import Tensor

from ldm.samplers.contract import Callback, Denoiser, PerImageNoise, evaluate, required, widened
from ldm.schedule import NoiseSchedule


@torch.no_grad()
def ddim(
    denoiser: Denoiser,
    z: Tensor,
    timesteps: Tensor,
    schedule: NoiseSchedule,
    generator: PerImageNoise | None = None,
    eta: float = 0.0,
    callback: Callback | None = None,
    final_alpha: float | None = None,
) -> Tensor:
    """Sample along `timesteps`; see `ldm.samplers` for the contract.

    eta in [0, 1]: 0 is deterministic and needs no generator; 1 is DDPM's ancestral sampling.
    final_alpha: abar where the last step arrives. None is abar_0, which leaves the noise of timestep 0
        (standard deviation 0.03) in the result: published Stable Diffusion behaviour, diffusers'
        `set_alpha_to_one=False`. 1.0 ends at the predicted z0.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}")
    noise = required(generator, f"ddim with eta={eta}") if eta > 0 else None
    if final_alpha is None:
        final_alpha = schedule.alphas_cumprod[0].item()
    dtype, z = z.dtype, widened(z)
    for i, (t, a, a_prev) in enumerate(schedule.steps_along(timesteps, final_alpha)):
        eps = evaluate(denoiser, z, t, dtype)
        z0 = (z - (1 - a) ** 0.5 * eps) / a**0.5  # "predicted x0" of eq. 12
        sigma = eta * ((1 - a_prev) / (1 - a)) ** 0.5 * (1 - a / a_prev) ** 0.5  # eq. 16
        z = a_prev**0.5 * z0 + (1 - a_prev - sigma**2) ** 0.5 * eps  # eq. 12
        if noise is not None and sigma > 0:
            z = z + sigma * noise.like(z)
        if callback is not None:
            callback(i, z)
    return z.to(dtype)
