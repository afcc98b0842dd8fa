"""Losses of the autoencoder: L1, L1 of gradients, KL, and optionally edges, perceptual distance and a patch GAN; and
what is added to the denoising loss: a probe, and weights by timestep."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.autoencoder import DiagonalGaussian
from ldm.blocks import without_weights
from ldm.unet import UNetConfig


def gradient_l1(x: Tensor, y: Tensor) -> Tensor:
    """Mean L1 between the horizontal and vertical pixel differences of x and y: keeps edges sharp."""
    d = x - y
    return d.diff(dim=-1).abs().mean() + d.diff(dim=-2).abs().mean()


EDGE_THRESHOLD = 100.0
"""Where a gradient counts as an edge: Canny's lower threshold (OpenCV's scale: Sobel, L1 norm, values 0 to 255)."""
MISSED_EDGE_WEIGHT = 8.0
"""How much more an edge of x that y lacks costs than one too many. Regression blurs: it misses edges, and adds few."""


def edge_log_odds(x: Tensor) -> Tensor:
    """Soft edges of images (b, 3, h, w) in [-1, 1]: log-odds (b, h - 2, w - 2) of p = m^4 / (m^4 + threshold^4), where
    m is the L1 norm of the Sobel gradient, of the channel where it is largest (as OpenCV's Canny sees colours)."""
    sobel = 127.5 * x.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    gradient = F.conv2d(x.flatten(0, 1)[:, None], torch.stack([sobel, sobel.T])[:, None])
    magnitude = gradient.abs().sum(dim=1).unflatten(0, x.shape[:2]).amax(dim=1)
    return 4.0 * torch.log(magnitude.clamp_min(1.0) / EDGE_THRESHOLD)


def edge_loss(x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of y's soft edges against x's, less x's own entropy: >= 0, and 0 for y = x.

    Pixels on edges of x weigh up to `MISSED_EDGE_WEIGHT` times as much. It brings back faint edges (bevels, shadows)
    that L1 leaves a little too smooth for an edge detector to see.
    """
    true, found = edge_log_odds(x), edge_log_odds(y)
    target = true.sigmoid()
    weight = 1.0 + (MISSED_EDGE_WEIGHT - 1.0) * target
    cross_entropy = F.binary_cross_entropy_with_logits(found, target, weight)
    return cross_entropy - F.binary_cross_entropy_with_logits(true, target, weight)


class AutoencoderLoss(nn.Module):
    """L1 + gradient * gradient-L1 + edges * edge loss + kl * KL per latent + perceptual * distance(x, y).

    perceptual_distance: (x, y) in [-1, 1] -> scalar, such as PerceptualLoss; None leaves it out.
    """

    def __init__(
        self,
        gradient: float = 0.0,
        edges: float = 0.0,
        kl: float = 1e-6,
        perceptual: float = 1.0,
        perceptual_distance: Callable[[Tensor, Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.gradient, self.edges, self.kl, self.perceptual = gradient, edges, kl, perceptual
        self.perceptual_distance = perceptual_distance

    def forward(self, x: Tensor, y: Tensor, posterior: DiagonalGaussian) -> tuple[Tensor, dict[str, Tensor]]:
        """Original x, reconstruction y (b, 3, h, w), posterior of x -> loss and its terms, detached."""
        terms = {"l1": F.l1_loss(y, x), "kl": posterior.kl().mean() / posterior.mean[0].numel()}
        loss = terms["l1"] + self.kl * terms["kl"]
        if self.gradient:
            terms["gradient"] = gradient_l1(y, x)
            loss = loss + self.gradient * terms["gradient"]
        if self.edges:
            terms["edges"] = edge_loss(x, y)
            loss = loss + self.edges * terms["edges"]
        if self.perceptual_distance is not None:
            terms["perceptual"] = self.perceptual_distance(y, x)
            loss = loss + self.perceptual * terms["perceptual"]
        return loss, {name: term.detach() for name, term in terms.items()}


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VGG16_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class PerceptualLoss(nn.Module):
    """Distance of images in a frozen network's features: LPIPS without learned weights (Zhang et al. 2018).

    At each of `layers` (places in `features`) the squared difference of the feature vectors, each scaled to
    unit length, averaged over pixels; summed over layers. Images come in [-1, 1]; `features` sees them in
    [0, 1] less `mean`, divided by `std` (ImageNet's by default).

    The network follows the module's device and precision but is no part of it: its weights are in no state
    dict, no optimizer and no checkpoint.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        features: nn.Sequential,
        layers: Sequence[int],
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ):
        super().__init__()
        if not layers or not 0 <= min(layers) <= max(layers) < len(features):
            raise ValueError(f"perceptual layers must be in 0..{len(features) - 1}, got {[*layers]}")
        self.layers = tuple(sorted(layers))
        network = features[: self.layers[-1] + 1].eval().requires_grad_(False)
        for module in network.modules():
            if isinstance(module, nn.ReLU | nn.LeakyReLU):
                module.inplace = False  # it would overwrite the features of the layer before it
        self._network = (network,)  # in a tuple: hidden from parameters() and state_dict()
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1), persistent=False)

    @classmethod
    def vgg16(cls, path: str | Path) -> "PerceptualLoss":
        """On the last ReLU of VGG16's five stages; `path` is a local file in torchvision's layout."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"no VGG16 weights at {path}: the perceptual loss needs a copy of torchvision's vgg16 file"
            )
        with without_weights():
            features = _vgg16_features()
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = {name: w.float() for name, w in state.items() if not name.startswith("classifier.")}
        state = {name.removeprefix("features."): w for name, w in state.items()}
        try:
            features.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise ValueError(f"{path} is not a state dict of torchvision's vgg16: {error}") from error
        return cls(features, [i - 1 for i, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PerceptualLoss":
        super()._apply(fn, recurse)
        self._network[0]._apply(fn, recurse)
        return self

    def _unit_features(self, x: Tensor) -> list[Tensor]:
        h, found = ((x + 1.0) / 2.0 - self.mean) / self.std, []
        for i, layer in enumerate(self._network[0]):
            h = layer(h)
            if i in self.layers:
                found.append(F.normalize(h, dim=1))
        return found

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x and y (b, c, h, w) in [-1, 1] -> mean distance over the batch, >= 0, a scalar."""
        pairs = zip(self._unit_features(x), self._unit_features(y), strict=True)
        return torch.stack([(a - b).square().sum(dim=1).mean() for a, b in pairs]).sum()


def _vgg16_features() -> nn.Sequential:
    layers: list[nn.Module] = []
    width = 3
    for stage in VGG16_WIDTHS:
        for out in stage:
            layers += [nn.Conv2d(width, out, 3, padding=1), nn.ReLU()]
            width = out
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


class PatchDiscriminator(nn.Sequential):
    """Real or generated, patch by patch (Isola et al. 2017): image (b, 3, h, w) -> logits (b, 1, h', w')."""

    def __init__(self, channels: int = 64, layers: int = 3, in_channels: int = 3):
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        blocks: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for i, (a, b) in enumerate(itertools.pairwise(widths)):
            stride = 2 if i < layers - 1 else 1
            # GroupNorm instead of the paper's BatchNorm: no statistics shared between images or devices
            blocks += [nn.Conv2d(a, b, 4, stride, 1), nn.GroupNorm(8, b), nn.LeakyReLU(0.2)]
        super().__init__(*blocks, nn.Conv2d(widths[-1], 1, 4, 1, 1))


class LabelProbe(nn.Module):
    """Linear probe on features of the U-Net: names what each latent pixel of the clean image shows.

    An auxiliary loss in the spirit of REPA (Yu et al. 2024), for data whose labels are known: the features of a noisy
    image must already tell kind and colour apart, and where noise hides them only the caption can say so. It reads
    the decoder block that hands over to the highest level: wide features at the latents' size.

    config: of the U-Net.
    classes: number of classes of each of the k label maps, such as kinds and colours, "none" included.
    weight: of the cross-entropy, averaged over maps and pixels, beside the denoising loss.
    """

    def __init__(self, config: UNetConfig, classes: Sequence[int], weight: float):
        super().__init__()
        if len(config.widths) < 2:
            raise ValueError("stage.module.probe needs a U-Net of at least two levels (model.unet.config.channel_mult)")
        self.block = -(config.res_blocks + 2)  # of the decoder
        self.weight = weight
        self.heads = nn.ModuleList(nn.Conv2d(config.widths[1], count, 1) for count in classes)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Features (b, channels, h, w), labels (b, k, h, w) int64 -> weighted loss, a scalar."""
        losses = [F.cross_entropy(head(features), labels[:, i]) for i, head in enumerate(self.heads)]
        return self.weight * torch.stack(losses).mean()


def label_probe(config: UNetConfig, classes: Sequence[int], weight: float) -> LabelProbe | None:
    """A LabelProbe, or None for data without label maps (no `classes`)."""
    return LabelProbe(config, classes, weight) if classes else None


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Mean hinge loss of the discriminator's logits on real and generated images."""
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """|d reconstruction| / |d adversarial| at the decoder's last layer (Esser et al. 2021, eq. 7), <= 1e4."""
    (grad_r,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (grad_a,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    return (grad_r.norm() / (grad_a.norm() + 1e-4)).clamp(0.0, 1e4).detach()


def min_snr_weight(snr: Tensor, gamma: float, prediction: str) -> Tensor:
    """Weight (b,) of the loss of eps or v at a signal-to-noise ratio (b,) (Hang et al. 2023, arXiv:2303.09556).

    In terms of z0 the weight is min(snr, gamma); an error of eps is one of z0 times sqrt(snr), of v times
    sqrt(snr + 1).
    """
    return snr.clamp(max=gamma) / (snr if prediction == "eps" else snr + 1)
