"""A small network that tells the kinds of objects apart in pictures of scenes, trained on real renders.

It stands where the paper has OneFormer: a judge that has never seen a hint. Its features also measure how far two
sets of pictures lie apart (fid_scenes, kid_scenes in cldm.evaluation.quality).
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from cldm.worlds.networks import block, read_network, train_classifier
from cldm.worlds.scenes import KINDS, Scene, get_family, render, sample_scene

CLASSES = 1 + len(KINDS)
"""0 is the background, 1.. the kinds in the order of KINDS."""

SIZE = 64  # pixels at which it works, whatever the size of the pictures


class Segmenter(nn.Module):
    """A U-Net over patches of 2 x 2 pixels: images (b, 3, h, w) in [-1, 1] -> logits (b, CLASSES, SIZE, SIZE)."""

    def __init__(self, widths: Sequence[int] = (32, 64, 96)):
        super().__init__()
        self.first = block(12, widths[0])
        self.down = nn.ModuleList(block(a, b) for a, b in pairwise(widths))
        self.middle = block(widths[-1], widths[-1])
        steps = pairwise(reversed(widths))
        self.up = nn.ModuleList(block(a + b, b) for a, b in steps)
        self.out = nn.Conv2d(widths[0], 4 * CLASSES, 1)

    def encode(self, images: Tensor) -> list[Tensor]:
        """Feature maps from fine to coarse; the last one (b, 96, SIZE / 8, SIZE / 8)."""
        if images.shape[-2:] != (SIZE, SIZE):
            images = F.interpolate(images, (SIZE, SIZE), mode="area")
        maps = [self.first(F.pixel_unshuffle(images, 2))]
        for layer in self.down:
            maps.append(layer(F.max_pool2d(maps[-1], 2)))
        return [*maps[:-1], self.middle(maps[-1])]

    def forward(self, images: Tensor) -> Tensor:
        *skips, h = self.encode(images)
        for layer in self.up:
            h = layer(torch.cat([F.interpolate(h, scale_factor=2), skips.pop()], dim=1))
        return F.pixel_shuffle(self.out(h), 2)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """What a picture is like: (b, 96), the mean of the coarsest map."""
        return self.encode(images)[-1].mean(dim=(2, 3))

    @torch.no_grad()
    def labels(self, images: Tensor) -> Tensor:
        """Class numbers (b, SIZE, SIZE)."""
        return self(images).argmax(dim=1)


def kind_labels(scenes: Sequence[Scene], size: int = SIZE) -> Tensor:
    """The true class numbers (b, size, size) of scenes: what is visible."""
    return kinds_of(render(scenes, size).labels, scenes)


def kinds_of(labels: Tensor, scenes: Sequence[Scene]) -> Tensor:
    """Numbers of objects (b, h, w), 0 for the background -> class numbers."""
    table = torch.zeros(len(scenes), 1 + max((len(scene.objects) for scene in scenes), default=0), dtype=torch.int64)
    for row, scene in zip(table, scenes, strict=True):
        row[1 : 1 + len(scene.objects)] = torch.tensor([1 + KINDS.index(o.kind) for o in scene.objects])
    return table.gather(1, labels.flatten(1)).view_as(labels)


def train_segmenter(
    steps: int = 600, batch_size: int = 16, scenes: int = 2400, seed: int = 0, family: str = "base", lr: float = 4e-3
) -> Segmenter:
    """A segmenter trained on renders of `scenes` scenes, blurred and noisy ones too: about two CPU minutes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Segmenter()
    drawn = [sample_scene(seed, index, get_family(family)) for index in range(scenes)]
    parts = [drawn[first : first + 64] for first in range(0, scenes, 64)]
    pairs = []
    for part in tqdm(parts, desc="rendering", unit="batch"):
        picture = render(part, SIZE)
        pairs.append((picture.image, kinds_of(picture.labels, part).to(torch.uint8)))
    images, targets = (torch.cat(column) for column in zip(*pairs, strict=True))

    def batch(step: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(scenes, (batch_size,), generator=rng)
        x, y = _disturbed(images[chosen], rng), targets[chosen].long()
        return (x.flip(-1), y.flip(-1)) if step % 2 else (x, y)

    return train_classifier(net, "segmenter", steps, seed, lr, batch)


def _disturbed(images: Tensor, rng: torch.Generator) -> Tensor:
    """Images with noise, a quarter of them blurred: pictures of a small model are neither sharp nor clean."""
    level = 0.1 * torch.rand(len(images), 1, 1, 1, generator=rng)
    blurred = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    soft = torch.rand(len(images), 1, 1, 1, generator=rng) < 0.25
    return torch.where(soft, blurred, images) + level * torch.randn(images.shape, generator=rng)


def load_segmenter(path: str | Path) -> Segmenter:
    """The segmenter in a file of `python -m cldm segmenter`. ValueError for any other file."""
    return read_network(Segmenter(), "segmenter", path)
