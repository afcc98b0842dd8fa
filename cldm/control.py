"""Control at inference: which branch, which hints, how strong."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cldm.controlnet import ControlNet
from ldm.diffusion import ControlBranch


@dataclass(frozen=True)
class ControlUnit:
    """A branch with the hints (b, 3, h, w) in [0, 1] of the images to draw; `scale` multiplies its residuals."""

    net: ControlNet
    hint: Tensor
    scale: float = 1.0

    def branch(self, halves: int = 1) -> ControlBranch:
        """The branch as a function of the noisy latents; the hint is encoded here, once.

        halves: 2 where guidance stacks the negative and the positive half in one batch; both receive the hint.
        """
        features = self.net.encode_hint(self.hint)
        features = torch.cat([features] * halves)
        return lambda z, t, context: self.net.residuals(z, t, context, features) * self.scale
