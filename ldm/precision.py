"""bf16 on processors that have no instructions for it."""

import contextlib
import platform
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

PRODUCTS = (F.linear, F.conv2d)


def emulates_bf16() -> bool:
    """Whether this processor is an x86 without AVX512-BF16 and AMX: PyTorch then emulates products in bf16."""
    native = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # not in every version of PyTorch
    return platform.machine().lower() in ("x86_64", "amd64") and not any(
        getattr(torch.cpu, name, lambda: True)() for name in native
    )


class WideProducts(TorchFunctionMode):
    """Linear layers and convolutions of bf16 tensors, computed in fp32 and rounded to bf16 once.

    Weights stay in bf16 and are widened for the moment of their use. At Stable Diffusion 1.5's sizes that took a third
    of the emulated products' time, and as long where a convolution has much more weights than pixels.
    """

    def __torch_function__(
        self, function: Callable, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function not in PRODUCTS or args[0].dtype != torch.bfloat16:
            return function(*args, **kwargs)
        return function(*map(_wide, args), **{key: _wide(value) for key, value in kwargs.items()}).bfloat16()


def _wide(argument: Any) -> Any:
    return argument.float() if isinstance(argument, Tensor) else argument


def fast_products(dtype: torch.dtype, device: torch.device) -> contextlib.AbstractContextManager:
    """Inside, products in bf16 on a CPU are computed the way that is the faster one on this processor."""
    slow = dtype == torch.bfloat16 and device.type == "cpu" and emulates_bf16()
    return WideProducts() if slow else contextlib.nullcontext()
