"""Promises of control units: exact weights, windows that cost nothing, halves that stay apart, sums and masks."""

import itertools

import pytest
import torch

from cldm.branches.controlnet import ControlNet
from cldm.conditions import get_condition
from cldm.sampling.control import ControlUnit, PreparedUnit, check_window, covered, inpaint_hint
from cldm.sampling.generation import Sampling
from ldm.samplers import ddim

PROMPTS, SEEDS, SIZE = ["a red star", "a blue ring"], [3, 4], (64, 64)
HINT = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
TIMES = torch.tensor([981, 501, 1])


@pytest.fixture
def net(diffusion):
    net = ControlNet.from_unet(diffusion.unet).eval()
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for conv in [*net.zero_convs, net.zero_conv_middle, net.hint_encoder[-1]]:
            conv.weight.normal_(std=0.05, generator=rng)
    return net


@pytest.fixture
def latents(diffusion):
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return z, diffusion.context(PROMPTS), diffusion.context(["", ""])


def tensors(residuals):
    return [*residuals.skips, residuals.middle]


def draw(diffusion, control, steps=4, **call):
    return Sampling(ddim, steps=steps, guidance=3.0)(diffusion, PROMPTS, SEEDS, SIZE, control, **call)


# ------------------------------------------------------------------ weights, as the published tools state them


def test_the_weights_of_every_mode_are_the_published_ones(net):
    decay = [0.0994, 0.1205, 0.1461, 0.177, 0.2146, 0.2601, 0.3153, 0.3822, 0.4633, 0.5615, 0.6806, 0.825, 1.0]
    expected = {"balanced": [1.0] * 13, "prompt": decay, "control": decay, "conditional": [1.0] * 13}
    for mode, weights in expected.items():
        unit = ControlUnit(net, HINT, scale=2.0, mode=mode)
        assert unit.weights() == pytest.approx([2 * w for w in weights], abs=1e-3)
        assert unit.conditional_only == (mode in ("control", "conditional"))


def test_both_readings_of_the_papers_resolution_weighting(net):
    """Sides 64 x 3, 32 x 3, 16 x 3, 8 x 3 and 8 of the 13 residuals in a 64 x 64 latent."""
    sides = [64] * 3 + [32] * 3 + [16] * 3 + [8] * 4
    assert ControlUnit(net, HINT, weighting="64/h").weights() == [64 / h for h in sides]
    assert ControlUnit(net, HINT, weighting="8/h", mode="conditional").weights() == [8 / h for h in sides]


def test_scales_multiply_residual_by_residual(net, latents):
    z, context, _ = latents
    scales = [i / 4 for i in range(13)]
    plain = PreparedUnit(ControlUnit(net, HINT), context, None, TIMES).residuals(z, 1)
    scaled = PreparedUnit(ControlUnit(net, HINT, scale=0.5, scales=scales), context, None, TIMES).residuals(z, 1)
    for a, b, s in zip(tensors(scaled), tensors(plain), scales, strict=True):
        torch.testing.assert_close(a, 0.5 * s * b)


# ------------------------------------------------------------------ where nothing happens


def test_scale_zero_is_no_control_bit_for_bit_and_runs_no_branch(diffusion, net):
    net.encoder.conv_in.register_forward_hook(lambda *_: pytest.fail("a branch of scale 0 ran"))
    net.hint_encoder.register_forward_hook(lambda *_: pytest.fail("the hint of a branch of scale 0 was encoded"))
    expected = draw(diffusion, None)
    for silent in (ControlUnit(net, HINT, 0.0), ControlUnit(net, HINT, scales=[0.0] * 13)):
        assert torch.equal(draw(diffusion, silent), expected)


@pytest.mark.parametrize(
    ("start", "end", "steps", "expected"),
    [(0.0, 0.5, 20, range(10)), (0.2, 0.8, 20, range(4, 16)), (0.0, 1.0, 7, range(7)), (0.5, 0.6, 4, [])],
)
def test_a_branch_runs_in_its_window_only_by_diffusers_rule(diffusion, net, start, end, steps, expected):
    """i / n >= start and (i + 1) / n <= end: 10 of 20 steps at 0..0.5, 12 at 0.2..0.8."""
    ran, now = [], [0]
    net.encoder.middle.register_forward_hook(lambda *_: ran.append(now[0]))
    draw(
        diffusion, ControlUnit(net, HINT, start=start, end=end), steps, callback=lambda i, z: now.__setitem__(0, i + 1)
    )
    assert ran == [*expected]


def test_a_window_without_a_step_is_refused_and_told_with_its_steps():
    check_window(4, 0.2, 0.8)
    with pytest.raises(ValueError, match=r"no step lies between start=0.2 and end=0.8: each of 2 is 0.5 of the way"):
        check_window(2, 0.2, 0.8)


def test_outside_of_its_window_the_image_is_that_of_the_base(diffusion, net):
    late = draw(diffusion, ControlUnit(net, HINT, start=0.5, end=0.6), 4)
    assert torch.equal(late, draw(diffusion, None, 4))
    assert not torch.equal(draw(diffusion, ControlUnit(net, HINT, start=0.5), 4), late)


# ------------------------------------------------------------------ halves


@pytest.mark.parametrize("settings", [{"mode": "conditional"}, {"mode": "control"}, {"pool": True}], ids=str)
def test_conditional_only_keeps_the_unconditional_half_bit_equal(diffusion, net, latents, settings):
    z, context, negative = latents
    residuals = PreparedUnit(ControlUnit(net, HINT, **settings), context, negative, TIMES).residuals(z, 1)
    asked = torch.cat([negative, context])
    with torch.no_grad():
        free, controlled = (diffusion.unet(z, TIMES[1:2], asked, control) for control in (None, residuals))
    assert torch.equal(free[:2], controlled[:2])
    assert (free[2:] - controlled[2:]).abs().max() > 1e-3


def test_conditional_only_runs_the_branch_on_one_half(diffusion, net):
    rows = []
    net.encoder.middle.register_forward_hook(lambda *_: rows.append(len(_[2].movedim(0, 0))))
    for mode, count in (("balanced", 4), ("prompt", 4), ("control", 2), ("conditional", 2)):
        rows.clear()
        draw(diffusion, ControlUnit(net, HINT, mode=mode), 2)
        assert rows == [count] * 2


@torch.no_grad()
def test_a_prepared_unit_gives_the_residuals_of_the_plain_branch(net, latents):
    """Hint, keys, values and time rows computed once, halves shared up to the first cross-attention."""
    z, context, negative = latents
    found = PreparedUnit(ControlUnit(net, HINT), context, negative, TIMES).residuals(z, 1)
    plain = net(torch.cat([z, z]), TIMES[1].expand(4), torch.cat([negative, context]), torch.cat([HINT, HINT]))
    assert len(found.skips[0]) == 2  # one convolution and the hint: the same for both halves
    for a, b in zip(tensors(found), tensors(plain), strict=True):
        torch.testing.assert_close(a.repeat(len(b) // len(a), 1, 1, 1), b, rtol=0, atol=1e-5)


# ------------------------------------------------------------------ several, somewhere


def test_two_units_of_half_scale_equal_one(diffusion, net):
    one = draw(diffusion, ControlUnit(net, HINT))
    two = draw(diffusion, [ControlUnit(net, HINT, 0.5)] * 2)
    assert torch.equal(one, two)


def test_units_of_different_modes_add(diffusion, net, latents):
    z, context, negative = latents
    a, b = (
        PreparedUnit(ControlUnit(net, hint, mode=mode), context, negative, TIMES).residuals(z, 0)
        for hint, mode in ((HINT, "balanced"), (1 - HINT, "control"))
    )
    for x, y, both in zip(tensors(a), tensors(b), tensors(a + b), strict=True):
        torch.testing.assert_close(both, x.repeat(len(y) // len(x), 1, 1, 1) + y)


def test_one_hint_may_serve_a_batch_and_is_encoded_as_one(diffusion, net):
    rows = []
    net.hint_encoder.register_forward_hook(lambda *_: rows.append(len(_[2])))
    shared = draw(diffusion, ControlUnit(net, HINT[:1]))
    assert rows == [1]
    assert (shared - draw(diffusion, ControlUnit(net, HINT[:1].expand(2, -1, -1, -1)))).abs().max() < 1e-5


def test_a_mask_confines_the_residuals(net, latents):
    z, context, negative = latents
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :32] = 1
    plain, masked = (
        PreparedUnit(ControlUnit(net, HINT, mask=m), context, negative, TIMES).residuals(z, 0) for m in (None, mask)
    )
    for a, b in zip(tensors(masked), tensors(plain), strict=True):
        half = a.shape[-1] // 2
        if half:
            torch.testing.assert_close(a[..., : max(half - 1, 0)], b[..., : max(half - 1, 0)])
            assert not a[..., half + 1 :].any()
    assert torch.equal(masked.skips[0][..., :4], plain.skips[0][..., :4])
    assert not masked.skips[0][..., 4:].any()


@torch.no_grad()
def test_a_mask_confines_pooled_residuals_too(net, latents):
    z, context, negative = latents
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :32] = 1
    plain, masked = (
        PreparedUnit(ControlUnit(net, HINT, pool=True, mask=m), context, negative, TIMES).residuals(z, 0)
        for m in (None, mask)
    )
    for a, b in zip(masked.skips[:3], plain.skips[:3], strict=True):  # 8 x 8
        assert torch.equal(a[..., :4], b.expand(-1, -1, 8, 4))
        assert not a[..., 4:].any()


@pytest.mark.parametrize("at", range(0, 8, 2))
def test_a_thin_stripe_of_a_mask_counts_by_its_area_wherever_it_lies(at):
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 16 + at : 18 + at] = 1
    for side in (8, 4, 2):
        found = covered(mask, (side, side))
        assert found[0, 0, 0].tolist() == [2 * side / 64 if i == 16 * side // 64 else 0 for i in range(side)]


def test_a_mask_of_one_value_has_it_at_every_size():
    for value, size in itertools.product((0.0, 0.25, 1.0), ((8, 8), (5, 7), (64, 96), (100, 30))):
        assert torch.equal(covered(torch.full((1, 1, 64, 48), value), size), torch.full((1, 1, *size), value))


def test_pooling_replaces_residuals_by_their_mean(net, latents):
    z, context, _ = latents
    plain, pooled = (
        PreparedUnit(ControlUnit(net, HINT, pool=pool), context, None, TIMES).residuals(z, 0) for pool in (False, True)
    )
    for a, b in zip(tensors(pooled), tensors(plain), strict=True):
        torch.testing.assert_close(a, b.mean((2, 3), keepdim=True))


# ------------------------------------------------------------------ making units


def test_a_unit_from_an_image_runs_the_condition(net):
    image = torch.zeros(1, 3, 64, 64)
    image[..., 20:40, 20:40] = 1
    unit = ControlUnit.from_image(net, get_condition("canny"), image, scale=0.7)
    assert unit.scale == 0.7
    assert unit.hint.unique().tolist() == [0.0, 1.0]


def test_the_inpainting_hint_is_minus_one_where_something_new_is_wanted():
    image, mask = torch.rand(1, 3, 16, 16) * 2 - 1, torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    hint = inpaint_hint(image, mask)
    assert torch.all(hint[..., :8] == -1)
    torch.testing.assert_close(hint[..., 8:], (image[..., 8:] + 1) / 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "strong"}, "control mode must be one of balanced, prompt, control, conditional, got 'strong'"),
        ({"weighting": "soft"}, "control weighting must be one of"),
        ({"start": 0.5, "end": 0.5}, "0 <= start < end <= 1"),
        ({"end": 1.5}, "0 <= start < end <= 1"),
        ({"scales": [1.0]}, "got 1 control scales, the branch has 13 residuals"),
        ({"hint": torch.zeros(1, 1, 64, 64)}, r"hint must be \(b, 3, h, w\)"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_choices(net, settings, message):
    with pytest.raises(ValueError, match=message):
        ControlUnit(net, **{"hint": HINT, **settings})
