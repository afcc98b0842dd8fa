"""Lines of drawings and of buildings, without a net."""

from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np

from cldm.conditions import Condition, Polarity


@dataclass(frozen=True)
class LineSegments(Condition):
    """Straight segments of OpenCV's line segment detector, one pixel wide, white on black.

    A stand-in for M-LSD, which is a trained net: it finds more and shorter segments. `min_length` in pixels.
    """

    min_length: float = 20.0

    name: ClassVar[str] = "lsd"
    polarity: ClassVar[Polarity] = "white_on_black"
    binary: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.min_length < 0:
            raise ValueError(f"lsd needs min_length >= 0, got {self.min_length}")

    def segments(self, image: np.ndarray) -> np.ndarray:
        """(n, 4) float: x1, y1, x2, y2 of the segments of `min_length` at least."""
        found = cv2.createLineSegmentDetector().detect(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]
        if found is None:
            return np.zeros((0, 4), dtype=np.float32)
        lines = np.asarray(found).reshape(-1, 4)
        return lines[np.hypot(lines[:, 2] - lines[:, 0], lines[:, 3] - lines[:, 1]) >= self.min_length]

    def extract(self, image: np.ndarray) -> np.ndarray:
        drawn = np.zeros_like(image)
        for x1, y1, x2, y2 in np.rint(self.segments(image)).astype(int).tolist():
            cv2.line(drawn, (x1, y1), (x2, y2), (255, 255, 255), 1)
        return drawn


@dataclass(frozen=True)
class LineartStandard(Condition):
    """Dark strokes as soft white lines: how much darker a pixel is than its surroundings, in every channel.

    sigma: of the blur that stands for the surroundings, in pixels. threshold: darker by more than this (0..255)
    counts when the scale of the map is set. As lineart_standard of the web UI.
    """

    sigma: float = 6.0
    threshold: float = 8.0

    name: ClassVar[str] = "lineart_standard"
    polarity: ClassVar[Polarity] = "white_on_black"

    def extract(self, image: np.ndarray) -> np.ndarray:
        values = image.astype(np.float32)
        darker = (cv2.GaussianBlur(values, (0, 0), self.sigma) - values).min(axis=2).clip(0, 255)
        strong = darker[darker > self.threshold]
        scale = max(16.0, float(np.median(strong)) if strong.size else 0.0)
        lines = (darker / scale * 127).clip(0, 255).astype(np.uint8)
        return np.repeat(lines[:, :, None], 3, axis=2)
