"""A small network that names the stickers in a picture, trained on composed ones (`python -m cldm judge`).

It has never seen a hint. Beside every score stands its own accuracy on real held-out pictures, as the ceiling. Its
features also measure how far two sets of pictures lie apart (fid_stickers), and as a perceptual loss two pictures:
`ldm.losses.PerceptualLoss(judge.encoder, judge.LAYERS, mean=(0.5,) * 3, std=(0.5,) * 3)`.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from cldm.worlds.networks import block, read_network, train_classifier
from cldm.worlds.stickers.composer import render
from cldm.worlds.stickers.concepts import CATEGORIES, CLASSES, CONCEPTS
from cldm.worlds.stickers.world import compose, get_family

SIZE = 128  # pixels at which it works, whatever the size of the pictures
STRIDE = 4  # pixels per answer
WIDTHS = (32, 64, 128, 144)  # of its maps at strides 2, 4, 8, 16
UP_WIDTHS = (96, 48)  # on the way back to strides 8 and 4
LAYERS = (1, 3, 5, 8)  # of the encoder: after its blocks at strides 2, 4, 8 and 16
NOISE = 0.15  # standard deviation of the noise in training, at most
TINT = 0.06  # change of each colour channel in training, at most


class Judge(nn.Module):
    """Images (b, 3, h, w) in [-1, 1] -> logits (b, CLASSES, SIZE / STRIDE, SIZE / STRIDE): what is seen where."""

    LAYERS = LAYERS

    def __init__(self) -> None:
        super().__init__()
        a, b, c, d = WIDTHS
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2), block(12, a), nn.MaxPool2d(2), block(a, b), nn.MaxPool2d(2), block(b, c),
            nn.MaxPool2d(2), block(c, d), block(d, d),
        )  # fmt: skip
        self.up = nn.ModuleList([block(d + c, UP_WIDTHS[0]), block(UP_WIDTHS[0] + b, UP_WIDTHS[1])])
        self.out = nn.Conv2d(UP_WIDTHS[1], CLASSES, 1)

    def encode(self, images: Tensor) -> list[Tensor]:
        """Feature maps after LAYERS, from fine to coarse; the last one (b, WIDTHS[-1], SIZE / 16, SIZE / 16)."""
        if images.shape[-2:] != (SIZE, SIZE):
            images = F.interpolate(images, (SIZE, SIZE), mode="area")
        maps = []
        for i, layer in enumerate(self.encoder):
            images = layer(images)
            if i in LAYERS:
                maps.append(images)
        return maps

    def forward(self, images: Tensor) -> Tensor:
        _, *skips, h = self.encode(images)
        for layer in self.up:
            h = layer(torch.cat([F.interpolate(h, scale_factor=2), skips.pop()], dim=1))
        return self.out(h)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """What a picture is like: (b, WIDTHS[-1]), the mean of the coarsest map."""
        return self.encode(images)[-1].mean(dim=(2, 3))

    @torch.no_grad()
    def log_probabilities(self, images: Tensor) -> Tensor:
        """(b, CLASSES, SIZE / STRIDE, SIZE / STRIDE) of any images (b, 3, h, w), on the CPU."""
        device = self.out.weight.device
        return torch.cat([self(part.to(device)).log_softmax(dim=1).cpu() for part in images.split(32)])


def category_of_class() -> Tensor:
    """(CLASSES,) int64: number of each class's category, from 1 in the order of CATEGORIES; 0 for the ground."""
    return torch.tensor([0, *(1 + CATEGORIES.index(c.category) for c in CONCEPTS.values())])


def at_stride(maps: Tensor) -> Tensor:
    """Label maps (b, SIZE, SIZE) -> what is at the middle of each of the judge's answers."""
    return maps[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]


def _training_set(count: int, seed: int, family: str) -> tuple[Tensor, Tensor]:
    """Images (count, 3, SIZE, SIZE) and classes (count, SIZE / STRIDE, SIZE / STRIDE), uint8."""
    pairs = []
    for first in tqdm(range(0, count, 64), desc="composing", unit="batch"):
        part = [compose(seed, index, get_family(family)) for index in range(first, min(first + 64, count))]
        made = render(part, SIZE, ("concepts",))
        image = ((made.image + 1.0) * 127.5).round().to(torch.uint8)
        pairs.append((image, at_stride(made.maps["concepts"]).to(torch.uint8)))
    images, classes = (torch.cat(column) for column in zip(*pairs, strict=True))
    return images, classes


def train_judge(
    steps: int = 1200, batch_size: int = 16, count: int = 6000, seed: int = 0, family: str = "base", lr: float = 4e-3
) -> Judge:
    """A judge trained on `count` composed pictures, blurred, noisy and tinted ones too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Judge().to(memory_format=torch.channels_last)
    images, classes = _training_set(count, seed, family)

    def batch(_step: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(count, (batch_size,), generator=rng)
        return disturbed(images[chosen].float() / 127.5 - 1.0, rng), classes[chosen].long()

    return train_classifier(net, "judge", steps, seed, lr, batch)


def disturbed(images: Tensor, rng: torch.Generator) -> Tensor:
    """Images with noise and a tint, a third of them blurred: pictures of a small model are neither sharp nor clean."""
    b = len(images)
    level = NOISE * torch.rand(b, 1, 1, 1, generator=rng)
    tint = TINT * (2.0 * torch.rand(b, 3, 1, 1, generator=rng) - 1.0)
    blurred = F.avg_pool2d(images, 5, stride=1, padding=2, count_include_pad=False)
    soft = torch.rand(b, 1, 1, 1, generator=rng) < 1 / 3
    return torch.where(soft, blurred, images) + tint + level * torch.randn(images.shape, generator=rng)


def load_judge(path: str | Path) -> Judge:
    """The judge in a file of `python -m cldm judge`. ValueError for any other file."""
    return read_network(Judge(), "judge", path).to(memory_format=torch.channels_last)
