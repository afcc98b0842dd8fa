"""ControlNet (Zhang, Rao & Agrawala 2023): a trainable copy of the U-Net's encoder behind zero convolutions."""

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from ldm.attention import Context
from ldm.blocks import Shifts, zero_module
from ldm.reuse import time_table
from ldm.unet import ControlResiduals, Encoded, UNet, UNetConfig

HINT_WIDTHS = (16, 32, 96, 256)
"""Channels of the hint encoder's levels in the published weights."""


def zero_conv(channels: int) -> nn.Conv2d:
    """1x1 convolution with weight = bias = 0 (paper, section 3.1): silent at first, yet it learns."""
    return zero_module(nn.Conv2d(channels, channels, 1))


def start_hint_layers(layers: Sequence[nn.Module]) -> None:
    """He et al.'s weights (2015) and no biases, for the convolutions of every hint encoder alike.

    With PyTorch's own initialisation, which published training code uses, a hint of thin lines fades to a thousandth
    on the way, and sudden convergence waits for it: branches that start differently here cannot be compared.
    """
    for layer in layers:
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)


class HintEncoder(nn.Sequential):
    """Hint (b, hint_channels, h, w) in [0, 1] -> features (b, out_channels, h/8, w/8) at the latents' size.

    3x3 convolutions with SiLU between; one stride of 2 per entry of `widths` after the first; the last one is zero,
    the others start as `start_hint_layers` says.
    The paper's text says four 4x4 layers; this is what the published weights have (docs/paper_vs_code.md).
    """

    def __init__(self, out_channels: int, hint_channels: int = 3, widths: Sequence[int] = HINT_WIDTHS):
        layers: list[nn.Module] = [nn.Conv2d(hint_channels, widths[0], 3, padding=1), nn.SiLU()]
        for a, b in itertools.pairwise(widths):
            layers += [
                nn.Conv2d(a, a, 3, padding=1),
                nn.SiLU(),
                nn.Conv2d(a, b, 3, padding=1, stride=2),
                nn.SiLU(),
            ]
        start_hint_layers(layers)
        super().__init__(*layers, zero_module(nn.Conv2d(widths[-1], out_channels, 3, padding=1)))
        self.factor = 2 ** (len(widths) - 1)


class Encoder(Protocol):
    """What a ControlNet needs of its copy: UNetEncoder has it, and so have the ablations' stand-ins for it."""

    config: UNetConfig
    out_channels: list[int]
    levels: list[int]
    conv_in: nn.Conv2d

    def embed_time(self, t: Tensor | Shifts) -> Tensor | Shifts: ...

    def encode(self, h: Tensor, emb: Tensor | Shifts, context: Context) -> Encoded: ...


class Branch(nn.Module):
    """What is trained beside the base: a hint encoder, and what makes residuals of its features.

    levels: of the residuals, the middle's last: the side of the latents is halved that many times.
    """

    def __init__(self, config: UNetConfig, levels: Sequence[int], hint_channels: int, hint_encoder: nn.Sequential):
        super().__init__()
        self.config, self.levels, self.hint_channels = config, list(levels), hint_channels
        self.hint_encoder = hint_encoder

    def encode_hint(self, hint: Tensor) -> Tensor:
        """Hint (b, hint_channels, h, w) in [0, 1] -> (b, c, h/8, w/8), which sampling computes once."""
        if hint.shape[1] != self.hint_channels:
            raise ValueError(f"hint has {hint.shape[1]} channels, control.hint_channels is {self.hint_channels}")
        return self.hint_encoder(hint)

    def time_table(self, timesteps: Tensor) -> list[Shifts]:
        """What depends on the timesteps (n,) alone, for `residuals`; see ldm.reuse."""
        raise NotImplementedError

    def residuals(self, z: Tensor, t: Tensor | Shifts, context: Context, features: Tensor) -> ControlResiduals:
        """The branch on noisy latents z, with the hint already encoded; rows may be shared as in `UNet`."""
        raise NotImplementedError

    def forward(self, z: Tensor, t: Tensor, context: Tensor, hint: Tensor) -> ControlResiduals:
        """(b, c, h, w), (b,), (b, n, d), (b, hint_channels, 8h, 8w) -> residuals for UNet.forward(control=...)."""
        return self.residuals(z, t, context, self.encode_hint(hint))


class ControlNet(Branch):
    """Hint encoder, copy of the encoder and middle, one zero convolution per output.

    y_c = F(z; locked) + Z2(F(z + Z1(hint); copy)), equation 2 of the paper, for every encoder block at once.
    """

    def __init__(
        self,
        encoder: Encoder,
        hint_channels: int = 3,
        hint_widths: Sequence[int] = HINT_WIDTHS,
        hint_encoder: Callable[[int, int, Sequence[int]], nn.Sequential] = HintEncoder,
    ):
        hints = hint_encoder(encoder.out_channels[0], hint_channels, hint_widths)
        super().__init__(encoder.config, encoder.levels, hint_channels, hints)
        self.encoder: Any = encoder
        self.zero_convs = nn.ModuleList(zero_conv(channels) for channels in encoder.out_channels)
        self.zero_conv_middle = zero_conv(encoder.out_channels[-1])

    @classmethod
    def from_unet(cls, unet: UNet, hint_channels: int = 3, hint_widths: Sequence[int] = HINT_WIDTHS) -> "ControlNet":
        """A branch that starts as a copy of the U-Net's encoder and changes nothing until it is trained."""
        encoder = copy.deepcopy(unet.encoder).requires_grad_(True)
        return cls(encoder, hint_channels, hint_widths).to(unet.encoder.conv_in.weight.device)

    def time_table(self, timesteps: Tensor) -> list[Shifts]:
        return time_table(self, self.encoder, timesteps)

    def residuals(self, z: Tensor, t: Tensor | Shifts, context: Context, features: Tensor) -> ControlResiduals:
        encoded = self.encoder.encode(self.encoder.conv_in(z) + features, self.encoder.embed_time(t), context)
        skips = (conv(skip) for conv, skip in zip(self.zero_convs, encoded.skips, strict=True))
        return ControlResiduals(tuple(skips), self.zero_conv_middle(encoded.middle))
