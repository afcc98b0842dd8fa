"""CLIP's text transformer (Radford et al. 2021): pre-norm, causal, learned positions. Or not causal, as BERT's."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI CLIP's approximation x * sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class TextLayer(nn.Module):
    """LayerNorm, self-attention, add; LayerNorm, MLP of 4 x width, add."""

    def __init__(self, width: int, heads: int, activation: str, causal: bool):
        super().__init__()
        self.heads, self.activation, self.causal = heads, ACTIVATIONS[activation], causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (rearrange(p(h), "b n (h d) -> b h n d", h=self.heads) for p in (self.to_q, self.to_k, self.to_v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.to_out(rearrange(out, "b h n d -> b n (h d)"))
        return x + self.fc2(self.activation(self.fc1(self.norm2(x))))


class TextEncoder(nn.Module):
    """Tokens (b, n) int64, n <= context_length -> embeddings (b, n, width) after the final norm.

    The defaults are the encoder of Stable Diffusion 1.x (CLIP ViT-L/14). `skip_last=1` reads the layer before the
    last, as Stable Diffusion 2.x does; the final norm is applied either way. `projection` carries CLIP's contrastive
    head (text_projection, logit_scale), which is in the files of Stable Diffusion 2.x and which forward does not use.
    `causal=False` lets a word see those after it, as in latent diffusion before CLIP (Rombach et al. 2022, section
    3.3): a small encoder learns "a taco left of a pear" sooner, since the taco's own context can say where it stands.
    """

    def __init__(
        self,
        vocab_size: int = 49408,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        context_length: int = 77,
        activation: str = "quick_gelu",
        skip_last: int = 0,
        projection: bool = False,
        causal: bool = True,
    ):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"model.conditioner.text_encoder.activation must be in {[*ACTIVATIONS]}, got {activation!r}"
            )
        if width % heads:
            raise ValueError(f"model.conditioner.text_encoder: width {width} cannot be split into {heads} heads")
        self.width, self.heads, self.activation = width, heads, activation
        self.context_length, self.skip_last, self.causal = context_length, skip_last, causal
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.position_embedding = nn.Embedding(context_length, width)
        self.layers = nn.ModuleList(TextLayer(width, heads, activation, causal) for _ in range(layers))
        self.final_norm = nn.LayerNorm(width)
        if projection:
            self.text_projection = nn.Parameter(width**-0.5 * torch.randn(width, width))
            self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        # CLIP starts its embeddings at 0.02. With that, one small encoder trained from scratch collapsed: after 2,050
        # steps "red" and "blue" had almost the same context. Large embeddings keep words apart in the residual stream.
        nn.init.normal_(self.token_embedding.weight, std=1.0)
        nn.init.normal_(self.position_embedding.weight, std=0.3)

    def forward(self, tokens: Tensor, clip_skip: int = 0) -> Tensor:
        """clip_skip: leave out as many layers more than `skip_last`."""
        used = len(self.layers) - self.skip_last - clip_skip
        if clip_skip < 0 or used < 0:
            raise ValueError(f"clip_skip must be in 0..{len(self.layers) - self.skip_last}, got {clip_skip}")
        x = self.token_embedding(tokens) + self.position_embedding.weight[: tokens.shape[1]]
        for layer in self.layers[:used]:
            x = layer(x)
        return self.final_norm(x)

    def untold(self) -> dict[str, Any]:
        """What the shapes of the weights do not tell."""
        return {key: getattr(self, key) for key in ("heads", "activation", "skip_last", "causal")}

    def reads(self, name: str) -> bool:
        """Whether forward reads a tensor: not the contrastive head, nor the layers that `skip_last` leaves out."""
        if name.startswith("layers."):
            return int(name.split(".")[1]) < len(self.layers) - self.skip_last
        return name not in ("text_projection", "logit_scale")
