"""Samplers: one algorithm a file, one contract.

    sampler(denoiser, z, timesteps, schedule, generator=None, callback=None) -> z

- denoiser: (z, t) -> eps, called once per timestep; guidance, control, conversion from v are inside it.
- z (b, c, h, w): latents at timesteps[0], `initial_noise` or a noised image (img2img). The denoiser sees its
  dtype and the result has it; the sampler's own arithmetic is float32 or wider, and keeps no graph.
- timesteps (n,): int64, descending, any subset of the schedule's, such as `schedule.timesteps(n)`.
- generator: a fresh `PerImageNoise` per call, for samplers that draw noise.
- callback(i, z): after step i in 0..n-1, with the latents it arrived at.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ldm.samplers.ddim import ddim
from ldm.samplers.ddpm import ddpm

__all__ = ["Callback", "Denoiser", "PerImageNoise", "ddim", "ddpm", "initial_noise"]

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(z (b, c, h, w), t (b,) int64) -> eps (b, c, h, w)."""

Callback = Callable[[int, Tensor], None]


class PerImageNoise:
    """Noise for a batch from one random stream per image: a seed names an image, not a place in a batch.

    Streams live on the CPU in float32, so they are the same for every device and precision. The first draw of
    a stream is the image's `initial_noise`; `like` gives the draws after it, so that steps never repeat the
    initial noise.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._streams = [torch.Generator(device="cpu").manual_seed(seed) for seed in seeds]
        self._past_initial = False

    def like(self, z: Tensor) -> Tensor:
        """Fresh standard normal noise with the shape, device and dtype of z (b, ...); b = number of seeds."""
        if len(z) != len(self._streams):
            raise ValueError(f"one seed per image: got {len(self._streams)} seeds for a batch of {len(z)}")
        if not self._past_initial:
            self._draw(z.shape[1:])
            self._past_initial = True
        return self._draw(z.shape[1:]).to(device=z.device, dtype=z.dtype)

    def _draw(self, shape: Sequence[int]) -> Tensor:
        draws = [torch.randn(*shape, generator=g, dtype=torch.float32, device="cpu") for g in self._streams]
        return torch.stack(draws)


def initial_noise(
    seeds: Sequence[int],
    shape: Sequence[int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The noise that sampling starts from, (len(seeds), c, h, w); `shape` is one image's (c, h, w).

    Row i depends on seeds[i] and shape alone (and equals diffusers' with a list of CPU generators).
    """
    return PerImageNoise(seeds)._draw(shape).to(device=device, dtype=dtype)
