"""Samplers: one algorithm a file, one contract.

    sampler(denoiser, z, timesteps, schedule, generator=None, callback=None) -> z

- denoiser: (z, t) -> eps; guidance, control, conversion from v are inside it. Called at entries of `timesteps`
  only, with t on the CPU, so that nobody has to wait for a device to know the step. One call per timestep, but
  for heun (one more per step, except the last) and pndm (one more in all, at the second timestep).
- z (b, c, h, w): latents at timesteps[0], `initial_noise` or a noised image (img2img), of variance near 1 for
  every sampler. The denoiser sees its dtype and the result has it; the sampler's own arithmetic is float32 or
  wider, and keeps no graph.
- timesteps (n,): descending, int64 or fractional, such as `schedule.timesteps(n)`.
- generator: a fresh `PerImageNoise` per call, for samplers that draw noise.
- callback(i, z): after step i in 0..n-1, with the latents it arrived at.

ddim and pndm arrive at the noise of timestep 0 (abar_0), as published Stable Diffusion does; the others at none.
"""

from ldm.samplers.contract import Callback, Denoiser, PerImageNoise, initial_noise
from ldm.samplers.ddim import ddim
from ldm.samplers.ddpm import ddpm
from ldm.samplers.dpm_solver import dpmpp_2m, dpmpp_2m_sde
from ldm.samplers.euler import euler
from ldm.samplers.euler_ancestral import euler_ancestral
from ldm.samplers.heun import heun
from ldm.samplers.pndm import pndm
from ldm.samplers.unipc import unipc

__all__ = [
    "Callback",
    "Denoiser",
    "PerImageNoise",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "euler",
    "euler_ancestral",
    "heun",
    "initial_noise",
    "pndm",
    "unipc",
]
