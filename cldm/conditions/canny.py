"""Canny edges: the binary map, one pixel wide, that the published canny ControlNets were trained on."""

from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
import torch
from torch import Tensor

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

    def vary(self, rng: np.random.Generator) -> "Canny":
        """Thresholds between a third and one and a half of the set ones, as users will turn them."""
        low, gap = self.low * rng.uniform(1 / 3, 1.5), (self.high - self.low) * rng.uniform(1 / 3, 1.5)
        return Canny(low, low + gap)


@dataclass(frozen=True)
class CannyKornia(Condition):
    """Canny on the images' device. Not bit-equal to `canny`: its gradient is that of blurred grey.

    `low` and `high` are on the scale of a Sobel gradient of values in [0, 1], see kornia.filters.canny.
    """

    low: float = 0.1
    high: float = 0.2

    name: ClassVar[str] = "canny_kornia"
    version: ClassVar[int] = 2  # no matter what else is in the batch
    polarity: ClassVar[Polarity] = "white_on_black"
    binary: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < 1:
            raise ValueError(f"canny_kornia needs 0 < low < high < 1, got low={self.low}, high={self.high}")

    def extract(self, image: np.ndarray) -> np.ndarray:
        hint = self.batch(torch.from_numpy(image).permute(2, 0, 1)[None])[0]
        return (hint.permute(1, 2, 0).numpy() * 255).astype(np.uint8)

    @torch.no_grad()
    def batch(self, images: Tensor) -> Tensor:
        from kornia.filters import canny  # imported late: the package takes seconds

        # one by one: sums of a batch are rounded otherwise, and a picture's edges would depend on its neighbours
        edges = [canny(image.float() / 255, self.low, self.high)[1] for image in images.split(1)]
        return torch.cat(edges).expand(-1, 3, -1, -1).contiguous()
