"""Nothing computed twice: what stays the same over the steps of sampling, computed once.

Both results go where the plain tensors go, into the forward of `UNet`, `UNetEncoder` and `ControlNet`, and change
the output by rounding only.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ldm.attention import CrossAttention, KeysValues, SelfAttention
from ldm.blocks import ResBlock, Shifts
from ldm.unet import ControlResiduals, UNetEncoder


def keys_values(module: nn.Module, context: Tensor) -> KeysValues:
    """Keys and values of fixed prompts (b, n, d) for every cross-attention inside `module`."""
    return {
        layer: layer.keys_values(context)
        for layer in module.modules()
        if isinstance(layer, CrossAttention) and not isinstance(layer, SelfAttention)
    }


def time_table(module: nn.Module, encoder: UNetEncoder, timesteps: Tensor) -> list[Shifts]:
    """For each of the timesteps (n,): what every ResBlock inside `module` adds to its channels, each (1, c).

    encoder: the part of the module that embeds time. One matrix product per ResBlock for all steps together.
    """
    emb = encoder.embed_time(timesteps.to(encoder.conv_in.weight.device))
    assert isinstance(emb, Tensor)
    tables = {block: block.shift(emb) for block in module.modules() if isinstance(block, ResBlock) and block.emb_proj}
    return [{block: table[i : i + 1] for block, table in tables.items()} for i in range(len(timesteps))]


@functools.lru_cache(maxsize=8)
def compiled(function: Callable) -> Callable:
    """torch.compile of a module or method, remembered; on a GPU with CUDA graphs, which give up launch gaps.

    A run with control and one without are two graphs. The next replay of a CUDA graph overwrites what it returned,
    while multistep samplers keep old answers and residuals wait for the U-Net: answers are copied out of it.
    """
    if not torch.cuda.is_available():
        return torch.compile(function)
    replayed = torch.compile(function, mode="reduce-overhead")
    return lambda *inputs: _copied(replayed(*inputs))


def _copied(answer: Tensor | ControlResiduals) -> Tensor | ControlResiduals:
    if isinstance(answer, Tensor):
        return answer.clone()
    return answer * 1.0
