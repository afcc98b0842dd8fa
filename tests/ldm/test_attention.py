"""Attention: its backends agree, and what a wrong configuration is told."""

import importlib.util

import pytest
import torch

import ldm.attention
from ldm.attention import CrossAttention, SelfAttention, SpatialTransformer, attend


def qkv(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 3, 17, 8), (2, 3, 11, 8), (2, 3, 11, 8)
    return [2 * torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def test_every_backend_is_softmax_of_scaled_products():
    q, k, v = qkv()
    scores = torch.einsum("bhnd,bhmd->bhnm", q.double(), k.double()) / 8**0.5
    expected = torch.einsum("bhnm,bhmd->bhnd", scores.softmax(dim=-1), v.double()).float()
    for backend in ("sdpa", "einsum", "auto"):
        torch.testing.assert_close(attend(q, k, v, backend), expected, rtol=0, atol=1e-5)


def test_a_single_key_returns_its_value():
    q, k, v = qkv()
    for backend in ("sdpa", "einsum"):
        expected = v[:, :, :1].expand(-1, -1, 17, -1)
        torch.testing.assert_close(attend(q, k[:, :, :1], v[:, :, :1], backend), expected)


@pytest.mark.parametrize(
    ("dtype", "trains", "fused"),
    [(torch.float32, True, True), (torch.bfloat16, True, False), (torch.bfloat16, False, True)],
)
def test_auto_avoids_the_fused_kernel_for_training_in_bf16_on_the_cpu(monkeypatch, dtype, trains, fused):
    """Its backward is slow there; its forward is the faster one."""
    calls = []
    kernel = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        ldm.attention.F,
        "scaled_dot_product_attention",
        lambda *a, **k: calls.append(1) or kernel(*a, **k),
    )
    q, k, v = qkv(dtype)
    assert attend(q.requires_grad_(trains), k, v).dtype == dtype
    assert bool(calls) == fused


@pytest.mark.parametrize(
    "use", [lambda: attend(*qkv(), backend="flash"), lambda: CrossAttention(8, 8, heads=2, backend="flash")]
)
def test_an_unknown_backend_is_refused_naming_the_key_and_the_choice(use):
    with pytest.raises(ValueError, match=r"model\.unet\.config\.backend must be one of .*einsum.*'flash'"):
        use()


@pytest.mark.skipif(importlib.util.find_spec("xformers") is not None, reason="xformers is installed")
def test_a_missing_xformers_is_told_with_the_command_that_installs_it():
    with pytest.raises(ImportError, match=r"pip install -e '\.\[xformers\]'"):
        attend(*qkv(), backend="xformers")


def test_self_attention_attends_to_itself():
    attention = SelfAttention(16, heads=4)
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    cross = CrossAttention(16, 16, heads=4)
    cross.load_state_dict(attention.state_dict())
    assert torch.equal(attention(x), cross(x, x))
    assert not torch.allclose(attention(x), cross(x, torch.flip(x, [0])))


def test_heads_see_their_own_channels_only():
    """Of two heads, the first reads and writes the first half of the channels."""
    attention = CrossAttention(4, 4, heads=2)
    with torch.no_grad():
        for layer in (attention.to_q, attention.to_k, attention.to_v, attention.to_out):
            layer.weight.copy_(torch.eye(4))
        attention.to_out.bias.zero_()
    x, context = torch.randn(2, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    changed = context + torch.tensor([0.0, 0.0, 1.0, 0.0]) * torch.arange(3.0)[:, None]
    before, after = attention(x, context), attention(x, changed)
    assert torch.equal(before[..., :2], after[..., :2])
    assert not torch.allclose(before[..., 2:], after[..., 2:])


def test_channels_that_do_not_split_into_heads_are_refused():
    with pytest.raises(ValueError, match=r"10 channels cannot be split into 4 heads \(model\.unet\.config\.heads\)"):
        CrossAttention(10, 8, heads=4)


def test_a_fresh_spatial_transformer_passes_its_input_on():
    transformer = SpatialTransformer(16, 8, heads=2, groups=4)
    h, context = torch.randn(1, 16, 4, 6), torch.randn(1, 3, 8)
    assert torch.equal(transformer(h, context), h)
    torch.nn.init.normal_(transformer.proj_out.weight)
    assert not torch.allclose(transformer(h, context), h)
