"""The autoencoder's losses: values that can be worked out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ldm.autoencoder import DiagonalGaussian
from ldm.losses import (
    EDGE_THRESHOLD,
    AutoencoderLoss,
    LabelProbe,
    PatchDiscriminator,
    PerceptualLoss,
    adaptive_weight,
    edge_log_odds,
    edge_loss,
    gradient_l1,
    hinge_discriminator_loss,
    min_snr_weight,
)
from ldm.unet import UNet, UNetConfig


def images(seed: int = 0, size: int = 16) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def posterior(mean: float, logvar: float) -> DiagonalGaussian:
    return DiagonalGaussian(torch.full((2, 4, 2, 2), mean), torch.full((2, 4, 2, 2), logvar))


# ------------------------------------------------------------------ L1, gradients, KL


def test_gradient_l1_ignores_a_constant_offset_and_measures_a_ramp():
    x = images()
    assert gradient_l1(x, x + 0.7).item() == pytest.approx(0.0, abs=1e-6)
    ramp = 0.1 * torch.arange(16.0).expand(16, 16)
    assert gradient_l1(x, x + ramp).item() == pytest.approx(0.1, rel=1e-4)
    assert gradient_l1(x, x + ramp + 2 * ramp.T).item() == pytest.approx(0.3, rel=1e-4)


def grey_step(height: float) -> torch.Tensor:
    """A vertical edge of that many grey values of 255 in the middle of an image (1, 3, 16, 16)."""
    return (torch.arange(16) >= 8).float().mul(height / 127.5).sub(0.5).expand(1, 3, 16, 16)


def test_an_edge_at_cannys_threshold_has_even_odds():
    at_threshold = edge_log_odds(grey_step(EDGE_THRESHOLD / 4))  # Sobel's weights add up to 4
    assert at_threshold.shape == (1, 14, 14)
    assert at_threshold[..., 6:8].abs().max() < 1e-4
    assert (at_threshold[..., :6] < -10).all()
    twice = edge_log_odds(grey_step(EDGE_THRESHOLD / 2))[..., 6:8]
    torch.testing.assert_close(twice, torch.full_like(twice, 4 * math.log(2)), rtol=1e-4, atol=1e-4)


def test_the_edge_loss_is_zero_for_equal_images_and_dearer_for_a_missed_edge_than_for_one_too_many():
    strong, flat = grey_step(100.0), grey_step(0.0)
    assert edge_loss(strong, strong).item() == 0.0
    assert edge_loss(strong, grey_step(50.0)).item() > 0
    assert edge_loss(strong, flat) > 2 * edge_loss(flat, strong) > 0


def test_the_edge_loss_pulls_a_blurred_edge_sharp():
    x = grey_step(100.0)
    y = F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), 5, stride=1).requires_grad_()
    edge_loss(x, y).backward()
    sharper = (y - 0.05 * y.grad / y.grad.abs().max()).detach()
    assert edge_loss(x, sharper) < edge_loss(x, y)


def test_the_terms_add_up_with_their_weights():
    x, y = images(0), images(1)
    loss = AutoencoderLoss(gradient=0.5, edges=0.3, kl=0.01, perceptual=2.0, perceptual_distance=F.mse_loss)
    total, terms = loss(x, y, posterior(3.0, 0.0))
    assert terms["l1"] == F.l1_loss(x, y)
    assert terms["kl"].item() == pytest.approx(4.5)  # mean^2 / 2 nats in each latent
    assert terms["gradient"] == gradient_l1(x, y)
    assert terms["perceptual"] == F.mse_loss(x, y)
    assert terms["edges"] == edge_loss(x, y)
    expected = (
        terms["l1"] + 0.5 * terms["gradient"] + 0.3 * terms["edges"] + 0.01 * terms["kl"] + 2.0 * terms["perceptual"]
    )
    torch.testing.assert_close(total, expected)


def test_terms_of_weight_zero_are_left_out_and_terms_carry_no_graph():
    x, y = images(0), images(1).requires_grad_()
    total, terms = AutoencoderLoss(gradient=0.0)(x, y, posterior(0.0, 0.0))
    assert terms.keys() == {"l1", "kl"}
    assert total.requires_grad
    assert not any(term.requires_grad for term in terms.values())


# ------------------------------------------------------------------ patch GAN


def test_hinge_loss_values():
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 0.5])
    # real: 0 and 1; fake: 0 and 1.5
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx(0.5 * (0.5 + 0.75))
    assert hinge_discriminator_loss(torch.tensor([1.0]), torch.tensor([-1.0])).item() == 0.0


def test_the_adaptive_weight_is_the_ratio_of_gradient_norms():
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    vector = torch.tensor([3.0, 4.0])
    reconstruction, adversarial = (6.0 * vector * weight).sum(), (-0.5 * vector * weight).sum()
    ratio = adaptive_weight(reconstruction, adversarial, weight)
    assert ratio.item() == pytest.approx(12.0, rel=1e-3)
    assert not ratio.requires_grad
    reconstruction.backward()  # the graph is still there
    assert weight.grad is not None


def test_the_adaptive_weight_is_bounded_where_the_discriminator_has_no_slope():
    weight = torch.ones(2, requires_grad=True)
    assert adaptive_weight((1e3 * weight).sum(), (0.0 * weight).sum(), weight).item() == 1e4


@pytest.mark.parametrize(("size", "layers", "patches"), [(256, 3, 30), (128, 3, 14), (64, 2, 14), (32, 1, 14)])
def test_the_discriminator_judges_patches(size, layers, patches):
    """Isola et al.'s 70-pixel patches: 30 x 30 logits of a 256-pixel image at three layers."""
    discriminator = PatchDiscriminator(channels=8, layers=layers)
    with torch.no_grad():
        assert discriminator(torch.zeros(1, 3, size, size)).shape == (1, 1, patches, patches)


def test_the_discriminator_judges_each_image_alone():
    discriminator, x = PatchDiscriminator(channels=8, layers=1), images()
    with torch.no_grad():
        torch.testing.assert_close(discriminator(x)[:1], discriminator(x[:1]))
        assert not torch.allclose(discriminator(x)[0], discriminator(x)[1])


# ------------------------------------------------------------------ perceptual distance


def features(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(inplace=True)
    )


def test_equal_images_have_no_perceptual_distance_others_have():
    loss, x = PerceptualLoss(features(), (1, 4)), images(0)
    assert loss(x, x.clone()).item() == 0.0
    assert loss(x, images(1)).item() > 0.01
    torch.testing.assert_close(loss(x, images(1)), loss(images(1), x))


def test_the_distance_is_that_of_unit_normalised_features():
    """An identity network on constant images: every pixel's feature vector is its colour in [0, 1]."""
    loss = PerceptualLoss(nn.Sequential(nn.Identity()), (0,), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    red = torch.tensor([1.0, -1.0, -1.0]).reshape(1, 3, 1, 1).expand(1, 3, 4, 4)
    dark_red = torch.tensor([0.0, -1.0, -1.0]).reshape(1, 3, 1, 1).expand(1, 3, 4, 4)
    yellow = torch.tensor([1.0, 1.0, -1.0]).reshape(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert loss(red, dark_red).item() == pytest.approx(0.0, abs=1e-6)
    assert loss(red, yellow).item() == pytest.approx(2 - 2 / 2**0.5, rel=1e-5)  # 45 degrees apart


def test_layers_add_up_and_in_place_activations_do_not_overwrite_them():
    x, y = images(0), images(1)
    parts = [PerceptualLoss(features(), (i,))(x, y) for i in (0, 4)]
    y.requires_grad_()
    both = PerceptualLoss(features(), (4, 0))(x, y)
    torch.testing.assert_close(both, sum(parts))
    both.backward()  # the ReLU behind layer 0 would have overwritten what this needs
    assert (PerceptualLoss(features(), (0,))(x, y) - PerceptualLoss(features(), (1,))(x, y)).abs() > 1e-3


def test_gradients_flow_to_the_image_and_not_to_the_network():
    network = features()
    loss, y = PerceptualLoss(network, (1, 4)), images(1).requires_grad_()
    loss(images(0), y).backward()
    assert y.grad.abs().amax(dim=(1, 2, 3)).min() > 0
    assert all(p.grad is None for p in network.parameters())


def test_the_network_is_no_part_of_the_loss_but_follows_its_precision():
    loss = PerceptualLoss(features(), (1, 4)).train()
    assert not [*loss.parameters()]
    assert not loss.state_dict()
    assert loss.double()(images(0).double(), images(1).double()).dtype == torch.float64


@pytest.mark.parametrize("layers", [(), (5,), (-1, 2)])
def test_layers_that_the_network_has_not_are_refused(layers):
    with pytest.raises(ValueError, match=r"perceptual layers must be in 0\.\.4"):
        PerceptualLoss(features(), layers)


def test_vgg16_reads_a_local_file_of_torchvision(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        published = torchvision.models.vgg16(weights=None, init_weights=False).features
    published = published.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for p in published.parameters():
        scale = (2 / p[0].numel()) ** 0.5 if p.ndim > 1 else 0.1
        p.data = (scale * torch.randn(p.shape, generator=generator)).half()
    state = {f"features.{name}": p for name, p in published.state_dict().items()}
    torch.save({**state, "classifier.0.bias": torch.zeros(9)}, tmp_path / "vgg16.pth")
    published = published.float().eval()
    x, y = images(0, 32), images(1, 32)
    with torch.no_grad():
        found = PerceptualLoss.vgg16(tmp_path / "vgg16.pth")(x, y)
        # LPIPS' own constants for images in [-1, 1], and its five layers
        shift, scale = (torch.tensor(v).reshape(3, 1, 1) for v in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))
        expected, a, b = 0.0, (x - shift) / scale, (y - shift) / scale
        for i, layer in enumerate(published):
            a, b = layer(a), layer(b)
            if i in (3, 8, 15, 22, 29):
                expected += (F.normalize(a) - F.normalize(b)).square().sum(dim=1).mean()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


def test_vgg16_without_its_file_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no VGG16 weights at .*vgg16\.pth: .*torchvision's vgg16"):
        PerceptualLoss.vgg16(tmp_path / "vgg16.pth")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth is not a state dict of torchvision's vgg16"):
        PerceptualLoss.vgg16(tmp_path / "other.pth")


# ------------------------------------------------------------------ label probe


def test_a_probe_learns_labels_that_the_features_hold_and_cannot_learn_others():
    torch.manual_seed(0)
    probe = LabelProbe(
        UNetConfig(channels=8, channel_mult=(1, 2), attention=(False, False)), classes=(3, 2), weight=0.5
    )
    labels = torch.stack([torch.randint(3, (4, 8, 8)), torch.randint(2, (4, 8, 8))], dim=1)
    told = torch.zeros(4, 16, 8, 8)
    told[:, :3] = F.one_hot(labels[:, 0], 3).movedim(-1, 1)
    told[:, 3:5] = F.one_hot(labels[:, 1], 2).movedim(-1, 1)
    untold = torch.zeros(4, 16, 8, 8)
    chance = 0.5 * (math.log(3) + math.log(2)) / 2

    def fitted(features):
        optimizer = torch.optim.Adam(probe.parameters(), lr=0.1)
        for _ in range(100):
            optimizer.zero_grad()
            loss = probe(features, labels)
            loss.backward()
            optimizer.step()
        return loss.item()

    assert fitted(told) < 0.05 * chance
    assert fitted(untold) == pytest.approx(chance, rel=0.02)


def test_the_probe_reads_the_block_that_hands_over_to_the_highest_level():
    config = UNetConfig(channels=8, channel_mult=(1, 2, 2), attention=(False,) * 3, res_blocks=2, groups=4)
    probe = LabelProbe(config, classes=(3,), weight=1.0)
    unet, shapes = UNet(config), []
    unet.decoder.blocks[probe.block].register_forward_hook(lambda _m, _i, output: shapes.append(output.shape))
    unet(torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 2, 768))
    assert shapes == [(1, 16, 8, 8)]
    assert probe.heads[0].in_channels == 16
    with pytest.raises(ValueError, match="at least two levels"):
        LabelProbe(UNetConfig(channels=8, channel_mult=(1,), attention=(False,)), classes=(3,), weight=1.0)


def test_min_snr_weights_are_those_of_the_paper():
    snr = torch.tensor([0.01, 1.0, 5.0, 100.0])
    assert torch.allclose(min_snr_weight(snr, 5.0, "eps"), torch.tensor([1.0, 1.0, 1.0, 0.05]))
    assert torch.allclose(min_snr_weight(snr, 5.0, "v"), torch.tensor([0.01 / 1.01, 0.5, 5 / 6, 5 / 101]))
