"""What samplers share: the shape of their arguments, noise that belongs to images, one evaluation."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(z (b, c, h, w), t (b,) on the CPU, every entry the same) -> eps (b, c, h, w)."""

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


def evaluate(denoiser: Denoiser, z: Tensor, t: float, dtype: torch.dtype) -> Tensor:
    """eps at (z, t) in z's own, wide dtype, from a denoiser that works in `dtype`."""
    times = torch.full((len(z),), t, dtype=torch.int64 if isinstance(t, int) else torch.float64)
    return denoiser(z.to(dtype), times).to(z.dtype)


def widened(z: Tensor) -> Tensor:
    """A sampler's own arithmetic is float32 or wider."""
    return z.to(torch.promote_types(z.dtype, torch.float32))


def sigma(abar: float) -> float:
    """Noise over signal, sqrt((1 - abar) / abar): the noise level of z / sqrt(abar) = z0 + sigma eps."""
    return math.sqrt((1 - abar) / abar)


def half_log_snr(abar: float) -> float:
    """lambda = log(sqrt(abar) / sqrt(1 - abar)), the time of DPM-Solver; infinite at abar = 1."""
    return math.inf if abar == 1 else 0.5 * math.log(abar / (1 - abar))


def required(generator: PerImageNoise | None, name: str) -> PerImageNoise:
    """The generator of a sampler that draws noise, or an error that says how to make one."""
    if generator is None:
        raise ValueError(f"{name} draws noise: give it generator=PerImageNoise(seeds)")
    return generator
