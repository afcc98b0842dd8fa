import pytest
import torch

from ldm.schedule import SPACINGS, NoiseSchedule

EVERY_T = torch.arange(1000)
WHOLE = ("leading", "trailing", "linspace")


def triple(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(z0, eps, t): a tiny latent and its noise for each of the 1000 timesteps."""
    generator = torch.Generator().manual_seed(seed)
    z0, eps = torch.randn(2, 1000, 4, 2, 2, generator=generator)
    return z0, eps, EVERY_T


def test_abar_is_that_of_published_stable_diffusion():
    diffusers = pytest.importorskip("diffusers")
    reference = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    schedule = NoiseSchedule()
    torch.testing.assert_close(schedule.alphas_cumprod, reference.alphas_cumprod, rtol=0, atol=1e-6)
    torch.testing.assert_close(schedule.betas, reference.betas, rtol=0, atol=1e-6)
    # the figures of the published checkpoints, to the digits that are usually quoted
    assert schedule.alphas_cumprod[0].item() == pytest.approx(0.99915, abs=1e-5)
    assert schedule.alphas_cumprod[-1].item() == pytest.approx(0.004660, abs=1e-6)


def test_add_noise_keeps_unit_variance_and_follows_abar():
    z0, eps, t = triple()
    schedule = NoiseSchedule()
    signal = schedule.add_noise(torch.ones_like(z0), torch.zeros_like(eps), t)[:, 0, 0, 0]
    noise = schedule.add_noise(torch.zeros_like(z0), torch.ones_like(eps), t)[:, 0, 0, 0]
    torch.testing.assert_close(signal.square(), schedule.alphas_cumprod)
    torch.testing.assert_close(signal.square() + noise.square(), torch.ones(1000))
    torch.testing.assert_close(schedule.snr(t), signal.square() / noise.square(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_a_perfect_network_gives_back_z0_and_eps(prediction):
    z0, eps, t = triple()
    schedule = NoiseSchedule(prediction=prediction)
    z = schedule.add_noise(z0, eps, t)
    output = schedule.target(z0, eps, t)
    torch.testing.assert_close(schedule.to_eps(output, z, t), eps, rtol=0, atol=1e-5)
    torch.testing.assert_close(schedule.to_z0(output, z, t), z0, rtol=0, atol=1e-4)


def test_target_is_what_prediction_says():
    z0, eps, t = triple()
    assert torch.equal(NoiseSchedule(prediction="eps").target(z0, eps, t), eps)
    v = NoiseSchedule(prediction="v")
    assert torch.equal(v.target(z0, eps, t), v.velocity(z0, eps, t))


def test_eps_and_v_networks_agree_on_z0():
    """(z0, eps) -> (z, v) is a rotation, so both networks imply the same z0."""
    z0, eps, t = triple()
    schedule = NoiseSchedule(prediction="v")
    z, v = schedule.add_noise(z0, eps, t), schedule.velocity(z0, eps, t)
    torch.testing.assert_close(z.square() + v.square(), z0.square() + eps.square())
    through_eps = schedule.z0_from_eps(schedule.to_eps(v, z, t), z, t)
    torch.testing.assert_close(through_eps, schedule.to_z0(v, z, t), rtol=0, atol=1e-4)


def test_velocity_matches_diffusers():
    diffusers = pytest.importorskip("diffusers")
    reference = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    z0, eps, t = triple()
    schedule = NoiseSchedule()
    torch.testing.assert_close(schedule.add_noise(z0, eps, t), reference.add_noise(z0, eps, t))
    torch.testing.assert_close(schedule.velocity(z0, eps, t), reference.get_velocity(z0, eps, t), rtol=0, atol=1e-5)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_timesteps_are_exactly_n_for_every_n(spacing):
    schedule = NoiseSchedule()
    for n in range(1, 1001):
        t = schedule.timesteps(n, spacing)
        assert t.dtype == (torch.float64 if spacing == "karras" else torch.int64)
        assert t.shape == (n,)
        assert 0 <= t[-1] <= t[0] <= 999
        assert torch.all(t.diff() < 0), f"{n} steps are not distinct and descending"


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_trailing_and_linspace_start_from_pure_noise(spacing):
    schedule = NoiseSchedule()
    assert all(schedule.timesteps(n, spacing)[0] == 999 for n in range(1, 1001))


def test_all_spacings_agree_on_the_full_grid():
    for spacing in WHOLE:
        assert torch.equal(NoiseSchedule().timesteps(1000, spacing), EVERY_T.flip(0))


def test_karras_noise_levels_are_those_of_the_paper():
    """Equation 5 with rho 7, between the noise levels of the first and the last timestep."""
    schedule = NoiseSchedule()
    abar = schedule.abar(schedule.timesteps(12, "karras"))
    low, high = 0.0291675, 14.614642  # of Stable Diffusion, as quoted by k-diffusion
    expected = (high ** (1 / 7) + torch.linspace(0, 1, 12).double() * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    torch.testing.assert_close(((1 - abar) / abar).sqrt(), expected, rtol=1e-4, atol=0)


def test_between_whole_timesteps_abar_goes_from_one_to_the_next():
    schedule = NoiseSchedule()
    table = schedule.alphas_cumprod
    torch.testing.assert_close(schedule.abar(EVERY_T.double()).float(), table)
    halfway = schedule.abar(EVERY_T[:-1].double() + 0.5)
    assert torch.all((halfway < table[:-1]) & (halfway > table[1:]))
    log_sigma = -0.5 * table.double().logit()
    torch.testing.assert_close(-0.5 * halfway.logit(), (log_sigma[:-1] + log_sigma[1:]) / 2, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n", [10, 20, 30, 50])
@pytest.mark.parametrize("spacing", WHOLE)
def test_timesteps_match_diffusers(n, spacing):
    diffusers = pytest.importorskip("diffusers")
    reference = diffusers.DDIMScheduler(steps_offset=1, timestep_spacing=spacing)
    reference.set_timesteps(n)
    assert torch.equal(NoiseSchedule().timesteps(n, spacing), reference.timesteps)


def test_leading_does_not_overrun():
    """The published grid asked for 333 and for 1000 steps indexes timestep 1000, which does not exist."""
    schedule = NoiseSchedule()
    assert schedule.timesteps(50)[[0, 1, -1]].tolist() == [981, 961, 1]
    assert schedule.timesteps(333)[0] == 997
    assert schedule.timesteps(1000)[0] == 999
    assert schedule.timesteps(999)[0] == 999


def test_a_short_schedule_has_its_own_range():
    schedule = NoiseSchedule(steps=10)
    for spacing in SPACINGS:
        for n in range(1, 11):
            t = schedule.timesteps(n, spacing)
            assert len(set(t.tolist())) == n
            assert 0 <= t.min() <= t.max() <= 9


def test_tables_stay_float32_and_out_of_checkpoints():
    schedule = NoiseSchedule()
    abar = schedule.alphas_cumprod.clone()
    for cast in (schedule.half(), schedule.bfloat16(), schedule.double()):
        assert cast.alphas_cumprod.dtype == torch.float32
        assert torch.equal(cast.alphas_cumprod, abar)
    assert schedule.state_dict() == {}


def test_a_model_built_on_meta_gets_real_tables():
    with torch.device("meta"):
        schedule = NoiseSchedule()
    materialised = schedule.to("meta").to_empty(device="cpu")
    assert torch.equal(materialised.alphas_cumprod, NoiseSchedule().alphas_cumprod)


def test_half_precision_latents_are_noised_in_float32():
    z0, eps, t = triple()
    z = NoiseSchedule().add_noise(z0.bfloat16(), eps.bfloat16(), t)
    assert z.dtype == torch.float32
    torch.testing.assert_close(z, NoiseSchedule().add_noise(z0.bfloat16().float(), eps.bfloat16().float(), t))


@pytest.mark.parametrize("n", [0, -1, 1001])
def test_step_counts_outside_the_schedule_are_errors(n):
    with pytest.raises(ValueError, match=r"1\.\.1000"):
        NoiseSchedule().timesteps(n)


def test_unknown_words_are_errors_that_name_the_key():
    with pytest.raises(ValueError, match=r"model\.schedule\.prediction"):
        NoiseSchedule(prediction="x0")
    with pytest.raises(ValueError, match=r"model\.schedule\.steps"):
        NoiseSchedule(steps=0)
    with pytest.raises(ValueError, match="beta_start"):
        NoiseSchedule(beta_start=0.1, beta_end=0.01)
    with pytest.raises(ValueError, match="spacing"):
        NoiseSchedule().timesteps(10, "log")
    with pytest.raises(ValueError, match=r"zero_snr needs model\.schedule\.prediction=v"):
        NoiseSchedule(zero_snr=True)


@pytest.mark.parametrize("grid", [[], [1, 5], [5, 5], [1000, 1], [5, -1], [[5, 1]], 5])
def test_steps_along_refuses_other_grids(grid):
    with pytest.raises(ValueError, match="descending"):
        NoiseSchedule().steps_along(torch.tensor(grid, dtype=torch.int64), 1.0)


def test_steps_along_arrives_where_the_next_step_starts():
    schedule = NoiseSchedule()
    abar = schedule.alphas_cumprod.tolist()
    steps = list(schedule.steps_along(torch.tensor([900, 30, 2]), 1.0))
    assert steps == [(900, abar[900], abar[30]), (30, abar[30], abar[2]), (2, abar[2], 1.0)]
    with pytest.raises(ValueError, match="final_alpha"):
        schedule.steps_along(torch.tensor([900, 30]), abar[31])
