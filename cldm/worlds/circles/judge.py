"""Reads circles from pixels: where one is seen, and which of the set's colours it and its ground have."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from kornia.color import rgb_to_lab
from torch import Tensor

from cldm.data.fill50k import COLORS, Circle
from cldm.worlds import Scores

CONTRAST = 5.0  # CIE Lab: what differs less from the ground is no circle; the nearest two colours differ by more
BRIGHTEST = 0.01  # share of the picture, less than the smallest circle has, that tells how much a circle differs
CAPTION = re.compile(r"(?P<inside>.+) circle with (?P<outside>.+) background")


@dataclass(frozen=True)
class Reading:
    """Images in CIE Lab (n, 3, h, w), and where each shows a circle (n, h, w) bool."""

    lab: Tensor
    seen: Tensor


class CirclesJudge:
    """Implements cldm.worlds.Judge, without a network."""

    features: Callable[[Tensor], Tensor] | None = None

    def read(self, images: Tensor) -> Reading:
        """A circle covers less than half of a picture, so the median is the ground; a pixel belongs to the circle if
        it is nearer to what differs most from the ground."""
        lab = rgb_to_lab((images.float().clamp(-1, 1) + 1) / 2)
        ground = lab.flatten(2).median(dim=2).values[:, :, None, None]
        differs = (lab - ground).norm(dim=1)
        most = differs.flatten(1).topk(max(1, round(BRIGHTEST * differs[0].numel()))).values.mean(dim=1)
        return Reading(lab, (differs > most[:, None, None] / 2) & (most > CONTRAST)[:, None, None])

    def scores(self, reading: Reading, truths: Sequence[Circle]) -> list[Scores]:
        """circle_iou: of the circle seen with the true one. inside, outside: is the median colour within the true
        circle, and around it, nearest to the right one of all colours?"""
        found: list[Scores] = []
        for lab, seen, truth in zip(reading.lab, reading.seen, truths, strict=True):
            disc = disc_of(truth, *seen.shape)
            iou = (seen & disc).sum() / (seen | disc).sum()
            found.append({"circle_iou": [iou.item()], **_colors(lab, disc, truth.inside, truth.outside)})
        return found

    def prompt_scores(self, reading: Reading, prompts: Sequence[str]) -> list[Scores]:
        """inside, outside: as above, of the circle where it is seen; without one, its colour is wrong."""
        named = [parse(prompt) for prompt in prompts]
        return [_colors(lab, seen, *names) for lab, seen, names in zip(reading.lab, reading.seen, named, strict=True)]

    def facts(self) -> dict[str, str]:
        return {}


def parse(caption: str) -> tuple[str, str]:
    """Names of the colours inside and outside. ValueError for anything but the caption of a circle."""
    found = CAPTION.fullmatch(caption)
    if found is None or not {*found.groups()} <= {*COLORS}:
        raise ValueError(f"captions of circles read 'COLOR circle with COLOR background', got {caption!r}")
    return found["inside"], found["outside"]


def disc_of(circle: Circle, height: int, width: int) -> Tensor:
    """(height, width) bool: whose middles lie within the circle."""
    y, x = ((torch.arange(count) + 0.5) / count for count in (height, width))
    return (y[:, None] - circle.y) ** 2 + (x[None] - circle.x) ** 2 <= circle.radius**2


@cache
def palette() -> Tensor:
    """COLORS in CIE Lab, (n, 3)."""
    rgb = torch.tensor([[*bytes.fromhex(code)] for code in COLORS.values()]) / 255
    return rgb_to_lab(rgb[:, :, None, None])[:, :, 0, 0]


def _colors(lab: Tensor, disc: Tensor, inside: str, outside: str) -> Scores:
    return {"inside": [_is(lab[:, disc], inside)], "outside": [_is(lab[:, ~disc], outside)]}


def _is(pixels: Tensor, name: str) -> float:
    """Whether the median of pixels (3, n) is nearest to the colour of that name."""
    if not pixels.numel():
        return 0.0
    nearest = (palette() - pixels.median(dim=1).values).norm(dim=1).argmin()
    return float([*COLORS][nearest] == name)
