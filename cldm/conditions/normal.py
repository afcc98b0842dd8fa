"""Surface normals from depth, in the colours of ControlNet 1.1 (BAE) or 1.0 (MiDaS): they do not mix."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import cv2
import numpy as np

from cldm.conditions import Condition, Polarity
from cldm.conditions.depth import Depth

Order = Literal["bae", "midas"]


@dataclass(frozen=True)
class Normal(Condition):
    """Normals of the depth map of a model in `folder` (see Depth).

    order: "bae" is blue front, red left, green top (control_v11p_sd15_normalbae); "midas" the same vector with its
    channels reversed, for control_sd15_normal. background: depth below this (0..1) is taken as flat.
    """

    folder: str
    metric: bool | None = None
    order: Order = "bae"
    strength: float = 3.0
    background: float = 0.0

    name: ClassVar[str] = "normal"
    polarity: ClassVar[Polarity] = "color"
    needs_weights: ClassVar[bool] = True
    version: ClassVar[int] = 2  # of unrounded depth
    mirrors: ClassVar[bool] = False  # a flipped map has its lefts and rights in the wrong colour

    def __post_init__(self) -> None:
        if self.order not in ("bae", "midas") or self.strength <= 0:
            raise ValueError(f"normal needs order bae or midas and strength > 0, got {self.order}, {self.strength}")

    def extract(self, image: np.ndarray) -> np.ndarray:
        # of the unrounded map: 8 bits have steps, whose slopes are rings
        depth = Depth(self.folder, self.metric).nearness(image)
        return normals_from_depth(depth, self.strength, self.order, self.background)


def normals_from_depth(
    depth: np.ndarray, strength: float = 3.0, order: Order = "bae", background: float = 0.0
) -> np.ndarray:
    """Depth (h, w) in [0, 1], near = 1 -> normals (h, w, 3) uint8, value 127.5 + 127.5 n.

    The surface stands `strength` times depth high on a square of side 1 (the longer side of the image), so the
    colours do not depend on the resolution. Its slopes come from 3 x 3 Sobel filters.
    """
    depth = np.ascontiguousarray(depth, dtype=np.float32)
    per_side = strength * max(depth.shape) / 8  # a 3 x 3 Sobel filter gives 8 times the slope
    left = cv2.Sobel(depth, cv2.CV_32F, 1, 0, ksize=3) * per_side
    top = cv2.Sobel(depth, cv2.CV_32F, 0, 1, ksize=3) * per_side
    flat = depth < background
    left[flat], top[flat] = 0, 0
    return encode_normals(np.dstack([left, top, np.ones_like(depth)]), order)


def encode_normals(vectors: np.ndarray, order: Order = "bae") -> np.ndarray:
    """Vectors (h, w, 3) towards left, top, front, of any length -> colours uint8."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=2, keepdims=True), 1e-12)
    colors = (unit * 127.5 + 127.5).clip(0, 255).astype(np.uint8)
    return colors if order == "bae" else np.ascontiguousarray(colors[:, :, ::-1])
