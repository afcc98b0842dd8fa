"""Reads a scene back from pixels: background, and kind, colour and place of every object.

Made for evaluation: exact on clean renders, forgiving towards the soft or blotchy pictures of a small model.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from torch import Tensor

from cldm.worlds.scenes.fitting import Fit, Region, fit_regions
from cldm.worlds.scenes.world import BACKGROUNDS, COLORS

MIN_SATURATION = 0.45  # between a lit object (over 0.55) and the strongest background (0.34)
MIN_VALUE = 0.16
MIN_SHARE = 0.01  # of the image, for a region to count as an object; the smallest triangle covers 0.013
COLOR_NAMES: tuple[str, ...] = tuple(COLORS)
BACKGROUND_NAMES: tuple[str, ...] = tuple(BACKGROUNDS)


@dataclass(frozen=True)
class ReadObject:
    """One object as read; units as in SceneObject, `score` is the overlap with the ideal shape in [0, 1]."""

    kind: str
    color: str
    x: float
    y: float
    radius: float
    score: float
    angle: float = 0.0


@dataclass(frozen=True)
class ReadScene:
    """`objects` from left to right; `coverage`: share of the pixels in each colour of COLORS, 0 if absent."""

    background: str
    objects: tuple[ReadObject, ...]
    coverage: dict[str, float]


def _hue_table() -> np.ndarray:
    """Class 1..6 (index in COLORS plus one) for each of the 256 hues of OpenCV's full-range HSV."""
    centers = np.array([colorsys.rgb_to_hsv(*rgb)[0] for rgb in COLORS.values()])
    hues = np.arange(256)[:, None] / 256
    return (np.abs((hues - centers + 0.5) % 1 - 0.5).argmin(1) + 1).astype(np.uint8)


_HUE_CLASS = _hue_table()
_BACKGROUND_RGB = np.array(list(BACKGROUNDS.values()), np.float32)


def to_uint8(image: Tensor) -> np.ndarray:
    """(3,h,w) in [-1,1] -> (h,w,3) uint8 RGB."""
    pixels = image.detach().float().clamp(-1, 1).add(1).mul(127.5).round()
    return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy().astype(np.uint8))


def color_map(image: Tensor) -> np.ndarray:
    """(3,h,w) in [-1,1] -> (h,w) uint8: 0 pale, else 1 + index in COLORS of the object colour seen there.

    Where two colours (or a colour and the background) blend along a border, the blend may have the hue of a
    third colour; such slivers are given to the solid colour beside them, or to none.
    """
    return _color_map(to_uint8(image))


def _color_map(pixels: np.ndarray) -> np.ndarray:
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
    hue, saturation, value = cv2.split(hsv)
    vivid = (saturation > MIN_SATURATION * 255) & (value > MIN_VALUE * 255)
    raw = np.where(vivid, _HUE_CLASS[hue], 0).astype(np.uint8)
    reach = max(1, round(pixels.shape[1] / 64))
    counts = np.bincount(raw.ravel(), minlength=len(COLORS) + 1)
    classes = [k for k in range(1, len(COLORS) + 1) if counts[k]]
    solid = np.zeros_like(raw)
    for k in classes:
        solid[_solid_part(raw == k, reach)] = k
    sliver = vivid & (solid == 0)
    if not sliver.any():
        return solid
    side = (2 * reach + 1, 2 * reach + 1)
    present = [k for k in classes if (solid == k).any()]
    if not present:
        return solid
    near = np.stack([cv2.blur((solid == k).astype(np.float32), side) for k in present])
    chosen = np.where(near.max(0) > 0, np.array(present, np.uint8)[near.argmax(0)], 0)
    return np.where(sliver, chosen, solid).astype(np.uint8)


def _solid_part(mask: np.ndarray, reach: int) -> np.ndarray:
    """Pixels of the mask near a place where it is more than 2 * reach pixels thick."""
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    core = cv2.erode(mask.view(np.uint8), kernel, borderType=cv2.BORDER_REPLICATE)
    _, parts = cv2.connectedComponents(mask.view(np.uint8), connectivity=4)
    kept = np.zeros(parts.max() + 1, bool)
    kept[np.unique(parts[core > 0])] = True
    kept[0] = False
    grown = cv2.dilate(core, np.ones((6 * reach + 1, 6 * reach + 1), np.uint8))
    return kept[parts] & (grown > 0)


def read_background(pixels: np.ndarray, colors: np.ndarray) -> str:
    """The background nearest to most pixels away from objects; pixels (h,w,3) uint8 RGB, colors (h,w)."""
    objects = cv2.dilate((colors > 0).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    pale = pixels[::2, ::2][~objects[::2, ::2]].astype(np.float32) / 255
    if not len(pale):
        pale = pixels.reshape(-1, 3).astype(np.float32) / 255
    nearest = np.square(pale[:, None] - _BACKGROUND_RGB).sum(2).argmin(1)
    return BACKGROUND_NAMES[int(np.bincount(nearest, minlength=len(BACKGROUND_NAMES)).argmax())]


def _regions(colors: np.ndarray) -> list[tuple[int, Region]]:
    """Every connected region of one colour that is large enough to be an object, with its class 1..6."""
    found = []
    for k in range(1, len(COLORS) + 1):
        mask = colors == k
        if mask.sum() < MIN_SHARE * mask.size:
            continue
        count, parts, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
        large = [i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] >= MIN_SHARE * mask.size]
        others = (colors > 0) & ~mask
        for i in large:
            own = parts == i
            found.append((k, Region(own, others | (mask & ~own))))
    return found


def read_scene(image: Tensor) -> ReadScene:
    """The scene in an image (3,h,w) in [-1,1]."""
    return read_scenes([image])[0]


def read_scenes(images: Tensor | Iterable[Tensor]) -> list[ReadScene]:
    """The scenes in images (b,3,h,w) in [-1,1]; faster than one at a time. ValueError for other shapes."""
    if isinstance(images, Tensor) and (images.ndim != 4 or images.shape[1] != 3):
        raise ValueError(f"images must have shape (b, 3, h, w), got {tuple(images.shape)}")
    backgrounds, maps, regions = [], [], []
    for b, image in enumerate(images):
        pixels = to_uint8(image)
        colors = _color_map(pixels)
        maps.append(colors)
        backgrounds.append(read_background(pixels, colors))
        regions += [(b, k, region) for k, region in _regions(colors)]
    fits = fit_regions([region for _, _, region in regions])
    objects: list[list[ReadObject]] = [[] for _ in maps]
    for (b, k, _), fit in zip(regions, fits, strict=True):
        objects[b].append(_read_object(COLOR_NAMES[k - 1], fit))
    return [
        ReadScene(background, tuple(sorted(found, key=lambda o: o.x)), coverage_of(colors))
        for background, colors, found in zip(backgrounds, maps, objects, strict=True)
    ]


def _read_object(color: str, fit: Fit) -> ReadObject:
    return ReadObject(fit.kind, color, fit.x, fit.y, fit.radius, fit.score, fit.angle)


def coverage_of(colors: np.ndarray) -> dict[str, float]:
    """Share of the pixels of a colour map in each colour."""
    counts = np.bincount(colors.ravel(), minlength=len(COLORS) + 1) / colors.size
    return {name: float(share) for name, share in zip(COLOR_NAMES, counts[1:], strict=True)}
