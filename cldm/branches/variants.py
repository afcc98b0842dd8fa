"""The branches that the paper's ablations compare ControlNet with (section 4.2, figure 8; tables 2 and 3).

Each function makes a branch for a U-Net, as ControlNet.from_unet does, and each but `gaussian` changes nothing until it
is trained. Where the paper leaves a detail open, the docstring says what was chosen.
"""

import itertools
from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor, nn

from cldm.branches.controlnet import HINT_WIDTHS, Branch, ControlNet, HintEncoder, start_hint_layers
from ldm.attention import Context
from ldm.blocks import Shifts, zero_module
from ldm.unet import ControlResiduals, Encoded, UNet, UNetConfig, UNetEncoder, encoder_levels

B = TypeVar("B", bound=Branch)


def gaussian(
    unet: UNet, gain: float = 1.0, hint_channels: int = 3, hint_widths: Sequence[int] = HINT_WIDTHS
) -> ControlNet:
    """Figure 8 (b): ordinary convolutions with weights N(0, gain^2 / fan_in) instead of zero convolutions, all 14.

    A convolution passes on `gain` times the strength of its input, whatever the width. The paper does not tell its
    standard deviation; 0.02 is a gain of 0.36 to 0.72 in Stable Diffusion. gain=0 is ControlNet itself.
    """
    control = ControlNet.from_unet(unet, hint_channels, hint_widths)
    for conv in (*control.zero_convs, control.zero_conv_middle, control.hint_encoder[-1]):
        nn.init.normal_(conv.weight, std=gain / conv.weight[0].numel() ** 0.5)
    return control


def random_copy(unet: UNet, hint_channels: int = 3, hint_widths: Sequence[int] = HINT_WIDTHS) -> ControlNet:
    """The same network with fresh weights instead of the copy: what do the pretrained weights bring?"""
    return _beside(unet, ControlNet(UNetEncoder(unet.config), hint_channels, hint_widths))


def lite(unet: UNet, hint_channels: int = 3, hint_widths: Sequence[int] = HINT_WIDTHS) -> ControlNet:
    """Figure 8 (c), ControlNet-lite: every block of the copy replaced by one 3x3 convolution.

    Open in the paper: here it sees noisy latents and hint, as the copy does, but neither prompt nor timestep.
    """
    return _beside(unet, ControlNet(ConvEncoder(unet.config, kernel=3), hint_channels, hint_widths))


def mlp(unet: UNet, hint_channels: int = 3, hint_widths: Sequence[int] = HINT_WIDTHS) -> ControlNet:
    """ControlNet-MLP (the authors' discussion 188): 1x1 convolutions and average pooling, hint encoder included."""
    return _beside(unet, ControlNet(ConvEncoder(unet.config, 1), hint_channels, hint_widths, PooledHintEncoder))


def concat(unet: UNet, hint_channels: int = 3, hint_widths: Sequence[int] = HINT_WIDTHS) -> "ConcatBranch":
    """The hint as further input channels of the U-Net, which trains too: table 3's "LDM (seg)" with
    stage.module.locking=scratch, the recipe of Stable Diffusion's depth model with stage.module.locking=unlocked."""
    return _beside(unet, ConcatBranch(unet.config, hint_channels, hint_widths))


def _beside(unet: UNet, branch: B) -> B:
    return branch.to(unet.encoder.conv_in.weight.device)


class ConvEncoder(nn.Module):
    """One convolution with ReLU for every block of a UNetEncoder, and the same outputs.

    kernel: 3, with a stride of 2 where the encoder downsamples; or 1, after average pooling there.
    """

    def __init__(self, config: UNetConfig, kernel: int):
        super().__init__()
        if kernel not in (1, 3):
            raise ValueError(f"kernel must be 1 or 3, got {kernel}")
        self.config, self.kernel = config, kernel
        self.out_channels, self.levels = encoder_levels(config)
        self.conv_in = nn.Conv2d(config.in_channels, self.out_channels[0], kernel, padding=kernel // 2)
        self.blocks = nn.ModuleList(
            self._block(self.out_channels[i], self.out_channels[i + 1], self.levels[i + 1] > self.levels[i])
            for i in range(len(self.out_channels) - 1)
        )
        self.last = self._block(self.out_channels[-1], self.out_channels[-1], halve=False)

    def _block(self, in_channels: int, out_channels: int, halve: bool) -> nn.Sequential:
        k = self.kernel
        conv = nn.Conv2d(in_channels, out_channels, k, stride=2 if halve and k == 3 else 1, padding=k // 2)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")  # 13 in a row would fade with PyTorch's default
        pool = [nn.AvgPool2d(2, ceil_mode=True)] if halve and k == 1 else []
        return nn.Sequential(*pool, conv, nn.ReLU())

    def embed_time(self, t: Tensor | Shifts) -> Tensor | Shifts:
        """Nothing here depends on time."""
        return t

    def encode(self, h: Tensor, emb: Tensor | Shifts, context: Context) -> Encoded:
        """Everything after the first convolution, whose output is h."""
        skips = [h]
        for block in self.blocks:
            skips.append(block(skips[-1]))
        return Encoded(tuple(skips), self.last(skips[-1]), emb)


class PooledHintEncoder(nn.Sequential):
    """As HintEncoder, of 1x1 convolutions with average pooling between: every pixel by itself."""

    def __init__(self, out_channels: int, hint_channels: int, widths: Sequence[int]):
        layers: list[nn.Module] = [nn.Conv2d(hint_channels, widths[0], 1), nn.SiLU()]
        for a, b in itertools.pairwise(widths):
            layers += [nn.AvgPool2d(2), nn.Conv2d(a, b, 1), nn.SiLU()]
        start_hint_layers(layers)
        super().__init__(*layers, zero_module(nn.Conv2d(widths[-1], out_channels, 1)))


class ConcatBranch(Branch):
    """No copy and no residuals: the encoded hint joins the U-Net's own input.

    A convolution over [z, hint] is the sum of one over z and one over the hint, so the branch holds the second and
    its output is added to that of the U-Net's first convolution.
    """

    def __init__(self, config: UNetConfig, hint_channels: int, hint_widths: Sequence[int]):
        hints = HintEncoder(config.widths[0], hint_channels, hint_widths)
        super().__init__(config, encoder_levels(config)[1], hint_channels, hints)

    def time_table(self, timesteps: Tensor) -> list[Shifts]:
        """Nothing here depends on time."""
        return [{} for _ in timesteps]

    def residuals(self, z: Tensor, t: Tensor | Shifts, context: Context, features: Tensor) -> ControlResiduals:
        """The encoded hint for the input, and nothing for the outputs: rows as many as the features have."""
        nothing = features.new_zeros(1, 1, 1, 1)
        return ControlResiduals((nothing,) * (len(self.levels) - 1), nothing, features)
