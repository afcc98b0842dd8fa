"""AutoencoderKL: images to latents and back (Rombach et al. 2022, section 3.1; Stable Diffusion's layout)."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.attention import SelfAttention
from ldm.blocks import Downsample, ResBlock, Upsample

EPS = 1e-6  # of every GroupNorm in the autoencoder


@dataclass(frozen=True)
class DiagonalGaussian:
    """q(z | x): mean and log-variance, each (b, c, h, w); the log-variance is clamped to [-30, 20]."""

    mean: Tensor
    logvar: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> "DiagonalGaussian":
        """moments (b, 2c, h, w) holds the mean first, then the log-variance."""
        mean, logvar = moments.chunk(2, dim=1)
        return cls(mean, logvar.clamp(-30.0, 20.0))

    def sample(self, eps: Tensor) -> Tensor:
        """mean + std * eps, for standard normal eps of the mean's shape."""
        return self.mean + torch.exp(0.5 * self.logvar) * eps

    def kl(self) -> Tensor:
        """KL(q || N(0, 1)) in nats, summed over each image's latents: (b,)."""
        kl = 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar)
        return kl.flatten(1).sum(dim=1)


class AttentionBlock(nn.Module):
    """Single-head self-attention over pixels, with biases, behind a GroupNorm."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=EPS)
        self.attention = SelfAttention(channels, heads=1, qkv_bias=True)

    def forward(self, h: Tensor) -> Tensor:
        tokens = rearrange(self.norm(h), "b c h w -> b (h w) c")
        return h + rearrange(self.attention(tokens), "b (h w) c -> b c h w", h=h.shape[2])


class Middle(nn.Sequential):
    """ResBlock, attention, ResBlock at the lowest resolution."""

    def __init__(self, channels: int, groups: int):
        super().__init__(
            ResBlock(channels, channels, groups=groups, eps=EPS),
            AttentionBlock(channels, groups),
            ResBlock(channels, channels, groups=groups, eps=EPS),
        )


def _level(in_channels: int, out_channels: int, res_blocks: int, groups: int) -> list[nn.Module]:
    widths = [in_channels] + [out_channels] * res_blocks
    return [ResBlock(a, b, groups=groups, eps=EPS) for a, b in itertools.pairwise(widths)]


class Encoder(nn.Module):
    """(b, in_channels, h, w) -> (b, out_channels, h / 2^(levels - 1), ...)."""

    def __init__(self, in_channels: int, out_channels: int, widths: Sequence[int], res_blocks: int, groups: int):
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.levels = nn.ModuleList()
        for i, width in enumerate(widths):
            level = _level(widths[max(i - 1, 0)], width, res_blocks, groups)
            if i < len(widths) - 1:
                level.append(Downsample(width, pad_right_bottom=True))
            self.levels.append(nn.Sequential(*level))
        self.middle = Middle(widths[-1], groups)
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.levels:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.middle(h))))


class Decoder(nn.Module):
    """(b, in_channels, h, w) -> (b, out_channels, h * 2^(levels - 1), ...). One ResBlock more per level."""

    def __init__(self, in_channels: int, out_channels: int, widths: Sequence[int], res_blocks: int, groups: int):
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, widths[-1], 3, padding=1)
        self.middle = Middle(widths[-1], groups)
        self.levels = nn.ModuleList()
        for i in reversed(range(len(widths))):
            level = _level(widths[min(i + 1, len(widths) - 1)], widths[i], res_blocks + 1, groups)
            if i > 0:
                level.append(Upsample(widths[i]))
            self.levels.append(nn.Sequential(*level))
        self.norm_out = nn.GroupNorm(groups, widths[0], eps=EPS)
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.middle(self.conv_in(z))
        for level in self.levels:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class AutoencoderKL(nn.Module):
    """Images x (b, 3, h, w) in [-1, 1] <-> latents z (b, z_channels, h / factor, w / factor) of about unit std.

    channels, channel_mult: width of each level; each level but the last halves the resolution.
    patch: fold patch x patch pixels into channels before the first convolution and unfold them after the last
        (1 in Stable Diffusion; 2 keeps the small autoencoder off the costly full resolution).
    scale: latents are multiplied by it (0.18215 in Stable Diffusion); kept in the state dict.
    """

    scale: Tensor

    def __init__(
        self,
        channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 4, 4),
        res_blocks: int = 2,
        z_channels: int = 4,
        in_channels: int = 3,
        patch: int = 1,
        groups: int = 32,
        scale: float = 0.18215,
    ):
        super().__init__()
        widths = [channels * m for m in channel_mult]
        pixels = in_channels * patch**2
        self.patch, self.z_channels = patch, z_channels
        self.factor = patch * 2 ** (len(widths) - 1)
        self.encoder = Encoder(pixels, 2 * z_channels, widths, res_blocks, groups)
        self.decoder = Decoder(z_channels, pixels, widths, res_blocks, groups)
        self.quant_conv = nn.Conv2d(2 * z_channels, 2 * z_channels, 1)
        self.post_quant_conv = nn.Conv2d(z_channels, z_channels, 1)
        self.register_buffer("scale", torch.tensor(float(scale)))

    def untold(self) -> dict[str, int]:
        """What the shapes of the weights do not tell; files carry it in their metadata."""
        return {"groups": self.encoder.norm_out.num_groups}

    def moments(self, x: Tensor) -> Tensor:
        """Mean and log-variance of q(z | x) before scaling: (b, 2 z_channels, h / factor, w / factor)."""
        if x.shape[-1] % self.factor or x.shape[-2] % self.factor:
            raise ValueError(f"image sides must be multiples of {self.factor}, got {tuple(x.shape[-2:])}")
        return self.quant_conv(self.encoder(F.pixel_unshuffle(x, self.patch)))

    def posterior(self, x: Tensor) -> DiagonalGaussian:
        """q(z | x) before scaling."""
        return DiagonalGaussian.from_moments(self.moments(x))

    def latents(self, moments: Tensor, eps: Tensor | None = None) -> Tensor:
        """Scaled latents from moments; the mean when no noise eps is given."""
        posterior = DiagonalGaussian.from_moments(moments)
        return self.scale * (posterior.mean if eps is None else posterior.sample(eps))

    def encode(self, x: Tensor, eps: Tensor | None = None) -> Tensor:
        """Image to scaled latents; the posterior's mean when no noise eps is given."""
        return self.latents(self.moments(x), eps)

    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents to an image of about [-1, 1] (not clamped)."""
        return F.pixel_shuffle(self.decoder(self.post_quant_conv(z / self.scale)), self.patch)
