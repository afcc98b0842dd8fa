"""A world's exact map as the hint."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from cldm.conditions import Condition, Polarity


@dataclass(frozen=True)
class Truth(Condition):
    """The map that a world draws beside each picture: segmentation, depth, normals, ... It is known, not computed.

    `of` takes it from what a world drew. A picture alone has none, so `extract` raises ValueError.
    """

    map: str | None = None

    name: ClassVar[str] = "truth"
    polarity: ClassVar[Polarity] = "color"
    mirrors: ClassVar[bool] = False  # normals and keypoints name directions
    nearest: ClassVar[bool] = True  # segmentation has codes for colours

    @property
    def computable(self) -> bool:
        return False

    def extract(self, image: np.ndarray) -> np.ndarray:
        raise ValueError(
            "condition=truth is not computed from a picture: only a world (data=stickers, data=scenes) knows its maps; "
            "give a ready map, hint=FILE"
        )

    def named(self) -> str:
        """The map's name. ValueError where none was given."""
        if self.map is None:
            raise ValueError("condition=truth needs condition.map, the name of one of the world's maps; docs/data.md "
                             "lists them")  # fmt: skip
        return self.map

    def of(self, drawn: Mapping[str, Tensor]) -> Tensor:
        """Hints (n, 3, h, w) in [0, 1] of the maps that a world drew (cldm.worlds.World.draw).

        ValueError for a map that holds numbers instead of brightness or colours.
        """
        found = drawn[self.named()]
        if found.ndim != 4 or not found.is_floating_point():
            raise ValueError(f"condition.map={self.map} holds numbers, not brightness or colours: it cannot be a hint")
        return found.expand(-1, 3, -1, -1)
