"""The autoencoder against diffusers' with the same weights, and the statistics of its posterior."""

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from ldm.autoencoder import AutoencoderKL, DiagonalGaussian
from ldm.interop.names import autoencoder_table, to_ours

WIDTHS, GROUPS = (16, 32, 32), 8


def small(**options) -> AutoencoderKL:
    sizes = {"channels": 16, "channel_mult": (1, 2, 2), "res_blocks": 1, "groups": GROUPS}
    return AutoencoderKL(**{**sizes, **options}).eval()


def randomise(module: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(noise * p[0].numel() ** -0.5 if p.ndim > 1 else p + 0.2 * noise)


@pytest.fixture(scope="module")
def both() -> tuple[AutoencoderKL, nn.Module]:
    diffusers = pytest.importorskip("diffusers")
    reference = diffusers.AutoencoderKL(
        block_out_channels=WIDTHS,
        layers_per_block=1,
        norm_num_groups=GROUPS,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
    ).eval()
    randomise(reference)
    ours = small()
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    state = to_ours(reference.state_dict(), autoencoder_table(ours, "diffusers"), shapes)
    ours.load_state_dict({**state, "scale": torch.tensor(0.18215)}, strict=True)
    return ours, reference


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    assert b.std() > 0.05  # numbers that could differ
    return (a - b).abs().max().item()


@torch.no_grad()
def test_the_moments_equal_those_of_diffusers(both, image):
    ours, reference = both
    posterior = reference.encode(image).latent_dist
    assert difference(ours.moments(image), posterior.parameters) < 1e-5
    assert difference(ours.posterior(image).logvar, posterior.logvar) < 1e-5


@torch.no_grad()
def test_latents_are_diffusers_mean_or_sample_times_the_scaling_factor(both, image):
    ours, reference = both
    posterior = reference.encode(image).latent_dist
    eps = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(2))
    assert difference(ours.encode(image), 0.18215 * posterior.mean) < 1e-5
    assert difference(ours.encode(image, eps), 0.18215 * (posterior.mean + posterior.std * eps)) < 1e-5


@torch.no_grad()
def test_decoding_equals_that_of_diffusers(both):
    ours, reference = both
    z = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(3))
    assert difference(ours.decode(0.18215 * z), reference.decode(z).sample) < 1e-5


def test_every_weight_of_the_autoencoder_has_an_influence(both, image):
    ours, _ = both
    ours.zero_grad()
    posterior = ours.posterior(image)
    y = ours.decode(ours.scale * posterior.sample(torch.ones_like(posterior.mean)))
    (y.square().mean() + posterior.kl().mean()).backward()
    dead = [name for name, p in ours.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-9]
    # softmax does not see a constant added to every key's score
    assert all(name.endswith("to_k.bias") for name in dead)
    ours.zero_grad()


def test_the_defaults_have_the_size_of_stable_diffusion():
    with torch.device("meta"):
        autoencoder = AutoencoderKL()
    assert sum(p.numel() for p in autoencoder.parameters()) == 83_653_863
    assert autoencoder.factor == 8


# ------------------------------------------------------------------ patches and sizes


@torch.no_grad()
@pytest.mark.parametrize(("patch", "factor"), [(1, 4), (2, 8), (4, 16)])
def test_patches_multiply_the_factor_and_shapes_follow(patch, factor):
    autoencoder = small(patch=patch, z_channels=3)
    x = torch.zeros(2, 3, 32, 64)
    assert autoencoder.factor == factor
    assert autoencoder.moments(x).shape == (2, 6, 32 // factor, 64 // factor)
    z = autoencoder.encode(x)
    assert z.shape == (2, 3, 32 // factor, 64 // factor)
    assert autoencoder.decode(z).shape == x.shape


@pytest.mark.parametrize("size", [(36, 32), (32, 36)])
def test_an_image_that_does_not_divide_is_refused_with_the_numbers(size):
    with pytest.raises(ValueError, match=rf"multiples of 8, got \({size[0]}, {size[1]}\)"):
        small(patch=2).moments(torch.zeros(1, 3, *size))


def test_the_scale_is_in_the_state_dict():
    other = small(scale=1.0)
    other.load_state_dict(small(scale=0.25).state_dict())
    assert other.scale.item() == 0.25


@torch.no_grad()
def test_the_scale_multiplies_latents_and_decoding_undoes_it(image):
    autoencoder = small(scale=1.0)
    z, y = autoencoder.encode(image), autoencoder.decode(autoencoder.encode(image))
    autoencoder.scale.fill_(0.125)
    assert torch.equal(autoencoder.encode(image), 0.125 * z)
    torch.testing.assert_close(autoencoder.decode(autoencoder.encode(image)), y)


# ------------------------------------------------------------------ the posterior


def test_samples_have_the_stated_mean_and_standard_deviation():
    mean, std, count = torch.tensor([-2.0, 0.0, 3.0]), torch.tensor([0.1, 1.0, 4.0]), 100_000
    posterior = DiagonalGaussian(mean, 2 * std.log())
    samples = posterior.sample(torch.randn(count, 3, generator=torch.Generator().manual_seed(0)))
    error = std / count**0.5
    assert ((samples.mean(dim=0) - mean).abs() < 4 * error).all()
    assert ((samples.std(dim=0) - std).abs() < 4 * error / 2**0.5).all()


def test_kl_equals_that_of_torch_summed_over_each_image():
    generator = torch.Generator().manual_seed(0)
    mean, logvar = torch.randn(2, 3, 4, 5, 6, generator=generator)
    expected = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0)).flatten(1).sum(dim=1)
    torch.testing.assert_close(DiagonalGaussian(mean, logvar).kl(), expected)


def test_moments_hold_the_mean_first_and_the_log_variance_is_clamped():
    moments = torch.tensor([1.0, 2.0, 3.0, -50.0, 0.5, 50.0]).reshape(1, 6, 1, 1)
    posterior = DiagonalGaussian.from_moments(moments)
    assert posterior.mean.flatten().tolist() == [1.0, 2.0, 3.0]
    assert posterior.logvar.flatten().tolist() == [-30.0, 0.5, 20.0]
    assert posterior.kl().isfinite().all()
