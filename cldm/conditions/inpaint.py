"""Inpainting: the image in [0, 1] with masked pixels exactly -1, which no ordinary pixel can be."""

import zlib
from dataclasses import dataclass, replace
from typing import ClassVar

import cv2
import numpy as np

from cldm.conditions import Condition, Polarity


@dataclass(frozen=True)
class Inpaint(Condition):
    """The image with a hole. A map is (h, w, 4): alpha 0 marks the hole, also in PNG files of your own.

    The one condition whose maps have a fourth channel, because 8 bits have no value for -1. The hole is strokes and
    boxes over about the share `area` of the image, drawn from `seed` and the image itself: every image has its own,
    always the same. `vary` draws one for every sample.
    """

    area: float = 0.3
    seed: int = 0

    name: ClassVar[str] = "inpaint"
    polarity: ClassVar[Polarity] = "color"
    reads_alpha: ClassVar[bool] = True
    version: ClassVar[int] = 2  # every image has a hole of its own

    def __post_init__(self) -> None:
        if not 0 < self.area < 1:
            raise ValueError(f"inpaint needs area between 0 and 1, got {self.area}")

    def extract(self, image: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng([self.seed, zlib.crc32(image.tobytes())])
        return with_mask(image, random_mask(image.shape[:2], self.area, rng))

    def to_hint(self, pixels: np.ndarray) -> np.ndarray:
        hint = pixels[:, :, :3].astype(np.float32) / 255
        if pixels.shape[2] == 4:
            hint[pixels[:, :, 3] < 128] = -1.0
        return hint

    def vary(self, rng: np.random.Generator) -> "Inpaint":
        return replace(self, area=float(rng.uniform(0.05, 0.8)), seed=int(rng.integers(2**31)))


def with_mask(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 and a bool mask (h, w), True where to paint -> the RGBA map: masked pixels (0, 0, 0, 0)."""
    return np.dstack([np.where(mask[:, :, None], np.uint8(0), image), np.where(mask, np.uint8(0), np.uint8(255))])


def random_mask(size: tuple[int, ...], area: float, rng: np.random.Generator) -> np.ndarray:
    """Bool (h, w): strokes and boxes until at least the share `area` is covered."""
    height, width = size
    mask = np.zeros((height, width), dtype=np.uint8)
    side = min(height, width)
    while mask.mean() < area:
        x, y = int(rng.integers(width)), int(rng.integers(height))
        if rng.random() < 0.5:
            w, h = (rng.uniform(0.1, 0.4, 2) * side).astype(int).tolist()
            cv2.rectangle(mask, (x - w // 2, y - h // 2), (x + w // 2, y + h // 2), 1, -1)
        else:
            points = np.cumsum([(x, y), *rng.normal(0, side / 6, (4, 2))], axis=0).astype(np.int32)
            cv2.polylines(mask, [points], False, 1, max(int(side * rng.uniform(0.03, 0.1)), 1))
    return mask.astype(bool)
