"""The U-Net against diffusers' with the same weights, and the control residuals."""

import warnings

import pytest
import torch
from torch import nn

from ldm.blocks import timestep_embedding
from ldm.interop.names import to_ours, unet_table
from ldm.unet import ControlResiduals, UNet, UNetConfig

WIDTHS, CONTEXT, GROUPS = (32, 64, 64, 64), 16, 8
CONFIG = UNetConfig(
    channels=32, channel_mult=(1, 2, 2, 2), context_channels=CONTEXT, heads=4, groups=GROUPS, res_blocks=2
)
SD2 = UNetConfig(
    channels=32,
    channel_mult=(1, 2, 2, 2),
    context_channels=CONTEXT,
    heads=None,
    head_channels=16,
    groups=GROUPS,
    linear_projections=True,
)


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Give every parameter, the zero-initialised ones and the norms too, its own random value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(noise * p[0].numel() ** -0.5 if p.ndim > 1 else p + 0.2 * noise)


def diffusers_unet(**options) -> nn.Module:
    diffusers = pytest.importorskip("diffusers")
    reference = diffusers.UNet2DConditionModel(
        block_out_channels=WIDTHS,
        layers_per_block=2,
        cross_attention_dim=CONTEXT,
        norm_num_groups=GROUPS,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        **options,
    )
    randomise(reference)
    return reference.eval()


def pair(config: UNetConfig, **options) -> tuple[UNet, nn.Module]:
    """This U-Net and diffusers' with the same random weights."""
    unet, reference = UNet(config), diffusers_unet(**options)
    shapes = {name: tensor.shape for name, tensor in unet.state_dict().items()}
    table = unet_table(unet, "diffusers")
    assert len(table) == len(reference.state_dict())
    unet.load_state_dict(to_ours(reference.state_dict(), table, shapes), strict=True)
    return unet.eval(), reference


# what diffusers calls attention_head_dim is the number of heads
@pytest.fixture(scope="module")
def sd1():
    return pair(CONFIG, attention_head_dim=4)


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(2, 4, 16, 24, generator=generator)
    context = torch.randn(2, 7, CONTEXT, generator=generator)
    return z, torch.tensor([3, 981]), context


def random_control(unet: UNet, z: torch.Tensor, seed: int = 2) -> ControlResiduals:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        encoded = unet.encoder(z, torch.zeros(len(z)), torch.zeros(len(z), 1, CONTEXT))
    draw = [torch.randn(h.shape, generator=generator) for h in (*encoded.skips, encoded.middle)]
    return ControlResiduals(tuple(draw[:-1]), draw[-1])


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    assert b.std() > 0.05  # numbers that could differ
    return (a - b).abs().max().item()


def test_the_unet_equals_that_of_diffusers(sd1, inputs):
    unet, reference = sd1
    with torch.no_grad():
        assert difference(unet(*inputs), reference(*inputs).sample) < 1e-5


@pytest.mark.parametrize("size", [(9, 13), (15, 16), (5, 7)])
def test_latents_that_do_not_halve_evenly_give_what_diffusers_gives(sd1, size):
    """An odd side is rounded up on the way down and cut back on the way up: images of any multiple of 8."""
    unet, reference = sd1
    z = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(4))
    t, context = torch.tensor([500]), torch.randn(1, 7, CONTEXT, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        assert difference(unet(z, t, context), reference(z, t, context).sample) < 1e-5


def test_linear_projections_and_heads_of_fixed_width_equal_those_of_diffusers(inputs):
    unet, reference = pair(SD2, attention_head_dim=(2, 4, 4, 4), use_linear_projection=True)
    with torch.no_grad():
        assert difference(unet(*inputs), reference(*inputs).sample) < 1e-5


def test_control_residuals_are_added_where_diffusers_adds_them(sd1, inputs):
    unet, reference = sd1
    control = random_control(unet, inputs[0])
    with torch.no_grad():
        ours = unet(*inputs, control)
        theirs = reference(
            *inputs,
            down_block_additional_residuals=control.skips,
            mid_block_additional_residual=control.middle,
        ).sample
        assert difference(ours, theirs) < 1e-5
        assert difference(ours, unet(*inputs)) > 0.1


def test_every_residual_reaches_the_output(sd1, inputs):
    unet, _ = sd1
    control = random_control(unet, inputs[0])
    leaves = [r.requires_grad_() for r in (*control.skips, control.middle)]
    unet(*inputs, control).square().mean().backward()
    assert len(leaves) == 13
    assert all(r.grad.abs().max() > 0 for r in leaves)


def test_the_encoder_has_twelve_outputs_of_stable_diffusions_sizes_and_a_middle(sd1, inputs):
    with torch.no_grad():
        encoded = sd1[0].encoder(*inputs)
    levels = [(32, 16, 24), (64, 8, 12), (64, 4, 6), (64, 2, 3)]
    expected = [levels[0]] * 3 + [(32, 8, 12)] + [levels[1]] * 2 + [(64, 4, 6)] + [levels[2]] * 2
    expected += [levels[3]] * 3
    assert [tuple(skip.shape[1:]) for skip in encoded.skips] == expected
    assert encoded.middle.shape[1:] == levels[3]
    assert sd1[0].encoder.out_channels == [c for c, _, _ in expected]


def test_encoder_and_decoder_run_apart_equal_the_whole(sd1, inputs):
    unet, context = sd1[0], inputs[2]
    with torch.no_grad():
        assert torch.equal(unet.decoder(unet.encoder(*inputs), context), unet(*inputs))


def test_every_weight_of_the_unet_has_an_influence(sd1, inputs):
    unet, _ = sd1
    unet.zero_grad()
    unet(*inputs).square().mean().backward()
    assert [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.any()] == []
    unet.zero_grad()


def test_an_untrained_unet_outputs_zero(inputs):
    """Its last convolution starts at zero, as in Stable Diffusion."""
    with torch.no_grad():
        assert not UNet(CONFIG)(*inputs).any()


def test_timestep_embedding_equals_that_of_diffusers():
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    t = torch.tensor([0, 1, 500, 999])
    theirs = embeddings.get_timestep_embedding(t, 320, flip_sin_to_cos=True, downscale_freq_shift=0)
    assert difference(timestep_embedding(t, 320), theirs) < 1e-6


def test_the_defaults_have_the_size_of_stable_diffusion():
    with torch.device("meta"):
        unet = UNet(UNetConfig())
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964


def test_attention_and_levels_must_agree():
    with pytest.raises(ValueError, match=r"config\.attention has 4 entries, model\.unet\.config\.channel_mult 2"):
        UNetConfig(channel_mult=(1, 2))


# ------------------------------------------------------------------ ControlResiduals


def residuals(*values: float) -> ControlResiduals:
    *skips, middle = (torch.full((1, 2), v) for v in values)
    return ControlResiduals(tuple(skips), middle)


def values(control: ControlResiduals) -> list[float]:
    return [r.flatten()[0].item() for r in (*control.skips, control.middle)]


def test_adding_residuals_composes_branches():
    assert values(residuals(1, 2, 3) + residuals(10, 20, 30)) == [11, 22, 33]


def test_branches_of_different_depth_do_not_add():
    with pytest.raises(ValueError, match="zip"):
        residuals(1, 2, 3) + residuals(1, 2)


@pytest.mark.parametrize("scale", [2, 2.0])
def test_a_number_scales_every_residual(scale):
    assert values(residuals(1, 2, 3) * scale) == [2, 4, 6]


def test_a_list_scales_each_residual_by_its_own_number_middle_last():
    assert values(residuals(1, 1, 1) * [0.5, 2.0, 0.0]) == [0.5, 2.0, 0.0]


def test_a_list_of_another_length_is_refused():
    with pytest.raises(ValueError, match="got 2 control scales, the branch has 3 residuals"):
        residuals(1, 2, 3) * [1.0, 1.0]


def test_scaled_residuals_move_the_output_as_scaled_tensors_do(sd1, inputs):
    unet, _ = sd1
    control = random_control(unet, inputs[0])
    halved = ControlResiduals(tuple(0.5 * s for s in control.skips), 0.5 * control.middle)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        assert torch.equal(unet(*inputs, control * 0.5), unet(*inputs, halved))
        assert torch.equal(unet(*inputs, control * 0), unet(*inputs))
