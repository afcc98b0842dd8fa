import functools
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ldm.samplers import Denoiser, PerImageNoise, ddim, ddpm, initial_noise
from ldm.schedule import SPACINGS, NoiseSchedule

MEAN, STD = 1.5, 0.5  # the data distribution of the Gaussian tests
SCHEDULE = NoiseSchedule()
ABAR = SCHEDULE.alphas_cumprod.tolist()
TINY = (4, 8, 8)  # (c, h, w) of one latent


def marginal_variance(abar: float) -> float:
    """Variance of z_t for z0 ~ N(MEAN, STD^2); its mean is sqrt(abar) MEAN."""
    return abar * STD**2 + 1 - abar


@functools.cache
def gaussian_denoiser() -> Denoiser:
    """The exact eps of N(MEAN, STD^2) data: -sqrt(1 - abar) times the score of z_t. Affine in z."""
    slopes = [(1 - a) ** 0.5 / marginal_variance(a) for a in ABAR]
    means = [torch.tensor(a**0.5 * MEAN, dtype=torch.float64) for a in ABAR]

    def denoiser(z: Tensor, t: Tensor) -> Tensor:
        step = t.tolist()[0]
        return slopes[step] * (z - means[step])

    return denoiser


def random_model(seed: int = 0) -> Callable[[Tensor, Tensor], Tensor]:
    """A small random convolution net of (z, t) with outputs of about unit size."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(4, 4, 3, 3, generator=generator) / 6 for _ in range(2))

    def model(z: Tensor, t: Tensor) -> Tensor:
        h = torch.tanh(torch.nn.functional.conv2d(z, first, padding=1) + t[:, None, None, None] / 1000)
        return z + torch.nn.functional.conv2d(h, second, padding=1)

    return model


# ---------------------------------------------------------------------- DDIM on a Gaussian: exact theory


def angle(abar: float) -> float:
    """Angle of (signal std, noise std) = (sqrt(abar) STD, sqrt(1 - abar)), whose length is the std of z_t."""
    return math.atan2((1 - abar) ** 0.5, abar**0.5 * STD)


def ddim_map(timesteps: Tensor, final_alpha: float) -> tuple[float, float]:
    """(scale, shift) of the affine map z -> scale z + shift that DDIM must be.

    With the exact eps, a DDIM step multiplies the distance from the marginal's mean by the ratio of the
    marginals' standard deviations times the cosine of the angle turned: the next (signal std, noise std) is
    projected on this one. Short steps have cosines near 1, which leaves the probability flow: exact data.
    """
    abars = [*(ABAR[t] for t in timesteps.tolist()), final_alpha]
    start, end = abars[0], abars[-1]
    turned = [angle(a) - angle(b) for a, b in pairwise(abars)]
    scale = math.prod(map(math.cos, turned)) * math.sqrt(marginal_variance(end) / marginal_variance(start))
    return scale, end**0.5 * MEAN - scale * start**0.5 * MEAN


def run_affine(sampler: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """(scale, shift) of an affine sampler, from where it takes the points 0 and 1."""
    zero, one = sampler(torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)).flatten().tolist()
    return one - zero, zero


def check_ddim_is_exact(n: int, spacing: str) -> None:
    """Unit noise must come out with the mean and std of theory."""
    denoiser, timesteps = gaussian_denoiser(), SCHEDULE.timesteps(n, spacing)
    std, mean = run_affine(lambda z: ddim(denoiser, z, timesteps, SCHEDULE))
    expected_std, expected_mean = ddim_map(timesteps, final_alpha=ABAR[0])
    assert std == pytest.approx(expected_std, rel=1e-9), f"std after {n} steps"
    assert mean == pytest.approx(expected_mean, rel=1e-9), f"mean after {n} steps"


@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddim_is_exact_on_a_gaussian(spacing):
    for n in [*range(1, 60), *range(60, 1000, 47), 999, 1000]:
        check_ddim_is_exact(n, spacing)


@pytest.mark.slow
def test_ddim_is_exact_on_a_gaussian_for_every_step_count():
    for n in range(1, 1001):
        check_ddim_is_exact(n, "leading")


@pytest.mark.parametrize("final_alpha", [None, 1.0])
def test_ddim_converges_to_the_data_at_first_order(final_alpha):
    """From the true marginal at T: to the true mean exactly, to the true std with an error like 1/n."""
    denoiser = gaussian_denoiser()
    end = ABAR[0] if final_alpha is None else final_alpha
    errors = []
    for n in (10, 20, 50, 100, 200, 500, 1000):
        timesteps = SCHEDULE.timesteps(n, "trailing")
        scale, shift = run_affine(lambda z, grid=timesteps: ddim(denoiser, z, grid, SCHEDULE, final_alpha=final_alpha))
        assert shift + scale * ABAR[-1] ** 0.5 * MEAN == pytest.approx(end**0.5 * MEAN, rel=1e-9)
        std = scale * marginal_variance(ABAR[-1]) ** 0.5
        errors.append(abs(std / marginal_variance(end) ** 0.5 - 1))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 5e-3
    assert errors[-1] * 1000 == pytest.approx(errors[-2] * 500, rel=0.1)


def test_ddim_in_float32_has_the_same_statistics():
    noise = initial_noise(range(4), (1, 64, 64))
    out = ddim(gaussian_denoiser(), noise, SCHEDULE.timesteps(50), SCHEDULE)
    scale, shift = ddim_map(SCHEDULE.timesteps(50), ABAR[0])
    torch.testing.assert_close(out, scale * noise + shift, rtol=0, atol=1e-4)


# ---------------------------------------------------------------------- DDPM on a Gaussian: statistics


def ddpm_moments(timesteps: Tensor) -> tuple[float, float]:
    """(mean, std) that ancestral sampling gives from N(0, 1): the moments, carried step by step."""
    mean, variance = 0.0, 1.0
    abars = [*(ABAR[t] for t in timesteps.tolist()), 1.0]
    for a, b in pairwise(abars):
        # z_prev = sqrt(b) z0 + share (z - sqrt(a) z0) + noise, with z0 the posterior mean E[z0 | z]
        share = (a / b) ** 0.5 * (1 - b) / (1 - a)
        gain = a**0.5 * STD**2 / marginal_variance(a)
        slope = share + (b**0.5 - share * a**0.5) * gain
        mean = b**0.5 * MEAN + slope * (mean - a**0.5 * MEAN)
        variance = slope**2 * variance + (1 - b) / (1 - a) * (1 - a / b)
    return mean, variance**0.5


@pytest.mark.parametrize("n", [50, 1000])
def test_ddpm_has_the_statistics_of_theory(n):
    """4096 samples: within 3 standard errors of theory, and at 1000 steps of the data itself."""
    timesteps, seeds = SCHEDULE.timesteps(n, "trailing"), range(4)
    noise = initial_noise(seeds, (1, 32, 32))
    out = ddpm(gaussian_denoiser(), noise, timesteps, SCHEDULE, PerImageNoise(seeds)).flatten()
    mean, std = ddpm_moments(timesteps)
    targets = [(mean, std), (MEAN, STD)] if n == 1000 else [(mean, std)]
    for mean, std in targets:
        assert abs(out.mean().item() - mean) < 3 * std / math.sqrt(len(out))
        assert abs(out.std().item() - std) < 3 * std / math.sqrt(2 * len(out))


@pytest.mark.parametrize("n", [1, 2, 10, 50, 333])
def test_ddpm_is_ddim_with_eta_one(n):
    """Ho et al. eq. 7 and DDIM eq. 12, 16 at eta 1 are the same process, noise included."""
    timesteps, seeds = SCHEDULE.timesteps(n, "trailing"), [3, 4]
    noise = initial_noise(seeds, TINY, dtype=torch.float64)
    model = random_model()

    def denoiser(z: Tensor, t: Tensor) -> Tensor:
        return model(z.float(), t)

    ancestral = ddpm(denoiser, noise, timesteps, SCHEDULE, PerImageNoise(seeds))
    eta_one = ddim(denoiser, noise, timesteps, SCHEDULE, PerImageNoise(seeds), eta=1.0, final_alpha=1.0)
    torch.testing.assert_close(ancestral, eta_one, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------- parity with diffusers


def diffusers_ddim(n: int, **config: object) -> object:
    """diffusers' DDIM with Stable Diffusion's settings (the class defaults are others), set to n steps."""
    diffusers = pytest.importorskip("diffusers")
    settings = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
        "set_alpha_to_one": False,
        "clip_sample": False,
    }
    scheduler = diffusers.DDIMScheduler(**settings | config)
    scheduler.set_timesteps(n)
    return scheduler


def diffusers_sample(scheduler: object, model: Callable, z: Tensor, **options: object) -> Tensor:
    for t in scheduler.timesteps:
        z = scheduler.step(model(z, t.expand(len(z))), t, z, **options).prev_sample
    return z


@pytest.mark.parametrize("n", [10, 20, 30, 50])
def test_ddim_matches_diffusers(n):
    model, noise = random_model(), initial_noise([0, 1], TINY)
    reference = diffusers_sample(diffusers_ddim(n), model, noise)
    out = ddim(model, noise, SCHEDULE.timesteps(n), SCHEDULE)
    assert (out - reference).abs().max() <= 1e-5


@pytest.mark.parametrize("n", [10, 30])
def test_ddim_of_a_v_model_matches_diffusers(n):
    schedule = NoiseSchedule(prediction="v")
    model, noise = random_model(), initial_noise([0, 1], TINY)
    reference = diffusers_sample(diffusers_ddim(n, prediction_type="v_prediction"), model, noise)
    out = ddim(lambda z, t: schedule.to_eps(model(z, t), z, t), noise, schedule.timesteps(n), schedule)
    assert (out - reference).abs().max() <= 1e-5


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_a_seed_makes_the_image_of_diffusers_list_of_generators(eta):
    """Per image one stream: first the initial noise, then that of the steps, as in diffusers."""
    seeds = [7, 8]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = torch.cat([torch.randn(1, *TINY, generator=g) for g in generators])
    assert torch.equal(noise, initial_noise(seeds, TINY))

    def step_noise(z: Tensor) -> Tensor:
        return torch.cat([torch.randn(1, *z.shape[1:], generator=g) for g in generators])

    model, scheduler, z = random_model(), diffusers_ddim(20), noise
    for t in scheduler.timesteps:
        z = scheduler.step(model(z, t.expand(2)), t, z, eta=eta, variance_noise=step_noise(z)).prev_sample
    out = ddim(model, noise, SCHEDULE.timesteps(20), SCHEDULE, PerImageNoise(seeds), eta=eta)
    assert (out - z).abs().max() <= 1e-5


# ---------------------------------------------------------------------- a seed names an image


def test_initial_noise_depends_on_the_seed_alone():
    batch = initial_noise([5, 6, 7], TINY)
    assert torch.equal(initial_noise([7, 5], TINY), batch[[2, 0]])
    assert torch.equal(initial_noise([6], TINY), batch[1:2])
    assert not torch.equal(batch[0], batch[1])
    assert torch.equal(initial_noise([5, 6, 7], TINY, dtype=torch.bfloat16), batch.bfloat16())


def test_step_noise_depends_on_the_seed_and_step_alone():
    z = torch.zeros(3, *TINY)
    batch, other = PerImageNoise([5, 6, 7]), PerImageNoise([7, 5])
    draws = [(batch.like(z), other.like(z[:2])) for _ in range(3)]
    for ours, theirs in draws:
        assert torch.equal(ours[[2, 0]], theirs)
    everything = torch.cat([initial_noise([5, 6, 7], TINY), *(ours for ours, _ in draws)])
    assert len({image.sum().item() for image in everything}) == 12, "a draw repeats another or the initial noise"


def sample_ddpm(seeds: list[int]) -> Tensor:
    generator = PerImageNoise(seeds)
    return ddpm(random_model(), initial_noise(seeds, TINY), SCHEDULE.timesteps(10), SCHEDULE, generator)


def sample_ddim(seeds: list[int]) -> Tensor:
    noise, generator = initial_noise(seeds, TINY), PerImageNoise(seeds)
    return ddim(random_model(), noise, SCHEDULE.timesteps(10), SCHEDULE, generator, eta=1.0)


@pytest.mark.parametrize("sample", [sample_ddpm, sample_ddim])
def test_a_seed_names_an_image_whatever_the_batch(sample):
    batch = sample([5, 6, 7])
    torch.testing.assert_close(sample([7, 5]), batch[[2, 0]])
    torch.testing.assert_close(sample([6]), batch[1:2])
    assert torch.equal(sample([5, 6, 7]), batch)


def test_sampling_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    sample_ddpm([1])
    assert torch.equal(torch.get_rng_state(), state)


# ---------------------------------------------------------------------- the contract


SAMPLERS = {
    "ddim": lambda *args, **kw: ddim(*args, SCHEDULE, **kw),
    "ddim eta 1": lambda *args, **kw: ddim(*args, SCHEDULE, PerImageNoise([0, 1]), eta=1.0, **kw),
    "ddpm": lambda *args, **kw: ddpm(*args, SCHEDULE, PerImageNoise([0, 1]), **kw),
}


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
@pytest.mark.parametrize("n", [1, 7, 50])
def test_one_denoiser_call_and_one_callback_per_timestep(sampler, n):
    timesteps, seen, steps = SCHEDULE.timesteps(n), [], []

    def denoiser(z: Tensor, t: Tensor) -> Tensor:
        assert t.dtype == torch.int64
        assert t.shape == (2,)
        seen.append(t[0].item())
        return z

    noise = initial_noise([0, 1], TINY)
    before = noise.clone()
    out = sampler(denoiser, noise, timesteps, callback=lambda i, z: steps.append((i, z)))
    assert seen == timesteps.tolist()
    assert [i for i, _ in steps] == list(range(n))
    assert torch.equal(steps[-1][1], out)
    assert torch.equal(noise, before), "the caller's latents are not overwritten"


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_a_half_precision_denoiser_sees_its_dtype_and_arithmetic_is_float32(sampler):
    noise = initial_noise([0, 1], TINY, dtype=torch.bfloat16)
    running = []

    def denoiser(z: Tensor, t: Tensor) -> Tensor:
        assert z.dtype == torch.bfloat16
        return 0.9 * z

    out = sampler(denoiser, noise, SCHEDULE.timesteps(5), callback=lambda i, z: running.append(z.dtype))
    assert out.dtype == torch.bfloat16
    assert set(running) == {torch.float32}


def test_samplers_keep_no_graph():
    weight = torch.ones(1, requires_grad=True)
    out = ddim(lambda z, t: weight * z, initial_noise([0], TINY), SCHEDULE.timesteps(3), SCHEDULE)
    assert not out.requires_grad


def test_misuse_is_an_error():
    noise, timesteps = initial_noise([0, 1], TINY), SCHEDULE.timesteps(3)
    with pytest.raises(ValueError, match="PerImageNoise"):
        ddim(random_model(), noise, timesteps, SCHEDULE, eta=0.5)
    with pytest.raises(ValueError, match="PerImageNoise"):
        ddpm(random_model(), noise, timesteps, SCHEDULE)
    with pytest.raises(ValueError, match="eta"):
        ddim(random_model(), noise, timesteps, SCHEDULE, PerImageNoise([0, 1]), eta=1.5)
    with pytest.raises(ValueError, match="one seed per image"):
        ddpm(random_model(), noise, timesteps, SCHEDULE, PerImageNoise([0]))
    with pytest.raises(ValueError, match="descending"):
        ddim(random_model(), noise, timesteps.flip(0), SCHEDULE)
