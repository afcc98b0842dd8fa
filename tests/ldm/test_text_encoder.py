"""The text transformer against that of transformers with the same weights."""

import pytest
import torch
from torch import nn

from ldm.interop.names import clip_table, to_ours
from ldm.text_encoder import TextEncoder

SIZES = {"vocab_size": 99, "width": 32, "layers": 3, "heads": 4, "context_length": 12}


def pair(activation: str, skip_last: int = 0) -> tuple[TextEncoder, nn.Module]:
    """This encoder and transformers' with the same random weights."""
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPTextConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=12,
        hidden_act=activation,
        bos_token_id=97,
        eos_token_id=98,
    )
    reference = transformers.CLIPTextModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in reference.parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(noise * p.shape[-1] ** -0.5 if p.ndim > 1 else p + 0.2 * noise)
    state = {name.removeprefix("text_model."): tensor for name, tensor in reference.state_dict().items()}
    whole = TextEncoder(**SIZES, activation=activation)  # all of the layers, whichever is read
    shapes = {name: tensor.shape for name, tensor in whole.state_dict().items()}
    ours = TextEncoder(**SIZES, activation=activation, skip_last=skip_last)
    ours.load_state_dict(to_ours(state, clip_table(whole), shapes), strict=True)
    return ours.eval(), reference


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 97, (3, 12), generator=torch.Generator().manual_seed(1))


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    assert b.std() > 0.05  # numbers that could differ
    return (a - b).abs().max().item()


@torch.no_grad()
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_the_text_encoder_equals_that_of_transformers(activation, tokens):
    ours, reference = pair(activation)
    assert difference(ours(tokens), reference(tokens).last_hidden_state) < 1e-5


@torch.no_grad()
def test_the_two_activations_differ(tokens):
    assert difference(pair("gelu")[0](tokens), pair("quick_gelu")[0](tokens)) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("skip_last", [1, 2])
def test_skip_last_reads_an_earlier_layer_through_the_final_norm(skip_last, tokens):
    ours, reference = pair("gelu", skip_last)
    hidden = reference(tokens, output_hidden_states=True).hidden_states[-1 - skip_last]
    norm = getattr(reference, "text_model", reference).final_layer_norm  # older transformers nest it
    assert difference(ours(tokens), norm(hidden)) < 1e-5


@torch.no_grad()
def test_a_token_does_not_see_those_after_it(tokens):
    ours, _ = pair("quick_gelu")
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 97
    before, after = ours(tokens), ours(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert ((before[:, 5:] - after[:, 5:]).abs().amax(dim=(0, 2)) > 1e-3).all()


@torch.no_grad()
def test_without_causality_every_token_sees_all_others(tokens):
    ours, _ = pair("quick_gelu")
    open_eyed = TextEncoder(**SIZES, causal=False).eval()
    open_eyed.load_state_dict(ours.state_dict())
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 97
    assert ((open_eyed(tokens) - open_eyed(changed)).abs().amax(dim=(0, 2)) > 1e-3).all()


@torch.no_grad()
def test_fewer_tokens_give_the_first_embeddings(tokens):
    ours, _ = pair("quick_gelu")
    torch.testing.assert_close(ours(tokens[:, :7]), ours(tokens)[:, :7])


def test_the_defaults_have_the_size_of_clip_vit_l_14():
    with torch.device("meta"):
        encoder = TextEncoder()
    assert sum(p.numel() for p in encoder.parameters()) == 123_060_480


def test_wrong_sizes_are_refused_naming_the_key():
    with pytest.raises(ValueError, match=r"text_encoder\.activation must be in .*quick_gelu.*'relu'"):
        TextEncoder(**SIZES, activation="relu")
    with pytest.raises(ValueError, match="width 32 cannot be split into 5 heads"):
        TextEncoder(**{**SIZES, "heads": 5})
