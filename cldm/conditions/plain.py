"""What needs no model and hardly any arithmetic: threshold, invert, and the image as it is."""

from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np

from cldm.conditions import Condition, Polarity


@dataclass(frozen=True)
class Threshold(Condition):
    """White where every channel exceeds `level`; level 0 or 255 lets Otsu's method choose it from grey.

    Keeps the polarity: for a dark drawing on white paper use `invert` first.
    """

    level: int = 127

    name: ClassVar[str] = "threshold"
    polarity: ClassVar[Polarity] = "white_on_black"
    binary: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.level <= 255:
            raise ValueError(f"threshold needs level in 0..255, got {self.level}")

    def extract(self, image: np.ndarray) -> np.ndarray:
        darkest, level, method = image.min(axis=2), self.level, cv2.THRESH_BINARY
        if level in (0, 255):
            method |= cv2.THRESH_OTSU
        _, white = cv2.threshold(darkest, level, 255, method)
        return np.repeat(white[:, :, None], 3, axis=2)


@dataclass(frozen=True)
class Invert(Condition):
    """255 - x: for dark lines on white paper, and for depth maps whose near is black."""

    name: ClassVar[str] = "invert"
    polarity: ClassVar[Polarity] = "white_on_black"

    def extract(self, image: np.ndarray) -> np.ndarray:
        return 255 - image


@dataclass(frozen=True)
class Unchanged(Condition):
    """The picture itself: your own ready-made maps, or nets that want the image (instructions, reference)."""

    name: ClassVar[str] = "none"
    polarity: ClassVar[Polarity] = "color"

    @property
    def measurable(self) -> bool:
        """No: what kind of map the hint is, nobody knows, and the image itself is not one."""
        return False

    def extract(self, image: np.ndarray) -> np.ndarray:
        return image.copy()
