"""Image and hint to one size, together: the aspect ratio is kept, and what moves one moves the other."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from cldm.conditions import Condition
from cldm.conditions.files import resize_map

Size = tuple[int, int]
"""(h, w) in pixels."""

MULTIPLE = 8  # an autoencoder halves three times
SIDES = re.compile(
    r"\b(left|right|text|words?|letters?|lettering|writing|sign|logo|caption|clockwise)\b", re.IGNORECASE
)
"""Captions that a mirror image would make wrong."""


def check_size(size: int | Sequence[int], key: str = "data.size") -> Size:
    """(h, w) of `size`, one number for a square. Raises ValueError unless both are positive multiples of 8."""
    height, width = (size, size) if isinstance(size, int) else size
    for side in (height, width):
        if side < MULTIPLE or side % MULTIPLE:
            near = max(round(side / MULTIPLE), 1) * MULTIPLE
            raise ValueError(f"{key}={size}: sides must be multiples of {MULTIPLE}, because latents are {MULTIPLE} "
                             f"times smaller; {near} is near {side}")  # fmt: skip
    return height, width


def bucket_sizes(size: int | Sequence[int], step: int = 64, max_aspect: float = 2.0) -> list[Size]:
    """Sizes in multiples of `step` whose area is at most that of `size`, one for each width, from tall to wide."""
    height, width = check_size(size)
    if step % MULTIPLE:
        raise ValueError(f"data.bucket_step must be a multiple of {MULTIPLE}, got {step}")
    found = []
    for w in range(step, int(math.sqrt(height * width * max_aspect)) + step, step):
        h = height * width // w // step * step
        if h and 1 / max_aspect <= w / h <= max_aspect:
            found.append((h, w))
    if not found:
        raise ValueError(f"data.bucket_step={step} is too coarse for data.size={size}")
    return found


def nearest_bucket(size: Sequence[int], buckets: Sequence[Size]) -> int:
    """The number of the bucket whose aspect ratio is nearest to that of `size` (h, w), on a log scale."""
    aspect = math.log(size[1] / size[0])
    return min(range(len(buckets)), key=lambda i: abs(math.log(buckets[i][1] / buckets[i][0]) - aspect))


@dataclass(frozen=True)
class Augment:
    """What changes from epoch to epoch. The default changes nothing.

    flip: probability of mirroring. Never where the caption names sides or text, nor where a ready-made hint of an
        asymmetric condition (normals, poses) cannot be mirrored; flip_all mirrors them as well.
    random_crop: cut at a random place instead of the centre.
    vary: draw the condition's parameters anew for every sample (Canny thresholds, scribble strokes, holes);
        only for hints that are made on the fly.
    """

    flip: float = 0.0
    flip_all: bool = False
    random_crop: bool = False
    vary: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise ValueError(f"data.augment.flip is a probability, got {self.flip}")

    @property
    def active(self) -> bool:
        return self.flip > 0 or self.random_crop or self.vary


def may_flip(caption: str, condition: Condition, ready_made: bool) -> bool:
    """Whether a mirrored sample is a true one."""
    return not SIDES.search(caption) and (condition.mirrors or not ready_made)


def cover(
    image: np.ndarray, hint: np.ndarray | None, size: Size, condition: Condition, at: tuple[float, float] = (0.5, 0.5)
) -> tuple[np.ndarray, np.ndarray | None]:
    """Crop both to the aspect ratio of `size` and resize them to it: (h, w, c) uint8 -> (*size, c).

    `at` says where the crop lies, each of (down, right) from 0 to 1; the centre is 0.5. The hint may have another
    resolution than the image but not another shape. Raises ValueError if it has.
    """
    if hint is not None:
        a, b = image.shape[1] / image.shape[0], hint.shape[1] / hint.shape[0]
        if abs(a / b - 1) > 0.02:
            raise ValueError(
                f"a hint of {hint.shape[1]}x{hint.shape[0]} pixels does not lie over its picture of "
                f"{image.shape[1]}x{image.shape[0]}: their shapes differ"
            )
        hint = resize_map(_crop(hint, size, at), size, condition)
    image = _crop(image, size, at)
    if image.shape[:2] != size:
        method = cv2.INTER_AREA if image.shape[0] > size[0] else cv2.INTER_CUBIC
        image = cv2.resize(image, size[::-1], interpolation=method)
    return image, hint


def _crop(pixels: np.ndarray, size: Size, at: tuple[float, float]) -> np.ndarray:
    height, width = pixels.shape[:2]
    scale = max(size[0] / height, size[1] / width)
    h, w = min(round(size[0] / scale), height), min(round(size[1] / scale), width)
    top, left = round((height - h) * at[0]), round((width - w) * at[1])
    return pixels[top : top + h, left : left + w]
