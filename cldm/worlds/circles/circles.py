"""Circles as a world (cldm.worlds.World)."""

from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from cldm.data.fill50k import COLORS, Circle, outline, picture, random_circle
from cldm.worlds.circles.judge import CirclesJudge, disc_of, parse

FAMILIES = ("base", "control")
LABEL_STRIDE = 8  # pixels per class number: the autoencoder's factor


class Circles:
    """Filled circles on plain grounds. The outline says where, the caption which colours."""

    name = "circles"
    version = 1
    unseen = None
    label_classes = (1 + len(COLORS), 1 + len(COLORS))
    hint_maps = ("outline",)
    titles = {  # noqa: RUF012  (a constant)
        "circle_iou": "circle IoU",
        "inside": "circle's colour right",
        "outside": "ground's colour right",
        "caption_inside": "caption: circle's colour",
        "caption_outside": "caption: ground's colour",
        "prompt_inside": "prompt: circle's colour",
        "prompt_outside": "prompt: ground's colour",
    }
    headlines = ("circle_iou", "inside", "outside")

    def sample(self, seed: int, index: int, family: str) -> Circle:
        """The families are alike, with other circles."""
        if family not in FAMILIES:
            raise ValueError(f"unknown family {family!r} of circles; known: {', '.join(FAMILIES)}")
        return random_circle("circles", seed, index, family)

    def caption(self, truth: Circle, seed: int, index: int) -> str:
        return truth.caption

    def draw(self, truths: Sequence[Circle], size: int, maps: Collection[str] = ()) -> dict[str, Tensor]:
        """Maps: "outline", the tutorial's hint; "labels": the circle's colour within it, and the ground's around it,
        from 1 in the order of COLORS."""
        found = {"image": 2.0 * _stacked(picture, truths, size) - 1.0}
        if "outline" in maps:
            found["outline"] = _stacked(outline, truths, size)
        return found | ({"labels": _labels(truths, size // LABEL_STRIDE)} if "labels" in maps else {})

    def prompts(self, setting: str, captions: Sequence[str]) -> list[str]:
        """insufficient: no colours. conflicting: other colours, half the table away."""
        if setting == "insufficient":
            return ["circle with background"] * len(captions)
        if setting != "conflicting":
            raise ValueError(f"prompts of circles are insufficient or conflicting, got {setting!r}")
        named = [parse(text) for text in captions]
        return [Circle(_other(inside), _other(outside), 0, 0, 0).caption for inside, outside in named]

    def judge(self, weights: str | None = None) -> CirclesJudge:
        """ValueError for weights: what a circle is, is measured."""
        if weights is not None:
            raise ValueError(f"circles are judged without a network, got weights {weights}")
        return CirclesJudge()


def _stacked(drawn: Callable[[Circle, int], np.ndarray], truths: Sequence[Circle], size: int) -> Tensor:
    """(n, 3, size, size) in [0, 1]."""
    return torch.from_numpy(np.stack([drawn(truth, size) for truth in truths])).permute(0, 3, 1, 2).float() / 255


def _labels(truths: Sequence[Circle], side: int) -> Tensor:
    names = [*COLORS]
    found = torch.zeros(len(truths), 2, side, side, dtype=torch.uint8)
    for labels, truth in zip(found, truths, strict=True):
        disc = disc_of(truth, side, side)
        labels[0, disc], labels[1, ~disc] = 1 + names.index(truth.inside), 1 + names.index(truth.outside)
    return found


def _other(color: str) -> str:
    names = [*COLORS]
    return names[(names.index(color) + len(names) // 2) % len(names)]
