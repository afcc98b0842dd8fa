"""The U-Net of latent diffusion: encoder, middle, decoder (Stable Diffusion's block structure).

The encoder (with the middle) and the decoder are separate modules: a control branch is a copy of the encoder, and a
locked encoder can run without a graph while gradients flow through the locked decoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.attention import Context, SpatialTransformer
from ldm.blocks import (
    Downsample,
    ResBlock,
    Shifts,
    Upsample,
    repeat_rows,
    timestep_embedding,
    without_weights,
    zero_module,
)  # fmt: skip


def _add(a: Tensor, b: Tensor) -> Tensor:
    rows = max(len(a), len(b))
    return repeat_rows(a, rows) + repeat_rows(b, rows)


@dataclass(frozen=True)
class ControlResiduals:
    """What a control branch adds: one tensor per encoder output (shallowest first) and one for the middle.

    input: for the first convolution's output, before the encoder goes on; of branches that act as input channels.
    `a + b` composes branches; `r * s` scales all residuals by a number, or each by its own (skips, then middle; the
    input by the first).
    Rows: those of the U-Net's batch, or a whole fraction of them, which is then repeated.
    """

    skips: tuple[Tensor, ...]
    middle: Tensor
    input: Tensor | None = None

    def __add__(self, other: "ControlResiduals") -> "ControlResiduals":
        skips = tuple(_add(a, b) for a, b in zip(self.skips, other.skips, strict=True))
        inputs = [r.input for r in (self, other) if r.input is not None]
        return ControlResiduals(skips, _add(self.middle, other.middle), reduce(_add, inputs) if inputs else None)

    def __mul__(self, scale: float | Sequence[float]) -> "ControlResiduals":
        count = len(self.skips) + 1
        scales = [scale] * count if isinstance(scale, int | float) else list(scale)
        if len(scales) != count:
            raise ValueError(f"got {len(scales)} control scales, the branch has {count} residuals")
        skips = tuple(s * r for s, r in zip(scales[:-1], self.skips, strict=True))
        entering = None if self.input is None else scales[0] * self.input
        return ControlResiduals(skips, scales[-1] * self.middle, entering)


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of a U-Net; the defaults are Stable Diffusion 1.5's.

    channels, channel_mult: width of each level; each level but the last halves the resolution.
    attention: per level, whether a SpatialTransformer follows each ResBlock (the middle always has one).
    heads: heads of every attention, or None to give each head `head_channels` channels (SD2: 64).
    backend: attention backend, see ldm.attention.
    linear_projections: how published files hold proj_in and proj_out of a SpatialTransformer: 1x1 convolutions (SD1) or
        linear layers (SD2). The module is the same; ldm.interop reads and writes by it.
    """

    in_channels: int = 4
    out_channels: int = 4
    channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    res_blocks: int = 2
    attention: tuple[bool, ...] = (True, True, True, False)
    context_channels: int = 768
    heads: int | None = 8
    head_channels: int = 64
    depth: int = 1
    groups: int = 32
    backend: str = "auto"
    linear_projections: bool = False
    widths: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        if len(self.attention) != len(self.channel_mult):
            raise ValueError(
                f"model.unet.config.attention has {len(self.attention)} entries, "
                f"model.unet.config.channel_mult {len(self.channel_mult)}; they must agree"
            )
        object.__setattr__(self, "widths", tuple(int(self.channels * m) for m in self.channel_mult))

    def untold(self) -> dict[str, Any]:
        """What the shapes of the weights do not tell; files carry it in their metadata."""
        return {key: getattr(self, key) for key in ("heads", "head_channels", "groups", "linear_projections")}

    @property
    def emb_channels(self) -> int:
        """Width of the time embedding."""
        return 4 * self.channels

    def res(self, in_channels: int, out_channels: int) -> ResBlock:
        """A ResBlock that starts as its skip connection."""
        return ResBlock(in_channels, out_channels, self.emb_channels, self.groups, zero_init=True)

    def transformer(self, channels: int) -> SpatialTransformer:
        """A SpatialTransformer with this configuration's heads."""
        heads = self.heads or channels // self.head_channels
        return SpatialTransformer(channels, self.context_channels, heads, self.depth, self.groups, self.backend)


class Block(nn.Module):
    """One step of the encoder or decoder: ResBlock, then attention, then a change of resolution; each optional."""

    def __init__(
        self,
        res: ResBlock | None = None,
        attention: SpatialTransformer | None = None,
        resample: Downsample | Upsample | None = None,
    ):
        super().__init__()
        self.res, self.attention, self.resample = res, attention, resample

    def forward(
        self, h: Tensor, emb: Tensor | Shifts, context: Context, upsample_to: torch.Size | None = None
    ) -> Tensor:
        if self.res is not None:
            h = self.res(h, emb)
        if self.attention is not None:
            h = self.attention(h, context)
        if isinstance(self.resample, Upsample):
            h = self.resample(h, upsample_to)
        elif self.resample is not None:
            h = self.resample(h)
        return h


class Middle(nn.Module):
    """ResBlock, attention, ResBlock at the lowest resolution."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        width = config.widths[-1]
        self.res1, self.attention, self.res2 = (
            config.res(width, width),
            config.transformer(width),
            config.res(width, width),
        )

    def forward(self, h: Tensor, emb: Tensor | Shifts, context: Context) -> Tensor:
        return self.res2(self.attention(self.res1(h, emb), context), emb)


@dataclass(frozen=True)
class Encoded:
    """The encoder's outputs, shallowest first, the middle's output, and the time embedding."""

    skips: tuple[Tensor, ...]
    middle: Tensor
    emb: Tensor | Shifts

    def __add__(self, control: ControlResiduals) -> "Encoded":
        skips = tuple(_add(s, r) for s, r in zip(self.skips, control.skips, strict=True))
        return Encoded(skips, _add(self.middle, control.middle), self.emb)


def encoder_levels(config: UNetConfig) -> tuple[list[int], list[int]]:
    """Channels of the encoder's outputs, conv_in's first; and their levels (the side is halved that many times),
    with the middle's last."""
    with without_weights():
        encoder = UNetEncoder(config)
    return encoder.out_channels, encoder.levels


class UNetEncoder(nn.Module):
    """Time embedding, first convolution, encoder blocks and middle: 12 outputs and 1 in Stable Diffusion."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        widths = config.widths
        self.time_embed = nn.Sequential(
            nn.Linear(config.channels, config.emb_channels),
            nn.SiLU(),
            nn.Linear(config.emb_channels, config.emb_channels),
        )
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        self.out_channels = [widths[0]]  # of every encoder output, conv_in's first
        self.levels = [0]  # and its level: the side is halved that many times
        for level, width in enumerate(widths):
            for _ in range(config.res_blocks):
                attention = config.transformer(width) if config.attention[level] else None
                self.blocks.append(Block(config.res(self.out_channels[-1], width), attention))
                self.out_channels.append(width)
                self.levels.append(level)
            if level < len(widths) - 1:
                self.blocks.append(Block(resample=Downsample(width)))
                self.out_channels.append(width)
                self.levels.append(level + 1)
        self.middle = Middle(config)
        self.levels.append(len(widths) - 1)  # the middle's

    def embed_time(self, t: Tensor | Shifts) -> Tensor | Shifts:
        """Timesteps (b,) to the embedding every ResBlock receives (b, 4 * channels); a time table's row as it is."""
        if isinstance(t, dict):
            return t
        emb = timestep_embedding(t, self.config.channels)
        return self.time_embed(emb.to(self.conv_in.weight.dtype))

    def encode(self, h: Tensor, emb: Tensor | Shifts, context: Context) -> Encoded:
        """Everything after the first convolution, whose output is h."""
        skips = [h]
        for block in self.blocks:
            skips.append(block(skips[-1], emb, context))
        return Encoded(tuple(skips), self.middle(skips[-1], emb, context), emb)

    def forward(self, z: Tensor, t: Tensor | Shifts, context: Context, control: Tensor | None = None) -> Encoded:
        """control: ControlResiduals.input."""
        h = self.conv_in(z)
        return self.encode(h if control is None else _add(h, control), self.embed_time(t), context)


class UNetDecoder(nn.Module):
    """The mirror of the encoder: every block first concatenates the encoder output of its height."""

    def __init__(self, config: UNetConfig, skip_channels: Sequence[int]):
        super().__init__()
        skips, width = list(skip_channels), config.widths[-1]
        self.blocks = nn.ModuleList()
        for level in reversed(range(len(config.widths))):
            for i in range(config.res_blocks + 1):
                out = config.widths[level]
                self.blocks.append(
                    Block(
                        config.res(width + skips.pop(), out),
                        config.transformer(out) if config.attention[level] else None,
                        Upsample(out) if level > 0 and i == config.res_blocks else None,
                    )
                )
                width = out
        self.norm_out = nn.GroupNorm(config.groups, width, eps=1e-5)
        self.conv_out = zero_module(nn.Conv2d(width, config.out_channels, 3, padding=1))

    def forward(self, encoded: Encoded, context: Context) -> Tensor:
        h, skips = encoded.middle, encoded.skips[::-1]
        sizes = [*(skip.shape[-2:] for skip in skips[1:]), None]  # an odd side was rounded up on the way down
        for block, skip, size in zip(self.blocks, skips, sizes, strict=True):
            h = block(torch.cat([h, repeat_rows(skip, len(h))], dim=1), encoded.emb, context, size)
        return self.conv_out(F.silu(self.norm_out(h)))


class UNet(nn.Module):
    """Noisy latents z (b, c, h, w), timesteps t (b,) and context (b, n, d) to eps or v (b, c, h, w).

    Rows may be shared. t may have one row for all; a context of k b rows asks k prompts about every latent, and
    the answer has k b rows: what comes before the first cross-attention runs on b rows. t and context may also
    be what does not change between calls, computed once: see ldm.reuse.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        self.encoder = UNetEncoder(config)
        self.decoder = UNetDecoder(config, self.encoder.out_channels)

    def forward(
        self, z: Tensor, t: Tensor | Shifts, context: Context, control: ControlResiduals | None = None
    ) -> Tensor:
        encoded = self.encoder(z, t, context, control.input if control else None)
        if control is not None:
            encoded = encoded + control
        return self.decoder(encoded, context)
