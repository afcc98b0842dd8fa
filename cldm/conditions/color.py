"""Conditions that keep the image's colours and take away something else: detail, place or hue."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import cv2
import numpy as np

from cldm.conditions import Condition, Polarity


@dataclass(frozen=True)
class ColorGrid(Condition):
    """One colour for each block of `block` pixels."""

    block: int = 64

    name: ClassVar[str] = "color_grid"
    polarity: ClassVar[Polarity] = "color"

    def __post_init__(self) -> None:
        if self.block < 1:
            raise ValueError(f"color_grid needs block >= 1, got {self.block}")

    def extract(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        small = (max(width // self.block, 1), max(height // self.block, 1))
        return cv2.resize(
            cv2.resize(image, small, interpolation=cv2.INTER_CUBIC), (width, height), interpolation=cv2.INTER_NEAREST
        )


@dataclass(frozen=True)
class Blur(Condition):
    """A Gaussian blur of `sigma` pixels."""

    sigma: float = 9.0

    name: ClassVar[str] = "blur"
    polarity: ClassVar[Polarity] = "color"

    def __post_init__(self) -> None:
        if self.sigma <= 0:
            raise ValueError(f"blur needs sigma > 0, got {self.sigma}")

    def extract(self, image: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(image, (0, 0), self.sigma)

    def vary(self, rng: np.random.Generator) -> "Blur":
        return Blur(self.sigma * rng.uniform(0.5, 2.0))


@dataclass(frozen=True)
class Tile(Condition):
    """The image at 1 / `rate` of its resolution, enlarged again: a net learns to put detail back."""

    rate: float = 8.0

    name: ClassVar[str] = "tile"
    polarity: ClassVar[Polarity] = "color"

    def __post_init__(self) -> None:
        if self.rate < 1:
            raise ValueError(f"tile needs rate >= 1, got {self.rate}")

    def extract(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        small = (max(round(width / self.rate), 1), max(round(height / self.rate), 1))
        coarse = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)

    def vary(self, rng: np.random.Generator) -> "Tile":
        return Tile(rng.uniform(1.0, 2 * self.rate - 1))


@dataclass(frozen=True)
class Recolor(Condition):
    """Grey: Lab lightness ("luminance") or HSV value ("intensity"), to the power `gamma`. A net adds the colours."""

    mode: Literal["luminance", "intensity"] = "luminance"
    gamma: float = 1.0

    name: ClassVar[str] = "recolor"
    polarity: ClassVar[Polarity] = "color"

    def __post_init__(self) -> None:
        if self.mode not in ("luminance", "intensity") or self.gamma <= 0:
            raise ValueError(f"recolor needs mode luminance or intensity and gamma > 0, got {self.mode}, {self.gamma}")

    def extract(self, image: np.ndarray) -> np.ndarray:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)[:, :, 0] if self.mode == "luminance" else image.max(axis=2)
        if self.gamma != 1.0:
            grey = ((grey.astype(np.float32) / 255) ** self.gamma * 255).round().astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)


@dataclass(frozen=True)
class Shuffle(Condition):
    """The image's content in other places: pixels moved along a smooth random flow, the same for the same `seed`.

    scale: size in pixels of the waves of the flow. `vary` draws a flow for every training sample.
    """

    seed: int = 0
    scale: int = 256

    name: ClassVar[str] = "shuffle"
    polarity: ClassVar[Polarity] = "color"

    def extract(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        rng = np.random.default_rng(self.seed)
        x = self._waves(rng, height, width) * (width - 1)
        y = self._waves(rng, height, width) * (height - 1)
        return cv2.remap(image, x, y, cv2.INTER_LINEAR)

    def _waves(self, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
        """(h, w) float32, smooth, from 0 to 1."""
        f = self.scale
        noise = rng.uniform(size=(height // f + 2, width // f + 2)).astype(np.float32)
        wide = cv2.resize(noise, (width + 2 * f, height + 2 * f), interpolation=cv2.INTER_CUBIC)
        waves = wide[f : f + height, f : f + width]
        return (waves - waves.min()) / max(float(np.ptp(waves)), 1e-6)

    def vary(self, rng: np.random.Generator) -> "Shuffle":
        return replace(self, seed=int(rng.integers(2**31)))
