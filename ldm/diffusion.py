"""LatentDiffusion: autoencoder, conditioner, U-Net and noise schedule tied together (Rombach et al. 2022)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.autoencoder import AutoencoderKL
from ldm.conditioner import Conditioner
from ldm.schedule import NoiseSchedule
from ldm.unet import ControlResiduals, UNet

ControlBranch = Callable[[Tensor, Tensor, Tensor], ControlResiduals]
"""(z (b, c, h, w), t (b,), context (b, n, d)) -> the residuals to add."""


class LatentDiffusion(nn.Module):
    """A complete text-to-image model. Control enters as the optional `control` residuals of the U-Net."""

    def __init__(self, autoencoder: AutoencoderKL, conditioner: Conditioner, unet: UNet, schedule: NoiseSchedule):
        super().__init__()
        self.autoencoder, self.conditioner, self.unet, self.schedule = (
            autoencoder,
            conditioner,
            unet,
            schedule,
        )
        width, expected = conditioner.text_encoder.width, unet.config.context_channels
        if width != expected:
            raise ValueError(f"model: text encoder width {width}, but unet.context_channels {expected}")

    def untold(self) -> dict[str, dict[str, Any]]:
        """By part, what the shapes of the weights do not tell; exported files carry it in their metadata."""
        return {
            "unet": self.unet.config.untold(),
            "autoencoder": self.autoencoder.untold(),
            "text": self.conditioner.text_encoder.untold(),
            "conditioner": {"pad": self.conditioner.pad},
            "schedule": self.schedule.told(),
        }

    def context(self, prompts: Sequence[str], clip_skip: int = 0) -> Tensor:
        """Prompts -> (b, n, d), read literally and cut off at the text encoder's length."""
        return self.conditioner(prompts, clip_skip)

    def encode(self, x: Tensor, eps: Tensor | None = None) -> Tensor:
        """Image (b, 3, h, w) in [-1, 1] -> latents; the posterior's mean when eps is None."""
        return self.autoencoder.encode(x, eps)

    def decode(self, z: Tensor) -> Tensor:
        """Latents -> image (b, 3, h, w) clamped to [-1, 1]; infinity becomes NaN, which nobody takes for white."""
        image = self.autoencoder.decode(z)
        return image.masked_fill(image.isinf(), torch.nan).clamp(-1.0, 1.0)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(c, h, w) of the latents of an image; ValueError if a side does not divide."""
        factor = self.autoencoder.factor
        if height % factor or width % factor or height < 1 or width < 1:
            raise ValueError(
                f"image sides must be positive multiples of {factor} for this model, got {height} x {width}"
            )
        return self.autoencoder.z_channels, height // factor, width // factor

    def denoise(self, z: Tensor, t: Tensor, context: Tensor, control: ControlResiduals | None = None) -> Tensor:
        """eps predicted for noisy latents z at t (b,), whatever the network's own output is."""
        return self.schedule.to_eps(self.unet(z, t, context, control), z, t)

    def loss(self, z0: Tensor, context: Tensor, t: Tensor, eps: Tensor, branch: ControlBranch | None = None) -> Tensor:
        """||target - network(z_t, t, context)||^2 averaged over each latent: (b,). Target is eps or v.

        Where the model is locked no graph is kept of its encoder: nothing that enters it needs a gradient.
        """
        z = self.schedule.add_noise(z0, eps, t).to(z0.dtype)  # the schedule computes in float32
        output = self.unet(z, t, context, branch(z, t, context) if branch else None)
        target = self.schedule.target(z0, eps, t)
        return F.mse_loss(output.float(), target.float(), reduction="none").flatten(1).mean(dim=1)
