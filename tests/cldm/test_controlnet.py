"""Promises of the branch: silent at first, a true copy, and gradients that arrive in the paper's order."""

import pytest
import torch

from cldm.branches.controlnet import ControlNet, HintEncoder
from cldm.sampling.control import ControlUnit, PreparedUnit
from cldm.sampling.generation import Sampling
from ldm.samplers import ddim

HINTS = {
    "noise": torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(5)),
    "black": torch.zeros(2, 3, 128, 128),
    "white": torch.ones(2, 3, 128, 128),
    "out of range": torch.full((2, 3, 128, 128), -1e4),
}


@pytest.fixture
def inputs():
    """z, t, context for 128 px: even the lowest level has several pixels, so that attention has gradients."""
    rng = torch.Generator().manual_seed(1)
    z = torch.randn(2, 4, 16, 16, generator=rng)
    return z, torch.tensor([17, 803]), torch.randn(2, 24, 16, generator=rng)


@torch.no_grad()
def speak(control: ControlNet) -> ControlNet:
    """Give the zero convolutions values, as training does."""
    rng = torch.Generator().manual_seed(2)
    for conv in [*control.zero_convs, control.zero_conv_middle, control.hint_encoder[-1]]:
        conv.weight.normal_(std=0.1, generator=rng)
        conv.bias.normal_(std=0.1, generator=rng)
    return control


@pytest.mark.parametrize(("hint", "seed"), [*((hint, 0) for hint in HINTS), ("noise", 1), ("noise", 2)])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_a_fresh_branch_changes_nothing_bit_for_bit(make_diffusion, inputs, seed, prediction, mode, hint):
    diffusion = make_diffusion(prediction, seed).train(mode == "train")
    control = ControlNet.from_unet(diffusion.unet).train(mode == "train")
    z, t, context = inputs
    base = diffusion.denoise(z, t, context)
    controlled = diffusion.denoise(z, t, context, control(z, t, context, HINTS[hint]))
    assert base.std() > 0.1  # a U-Net whose output is zero would prove nothing
    assert torch.equal(controlled, base)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_fresh_branch_leaves_the_sampled_image_alone_and_a_trained_one_does_not(diffusion, guidance):
    sampling = Sampling(ddim, steps=2, guidance=guidance)
    control = ControlNet.from_unet(diffusion.unet).eval()
    arguments = (diffusion, ["a red star", "a blue ring"], [3, 4], (64, 64))
    hint = HINTS["noise"][:, :, :64, :64]
    base = sampling(*arguments)
    assert torch.equal(sampling(*arguments, control=ControlUnit(control, hint, scale=2.0)), base)
    speak(control)
    assert torch.equal(sampling(*arguments, control=ControlUnit(control, hint, scale=0.0)), base)
    assert not torch.equal(sampling(*arguments, control=ControlUnit(control, hint)), base)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gradients_arrive_in_the_papers_order(make_diffusion, inputs, seed):
    """The output zero convolutions, then the copy and the last of the hint, then the rest of it."""
    diffusion = make_diffusion(seed=seed).requires_grad_(False)
    control = ControlNet.from_unet(diffusion.unet)
    z0, t, context = inputs
    eps = torch.randn(z0.shape, generator=torch.Generator().manual_seed(3))
    last = f"hint_encoder.{len(control.hint_encoder) - 1}."
    groups = {
        "zero": {n for n, _ in control.named_parameters() if n.startswith("zero_conv")},
        "copy": {n for n, _ in control.named_parameters() if n.startswith("encoder.")},
        "last": {last + "weight", last + "bias"},
    }
    every = {name for name, _ in control.named_parameters()}
    groups["early"] = every - set.union(*groups.values())
    assert len(groups["zero"]) == 13 * 2
    assert len(groups["early"]) == 7 * 2
    optimizer = torch.optim.SGD(control.parameters(), lr=1.0)
    reached = []
    for _ in range(3):
        optimizer.zero_grad()
        branch = lambda z, t, context: control(z, t, context, HINTS["noise"])  # noqa: E731
        diffusion.loss(z0, context, t, eps, branch).mean().backward()
        reached.append({n for n, p in control.named_parameters() if p.grad is not None and p.grad.any()})
        optimizer.step()
    assert reached[0] == groups["zero"]
    assert reached[1] == groups["zero"] | groups["copy"] | groups["last"]
    assert reached[2] == every


def test_the_copy_has_every_weight_of_the_encoder_shares_none_and_learns(diffusion):
    diffusion.requires_grad_(False)
    control = ControlNet.from_unet(diffusion.unet)
    original, copied = diffusion.unet.encoder.state_dict(), control.encoder.state_dict()
    assert original.keys() == copied.keys()
    assert all(torch.equal(original[name], copied[name]) for name in original)
    assert not {p.data_ptr() for p in diffusion.parameters()} & {p.data_ptr() for p in control.parameters()}
    assert all(p.requires_grad for p in control.parameters())
    assert not any(p.requires_grad for p in diffusion.parameters())
    with torch.no_grad():
        for p in control.parameters():
            p.add_(1.0)
    assert all(torch.equal(value, original[name]) for name, value in diffusion.unet.encoder.state_dict().items())


def test_thirteen_residuals_in_the_shapes_of_the_encoders_outputs(diffusion, inputs):
    z, t, context = inputs
    control = ControlNet.from_unet(diffusion.unet)
    residuals, encoded = control(z, t, context, HINTS["noise"]), diffusion.unet.encoder(z, t, context)
    assert len(residuals.skips) == 12
    assert [r.shape for r in residuals.skips] == [s.shape for s in encoded.skips]
    assert residuals.middle.shape == encoded.middle.shape


def test_the_residuals_obey_the_hint_once_the_branch_speaks(diffusion, inputs):
    z, t, context = inputs
    control = speak(ControlNet.from_unet(diffusion.unet))
    one, other = (control(z, t, context, HINTS[name]) for name in ("noise", "black"))
    assert not any(torch.equal(a, b) for a, b in zip(one.skips, other.skips, strict=True))
    again = control.residuals(z, t, context, control.encode_hint(HINTS["noise"]))
    assert all(torch.equal(a, b) for a, b in zip(one.skips, again.skips, strict=True))
    assert torch.equal(one.middle, again.middle)


def test_a_unit_scales_its_residuals_and_feeds_the_hint_to_both_halves_of_guidance(diffusion, inputs):
    z, t, context = inputs
    control = speak(ControlNet.from_unet(diffusion.unet))
    t = t[:1]
    plain = control(z, t.expand(2), context, HINTS["noise"])
    halved = PreparedUnit(ControlUnit(control, HINTS["noise"], scale=0.5), context, None, t).residuals(z, 0)
    torch.testing.assert_close(halved.middle, 0.5 * plain.middle, rtol=1e-4, atol=1e-5)
    for a, b in zip(halved.skips, plain.skips, strict=True):
        torch.testing.assert_close(a, 0.5 * b, rtol=1e-4, atol=1e-5)
    doubled = PreparedUnit(ControlUnit(control, HINTS["noise"]), context, context, t).residuals(z, 0)
    for half in doubled.middle.chunk(2):
        torch.testing.assert_close(half, plain.middle, rtol=1e-4, atol=1e-5)


def test_the_hint_encoder_has_eight_convolutions_and_stride_eight_and_ends_in_zero():
    encoder = HintEncoder(40)
    convs = [layer for layer in encoder if isinstance(layer, torch.nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [16, 16, 32, 32, 96, 96, 256, 40]
    assert [conv.stride[0] for conv in convs] == [1, 1, 2, 1, 2, 1, 2, 1]
    assert encoder.factor == 8
    assert [type(layer) for layer in [*encoder][1::2]] == [torch.nn.SiLU] * 7
    assert not any(p.any() for p in convs[-1].parameters())
    assert all(conv.weight.any() and not conv.bias.any() for conv in convs[:-1])
    assert encoder(torch.rand(2, 3, 64, 48)).shape == (2, 40, 8, 6)


def test_a_hint_of_thin_lines_reaches_the_last_layer_of_a_fresh_hint_encoder():
    hints = torch.zeros(1, 3, 64, 64)
    hints[..., 20, :] = hints[..., :, 41] = 1.0
    features = torch.nn.Sequential(*[*HintEncoder(40)][:-1])
    assert features(hints).std(dim=(2, 3)).mean() > 0.01  # PyTorch's own initialisation: 0.001
    assert not features(torch.zeros_like(hints)).any()


def test_a_hint_with_another_number_of_channels_is_refused(diffusion, inputs):
    z, t, context = inputs
    control = ControlNet.from_unet(diffusion.unet, hint_channels=3)
    with pytest.raises(ValueError, match=r"hint has 1 channels, control\.hint_channels is 3"):
        control(z, t, context, torch.rand(2, 1, 128, 128))
    assert ControlNet.from_unet(diffusion.unet, hint_channels=1).encode_hint(torch.rand(2, 1, 128, 128)).any() == 0
