"""Attention and the transformer blocks of the U-Net."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.blocks import repeat_rows, zero_module

BACKENDS = ("auto", "sdpa", "xformers", "einsum")

KeysValues = dict[nn.Module, tuple[Tensor, Tensor]]
"""CrossAttention -> its keys and values of the prompts, each (b, heads, n, d): see `ldm.reuse.keys_values`."""

Context = Tensor | KeysValues
"""Prompts as cross-attention reads them: embeddings (b, n, d), or the keys and values made of them once."""


def attend(q: Tensor, k: Tensor, v: Tensor, backend: str = "auto") -> Tensor:
    """softmax(q k^T / sqrt(d)) v for q (b, heads, n, d) and k, v (b, heads, m, d).

    auto: einsum for training in bf16 on the CPU (the backward of the fused kernel takes half a step), else sdpa:
    without gradients the fused kernel is 2 to 5 times as fast there at Stable Diffusion's sizes, and 0.9 to 5 in fp32.
    """
    if backend == "auto":
        trains = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
        backend = "einsum" if trains and q.dtype == torch.bfloat16 and q.device.type == "cpu" else "sdpa"
    if backend == "sdpa":
        return F.scaled_dot_product_attention(q, k, v)
    if backend == "xformers":
        return _xformers(q, k, v)
    if backend == "einsum":
        weights = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
        return weights @ v
    raise ValueError(f"model.unet.config.backend must be one of {BACKENDS}, got {backend!r}")


def xformers_kernel() -> Callable[..., Tensor]:
    """xformers' attention of q (b, n, heads, d) and k, v (b, m, heads, d); ImportError says how to install it."""
    try:
        from xformers.ops import memory_efficient_attention
    except ImportError as error:
        raise ImportError(
            "model.unet.config.backend=xformers needs `pip install -e '.[xformers]'`; without it take backend=auto"
        ) from error
    return memory_efficient_attention


def _xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if q.device.type != "cuda":  # it would list a dozen kernels, none of which has a CPU form
        raise ValueError(
            f"model.unet.config.backend=xformers needs a GPU, the model is on {q.device.type}; take backend=auto"
        )
    return xformers_kernel()(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


class CrossAttention(nn.Module):
    """Multi-head attention from x (b, n, channels) to context (b, m, context_channels).

    A context of k b rows asks k prompts about every x: x's rows are repeated as a whole, the result has k b rows.
    """

    def __init__(
        self,
        channels: int,
        context_channels: int,
        heads: int,
        qkv_bias: bool = False,
        backend: str = "auto",
    ):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be split into {heads} heads (model.unet.config.heads)")
        if backend not in BACKENDS:
            raise ValueError(f"model.unet.config.backend must be one of {BACKENDS}, got {backend!r}")
        if backend == "xformers":
            xformers_kernel()  # told now, not at the first step
        self.heads, self.backend = heads, backend
        self.to_q = nn.Linear(channels, channels, bias=qkv_bias)
        self.to_k = nn.Linear(context_channels, channels, bias=qkv_bias)
        self.to_v = nn.Linear(context_channels, channels, bias=qkv_bias)
        self.to_out = nn.Linear(channels, channels)

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (h d) -> b h n d", h=self.heads)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (b, heads, m, d) of a context (b, m, context_channels)."""
        return self._heads(self.to_k(context)), self._heads(self.to_v(context))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        q = self._heads(self.to_q(x))
        k, v = context[self] if isinstance(context, dict) else self.keys_values(context)
        out = attend(repeat_rows(q, len(k)), k, v, self.backend)
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))


class SelfAttention(CrossAttention):
    """Attention of x (b, n, channels) to itself."""

    def __init__(self, channels: int, heads: int, qkv_bias: bool = False, backend: str = "auto"):
        super().__init__(channels, channels, heads, qkv_bias, backend)

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        return super().forward(x, x)


class GEGLU(nn.Module):
    """Feed-forward with a gated GELU (Shazeer 2020): out(a * gelu(b)), inner width 4 x channels."""

    def __init__(self, channels: int, mult: int = 4):
        super().__init__()
        self.proj = nn.Linear(channels, 2 * mult * channels)
        self.out = nn.Linear(mult * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.proj(x).chunk(2, dim=-1)
        return self.out(a * F.gelu(b))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward; each behind a LayerNorm, each added."""

    def __init__(self, channels: int, context_channels: int, heads: int, backend: str = "auto"):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.self_attention = SelfAttention(channels, heads, backend=backend)
        self.cross_attention = CrossAttention(channels, context_channels, heads, backend=backend)
        self.feed_forward = GEGLU(channels)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        x = x + self.self_attention(self.norm1(x))
        told = self.cross_attention(self.norm2(x), context)
        x = repeat_rows(x, len(told)) + told
        return x + self.feed_forward(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map (b, c, h, w), behind a GroupNorm and two projections.

    SD1 projects with 1x1 convolutions, SD2 with linear layers; both are linear layers here (the weights of the
    two differ by two trailing axes of size 1, which interop adds and removes).
    """

    def __init__(
        self,
        channels: int,
        context_channels: int,
        heads: int,
        depth: int = 1,
        groups: int = 32,
        backend: str = "auto",
    ):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.blocks = nn.ModuleList(TransformerBlock(channels, context_channels, heads, backend) for _ in range(depth))
        self.proj_out = zero_module(nn.Linear(channels, channels))

    def forward(self, h: Tensor, context: Context) -> Tensor:
        height = h.shape[2]
        x = self.proj_in(rearrange(self.norm(h), "b c h w -> b (h w) c"))
        for block in self.blocks:
            x = block(x, context)
        return repeat_rows(h, len(x)) + rearrange(self.proj_out(x), "b (h w) c -> b c h w", h=height)
