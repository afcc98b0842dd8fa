"""Promises of the ablations' branches: what each one is, and that all of them fit where a ControlNet does."""

import itertools

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cldm.branches.interop import load_control
from cldm.branches.variants import concat, gaussian, lite, mlp, random_copy
from cldm.runs.building import instantiate
from cldm.runs.tracking import control_cost, flops, parts_table
from cldm.sampling.control import ControlUnit, PreparedUnit
from ldm.unet import UNet, UNetConfig
from ldm.weights import save_weights

WIDTHS = (4, 4, 8, 8)
SILENT = {"random_copy": random_copy, "lite": lite, "mlp": mlp, "concat": concat}
ALL = SILENT | {"gaussian": gaussian}


@pytest.fixture
def inputs():
    rng = torch.Generator().manual_seed(3)
    z, context = torch.randn(2, 4, 8, 8, generator=rng), torch.randn(2, 24, 16, generator=rng)
    return z, torch.tensor([10, 600]), context, torch.rand(2, 3, 64, 64, generator=rng)


def controlled(diffusion, branch, inputs):
    *model_inputs, hint = inputs
    with torch.no_grad():
        return diffusion.unet(*model_inputs, branch(*model_inputs, hint))


@pytest.mark.parametrize("name", SILENT)
def test_a_fresh_branch_changes_nothing_bit_for_bit(diffusion, inputs, name):
    branch = SILENT[name](diffusion.unet, hint_widths=WIDTHS)
    with torch.no_grad():
        assert torch.equal(controlled(diffusion, branch, inputs), diffusion.unet(*inputs[:3]))


def test_a_gaussian_branch_speaks_at_once_and_its_loudness_is_the_gain(diffusion, inputs):
    with torch.no_grad():
        silent = diffusion.unet(*inputs[:3])
    changes = [
        (controlled(diffusion, gaussian(diffusion.unet, gain, hint_widths=WIDTHS), inputs) - silent).abs().mean()
        for gain in (0.0, 0.05, 0.5)
    ]
    assert changes[0] == 0 < 5 * changes[1] < changes[2]


@pytest.mark.parametrize("channels", [16, 64])
def test_a_gaussian_convolution_passes_on_the_gain_times_its_input_at_any_width(channels):
    config = UNetConfig(channels=channels, channel_mult=(1, 2), attention=(True, True), context_channels=16, groups=8)
    conv = gaussian(UNet(config), 0.5).zero_conv_middle
    x = torch.randn(64, 2 * channels, 4, 4)
    assert conv(x).std().item() == pytest.approx(0.5, rel=0.15)


@pytest.mark.parametrize("name", ALL)
def test_a_hint_of_thin_lines_reaches_the_last_layer_of_every_hint_encoder_alike(diffusion, name):
    hint = torch.zeros(1, 3, 64, 64)
    hint[:, :, 20::24] = 1
    encoder = ALL[name](diffusion.unet).hint_encoder
    with torch.no_grad():
        told = torch.nn.Sequential(*[*encoder][:-1])(hint).std()
    assert 0.005 < told < 0.5  # PyTorch's own initialisation leaves 0.0005


def test_concat_keeps_the_halves_of_guidance_apart_whether_the_hint_is_shared_or_not(diffusion):
    branch = concat(diffusion.unet, hint_widths=WIDTHS)
    torch.nn.init.normal_(branch.hint_encoder[-1].weight)
    hint, z = torch.rand(1, 3, 64, 64), torch.randn(3, 4, 8, 8)
    context, negative = torch.randn(3, 24, 16), torch.randn(3, 24, 16)
    mask = torch.rand(3, 1, 64, 64)
    found = []
    for hints in (hint, hint.repeat(3, 1, 1, 1)):
        unit = ControlUnit(branch, hints, mode="control", mask=mask)
        prepared = PreparedUnit(unit, context, negative, torch.tensor([500]))
        residuals = prepared.residuals(z, 0)
        assert residuals.input.shape[0] == 6
        assert not residuals.input[:3].any()
        found.append(diffusion.unet(z, torch.tensor([500]), torch.cat([negative, context]), residuals))
    torch.testing.assert_close(found[0], found[1])
    plain = diffusion.unet(z, torch.tensor([500]), negative)
    torch.testing.assert_close(found[0][:3], plain)


def test_a_random_copy_has_the_shapes_of_the_copy_and_none_of_its_weights(diffusion):
    copied, original = random_copy(diffusion.unet, hint_widths=WIDTHS).encoder, diffusion.unet.encoder
    assert {n: p.shape for n, p in copied.named_parameters()} == {n: p.shape for n, p in original.named_parameters()}
    assert not torch.equal(copied.conv_in.weight, original.conv_in.weight)


def convolutions(channels: list[int], kernel: int) -> int:
    """Parameters of a chain of convolutions."""
    return sum(a * b * kernel**2 + b for a, b in itertools.pairwise(channels))


def test_lite_and_mlp_have_the_parameters_of_their_convolutions_and_no_more(diffusion):
    # widths 8, 8, 16, 16: conv_in, then 2 blocks per level and a downsampling one after all but the last
    outputs = [8, 8, 8, 8, 8, 8, 8, 16, 16, 16, 16, 16]
    assert outputs == diffusion.unet.encoder.out_channels
    zero = sum(c * c + c for c in [*outputs, 16])
    count = lambda net: sum(p.numel() for p in net.parameters())  # noqa: E731
    hint_3x3 = convolutions([3, 4, 4, 4, 4, 8, 8, 8, 8], 3)
    assert count(lite(diffusion.unet, hint_widths=WIDTHS)) == convolutions([4, *outputs, 16], 3) + zero + hint_3x3
    hint_1x1 = convolutions([3, 4, 4, 8, 8, 8], 1)
    assert count(mlp(diffusion.unet, hint_widths=WIDTHS)) == convolutions([4, *outputs, 16], 1) + zero + hint_1x1
    assert count(concat(diffusion.unet, hint_widths=WIDTHS)) == hint_3x3


@pytest.mark.parametrize("name", ["lite", "mlp"])
@pytest.mark.parametrize("side", [8, 9])
def test_light_branches_have_outputs_of_the_sizes_of_the_copy_at_odd_sides_too(diffusion, name, side):
    z, t, context = torch.randn(1, 4, side, side), torch.tensor([5]), torch.randn(1, 24, 16)
    encoded = diffusion.unet.encoder(z, t, context)
    found = ALL[name](diffusion.unet, hint_widths=WIDTHS)(z, t, context, torch.rand(1, 3, 8 * side, 8 * side))
    assert [r.shape for r in found.skips] == [s.shape for s in encoded.skips]
    assert found.middle.shape == encoded.middle.shape


def test_the_signal_of_a_light_branch_does_not_fade_with_depth(diffusion, inputs):
    for name in ("lite", "mlp"):
        net = ALL[name](
            UNet(UNetConfig(channels=32, channel_mult=(1, 2, 3, 3), context_channels=16)), hint_widths=WIDTHS
        )
        z = torch.randn(4, 4, 16, 16)
        encoded = net.encoder.encode(net.encoder.conv_in(z), inputs[1], inputs[2])
        assert encoded.middle.std() > 0.05 * encoded.skips[0].std()


def test_concatenation_is_a_convolution_over_latents_and_hint_together(diffusion, inputs):
    z, t, context, hint = inputs
    branch = concat(diffusion.unet, hint_widths=WIDTHS)
    with torch.no_grad():
        branch.hint_encoder[-1].weight.normal_()
        before_last = torch.nn.Sequential(*[*branch.hint_encoder][:-1])(hint)
        first, last = diffusion.unet.encoder.conv_in, branch.hint_encoder[-1]
        weight = torch.cat([first.weight, last.weight], dim=1)
        h = torch.nn.functional.conv2d(torch.cat([z, before_last], 1), weight, first.bias + last.bias, padding=1)
        encoder = diffusion.unet.encoder
        expected = diffusion.unet.decoder(encoder.encode(h, encoder.embed_time(t), context), context)
    torch.testing.assert_close(controlled(diffusion, branch, inputs), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_every_branch_draws_saves_and_loads_as_a_controlnet_does(diffusion, composed, tmp_path, name):
    sampling = instantiate(composed("sampler.steps=2").sampler, _convert_="all")
    torch.manual_seed(1)
    branch = ALL[name](diffusion.unet, hint_widths=WIDTHS).eval()
    for parameter in branch.parameters():  # speak up
        torch.nn.init.normal_(parameter, std=0.2)
    save_weights(branch, tmp_path / "control.safetensors", {"stage": "control"})
    again = ALL[name](diffusion.unet, hint_widths=WIDTHS).eval()
    load_control(again, tmp_path / "control.safetensors")
    draw = lambda net, **settings: sampling(  # noqa: E731
        diffusion, ["a red star"] * 2, [1, 2], (64, 64), ControlUnit(net, torch.ones(1, 3, 64, 64), **settings)
    )
    images = draw(branch)
    assert torch.equal(images, draw(again))
    assert not torch.equal(images, draw(branch, scale=0.0))
    assert not torch.equal(images, draw(branch, mode="control"))
    mask = torch.zeros(1, 1, 8, 8)
    torch.testing.assert_close(draw(branch, mask=mask), draw(branch, scale=0.0))


def test_flops_are_those_of_the_real_forward(diffusion, inputs):
    branch = lite(diffusion.unet, hint_widths=WIDTHS)
    cost = control_cost(diffusion, branch, (64, 64))
    one = [x[:1] for x in inputs]
    for network, arguments, name in ((diffusion.unet, one[:3], "unet"), (branch, one, "control")):
        # of the CPU's fused attention some versions of torch count nothing
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            network(*arguments)
        assert cost[name] * 1e9 == counter.get_total_flops() > 0


def test_flops_of_a_convolution_are_twice_its_multiply_adds():
    assert flops(torch.nn.Conv2d(3, 5, 3, padding=1), (2, 3, 8, 8)) == 2 * 2 * 64 * 3 * 5 * 9


def test_the_table_of_parts_shows_flops_where_they_are_known():
    part = {"parameters": 1000, "trainable": 0, "dtype": "float32", "mode": "eval"}
    header, unet, text = parts_table({"unet": {**part, "gflop": 1.25}, "conditioner": part}).splitlines()
    assert header.split() == ["part", "parameters", "trainable", "GFLOP", "dtype", "mode"]
    assert unet.split() == ["unet", "1,000", "0", "1.250", "float32", "eval"]
    assert "1.25" not in text


def test_only_the_middle_of_a_branch_without_one_is_refused(diffusion):
    from cldm.training.control_ldm import ControlLDM

    with pytest.raises(ValueError, match="middle_only"):
        ControlLDM(diffusion, concat(diffusion.unet, hint_widths=WIDTHS), torch.optim.SGD, middle_only=True)
