"""Attention: its backends agree, and what a wrong configuration is told."""

import importlib.util
import sys
import types

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


# ------------------------------------------------------------------ xformers, which has no kernel for a CPU


def memory_efficient_attention(query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None, output_dtype=None):
    """xformers 0.0.35's function: its signature, what its inputs must be, and the PyTorch code its docstring gives."""
    assert [x.ndim for x in (query, key, value)] == [4, 4, 4]  # (b, n, heads, d)
    assert key.shape[:3] == value.shape[:3]
    assert (len(query), *query.shape[2:]) == (len(key), *key.shape[2:])
    assert query.dtype == key.dtype == value.dtype
    assert all(x.stride(-1) == 1 for x in (query, key, value))
    assert (attn_bias, p, op, output_dtype) == (None, 0.0, None, None)
    query = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return ((query @ key.transpose(-2, -1)).softmax(-1) @ value).transpose(1, 2).contiguous()


@pytest.fixture
def xformers(monkeypatch):
    """A stand-in for the package that takes CPU tensors, which are told from a GPU's by their device alone."""
    ops = types.ModuleType("xformers.ops")
    ops.memory_efficient_attention = memory_efficient_attention
    monkeypatch.setitem(sys.modules, "xformers", types.ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    monkeypatch.setattr(torch.Tensor, "device", torch.device("cuda"))


def test_xformers_gets_its_own_layout_and_scale_and_agrees(xformers):
    for cut in (lambda x: x, lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)):
        q, k, v = map(cut, qkv())
        torch.testing.assert_close(attend(q, k, v, "xformers"), attend(q, k, v, "einsum"), rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_transformer_block_calls_xformers_as_the_others(xformers):
    """Self- and cross-attention, of one latent under two prompts too: keys of more rows than queries."""
    rng = torch.Generator().manual_seed(0)
    h, context = torch.randn(1, 16, 5, 3, generator=rng), torch.randn(2, 7, 8, generator=rng)
    found = {}
    for backend in ("einsum", "xformers"):
        torch.manual_seed(0)
        transformer = SpatialTransformer(16, 8, heads=4, groups=4, backend=backend)
        torch.nn.init.normal_(transformer.proj_out.weight)
        found[backend] = transformer(h, context)
    assert (found["einsum"][0] - found["einsum"][1]).abs().max() > 0.01
    torch.testing.assert_close(found["xformers"], found["einsum"], rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available() or not importlib.util.find_spec("xformers"), reason="needs both")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_xformers_itself_agrees_on_a_gpu(dtype):
    q, k, v = (x.cuda() for x in qkv(dtype))
    expected = attend(*(x.float() for x in (q, k, v)), "einsum")
    torch.testing.assert_close(attend(q, k, v, "xformers").float(), expected, rtol=0, atol=2e-2)


def test_xformers_on_a_cpu_is_refused_with_what_to_take_instead():
    with pytest.raises(ValueError, match=r"backend=xformers needs a GPU, the model is on cpu; take backend=auto"):
        attend(*qkv(), backend="xformers")


def test_a_missing_xformers_is_told_when_the_model_is_built_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[xformers\]'"):
        CrossAttention(8, 8, heads=2, backend="xformers")


# ------------------------------------------------------------------ attention layers


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
