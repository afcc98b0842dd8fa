"""LatentDiffusion: its loss, its conversions and its checks, with networks whose answer is known."""

import pytest
import torch
from torch import Tensor, nn

from ldm.autoencoder import AutoencoderKL
from ldm.conditioner import Conditioner
from ldm.diffusion import LatentDiffusion
from ldm.schedule import NoiseSchedule
from ldm.text_encoder import TextEncoder
from ldm.unet import ControlResiduals, UNet, UNetConfig

CONFIG = UNetConfig(
    channels=8,
    channel_mult=(1, 2),
    attention=(True, False),
    res_blocks=1,
    context_channels=8,
    heads=2,
    groups=4,
)


def diffusion(prediction: str = "eps", unet: nn.Module | None = None, text_width: int = 8) -> LatentDiffusion:
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(channels=8, channel_mult=(1, 1), res_blocks=1, groups=4)
    encoder = TextEncoder(vocab_size=4, width=text_width, layers=1, heads=1, context_length=5)
    conditioner = Conditioner(encoder, vocabulary=("red", "star"))
    unet = UNet(CONFIG) if unet is None else unet
    return LatentDiffusion(autoencoder, conditioner, unet, NoiseSchedule(prediction=prediction)).eval()


class Answering(nn.Module):
    """A network that always gives `answer` and remembers what it was asked."""

    config = CONFIG

    def __init__(self, answer: Tensor):
        super().__init__()
        self.answer, self.asked = answer, None

    def forward(self, z, t, context, control=None):
        self.asked = (z, t, context, control)
        return self.answer


def draw() -> tuple[Tensor, Tensor, Tensor]:
    """(z0, eps, t) of three images."""
    z0, eps = torch.randn(2, 3, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    return z0, eps, torch.tensor([0, 400, 999])


CONTEXT = torch.zeros(3, 5, 8)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_a_perfect_network_has_zero_loss_and_a_constant_error_its_square(prediction):
    z0, eps, t = draw()
    target = NoiseSchedule(prediction=prediction).target(z0, eps, t)
    errors = torch.tensor([0.0, 1.0, 3.0])
    model = diffusion(prediction, Answering(target + errors[:, None, None, None]))
    loss = model.loss(z0, CONTEXT, t, eps)
    torch.testing.assert_close(loss, errors.square())
    assert loss[0] == 0.0


def test_the_network_is_asked_about_the_noised_latents_with_the_branchs_residuals():
    z0, eps, t = draw()
    model = diffusion(unet=Answering(eps))
    control = ControlResiduals((), torch.zeros(1))
    asked = []
    model.loss(z0, CONTEXT, t, eps, branch=lambda *args: asked.append(args) or control)
    z = model.schedule.add_noise(z0, eps, t)
    for got in (model.unet.asked, *asked):
        assert torch.equal(got[0], z)
        assert torch.equal(got[1], t)
        assert torch.equal(got[2], CONTEXT)
    assert model.unet.asked[3] is control
    model.loss(z0, CONTEXT, t, eps)
    assert model.unet.asked[3] is None


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_denoise_gives_eps_whatever_the_network_predicts(prediction):
    z0, eps, t = draw()
    schedule = NoiseSchedule(prediction=prediction)
    model = diffusion(prediction, Answering(schedule.target(z0, eps, t)))
    found = model.denoise(schedule.add_noise(z0, eps, t), t, CONTEXT)
    torch.testing.assert_close(found, eps, rtol=0, atol=1e-5)


def test_latent_shape_divides_by_the_autoencoders_factor():
    assert diffusion().latent_shape(64, 32) == (4, 32, 16)


@pytest.mark.parametrize("size", [(29, 32), (32, 31), (0, 32)])
def test_an_image_that_the_autoencoder_cannot_halve_is_refused_with_the_unit(size):
    with pytest.raises(ValueError, match=rf"multiples of 2 for this model, got {size[0]} x {size[1]}"):
        diffusion().latent_shape(*size)


@torch.no_grad()
def test_an_accepted_size_goes_through_the_whole_model():
    model = diffusion()
    shape = model.latent_shape(12, 18)  # latents of 6 x 9: the U-Net halves an odd side
    z = model.encode(torch.zeros(1, 3, 12, 18))
    assert z.shape == (1, *shape)
    eps = model.denoise(z, torch.tensor([5]), model.context(["red"]))
    assert eps.shape == z.shape
    assert model.decode(z).shape == (1, 3, 12, 18)


def test_a_text_encoder_of_another_width_is_refused():
    with pytest.raises(ValueError, match=r"text encoder width 16, but unet\.context_channels 8"):
        diffusion(text_width=16)


@torch.no_grad()
def test_decoded_images_are_clamped():
    model = diffusion()
    nn.init.constant_(model.autoencoder.decoder.conv_out.bias, 5.0)
    assert model.decode(torch.zeros(1, 4, 4, 4)).max() == 1.0
    assert model.autoencoder.decode(torch.zeros(1, 4, 4, 4)).max() > 1.0


@torch.no_grad()
def test_the_same_noise_gives_the_same_latents_and_loss():
    model = diffusion()
    nn.init.normal_(model.unet.decoder.conv_out.weight)
    x = torch.rand(3, 3, 8, 12, generator=torch.Generator().manual_seed(1))
    z0, eps, t = draw()
    context = model.context(["red", "star", ""])
    assert torch.equal(model.encode(x, eps), model.encode(x, eps))
    assert not torch.allclose(model.encode(x, eps), model.encode(x, z0))
    losses = [model.loss(z0, context, t, noise) for noise in (eps, eps, z0)]
    assert torch.equal(losses[0], losses[1])
    assert not torch.allclose(losses[0], losses[2])


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_a_bf16_model_runs_and_its_loss_is_measured_in_float32(prediction):
    model = diffusion(prediction)
    nn.init.normal_(model.unet.decoder.conv_out.weight, std=0.1)
    z0, eps, t = draw()
    expected = model.loss(z0, model.context(["red"] * 3), t, eps)
    half = model.to(torch.bfloat16)
    context = half.context(["red"] * 3)
    assert context.dtype == torch.bfloat16
    loss = half.loss(z0.bfloat16(), context, t, eps.bfloat16())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0)
    assert half.denoise(z0.bfloat16(), t, context).isfinite().all()
