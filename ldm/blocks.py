"""Building blocks shared by the U-Net and the autoencoder (Stable Diffusion's numerics)."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

M = TypeVar("M", bound=nn.Module)

Shifts = dict[nn.Module, Tensor]
"""ResBlock -> what the time embedding adds to its channels (b, c): a row of `ldm.reuse.time_table`."""


def repeat_rows(x: Tensor, rows: int) -> Tensor:
    """x (b, ...) -> (rows, ...): the batch as a whole, repeated. A batch of the right size passes through.

    ValueError where b rows do not go into `rows` without rest.
    """
    if len(x) == rows:
        return x
    if rows % len(x):
        raise ValueError(f"{len(x)} rows cannot be shared by {rows}")
    return x.expand(rows, *x.shape[1:]) if len(x) == 1 else x.repeat(rows // len(x), *[1] * (x.ndim - 1))


def timestep_embedding(t: Tensor, channels: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoids of the timestep: (b,) -> (b, channels) in fp32, ordered [cos, sin].

    Frequency k of channels / 2 is max_period^(-2k / channels) (Vaswani et al. 2017, section 3.5).
    """
    half = channels // 2
    freqs = torch.exp(-math.log(max_period) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = t.float()[:, None] * freqs
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def zero_module(module: M) -> M:
    """Set every parameter of `module` to zero and return it."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class _NothingDrawn(TorchFunctionMode):
    """normal_ leaves its tensor as it is. On a meta tensor it would import torch._dynamo: a second of a first step."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ == "normal_":  # of a tensor, or torch.nn.init's
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def without_weights() -> Iterator[None]:
    """Modules built within have shapes and no memory: weights are read into them later (assign=True)."""
    with torch.device("meta"), _NothingDrawn():
        yield


class ResBlock(nn.Module):
    """GroupNorm, SiLU, conv; + time embedding; GroupNorm, SiLU, conv; + skip (1x1 if the width changes).

    `emb_channels=None` leaves the time embedding out (autoencoder). `zero_init` starts the block as its skip.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int | None = None,
        groups: int = 32,
        eps: float = 1e-5,
        zero_init: bool = False,
    ):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.emb_proj = nn.Linear(emb_channels, out_channels) if emb_channels else None
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        if zero_init:
            zero_module(self.conv2)

    def shift(self, emb: Tensor) -> Tensor:
        """What the time embedding (b, emb_channels) adds to the channels: (b, out_channels)."""
        assert self.emb_proj is not None
        return self.emb_proj(F.silu(emb))

    def forward(self, h: Tensor, emb: Tensor | Shifts | None = None) -> Tensor:
        """(b, in_channels, h, w), (b, emb_channels) -> (b, out_channels, h, w)."""
        r = self.conv1(F.silu(self.norm1(h)))
        if self.emb_proj is not None:
            assert emb is not None
            shift = emb[self] if isinstance(emb, dict) else self.shift(emb)
            r = r + rearrange(repeat_rows(shift, len(r)), "b c -> b c 1 1")
        r = self.conv2(F.silu(self.norm2(r)))
        return self.skip(h) + r


class Downsample(nn.Module):
    """Stride-2 convolution. The U-Net pads 1 on every side, the autoencoder only right and bottom."""

    def __init__(self, channels: int, pad_right_bottom: bool = False):
        super().__init__()
        self.pad_right_bottom = pad_right_bottom
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if pad_right_bottom else 1)

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(F.pad(h, (0, 1, 0, 1)) if self.pad_right_bottom else h)


class Upsample(nn.Module):
    """Nearest neighbour x2, or to a given (h, w), then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, h: Tensor, size: torch.Size | None = None) -> Tensor:
        size = size or torch.Size(2 * side for side in h.shape[-2:])
        return self.conv(F.interpolate(h, size, mode="nearest"))
