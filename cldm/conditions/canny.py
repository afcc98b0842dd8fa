"""Canny edges: the binary map, one pixel wide, that the published canny ControlNets were trained on."""

from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np

from cldm.conditions import Condition, Polarity


@dataclass(frozen=True)
class Canny(Condition):
    """White edges on black, bit-equal to `cv2.Canny(rgb, low, high)` in each of the three equal channels.

    `low` and `high` are the hysteresis thresholds on the L1 norm of the Sobel gradient of 8-bit values, taken
    in the channel where it is largest. Colour matters: grey input would miss edges between colours of equal
    brightness.
    """

    low: float = 100
    high: float = 200

    name: ClassVar[str] = "canny"
    polarity: ClassVar[Polarity] = "white_on_black"
    binary: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:  # cv2 would swap them in silence
            raise ValueError(f"canny needs 0 <= low <= high, got low={self.low}, high={self.high}")

    def extract(self, image: np.ndarray) -> np.ndarray:
        edges = cv2.Canny(image, self.low, self.high)
        return np.repeat(edges[:, :, None], 3, axis=2)
