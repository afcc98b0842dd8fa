import functools
import inspect
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ldm.samplers import (
    Denoiser,
    PerImageNoise,
    ddim,
    ddpm,
    dpmpp_2m,
    dpmpp_2m_sde,
    euler,
    euler_ancestral,
    heun,
    initial_noise,
    pndm,
    unipc,
)
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

    def denoiser(z: Tensor, t: Tensor) -> Tensor:
        abar = SCHEDULE.abar(t[:1]).item()
        return (1 - abar) ** 0.5 / marginal_variance(abar) * (z - abar**0.5 * MEAN)

    return denoiser


def random_model(seed: int = 0) -> Callable[[Tensor, Tensor], Tensor]:
    """A small random convolution net of (z, t) with outputs of about unit size."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(4, 4, 3, 3, generator=generator) / 6 for _ in range(2))

    def model(z: Tensor, t: Tensor) -> Tensor:
        h = torch.tanh(torch.nn.functional.conv2d(z, first, padding=1) + t.float()[:, None, None, None] / 1000)
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
    abars = [*SCHEDULE.abar(timesteps).tolist(), final_alpha]
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


# ---------------------------------------------------------------------- a Gaussian mixture: every sampler

MEANS = torch.tensor([[-1.0, 0.5], [1.5, 0.0], [0.0, -1.0]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
SPREAD = 0.3  # standard deviation of every component


def mixture_denoiser(z: Tensor, t: Tensor) -> Tensor:
    """The exact eps of the mixture in the plane: -sqrt(1 - abar) times the score of z_t. z is (b, 2, h, w)."""
    abar = SCHEDULE.abar(t[:1]).item()
    offsets = abar**0.5 * MEANS[:, :, None, None] - z.double()[:, None]
    variance = abar * SPREAD**2 + 1 - abar
    share = torch.softmax(WEIGHTS.log()[:, None, None] - offsets.square().sum(2) / (2 * variance), dim=1)
    return -((1 - abar) ** 0.5) * (share[:, :, None] * offsets).sum(1) / variance


DETERMINISTIC = {"ddim": ddim, "euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m, "unipc": unipc, "pndm": pndm}
STOCHASTIC = {
    "ddim_eta_1": functools.partial(ddim, eta=1.0),
    "ddpm": ddpm,
    "euler_ancestral": euler_ancestral,
    "dpmpp_2m_sde": dpmpp_2m_sde,
}
ALL = DETERMINISTIC | STOCHASTIC
SEEDS = [0, 1]  # every pixel of a latent is a sample of its own


def draw(sampler: Callable[..., Tensor], timesteps: Tensor, shape: tuple[int, ...] = (2, 64, 64), **kw) -> Tensor:
    noise = initial_noise(SEEDS, shape, dtype=torch.float64)
    return sampler(mixture_denoiser, noise, timesteps, SCHEDULE, PerImageNoise(SEEDS), **kw)


@pytest.mark.parametrize("name", ALL)
def test_every_sampler_returns_the_mean_and_covariance_of_a_mixture(name):
    """8192 samples, at most four standard errors off. The first-order SDE solvers need the longest grid."""
    n = 1000 if name in ("ddim_eta_1", "ddpm", "euler_ancestral") else 200
    points = draw(ALL[name], SCHEDULE.timesteps(n, "trailing")).permute(1, 0, 2, 3).flatten(1)
    mean = WEIGHTS @ MEANS
    covariance = MEANS.T @ (WEIGHTS[:, None] * MEANS) - mean[:, None] * mean + SPREAD**2 * torch.eye(2)
    errors = covariance.diagonal().sqrt() * 4 / math.sqrt(points.shape[1])
    assert torch.all((points.mean(1) - mean).abs() < errors)
    # the data's fourth moments are below a normal's, and pndm and ddim arrive at abar_0
    assert torch.all((points.cov() - covariance).abs() < 4 * math.sqrt(2 / points.shape[1]) * covariance.max())


@functools.cache
def exact_flow() -> Tensor:
    """Where the probability flow takes the noise at timestep 0, to about 1e-8: UniPC on a fine grid."""
    return arrival(unipc, fine_grid(2000))


def fine_grid(n: int) -> Tensor:
    """n fractional timesteps from T-1 to 0 on Karras' noise levels; `timesteps` stops at 1000."""
    log_sigmas = -0.5 * SCHEDULE.alphas_cumprod.double().logit()
    low, high = (log_sigmas[[0, -1]] / 7).exp()
    wanted = 7 * torch.lerp(high, low, torch.linspace(0, 1, n, dtype=torch.float64)).log()
    above = torch.searchsorted(log_sigmas, wanted).clamp(1, 999)
    return (above - (log_sigmas[above] - wanted) / (log_sigmas[above] - log_sigmas[above - 1])).clamp(0, 999)


def arrival(sampler: Callable[..., Tensor], timesteps: Tensor) -> Tensor:
    """The latents when they reach the last timestep, one step before the end."""
    seen = {}
    draw(sampler, timesteps, (2, 8, 8), callback=lambda i, z: seen.update({i: z}))
    return seen[len(timesteps) - 2]


@pytest.mark.parametrize(
    ("name", "order"), [("ddim", 1), ("euler", 1), ("heun", 2), ("dpmpp_2m", 2), ("unipc", 2), ("pndm", 2)]
)
def test_the_error_falls_with_the_samplers_order(name, order):
    """Twice the steps, 2^order less error; at least the order, for the corrector of UniPC adds one."""
    errors = [
        (arrival(DETERMINISTIC[name], SCHEDULE.timesteps(n, "karras")) - exact_flow()).abs().mean().item()
        for n in (160, 320)
    ]
    assert math.log2(errors[0] / errors[1]) > order - 0.25
    assert errors[1] < 0.01


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_sampler_takes_exactly_n_steps_for_every_n(name, spacing):
    """And its last latents are finite and about as large as data: none overruns a table or divides by zero."""
    for n in (1, 2, 3, 7, 333, 599) if spacing == "leading" else (1, 2, 13):
        steps = []
        out = draw(ALL[name], SCHEDULE.timesteps(n, spacing), (2, 1, 1), callback=lambda i, z, s=steps: s.append(i))
        assert steps == list(range(n))
        assert out.isfinite().all()
        assert out.abs().max() < 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_a_sampler_takes_as_many_steps_as_its_grid_has_entries(name):
    """tests/ldm/test_schedule.py has the grid of every count on every spacing: n entries for each n of 1 to 1000. Here
    the arithmetic on them: 1000, and counts that differ from sampler to sampler and from spacing to spacing."""
    pairs = len(ALL) * len(SPACINGS)
    for i, spacing in enumerate(SPACINGS):
        first = 1 + len(SPACINGS) * [*ALL].index(name) + i
        for n in (*range(first, 1000, 3 * pairs), 1000):
            steps = []
            z = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
            out = ALL[name](lambda z, t: z, z, SCHEDULE.timesteps(n, spacing), SCHEDULE, PerImageNoise([0]),
                            callback=lambda i, z, s=steps: s.append(i))  # fmt: skip
            assert steps == [*range(n)]
            assert out.isfinite().all()


def test_euler_is_ddim_that_ends_at_no_noise():
    """The flow is straight in (z / sqrt(abar), sigma): both take the same straight step."""
    for spacing in SPACINGS:
        timesteps = SCHEDULE.timesteps(13, spacing)
        torch.testing.assert_close(draw(euler, timesteps), draw(functools.partial(ddim, final_alpha=1.0), timesteps))


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_v_model_gives_the_image_of_its_eps_model(name):
    """(z0, eps) and (z, v) are two views of one prediction; zero terminal SNR only has the second."""
    schedule = NoiseSchedule(prediction="v")

    def through_v(z: Tensor, t: Tensor) -> Tensor:
        eps = mixture_denoiser(z, t)
        v = schedule.velocity(schedule.z0_from_eps(eps, z, t), eps, t)
        return schedule.to_eps(v, z, t)

    noise = initial_noise([0], (2, 4, 4), dtype=torch.float64)
    sampler, timesteps = DETERMINISTIC[name], schedule.timesteps(20)
    ours = sampler(through_v, noise, timesteps, schedule)
    torch.testing.assert_close(ours, sampler(mixture_denoiser, noise, timesteps, schedule), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_a_zero_snr_schedule_draws_the_brightness_that_the_usual_one_cannot(name):
    """Data of one value far from zero: from pure noise, abar_T = 0.0047 keeps part of the way to it."""
    schedule = NoiseSchedule(prediction="v", zero_snr=True)

    def denoiser(z: Tensor, t: Tensor) -> Tensor:
        z0 = torch.full_like(z, 5.0)
        abar = schedule.abar(t)[:, None, None, None]
        v = (abar.sqrt() * z - z0) / (1 - abar).sqrt()  # of the noise that leads from z0 to z
        return schedule.to_eps(v, z, t)

    noise = initial_noise([0, 1], (1, 8, 8))
    out = ALL[name](denoiser, noise, schedule.timesteps(20, "trailing"), schedule, PerImageNoise([0, 1]))
    assert (out - 5).abs().max() < 0.15  # ddim and pndm keep the noise of timestep 0, standard deviation 0.03


# ---------------------------------------------------------------------- parity with diffusers

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DDIM = {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}
LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
TRAILING = {"timestep_spacing": "trailing"}
KARRAS = {"timestep_spacing": "linspace", "use_karras_sigmas": True}
# diffusers' DDIM and PNDM step by T // n whatever their grid: off on all but the leading one (T/n = 33.3 at n = 30)
PARITY = [
    ("ddim", "DDIMScheduler", DDIM, "leading"),
    ("euler", "EulerDiscreteScheduler", LEADING, "leading"),
    ("euler", "EulerDiscreteScheduler", TRAILING, "trailing"),
    ("euler", "EulerDiscreteScheduler", KARRAS, "karras"),
    ("euler_ancestral", "EulerAncestralDiscreteScheduler", LEADING, "leading"),
    ("heun", "HeunDiscreteScheduler", LEADING, "leading"),
    ("heun", "HeunDiscreteScheduler", TRAILING, "trailing"),
    ("dpmpp_2m", "DPMSolverMultistepScheduler", TRAILING, "trailing"),
    ("dpmpp_2m", "DPMSolverMultistepScheduler", KARRAS, "karras"),
    ("dpmpp_2m_sde", "DPMSolverMultistepScheduler", TRAILING | {"algorithm_type": "sde-dpmsolver++"}, "trailing"),
    ("unipc", "UniPCMultistepScheduler", TRAILING, "trailing"),
    ("unipc_3", "UniPCMultistepScheduler", TRAILING | {"solver_order": 3}, "trailing"),
    ("pndm", "PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False} | LEADING, "leading"),
]  # fmt: skip


def diffusers_scheduler(cls: str, n: int, **config: object) -> object:
    """One of diffusers' with Stable Diffusion's betas (the class defaults are others), set to n steps."""
    scheduler = getattr(pytest.importorskip("diffusers"), cls)(**SD | config)
    scheduler.set_timesteps(n)
    return scheduler


class Drawn:
    """diffusers asks `randn_tensor` for step noise: give it the stream of each image, past the initial noise."""

    def __init__(self, seeds: list[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        for generator in self.generators:
            torch.randn(*TINY, generator=generator)


def diffusers_sample(scheduler: object, model: Callable, z: Tensor) -> Tensor:
    """The loop of a diffusers pipeline. Latents in; where it works on z / sqrt(abar), so does this."""
    in_sigma = "Euler" in type(scheduler).__name__ or "Heun" in type(scheduler).__name__
    x = z * (scheduler.sigmas[0] ** 2 + 1) ** 0.5 if in_sigma else z
    options = inspect.signature(scheduler.step).parameters
    extra = {"generator": Drawn([0, 1]).generators} if "generator" in options else {}
    for t in scheduler.timesteps:
        x = scheduler.step(model(scheduler.scale_model_input(x, t), t.expand(len(z))), t, x, **extra).prev_sample
    return x


@pytest.mark.parametrize(("name", "cls", "config", "spacing"), PARITY, ids=lambda p: p if isinstance(p, str) else "")
@pytest.mark.parametrize("n", [10, 20, 30, 50])
def test_a_sampler_matches_diffusers(name, cls, config, spacing, n):
    """The same model, noise and settings give the same latents: random weights, so no luck by smoothness."""
    sampler = (ALL | {"unipc_3": functools.partial(unipc, order=3)})[name]
    model, noise = random_model(), initial_noise([0, 1], TINY)
    reference = diffusers_sample(diffusers_scheduler(cls, n, **config), model, noise)
    out = sampler(model, noise, SCHEDULE.timesteps(n, spacing), SCHEDULE, PerImageNoise([0, 1]))
    # DPM-Solver rounds Karras' fractional timesteps, and Euler's are float32
    tolerance = 2e-2 if (name, spacing) == ("dpmpp_2m", "karras") else 1e-3
    assert (out - reference).abs().max() <= tolerance * reference.abs().max()


@pytest.mark.parametrize("n", [10, 30])
def test_ddim_of_a_v_model_matches_diffusers(n):
    schedule = NoiseSchedule(prediction="v")
    model, noise = random_model(), initial_noise([0, 1], TINY)
    reference = diffusers_sample(
        diffusers_scheduler("DDIMScheduler", n, **DDIM, prediction_type="v_prediction"), model, noise
    )
    out = ddim(lambda z, t: schedule.to_eps(model(z, t), z, t), noise, schedule.timesteps(n), schedule)
    assert (out - reference).abs().max() <= 1e-5


def test_zero_snr_betas_match_diffusers():
    scheduler = diffusers_scheduler("DDIMScheduler", 10, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    ours = NoiseSchedule(prediction="v", zero_snr=True).alphas_cumprod
    torch.testing.assert_close(ours, scheduler.alphas_cumprod, rtol=1e-4, atol=1e-6)
    assert ours[-1] == 2**-24


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_a_seed_makes_the_image_of_diffusers_list_of_generators(eta):
    """Per image one stream: first the initial noise, then that of the steps, as in diffusers."""
    seeds = [7, 8]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = torch.cat([torch.randn(1, *TINY, generator=g) for g in generators])
    assert torch.equal(noise, initial_noise(seeds, TINY))

    def step_noise(z: Tensor) -> Tensor:
        return torch.cat([torch.randn(1, *z.shape[1:], generator=g) for g in generators])

    model, scheduler, z = random_model(), diffusers_scheduler("DDIMScheduler", 20, **DDIM), noise
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


def sample(sampler: Callable[..., Tensor], seeds: list[int]) -> Tensor:
    noise, generator = initial_noise(seeds, TINY), PerImageNoise(seeds)
    return sampler(random_model(), noise, SCHEDULE.timesteps(10), SCHEDULE, generator)


@pytest.mark.parametrize("sampler", ALL.values(), ids=ALL.keys())
def test_a_seed_names_an_image_whatever_the_batch(sampler):
    batch = sample(sampler, [5, 6, 7])
    torch.testing.assert_close(sample(sampler, [7, 5]), batch[[2, 0]], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sample(sampler, [6]), batch[1:2], rtol=1e-4, atol=1e-4)
    assert torch.equal(sample(sampler, [5, 6, 7]), batch)


def test_sampling_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    sample(ddpm, [1])
    assert torch.equal(torch.get_rng_state(), state)


# ---------------------------------------------------------------------- the contract


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("n", [1, 7, 50])
def test_a_denoiser_is_called_at_the_timesteps_once_and_a_callback_follows_each(name, n):
    """heun asks a second time at every step but the last, pndm once more in all: at the timestep that follows."""
    timesteps, seen, steps = SCHEDULE.timesteps(n), [], []

    def denoiser(z: Tensor, t: Tensor) -> Tensor:
        assert t.dtype == torch.int64
        assert t.shape == (2,)
        seen.append(t[0].item())
        return z

    noise = initial_noise([0, 1], TINY)
    before = noise.clone()
    out = ALL[name](denoiser, noise, timesteps, SCHEDULE, PerImageNoise([0, 1]),
                    callback=lambda i, z: steps.append((i, z)))  # fmt: skip
    expected = timesteps.tolist()
    if name == "heun":
        expected = [expected[0]] + [t for t in expected[1:] for _ in range(2)]
    if name == "pndm":
        expected[1:2] *= 2
    assert seen == expected
    assert [i for i, _ in steps] == list(range(n))
    assert torch.equal(steps[-1][1], out)
    assert torch.equal(noise, before), "the caller's latents are not overwritten"


@pytest.mark.parametrize("sampler", ALL.values(), ids=ALL.keys())
def test_a_half_precision_denoiser_sees_its_dtype_and_arithmetic_is_float32(sampler):
    noise = initial_noise([0, 1], TINY, dtype=torch.bfloat16)
    running = []

    def denoiser(z: Tensor, t: Tensor) -> Tensor:
        assert z.dtype == torch.bfloat16
        return 0.9 * z

    out = sampler(denoiser, noise, SCHEDULE.timesteps(5), SCHEDULE, PerImageNoise([0, 1]),
                  callback=lambda i, z: running.append(z.dtype))  # fmt: skip
    assert out.dtype == torch.bfloat16
    assert set(running) == {torch.float32}


def test_samplers_keep_no_graph():
    weight = torch.ones(1, requires_grad=True)
    out = ddim(lambda z, t: weight * z, initial_noise([0], TINY), SCHEDULE.timesteps(3), SCHEDULE)
    assert not out.requires_grad


def test_samplers_that_draw_noise_ask_for_the_generator():
    noise = initial_noise([0, 1], TINY)
    for sampler in STOCHASTIC.values():
        with pytest.raises(ValueError, match="PerImageNoise"):
            sampler(random_model(), noise, SCHEDULE.timesteps(3), SCHEDULE)
    with pytest.raises(ValueError, match="order of unipc"):
        unipc(random_model(), noise, SCHEDULE.timesteps(3), SCHEDULE, order=4)


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
