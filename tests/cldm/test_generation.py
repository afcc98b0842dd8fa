"""Promises of sampling: a seed names an image, exact step counts, and the hint paid for once."""

import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch

from cldm.branches.controlnet import ControlNet
from cldm.branches.variants import concat
from cldm.sampling.control import ControlUnit
from cldm.sampling.generation import Sampling
from ldm.reuse import compiled
from ldm.samplers import ddim, ddpm, dpmpp_2m, pndm, unipc

PROMPTS = ["a red star", "a blue ring on a mint background", ""]
SEEDS = [11, 5, 8]


def loud(unet, branch=ControlNet.from_unet):
    """A branch of the U-Net that is no longer silent, and hints of three images."""
    control = branch(unet, hint_widths=(4, 4, 8, 8)).eval()
    silent = [control.hint_encoder[-1]]
    if hasattr(control, "zero_convs"):
        silent += [*control.zero_convs, control.zero_conv_middle]
    with torch.no_grad():
        for conv in silent:
            conv.weight.normal_(std=0.05, generator=torch.Generator().manual_seed(2))
    return ControlUnit(control, torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(3)))


@pytest.fixture
def unit(diffusion):
    return loud(diffusion.unet)


@pytest.fixture
def narrow(narrow_diffusion):
    """A model with few blocks, for few kernels to compile; and its branch."""
    return narrow_diffusion, loud(narrow_diffusion.unet)


@pytest.mark.parametrize("sampler", [ddim, partial(ddim, eta=1.0), ddpm], ids=["ddim", "ddim_eta_1", "ddpm"])
def test_a_seed_names_an_image_whatever_the_batch(diffusion, unit, sampler):
    sampling = Sampling(sampler, steps=3, guidance=2.0)
    together = sampling(diffusion, PROMPTS, SEEDS, (64, 64), control=unit)
    assert together.shape == (3, 3, 64, 64)
    assert (together.abs() < 1).float().mean() > 0.5  # clamped pixels could not differ
    for i in range(3):
        alone_unit = ControlUnit(unit.net, unit.hint[i : i + 1])
        alone = sampling(diffusion, PROMPTS[i : i + 1], SEEDS[i : i + 1], (64, 64), control=alone_unit)
        assert (alone[0] - together[i]).abs().max() < 1e-5
    other = sampling(diffusion, PROMPTS, [11, 5, 9], (64, 64), control=unit)
    assert (other[:2] - together[:2]).abs().max() < 1e-5
    assert (other[2] - together[2]).abs().max() > 1e-3


def test_the_global_random_state_neither_matters_nor_changes(diffusion):
    sampling = Sampling(ddpm, steps=2)
    torch.manual_seed(0)
    first = sampling(diffusion, PROMPTS[:1], [4], (64, 64))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(sampling(diffusion, PROMPTS[:1], [4], (64, 64)), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_prompts_image_does_not_depend_on_longer_prompts_beside_it(diffusion, unit):
    """Prompts of one, two and three chunks, weighted words: alone or together, the same image."""
    prompts = ["a (red:1.4) star", "red star " * 15, "blue ring " * 30]
    sampling = Sampling(ddim, steps=2, guidance=2.0, prompt_weights=True)
    together = sampling(diffusion, prompts, SEEDS, (64, 64), control=unit, negative="a " * 30)
    for i in range(3):
        alone_unit = ControlUnit(unit.net, unit.hint[i : i + 1])
        alone = sampling(diffusion, prompts[i : i + 1], SEEDS[i : i + 1], (64, 64), alone_unit, "a " * 30)
        assert (alone[0] - together[i]).abs().max() < 1e-5


def test_each_prompt_may_have_its_own_negative(diffusion, unit):
    sampling = Sampling(ddim, steps=2, guidance=2.0)
    negatives = ["a blue ring", "", "mint"]
    together = sampling(diffusion, PROMPTS, SEEDS, (64, 64), negative=negatives)
    for i in range(3):
        alone = sampling(diffusion, PROMPTS[i : i + 1], SEEDS[i : i + 1], (64, 64), negative=negatives[i])
        assert (alone[0] - together[i]).abs().max() < 1e-5


def test_equal_prompt_and_negative_make_guidance_a_no_op_exactly(diffusion, unit):
    """And half the work, as long as both halves get the hint; guess mode tells them apart by the hint alone."""
    rows = []
    diffusion.unet.register_forward_hook(lambda *_: rows.append(len(_[2])))
    guided, plain = (Sampling(ddim, steps=2, guidance=scale) for scale in (7.5, 1.0))
    arguments = (diffusion, ["", ""], [1, 2], (64, 64), ControlUnit(unit.net, unit.hint[:2]), "")
    assert torch.equal(guided(*arguments), plain(*arguments))
    assert rows == [2] * 4
    guess = ControlUnit(unit.net, unit.hint[:2], mode="control")
    assert (guided(*arguments[:4], guess, "") - plain(*arguments[:4], guess, "")).abs().max() > 1e-3
    assert rows[4:6] == [4] * 2


def test_an_image_is_drawn_over_from_its_strength_on(diffusion):
    image = 2 * torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(5)) - 1
    sampling, steps = Sampling(ddim, steps=10, guidance=1.0), []
    near = diffusion.decode(diffusion.encode(image))
    drawn = {
        strength: sampling(diffusion, PROMPTS[:2], SEEDS[:2], (64, 64), image=image, strength=strength,
                           callback=lambda i, z: steps.append(i))
        for strength in (0.1, 0.5, 1.0)
    }  # fmt: skip
    assert steps == [*range(1), *range(5), *range(10)]
    distances = [(images - near).abs().mean() for images in drawn.values()]
    assert distances == sorted(distances)
    assert (drawn[0.5][0] - drawn[0.5][1]).abs().max() > 1e-3
    for strength in (0.0, 0.05, 1.5):
        with pytest.raises(ValueError, match="strength must be in"):
            sampling(diffusion, PROMPTS[:1], SEEDS[:1], (64, 64), image=image, strength=strength)


def test_outside_the_mask_the_image_stays(diffusion, unit):
    image = 2 * torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(5)) - 1
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :32] = 1
    seen = {}
    diffusion.decode = lambda z: seen.setdefault("z", z)
    Sampling(dpmpp_2m, steps=5)(diffusion, PROMPTS[:1], SEEDS[:1], (64, 64), image=image, mask=mask)
    z0 = diffusion.encode(image)
    assert torch.equal(seen["z"][..., 4:], z0[..., 4:])
    assert (seen["z"] - z0)[..., :4].abs().max() > 0.1
    with pytest.raises(ValueError, match="a mask needs the image"):
        Sampling(ddim)(diffusion, ["a"], [1], (64, 64), mask=mask)


@pytest.mark.parametrize("at", range(0, 8, 2))
def test_a_hole_of_two_pixels_is_painted_anew_wherever_it_lies(diffusion, at):
    image = 2 * torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(5)) - 1
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 16 + at : 18 + at] = 1
    seen = {}
    diffusion.decode = lambda z: seen.setdefault("z", z)
    Sampling(ddim, steps=2, guidance=1.0)(diffusion, PROMPTS[:1], SEEDS[:1], (64, 64), image=image, mask=mask)
    changed = (seen["z"] - diffusion.encode(image)).abs().amax((0, 1, 2))
    assert [i for i in range(8) if changed[i] > 0.01] == [2]
    assert changed[[0, 1, *range(3, 8)]].max() == 0


def test_low_memory_draws_the_same_image_with_one_part_at_a_time_on_the_device(diffusion, unit, monkeypatch):
    names = {id(diffusion.conditioner): "text", id(diffusion.unet): "unet", id(unit.net): "control",
             id(diffusion.autoencoder): "autoencoder"}  # fmt: skip
    moves, to = [], torch.nn.Module.to
    monkeypatch.setattr(torch.nn.Module, "to", lambda m, device: (moves.append(names[id(m)]), to(m, device))[1])
    arguments = (diffusion, PROMPTS, SEEDS, (64, 64), unit)
    frugal = Sampling(ddim, steps=2, low_memory="cpu")(*arguments)
    # there and back, one after another
    assert moves == ["text", "text", "unet", "control", "unet", "control", "autoencoder", "autoencoder"]
    assert (frugal - Sampling(ddim, steps=2)(*arguments)).abs().max() < 1e-5


@pytest.mark.parametrize(("guidance", "batch"), [(1.0, 3), (3.0, 6)])
def test_as_many_calls_as_steps_and_one_encoding_of_the_hint(diffusion, unit, guidance, batch):
    calls = {"unet": [], "hint": [], "steps": []}
    diffusion.unet.register_forward_hook(lambda *_: calls["unet"].append(len(_[2])))
    unit.net.hint_encoder.register_forward_hook(lambda *_: calls["hint"].append(len(_[2])))
    sampling = Sampling(ddim, steps=4, guidance=guidance)
    sampling(
        diffusion,
        PROMPTS,
        SEEDS,
        (64, 64),
        control=unit,
        callback=lambda i, z: calls["steps"].append((i, z.shape)),
    )
    assert calls["unet"] == [batch] * 4
    assert calls["hint"] == [3]
    assert calls["steps"] == [(i, (3, 4, 8, 8)) for i in range(4)]


def test_prompt_negative_and_hint_each_change_the_image(diffusion, unit):
    sampling = Sampling(ddim, steps=2, guidance=3.0)
    half = ControlUnit(unit.net, unit.hint[:1])
    base = sampling(diffusion, PROMPTS[:1], [4], (64, 64))
    for other in (
        sampling(diffusion, PROMPTS[1:2], [4], (64, 64)),
        sampling(diffusion, PROMPTS[:1], [4], (64, 64), negative="a blue ring"),
        sampling(diffusion, PROMPTS[:1], [4], (64, 64), control=half),
    ):
        assert (other - base).abs().max() > 1e-4


def test_what_cannot_be_drawn_is_refused_early(diffusion):
    with pytest.raises(ValueError, match="2 prompts but 1 seeds"):
        Sampling(ddim)(diffusion, ["a", "a"], [1], (64, 64))
    with pytest.raises(ValueError, match="multiples of 8"):
        Sampling(ddim)(diffusion, ["a"], [1], (64, 70))


# ------------------------------------------------------------------ compiled


def compiled_equals_eager(diffusion, unit, sampler=ddim, guidance=3.0, starts=(None, 0.5)):
    """Compiled answers against eager ones. starts: the share of the steps where the control begins, None without."""
    for start in starts:
        control = None if start is None else ControlUnit(unit.net, unit.hint[:1], start=start)
        arguments = (diffusion, PROMPTS[:1], [4], (64, 64), control, "a blue ring")
        plain = Sampling(sampler, steps=4, guidance=guidance)
        fast = replace(plain, compile=True)(*arguments)
        assert (fast - plain(*arguments)).abs().max() < 1e-4


@pytest.mark.slow
def test_sampling_through_captured_graphs_equals_eager_sampling(narrow, monkeypatch):
    """All that torch.compile does but generating code, which the next test does."""
    compiled.cache_clear()
    captured, compile = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: captured.append(f) or compile(f, backend="eager", fullgraph=True))
    compiled_equals_eager(*narrow)
    assert captured == [narrow[0].unet, narrow[1].net.residuals]
    compiled.cache_clear()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
def test_sampling_through_generated_code_equals_eager_sampling(narrow, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # a shared one may hold half-written kernels
    compiled.cache_clear()
    # kernels are compiled here, not by workers that import torch first, and without vector types, whose headers take
    # longer to compile than the kernels
    with torch._inductor.config.patch({"compile_threads": 1, "cpp.simdlen": 1}):
        compiled_equals_eager(*narrow, starts=[0.0])  # with and without control in turn: the test above
    compiled.cache_clear()


@pytest.mark.parametrize("branch", [ControlNet.from_unet, concat])
@pytest.mark.parametrize("sampler", [pndm, dpmpp_2m, unipc])
def test_answers_outlive_the_next_replay_of_a_cuda_graph(diffusion, monkeypatch, sampler, branch):
    """A replay overwrites what the graph returned before. Here a stand-in does, for want of a GPU."""

    def replayed(function, mode):
        assert mode == "reduce-overhead"
        kept = []

        def run(*inputs):
            answer = function(*inputs)
            tensors = [answer] if isinstance(answer, torch.Tensor) else [*answer.skips, answer.middle, answer.input]
            tensors = [tensor for tensor in tensors if tensor is not None]
            if not kept or [t.shape for t in kept[-1][1]] != [t.shape for t in tensors]:
                kept.append((answer, tensors))
            for place, tensor in zip(kept[-1][1], tensors, strict=True):
                place.copy_(tensor.clone())
            return kept[-1][0]

        return run

    compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", replayed)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for guidance in (1.0, 3.0):
        compiled_equals_eager(diffusion, loud(diffusion.unet, branch), sampler, guidance)
    compiled.cache_clear()


def test_prompts_of_several_lengths_are_not_blown_up_to_their_common_multiple(diffusion, unit, monkeypatch):
    """3, 4 and 5 chunks side by side were 60 each."""
    chunk = " ".join(["a red star"] * 8)
    prompts = [" ".join([chunk] * n)[:-1] for n in (3, 4, 5)]
    seen: list[int] = []
    original = Sampling.contexts

    def contexts(self, *given):
        found = original(self, *given)
        seen.append(found[0].shape[1] // 24)
        return found

    monkeypatch.setattr(Sampling, "contexts", contexts)
    sampling = Sampling(ddim, steps=2, guidance=2.0, prompt_weights=True)
    together = sampling(diffusion, prompts, SEEDS, (64, 64), control=unit)
    counts = [seen.pop(0) for _ in range(len(seen))]
    assert len({*counts}) == 3
    assert max(counts) <= 6
    for i in range(3):
        alone_unit = ControlUnit(unit.net, unit.hint[i : i + 1])
        alone = sampling(diffusion, prompts[i : i + 1], SEEDS[i : i + 1], (64, 64), control=alone_unit)
        assert (alone[0] - together[i]).abs().max() < 1e-5
