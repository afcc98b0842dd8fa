"""Promises of bf16 on a CPU: products rounded once, whatever the processor has, and nothing else touched."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ldm.precision
from cldm.sampling.generation import Sampling
from ldm.precision import WideProducts, emulates_bf16, fast_products
from ldm.samplers import ddim


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Linear(24, 8), (3, 5, 24)), (nn.Conv2d(8, 4, 3, stride=2, padding=1, bias=False), (2, 8, 6, 6))],
)
@torch.no_grad()
def test_a_product_in_bf16_is_the_exact_one_rounded_once(layer, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    layer = layer.bfloat16()
    with WideProducts():
        found = layer(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, layer.float()(x.float()).bfloat16())


@torch.no_grad()
def test_other_precisions_and_functions_are_left_alone():
    x, w = torch.randn(3, 4), torch.randn(2, 4)
    with WideProducts():
        assert torch.equal(F.linear(x, weight=w), x @ w.T)
        assert F.linear(x.double(), w.double()).dtype == torch.float64
        assert F.silu(x.bfloat16()).dtype == torch.bfloat16
        assert F.linear(x.bfloat16(), weight=w.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("machine", "native", "expected"), [("x86_64", False, True), ("AMD64", True, False), ("arm64", False, False)]
)
def test_products_are_widened_only_where_bf16_is_emulated(monkeypatch, machine, native, expected):
    monkeypatch.setattr(ldm.precision.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert emulates_bf16() == expected
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert isinstance(fast_products(torch.bfloat16, cpu), WideProducts) == expected
    for dtype, device in ((torch.bfloat16, gpu), (torch.float32, cpu), (torch.float16, cpu)):
        assert not isinstance(fast_products(dtype, device), WideProducts)


def test_an_image_drawn_in_bf16_is_as_near_to_that_in_fp32_either_way(diffusion, monkeypatch):
    arguments = (["a red star"], [3], (64, 64))
    exact = Sampling(ddim, steps=3)(diffusion, *arguments)
    diffusion.bfloat16()
    errors = []
    for emulated in (False, True):
        monkeypatch.setattr(ldm.precision, "emulates_bf16", lambda emulated=emulated: emulated)
        errors.append((Sampling(ddim, steps=3)(diffusion, *arguments).float() - exact).abs().mean().item())
    assert 0 < errors[1] < 1.2 * errors[0] < 0.1
