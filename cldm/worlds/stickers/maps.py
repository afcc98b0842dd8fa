"""Truth maps that follow from which sticker is seen where."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cldm.worlds.stickers.concepts import CATEGORIES, CLASSES, CONCEPTS, Concept
from cldm.worlds.stickers.world import MAX_STICKERS, Composition

GOLDEN = 0.61803398875  # of a turn of hue from one class to the next: neighbours in number look unlike


def _numbers(compositions: Sequence[Composition], number: Callable[[Concept], int]) -> Tensor:
    """(b, 1 + MAX_STICKERS) int64: 0 for the ground, then a number of each sticker's concept."""
    table = torch.zeros(len(compositions), 1 + MAX_STICKERS, dtype=torch.int64)
    for row, composition in zip(table, compositions, strict=True):
        own = [number(CONCEPTS[sticker.concept]) for sticker in composition.stickers]
        row[1 : 1 + len(own)] = torch.tensor(own)
    return table


def concepts(instances: Tensor, compositions: Sequence[Composition]) -> Tensor:
    """Numbers of stickers (b, h, w) -> numbers of their concepts (b, h, w) int64, 0 for the ground."""
    return _numbers(compositions, lambda c: c.number).gather(1, instances.flatten(1)).view_as(instances)


def categories(instances: Tensor, compositions: Sequence[Composition]) -> Tensor:
    """Numbers of stickers (b, h, w) -> numbers of their categories (b, h, w), from 1 in the order of CATEGORIES."""
    table = _numbers(compositions, lambda c: 1 + CATEGORIES.index(c.category))
    return table.gather(1, instances.flatten(1)).view_as(instances)


def edges(instances: Tensor) -> Tensor:
    """(b, 1, h, w) in {0, 1}: pixels with a farther neighbour (of 4), so that a border belongs to its sticker."""
    edge = torch.zeros_like(instances, dtype=torch.bool)
    edge[:, 1:] |= instances[:, 1:] > instances[:, :-1]
    edge[:, :-1] |= instances[:, :-1] > instances[:, 1:]
    edge[:, :, 1:] |= instances[:, :, 1:] > instances[:, :, :-1]
    edge[:, :, :-1] |= instances[:, :, :-1] > instances[:, :, 1:]
    return edge[:, None].float()


def order(instances: Tensor) -> Tensor:
    """(b, 1, h, w) in [0, 1]: nearer stickers are brighter, in steps of 1 / MAX_STICKERS; the ground is 0."""
    return instances[:, None].float() / MAX_STICKERS


def palette() -> Tensor:
    """(CLASSES, 3) in [0, 1]: a colour for each concept, black for the ground."""
    colors = [
        colorsys.hsv_to_rgb(GOLDEN * k % 1.0, (0.9, 0.55)[k % 2], (1.0, 0.7, 0.85)[k % 3]) for k in range(1, CLASSES)
    ]
    return torch.tensor([(0.0, 0.0, 0.0), *colors])


def segmentation(instances: Tensor, compositions: Sequence[Composition]) -> Tensor:
    """(b, 3, h, w) in [0, 1]: the palette's colour of the concept that is seen."""
    return palette()[concepts(instances, compositions)].permute(0, 3, 1, 2).contiguous()
