"""Hint maps that follow from the labels of a render: edges, segmentation, keypoints."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from cldm.worlds.scenes import shapes
from cldm.worlds.scenes.world import COLORS, KINDS, MAX_OBJECTS, RGB, Scene, SceneObject

PALETTE: dict[str, RGB] = {
    "circle": (0.86, 0.24, 0.36),
    "square": (0.20, 0.55, 0.86),
    "triangle": (0.36, 0.76, 0.36),
    "star": (0.96, 0.78, 0.24),
    "ring": (0.60, 0.36, 0.80),
    "cross": (0.28, 0.80, 0.80),
    "heart": (0.96, 0.52, 0.24),
}
"""Segmentation colour of each kind; the background is black."""

LABEL_STRIDE = 8  # pixels per class number: the autoencoder's factor

DOT_RADIUS = 0.05
DOT_COLORS: tuple[RGB, ...] = (
    (1.0, 0.0, 0.0),
    (1.0, 0.65, 0.0),
    (0.85, 1.0, 0.0),
    (0.0, 1.0, 0.2),
    (0.0, 1.0, 1.0),
    (0.0, 0.45, 1.0),
    (0.55, 0.0, 1.0),
    (1.0, 0.0, 0.75),
)
"""Colour of the k-th keypoint of an object, clockwise from the top."""


def _polar(radius: float, degrees: Sequence[float]) -> list[tuple[float, float]]:
    turns = [math.radians(d) for d in degrees]
    return [(radius * math.sin(t), -radius * math.cos(t)) for t in turns]


_QUARTERS = (0.0, 90.0, 180.0, 270.0)
_CROSS_CORNER = math.hypot(shapes.CROSS_LENGTH, shapes.CROSS_HALF_WIDTH)
_CROSS_TURN = math.degrees(math.atan2(shapes.CROSS_HALF_WIDTH, shapes.CROSS_LENGTH))

KEYPOINTS: dict[str, list[tuple[float, float]]] = {
    "circle": _polar(shapes.CIRCLE_RADIUS, _QUARTERS),
    "square": _polar(shapes.SQUARE_HALF * math.sqrt(2) - 0.03, (45.0, 135.0, 225.0, 315.0)),
    "triangle": _polar(shapes.TRIANGLE_CIRCUMRADIUS - 0.06, (0.0, 120.0, 240.0)),
    "star": _polar(shapes.STAR_OUTER, (0.0, 72.0, 144.0, 216.0, 288.0)),
    "ring": _polar(shapes.RING_RADIUS + shapes.RING_HALF_WIDTH, _QUARTERS)
    + _polar(shapes.RING_RADIUS - shapes.RING_HALF_WIDTH, _QUARTERS),
    "cross": _polar(_CROSS_CORNER, [q + s for q in _QUARTERS for s in (-_CROSS_TURN, _CROSS_TURN)]),
    "heart": [(0.0, -0.66), (0.9, -0.29), (0.0, 0.84), (-0.9, -0.29)],
}
"""Corners or extremes of each kind, in radii, v down, before rotation."""


def ranks(scenes: Sequence[Scene]) -> Tensor:
    """(b, 1 + MAX_OBJECTS) int64: 0 for the background, then how near the k-th object is: 1 = farthest."""
    out = torch.zeros(len(scenes), 1 + MAX_OBJECTS, dtype=torch.int64)
    for row, scene in zip(out, scenes, strict=True):
        order = sorted((o.depth, k) for k, o in enumerate(scene.objects, start=1))
        for rank, (_, k) in enumerate(order, start=1):
            row[k] = rank
    return out


def edges(labels: Tensor, scenes: Sequence[Scene]) -> Tensor:
    """(b,1,h,w) in {0,1}: pixels with a farther neighbour (of 4), so that a border belongs to its object."""
    rank = ranks(scenes).gather(1, labels.flatten(1)).view_as(labels)
    edge = torch.zeros_like(labels, dtype=torch.bool)
    edge[:, 1:] |= rank[:, 1:] > rank[:, :-1]
    edge[:, :-1] |= rank[:, :-1] > rank[:, 1:]
    edge[:, :, 1:] |= rank[:, :, 1:] > rank[:, :, :-1]
    edge[:, :, :-1] |= rank[:, :, :-1] > rank[:, :, 1:]
    return edge[:, None].float()


def segmentation(labels: Tensor, scenes: Sequence[Scene]) -> Tensor:
    """(b,3,h,w) in [0,1]: the palette colour of the visible kind."""
    table = torch.zeros(len(scenes), 1 + MAX_OBJECTS, 3)
    for row, scene in zip(table, scenes, strict=True):
        row[1 : 1 + len(scene.objects)] = torch.tensor([PALETTE[o.kind] for o in scene.objects])
    batch = torch.arange(len(scenes))[:, None, None]
    return table[batch, labels].permute(0, 3, 1, 2).contiguous()


def keypoint_positions(obj: SceneObject) -> list[tuple[float, float]]:
    """(x, y) of the keypoints of one object; those of round kinds do not turn with the (invisible) angle."""
    turn = 0.0 if obj.kind in ("circle", "ring") else math.radians(obj.angle)
    cos, sin = math.cos(turn) * obj.radius, math.sin(turn) * obj.radius
    return [(obj.x + u * cos - v * sin, obj.y + u * sin + v * cos) for u, v in KEYPOINTS[obj.kind]]


def keypoints(labels: Tensor, scenes: Sequence[Scene]) -> Tensor:
    """(b,3,h,w) in [0,1]: a dot on black for each keypoint that no nearer object hides."""
    size = labels.shape[-1]
    axis = (torch.arange(size) + 0.5) * (2 / size) - 1
    colors = torch.tensor(DOT_COLORS)
    out = torch.zeros(len(scenes), 3, size, size)
    for image, label, scene in zip(out, labels, scenes, strict=True):
        dots = _visible_dots(label, scene)
        if not dots:
            continue
        x, y, index = torch.tensor(dots).unbind(1)
        squares = (axis - x[:, None]).square()[:, None, :] + (axis - y[:, None]).square()[:, :, None]
        nearest, which = squares.min(0)
        alpha = (0.5 + (DOT_RADIUS - nearest.sqrt()) * (size / 2)).clamp(0, 1)
        image.copy_(colors[index.long()][which].permute(2, 0, 1) * alpha)
    return out


def _visible_dots(label: Tensor, scene: Scene) -> list[tuple[float, float, float]]:
    size = label.shape[-1]
    dots = []
    for obj in scene.objects:
        for index, (x, y) in enumerate(keypoint_positions(obj)):
            row, col = (min(size - 1, max(0, int((p + 1) * size / 2))) for p in (y, x))
            seen = int(label[row, col])
            if seen == 0 or scene.objects[seen - 1].depth <= obj.depth:
                dots.append((x, y, float(index)))
    return dots


def class_maps(scenes: Sequence[Scene], labels: Tensor) -> Tensor:
    """Object numbers (b, h, w) of rendered scenes -> numbers of kind and colour (b, 2, h/8, w/8) uint8.

    They are those at the centre of every square of LABEL_STRIDE pixels, numbered from 1 in the order of KINDS and
    COLORS, 0 for the background.
    """
    half = LABEL_STRIDE // 2
    coarse = labels[:, half::LABEL_STRIDE, half::LABEL_STRIDE]
    classes = torch.zeros(len(scenes), 2, MAX_OBJECTS + 1, dtype=torch.uint8)
    for i, scene in enumerate(scenes):
        for k, item in enumerate(scene.objects, start=1):
            classes[i, 0, k] = 1 + KINDS.index(item.kind)
            classes[i, 1, k] = 1 + [*COLORS].index(item.color)
    index = rearrange(coarse, "b h w -> b 1 (h w)").expand(-1, 2, -1)
    return classes.gather(2, index).unflatten(2, coarse.shape[1:])
