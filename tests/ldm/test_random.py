"""Randomness as a function of names, and the two draws of diffusion training."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ldm.random import generator, stable_seed
from ldm.training.diffusion import DiffusionTraining, drop_prompts, shifted_timesteps, stratified_timesteps

ROOT = Path(__file__).resolve().parents[2]


def test_a_seed_is_the_same_in_every_process_and_release():
    # another process, which hashes strings in another way; seeds need no torch, so it starts without
    code = (
        "import sys; from unittest.mock import MagicMock; sys.modules['torch'] = MagicMock();"
        "from ldm.random import stable_seed; print(stable_seed(7, 'noise', 0, 123))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == stable_seed(7, "noise", 0, 123) == 5356514398200629969


def test_every_key_and_its_place_and_type_change_the_seed():
    seeds = [stable_seed(seed, rank, step) for seed in range(10) for rank in range(10) for step in range(100)]
    assert len(set(seeds)) == 10_000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len({stable_seed(*keys) for keys in [(), (1,), ("1",), (1, 2), (12,), ("1", 2), ("1, 2",)]}) == 7


def test_a_generator_is_reproduced_by_its_keys_and_undisturbed_by_others():
    first = torch.randn(5, generator=generator(1, "a"))
    torch.manual_seed(99)
    torch.randn(3)
    assert torch.equal(torch.randn(5, generator=generator(1, "a")), first)
    assert not torch.equal(torch.randn(5, generator=generator(2, "a")), first)
    state = torch.get_rng_state()
    torch.randn(5, generator=generator(1, "a"))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("count", [1, 8, 20, 1000])
def test_timesteps_take_one_from_each_band_in_random_order(count):
    draws = [stratified_timesteps(count, 1000, generator(i)) for i in range(20)]
    for t in draws:
        assert t.dtype == torch.int64
        assert t.min() >= 0
        assert t.max() <= 999
        assert sorted((t * count // 1000).tolist()) == list(range(count))
    if count > 1:
        assert len({tuple(t.argsort().tolist()) for t in draws}) > 1


def test_more_images_than_timesteps_stay_in_range():
    t = stratified_timesteps(64, 10, generator(0))
    assert t.bincount(minlength=10).tolist() == pytest.approx([6.4] * 10, abs=1)


def test_timesteps_are_uniform():
    """Every place of the batch on its own: chi squared over 20 bins within 4 sigma of its mean."""
    draws = torch.stack([stratified_timesteps(8, 1000, generator(i)) for i in range(2000)])
    assert draws.min() == 0
    assert draws.max() == 999
    for place in range(8):
        counts = (draws[:, place] // 50).bincount(minlength=20).double()
        chi_squared = ((counts - 100).square() / 100).sum().item()
        assert abs(chi_squared - 19) < 4 * (2 * 19) ** 0.5


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_prompts_are_dropped_at_the_stated_rate(rate):
    count = 20_000
    kept = drop_prompts([str(i) for i in range(count)], rate, generator(3))
    dropped = sum(prompt == "" for prompt in kept)
    assert abs(dropped - rate * count) < 4 * (count * rate * (1 - rate)) ** 0.5
    assert all(prompt in ("", str(i)) for i, prompt in enumerate(kept))


def test_rate_zero_drops_nothing_rate_one_everything_and_a_key_repeats_itself():
    prompts = [str(i) for i in range(50)]
    assert drop_prompts(prompts, 0.0, generator(0)) == prompts
    assert drop_prompts(prompts, 1.0, generator(0)) == [""] * 50
    assert drop_prompts(prompts, 0.5, generator(1)) == drop_prompts(prompts, 0.5, generator(1))
    assert drop_prompts(prompts, 0.5, generator(1)) != drop_prompts(prompts, 0.5, generator(2))


def test_shifted_timesteps_are_noisier_and_a_shift_of_one_changes_nothing():
    t = torch.arange(1000)
    assert torch.equal(shifted_timesteps(t, 1000, 1.0), t)
    shifted = shifted_timesteps(t, 1000, 2.0)
    assert (shifted >= t).all()
    assert shifted.min() >= 0
    assert shifted.max() == 999
    assert (shifted >= 500).float().mean() == pytest.approx(2 / 3, abs=0.01)


@pytest.mark.parametrize("shift", [0.0, -1.0, float("nan"), float("inf")])
def test_a_shift_that_is_none_is_refused(make_diffusion, shift):
    with pytest.raises(ValueError, match="timestep_shift must be above 0"):
        DiffusionTraining(make_diffusion(), functools.partial(torch.optim.AdamW, lr=1e-3), timestep_shift=shift)


def test_pure_noise_is_the_share_of_examples_at_the_last_timestep(make_diffusion):
    optimizer = functools.partial(torch.optim.AdamW, lr=1e-3)
    module = DiffusionTraining(make_diffusion(), optimizer, pure_noise=0.25)
    last = module.timesteps(20_000, generator(0)) == module.diffusion.schedule.steps - 1
    assert abs(last.sum().item() - 5_000) < 4 * (20_000 * 0.25 * 0.75) ** 0.5 + 20
    plain = DiffusionTraining(make_diffusion(), optimizer)
    assert (plain.timesteps(20_000, generator(0)) == 999).sum() <= 20
    with pytest.raises(ValueError, match="pure_noise is a share"):
        DiffusionTraining(make_diffusion(), optimizer, pure_noise=2.0)
