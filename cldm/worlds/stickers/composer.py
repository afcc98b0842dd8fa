"""Compositions to pictures and truth maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from torch import Tensor

from cldm.worlds.stickers import maps as truth
from cldm.worlds.stickers.drawings import Copy, copy_of, side_of_copy
from cldm.worlds.stickers.world import GROUNDS, Composition, Sticker

SHADOW_STRENGTH = 0.30
SHADOW_OFFSET = 0.035  # of the sticker's size, away from the light
PAINTED: tuple[str, ...] = ("instances", "alpha", "lines")
MAPS: tuple[str, ...] = (*PAINTED, "concepts", "categories", "edges", "order", "segmentation")


@dataclass
class Composed:
    """Pictures (b, 3, h, w) float32 in [-1, 1], and the maps that were asked for.

    instances (b, h, w) int64: number of the sticker seen there, from 1 in the order far to near, 0 for the ground.
    concepts, categories (b, h, w) int64: what it shows, 0 for the ground; see Concept.number, CATEGORIES.
    alpha (b, 1, h, w) in [0, 1]: how much of the ground is covered.
    lines (b, 1, h, w) in [0, 1]: the artists' outlines, as far as they are seen, white on black.
    edges (b, 1, h, w) in {0, 1}: borders of the instances, on the side of the nearer one.
    order (b, 1, h, w) in [0, 1]: near = bright. segmentation (b, 3, h, w) in [0, 1]: a colour for each concept.
    """

    image: Tensor
    maps: dict[str, Tensor] = field(default_factory=dict)


def render(compositions: Sequence[Composition], size: int = 128, maps: Collection[str] = ()) -> Composed:
    """Pictures of the compositions, size x size px (a multiple of 8), and the named maps (see MAPS)."""
    if size < 8 or size % 8:
        raise ValueError(f"size must be a positive multiple of 8, got {size}")
    unknown = sorted(set(maps) - set(MAPS))
    if unknown:
        raise ValueError(f"unknown maps {', '.join(unknown)}; known maps: {', '.join(MAPS)}")
    b = len(compositions)
    canvas = np.empty((b, size, size, 3), np.float32)
    painted = [name for name in PAINTED if name in maps]
    if set(maps) - set(PAINTED) and "instances" not in painted:
        painted.append("instances")  # the others follow from it
    planes = {name: np.zeros((b, size, size), np.float32) for name in painted}
    for i, composition in enumerate(compositions):
        own = {name: plane[i] for name, plane in planes.items()}
        _paint(composition, canvas[i], own)
    image = torch.from_numpy(canvas).permute(0, 3, 1, 2).mul_(2.0 / 255.0).sub_(1.0).contiguous()
    found = {name: torch.from_numpy(plane)[:, None] for name, plane in planes.items()}
    if "instances" in found:
        found["instances"] = found["instances"][:, 0].long()
        found |= _derived(found["instances"], compositions, maps)
    return Composed(image, {name: found[name] for name in maps})


def _derived(instances: Tensor, compositions: Sequence[Composition], wanted: Collection[str]) -> dict[str, Tensor]:
    makers: dict[str, Callable[[], Tensor]] = {
        "concepts": lambda: truth.concepts(instances, compositions),
        "categories": lambda: truth.categories(instances, compositions),
        "edges": lambda: truth.edges(instances),
        "order": lambda: truth.order(instances),
        "segmentation": lambda: truth.segmentation(instances, compositions),
    }
    return {name: make() for name, make in makers.items() if name in wanted}


def _paint(composition: Composition, canvas: np.ndarray, maps: dict[str, np.ndarray]) -> None:
    size = len(canvas)
    level = 1.0 + composition.gradient * (np.arange(size, dtype=np.float32) + 0.5) / size
    color = 255.0 * np.array(GROUNDS[composition.ground], np.float32)
    canvas[:] = np.minimum(level[:, None, None] * color, 255.0)
    turn = math.radians(composition.light)
    away = SHADOW_OFFSET * math.cos(turn), SHADOW_OFFSET * math.sin(turn)
    for number, sticker in enumerate(composition.stickers, start=1):
        copy = copy_of(sticker.concept, side_of_copy(sticker.size * size), composition.hue)
        _stick(sticker, copy, number, away, canvas, maps)


def _stick(
    sticker: Sticker,
    copy: Copy,
    number: int,
    away: tuple[float, float],
    canvas: np.ndarray,
    maps: dict[str, np.ndarray],
) -> None:
    size = len(canvas)
    pixels = sticker.size * size
    shift = (pixels * away[0], pixels * away[1])
    forward = _matrix(sticker, copy, size)
    left, top, right, bottom = _bounds(forward, copy, shift, size)
    view = (slice(top, bottom), slice(left, right))
    forward[:, 2] -= (left, top)
    extent = (right - left, bottom - top)
    look = _warp(copy.look, forward, extent).astype(np.float32)
    fallen = forward.copy()
    fallen[:, 2] += shift
    shade = _warp(copy.shadow, fallen, extent).astype(np.float32) * (SHADOW_STRENGTH / 255.0)
    uncovered = 1.0 - look[..., 3] / 255.0
    part = canvas[view]
    part *= (uncovered * (1.0 - shade))[..., None]
    part += look[..., :3]
    if "alpha" in maps:
        maps["alpha"][view] = 1.0 - (1.0 - maps["alpha"][view]) * uncovered
    if "instances" in maps:
        maps["instances"][view][uncovered < 0.5] = number
    if "lines" in maps:
        lines = _warp(copy.lines, forward, extent).astype(np.float32) / 255.0
        maps["lines"][view] = maps["lines"][view] * uncovered + lines


def _matrix(sticker: Sticker, copy: Copy, size: int) -> np.ndarray:
    """(2, 3): pixel indices of the copy -> pixel indices of the picture."""
    scale, turn = sticker.size * size / copy.side, math.radians(sticker.angle)
    cos, sin = scale * math.cos(turn), scale * math.sin(turn)
    flip = -1.0 if sticker.mirrored else 1.0
    linear = np.array([[flip * cos, -sin], [flip * sin, cos]])
    middle = (len(copy.lines) - 1) / 2
    centre = np.array([sticker.x * size - 0.5, sticker.y * size - 0.5])
    return np.concatenate([linear, (centre - linear @ [middle, middle])[:, None]], axis=1)


def _bounds(forward: np.ndarray, copy: Copy, shift: tuple[float, float], size: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in the picture of all that the copy and its shadow can touch."""
    end = len(copy.lines) - 1.0
    corners = forward @ np.array([[0, end, 0, end], [0, 0, end, end], [1, 1, 1, 1]])
    low = np.floor(corners.min(axis=1) + np.minimum(shift, 0)).astype(int)
    high = np.ceil(corners.max(axis=1) + np.maximum(shift, 0)).astype(int) + 1
    left, top = np.clip(low, 0, size)
    right, bottom = np.clip(high, 0, size)
    return int(left), int(top), int(right), int(bottom)


def _warp(plane: np.ndarray, forward: np.ndarray, extent: tuple[int, int]) -> np.ndarray:
    return cv2.warpAffine(plane, forward, extent, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
