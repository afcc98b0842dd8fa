"""The noise schedule: how much noise each timestep carries, and the algebra between z0, eps, v and z.

Equations: DDPM is Ho et al. 2020 (arXiv:2006.11239), DDIM Song et al. 2020 (arXiv:2010.02502), v is Salimans
& Ho 2022 (arXiv:2202.00512). In DDPM's notation

    z_t = sqrt(abar_t) z0 + sqrt(1 - abar_t) eps,      abar_t = prod_{s <= t} (1 - beta_s)

Timesteps run over 0..T-1 (the papers' 1..T). What is computed from the tables is float32 or wider, whatever
precision the network works in.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

PREDICTIONS = ("eps", "v")
SHAPES = ("scaled_linear", "linear")
SPACINGS = ("leading", "trailing", "linspace", "karras")
KARRAS_RHO = 7.0
"""How much the grid of Karras et al. 2022 (arXiv:2206.00364, eq. 5) favours low noise."""

ZERO_SNR_FLOOR = 2.0**-24
"""abar_T of a zero-terminal-SNR schedule: not 0, so that z0 = (z - sqrt(1 - abar) eps) / sqrt(abar) exists."""


class NoiseSchedule(nn.Module):
    """The defaults are the "scaled linear" schedule of every SD 1.x and 2.x model.

    Attributes (not in the state dict; they follow the module's device but stay float32 under `.half()`):
        betas (T,): added noise variance per step.
        alphas_cumprod (T,): abar, the share of signal variance left at t; by default from 0.99915 to 0.00466.
    """

    betas: Tensor
    alphas_cumprod: Tensor

    def __init__(
        self,
        steps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        prediction: str = "eps",
        zero_snr: bool = False,
        shape: str = "scaled_linear",
    ) -> None:
        """`prediction` is what the network outputs: "eps" (SD 1.x, 2.x base) or "v" (SD 2.x 768).

        shape: how betas go from beta_start to beta_end: "linear" (DDPM), or "scaled_linear", whose roots are linear.
        zero_snr: rescale so that the last timestep is pure noise (Lin et al. 2023, arXiv:2305.08891, algorithm 1);
            for models trained so, which predict v. abar_T is 2^-24 rather than 0, as in the published samplers.
        """
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ValueError(f"model.schedule.prediction must be one of {PREDICTIONS}, got {prediction!r}")
        if shape not in SHAPES:
            raise ValueError(f"model.schedule.shape must be one of {SHAPES}, got {shape!r}")
        if steps < 1:
            raise ValueError(f"model.schedule.steps must be at least 1, got {steps}")
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"model.schedule needs 0 < beta_start <= beta_end < 1, got {beta_start} and {beta_end}")
        self.steps = steps
        self.beta_start = beta_start
        self.beta_end = beta_end
        if zero_snr and prediction == "eps":
            raise ValueError("model.schedule.zero_snr needs model.schedule.prediction=v: eps says nothing at abar = 0")
        self.prediction = prediction
        self.zero_snr = zero_snr
        self.shape = shape
        betas, alphas_cumprod = self._tables()
        self.register_buffer("betas", betas, persistent=False)
        self.register_buffer("alphas_cumprod", alphas_cumprod, persistent=False)

    def told(self) -> dict[str, Any]:
        """The keyword arguments that make this schedule; files carry them in their metadata."""
        names = ("steps", "beta_start", "beta_end", "prediction", "zero_snr", "shape")
        return {name: getattr(self, name) for name in names}

    def _tables(self) -> tuple[Tensor, Tensor]:
        betas, abar = self.exact_tables()
        return betas.float(), abar.float()

    def exact_tables(self) -> tuple[Tensor, Tensor]:
        """betas and abar (T,) in float64."""
        # float64 first, as in the code that trained Stable Diffusion: a product of 1000 factors drifts
        power = 0.5 if self.shape == "scaled_linear" else 1.0
        ends = self.beta_start**power, self.beta_end**power
        betas = torch.linspace(*ends, self.steps, dtype=torch.float64, device="cpu") ** (1 / power)
        abar = (1 - betas).cumprod(dim=0)
        if self.zero_snr:
            root = abar.sqrt()
            abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])).square().clamp(min=ZERO_SNR_FLOOR)
            betas = 1 - torch.cat([abar[:1], abar[1:] / abar[:-1]])
        return betas, abar

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NoiseSchedule:
        # Follow the device only: `.half()` must not round abar to three digits, nor `to_empty` leave garbage
        super()._apply(fn, recurse)
        device = self.betas.device
        self.betas, self.alphas_cumprod = (table.to(device) for table in self._tables())
        return self

    def extra_repr(self) -> str:
        return f"{self.steps}, betas {self.beta_start}..{self.beta_end}, prediction={self.prediction!r}"

    # ------------------------------------------------------------------ z0, eps, v and z
    # z0, eps, v, z and output are (b, ...); t is (b,) in 0..T-1. `_abar` gives abar_t as (b, 1, ...).

    def abar(self, t: Tensor) -> Tensor:
        """abar at t (b,): float32 for whole timesteps; between them log sigma is linear (k-diffusion), in t's dtype."""
        table = self.alphas_cumprod
        if not t.is_floating_point():
            return table[t.to(table.device)]
        logits = table.to(t).logit()  # -2 log sigma
        below = t.long()
        above = (below + 1).clamp(max=self.steps - 1)
        return torch.lerp(logits[below], logits[above], t - below).sigmoid()

    def _abar(self, t: Tensor, like: Tensor) -> Tensor:
        return self.abar(t).float().to(like.device).reshape(-1, *[1] * (like.ndim - 1))

    def add_noise(self, z0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """z = sqrt(abar) z0 + sqrt(1 - abar) eps (DDPM eq. 4)."""
        abar = self._abar(t, z0)
        return abar.sqrt() * z0 + (1 - abar).sqrt() * eps

    def velocity(self, z0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """v = sqrt(abar) eps - sqrt(1 - abar) z0 (Salimans & Ho, section 4)."""
        abar = self._abar(t, z0)
        return abar.sqrt() * eps - (1 - abar).sqrt() * z0

    def target(self, z0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network is trained to output: eps or v."""
        return eps if self.prediction == "eps" else self.velocity(z0, eps, t)

    def to_eps(self, output: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """Network output -> eps. From v: eps = sqrt(abar) v + sqrt(1 - abar) z."""
        if self.prediction == "eps":
            return output
        abar = self._abar(t, z)
        return abar.sqrt() * output + (1 - abar).sqrt() * z

    def to_z0(self, output: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """Network output -> z0. From v: z0 = sqrt(abar) z - sqrt(1 - abar) v."""
        if self.prediction == "eps":
            return self.z0_from_eps(output, z, t)
        abar = self._abar(t, z)
        return abar.sqrt() * z - (1 - abar).sqrt() * output

    def z0_from_eps(self, eps: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """z0 = (z - sqrt(1 - abar) eps) / sqrt(abar) (DDIM eq. 9)."""
        abar = self._abar(t, z)
        return (z - (1 - abar).sqrt() * eps) / abar.sqrt()

    def eps_from_z0(self, z0: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """eps = (z - sqrt(abar) z0) / sqrt(1 - abar): the noise that leads from z0 to z."""
        abar = self._abar(t, z)
        return (z - abar.sqrt() * z0) / (1 - abar).sqrt()

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio abar / (1 - abar), shape (b,), > 0."""
        abar = self.abar(t)
        return abar / (1 - abar)

    # ------------------------------------------------------------------ sampling grids

    def timesteps(self, n: int, spacing: str = "leading") -> Tensor:
        """Exactly n distinct timesteps to sample at, descending, (n,), for every n in 1..T: int64, karras float64.

        leading: 1, 1 + k, 1 + 2k, ... with k = T // n. Stable Diffusion's published grid, for reproducing its
            images. At n = T, where it would overrun, the offset 1 becomes 0. It starts below T-1, where pure
            noise belongs: a little where n divides T, much where not (n = 501 starts at 501, n = 1 at 1).
        trailing: T-1, T-1 - T/n, ... rounded. Starts at T-1 for every n: better for few steps and odd counts.
        linspace: evenly from T-1 to 0, both included (n = 1 is T-1). The step at t = 0 removes no noise in
            samplers that arrive at abar_0.
        karras: from T-1 to 0, both included, with the noise levels of Karras et al. 2022: dense where there is
            little noise. Their timesteps lie between whole ones.
        """
        if not 1 <= n <= self.steps:
            raise ValueError(f"the number of sampling steps must be in 1..{self.steps}, got {n}")
        if spacing == "leading":
            offset = 1 if n < self.steps else 0
            return torch.arange(n).flip(0) * (self.steps // n) + offset
        if spacing == "trailing":
            # the exact spacing T/n is at least 1, so rounded values never coincide
            return (self.steps - torch.arange(n) * (self.steps / n)).round().long() - 1
        if spacing == "linspace":
            return torch.linspace(self.steps - 1, 0, n, dtype=torch.float64).round().long()
        if spacing == "karras":
            return self._karras(n)
        raise ValueError(f"timestep spacing must be one of {SPACINGS}, got {spacing!r}")

    def _karras(self, n: int) -> Tensor:
        # log sigma of every timestep, ascending, in double precision and without abar's float32 rounding
        log_sigmas = -0.5 * self.alphas_cumprod.cpu().double().logit()
        low, high = (log_sigmas[[0, -1]] / KARRAS_RHO).exp()
        wanted = KARRAS_RHO * torch.lerp(high, low, torch.linspace(0, 1, n, dtype=torch.float64)).log()
        above = torch.searchsorted(log_sigmas, wanted).clamp(1, self.steps - 1)
        share = (wanted - log_sigmas[above - 1]) / (log_sigmas[above] - log_sigmas[above - 1])
        return (above - 1 + share).clamp(0, self.steps - 1)

    def steps_along(self, timesteps: Tensor, final_alpha: float) -> Iterator[tuple[float, float, float]]:
        """(t, abar_t, abar where the step arrives) for each step of a sampler along `timesteps` (n,).

        A step arrives at the next, less noisy timestep, the last one at `final_alpha`. These are Python
        floats, so that a sampler computes its coefficients in double precision and without a device
        synchronisation per step.
        """
        grid = timesteps.flatten().tolist()
        descends = all(later < earlier for earlier, later in itertools.pairwise(grid))
        if timesteps.ndim != 1 or not grid or not descends or not 0 <= grid[-1] <= grid[0] < self.steps:
            raise ValueError(f"timesteps must be 1-D, descending, in 0..{self.steps - 1}, got {timesteps}")
        # between whole timesteps abar goes through logarithms, which may overshoot the end by a rounding
        abars = self.abar(timesteps).tolist()
        abars[-1] = final_alpha if math.isclose(abars[-1], final_alpha, rel_tol=1e-6) else abars[-1]
        if not abars[-1] <= final_alpha <= 1:
            raise ValueError(f"final_alpha must be in [{abars[-1]}, 1], got {final_alpha}")
        return zip(grid, abars, [*abars[1:], final_alpha], strict=True)
