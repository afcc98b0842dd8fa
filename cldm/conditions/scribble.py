"""Scribbles: thick white strokes on black, from a photo's contrasts or made from its soft edges."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import cv2
import numpy as np

from cldm.conditions import Condition, Polarity
from cldm.conditions.softedge import Sobel

MIN_LENGTH = 12


@dataclass(frozen=True)
class ScribbleXDoG(Condition):
    """White where a pixel is darker than its surroundings in every channel: twice the difference of Gaussians
    (sigma 0.5 and 5) exceeds `threshold`, 1..64. As scribble_xdog of the web UI."""

    threshold: float = 32.0

    name: ClassVar[str] = "scribble_xdog"
    polarity: ClassVar[Polarity] = "white_on_black"
    binary: ClassVar[bool] = True

    def extract(self, image: np.ndarray) -> np.ndarray:
        values = image.astype(np.float32)
        narrow, wide = (cv2.GaussianBlur(values, (0, 0), sigma) for sigma in (0.5, 5.0))
        darker = (wide - narrow).min(axis=2).clip(0, 255)
        return np.repeat((2 * darker > self.threshold)[:, :, None] * np.uint8(255), 3, axis=2)

    def vary(self, rng: np.random.Generator) -> "ScribbleXDoG":
        return ScribbleXDoG(self.threshold * rng.uniform(0.5, 1.5))


@dataclass(frozen=True)
class Scribble(Condition):
    """Strokes along the ridges of soft edges, as a hand with a pen of `thickness` pixels would draw them.

    edges: the condition that finds the soft edges. threshold: a ridge must be brighter, 0..255. sigma: of the
    blur before ridges are sought, in pixels; more gives fewer, rounder strokes. `vary` draws another pen for
    every training sample.
    """

    edges: Condition = field(default_factory=Sobel)
    threshold: float = 64.0
    sigma: float = 2.0
    thickness: int = 3

    name: ClassVar[str] = "scribble"
    polarity: ClassVar[Polarity] = "white_on_black"
    binary: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.thickness < 1 or self.sigma <= 0:
            raise ValueError(f"scribble needs thickness >= 1, sigma > 0; got {self.thickness}, {self.sigma}")

    def extract(self, image: np.ndarray) -> np.ndarray:
        strokes = ridges(self.edges(image)[:, :, 0], self.threshold, self.sigma)
        pen = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (self.thickness, self.thickness))
        return np.repeat(cv2.dilate(strokes, pen)[:, :, None], 3, axis=2)

    def vary(self, rng: np.random.Generator) -> "Scribble":
        return replace(
            self,
            threshold=self.threshold * rng.uniform(0.6, 1.6),
            sigma=self.sigma * rng.uniform(0.5, 2.0),
            thickness=int(rng.integers(1, 2 * self.thickness + 1)),
        )


def ridges(edges: np.ndarray, threshold: float, sigma: float) -> np.ndarray:
    """Non-maximum suppression of (h, w) uint8: 255 where the blurred map tops both neighbours in one of the
    four directions and exceeds `threshold`, else 0; specks of fewer than `MIN_LENGTH` pixels are dropped."""
    blurred = cv2.GaussianBlur(edges.astype(np.float32), (0, 0), sigma)
    line = np.zeros((3, 3), dtype=np.uint8)
    line[1] = 1
    directions = (line, line.T, np.eye(3, dtype=np.uint8), np.fliplr(np.eye(3, dtype=np.uint8)))
    tops = np.zeros(edges.shape, dtype=bool)
    for direction in directions:
        line = np.ascontiguousarray(direction)
        falls = blurred - cv2.erode(blurred, line) > 0.1  # along a ridge all neighbours are as bright as it is
        tops |= falls & (cv2.dilate(blurred, line) == blurred)
    lines = (tops & (blurred > threshold)).astype(np.uint8)
    _, numbers, facts, _ = cv2.connectedComponentsWithStats(lines, connectivity=8)
    long = facts[:, cv2.CC_STAT_AREA] >= MIN_LENGTH
    long[0] = False  # the ground
    return np.where(long[numbers], np.uint8(255), np.uint8(0))
