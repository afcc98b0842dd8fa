"""Images from prompts: guidance, control and a sampler around a LatentDiffusion."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cldm.control import ControlUnit
from ldm.diffusion import LatentDiffusion
from ldm.guidance import classifier_free_guidance
from ldm.samplers import PerImageNoise, initial_noise


@dataclass(frozen=True)
class Sampling:
    """How images are drawn; one file in configs/sampler.

    sampler: see ldm.samplers. steps: exact number of denoiser calls, 1..1000. spacing: "leading", "trailing" or
    "linspace". guidance: scale of classifier-free guidance, 1 turns it off.
    """

    sampler: Callable[..., Tensor]
    steps: int = 20
    spacing: str = "trailing"
    guidance: float = 3.0

    @torch.no_grad()
    def __call__(
        self,
        diffusion: LatentDiffusion,
        prompts: Sequence[str],
        seeds: Sequence[int],
        size: tuple[int, int],
        control: ControlUnit | None = None,
        negative: str = "",
        callback: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """One image per (prompt, seed): (b, 3, height, width) in [-1, 1]. A seed names an image in any batch."""
        if len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds; give one seed per prompt")
        device = diffusion.schedule.betas.device
        context = diffusion.context(prompts)
        guided = self.guidance != 1
        negatives = diffusion.context([negative]).expand_as(context) if guided else None
        branch = control.branch(halves=2 if guided else 1) if control is not None else None

        def model(z: Tensor, t: Tensor, context: Tensor) -> Tensor:
            return diffusion.denoise(z, t, context, branch(z, t, context) if branch else None)

        z = initial_noise(seeds, diffusion.latent_shape(*size), device, context.dtype)
        z = self.sampler(
            classifier_free_guidance(model, context, negatives, self.guidance),
            z,
            diffusion.schedule.timesteps(self.steps, self.spacing),
            diffusion.schedule,
            generator=PerImageNoise(seeds),
            callback=callback,
        )
        return diffusion.decode(z)
