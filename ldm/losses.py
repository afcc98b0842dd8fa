"""Losses of the autoencoder: L1, L1 of gradients, KL, and optionally perceptual distance and a patch GAN."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.autoencoder import DiagonalGaussian


def gradient_l1(x: Tensor, y: Tensor) -> Tensor:
    """Mean L1 between the horizontal and vertical pixel differences of x and y: keeps edges sharp."""
    d = x - y
    return d.diff(dim=-1).abs().mean() + d.diff(dim=-2).abs().mean()


class AutoencoderLoss(nn.Module):
    """L1 + gradient * gradient-L1 + kl * KL per latent + perceptual * distance(x, y).

    perceptual_distance: (x, y) in [-1, 1] -> scalar, such as LPIPS with weights from a local file; None leaves it out.
    """

    def __init__(
        self,
        gradient: float = 0.0,
        kl: float = 1e-6,
        perceptual: float = 1.0,
        perceptual_distance: Callable[[Tensor, Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.gradient, self.kl, self.perceptual = gradient, kl, perceptual
        self.perceptual_distance = perceptual_distance

    def forward(self, x: Tensor, y: Tensor, posterior: DiagonalGaussian) -> tuple[Tensor, dict[str, Tensor]]:
        """Original x, reconstruction y (b, 3, h, w), posterior of x -> loss and its terms, detached."""
        terms = {"l1": F.l1_loss(y, x), "kl": posterior.kl().mean() / posterior.mean[0].numel()}
        loss = terms["l1"] + self.kl * terms["kl"]
        if self.gradient:
            terms["gradient"] = gradient_l1(y, x)
            loss = loss + self.gradient * terms["gradient"]
        if self.perceptual_distance is not None:
            terms["perceptual"] = self.perceptual_distance(y, x)
            loss = loss + self.perceptual * terms["perceptual"]
        return loss, {name: term.detach() for name, term in terms.items()}


class PatchDiscriminator(nn.Sequential):
    """Real or generated, patch by patch (Isola et al. 2017): image (b, 3, h, w) -> logits (b, 1, h', w')."""

    def __init__(self, channels: int = 64, layers: int = 3, in_channels: int = 3):
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        blocks: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
            stride = 2 if i < layers - 1 else 1
            # GroupNorm instead of the paper's BatchNorm: no statistics shared between images or devices
            blocks += [nn.Conv2d(a, b, 4, stride, 1), nn.GroupNorm(8, b), nn.LeakyReLU(0.2)]
        super().__init__(*blocks, nn.Conv2d(widths[-1], 1, 4, 1, 1))


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Mean hinge loss of the discriminator's logits on real and generated images."""
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """|d reconstruction| / |d adversarial| at the decoder's last layer (Esser et al. 2021, equation 7), <= 1e4."""
    (grad_r,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (grad_a,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    return (grad_r.norm() / (grad_a.norm() + 1e-4)).clamp(0.0, 1e4).detach()
