"""A world's exact map as the hint."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cldm.conditions import Condition, Polarity

LINES = ("edges", "lines", "outline")
"""Maps of white lines on black, by the names that worlds give them."""


@dataclass(frozen=True)
class Truth(Condition):
    """The map that a world draws beside each picture: segmentation, depth, normals, ... It is known, not computed.

    WorldDataset takes it from what the world drew. A picture alone has none, so `extract` raises ValueError.
    """

    map: str | None = None

    name: ClassVar[str] = "truth"
    mirrors: ClassVar[bool] = False  # normals and keypoints name directions
    nearest: ClassVar[bool] = True  # segmentation has codes for colours

    @property
    def polarity(self) -> Polarity:  # type: ignore[override]  # the map decides
        return "white_on_black" if self.map in LINES else "color"

    @property
    def computable(self) -> bool:
        return False

    def extract(self, image: np.ndarray) -> np.ndarray:
        raise ValueError(
            "condition=truth is not computed from a picture: only a world (data=stickers, data=scenes, data=circles) "
            "knows its maps; give a ready map, hint=FILE"
        )

    def named(self, world: str, maps: Sequence[str]) -> str:
        """The map's name. ValueError unless it is one of the `maps` that the world has as hints."""
        if self.map is None or self.map not in maps:
            given = "condition=truth" if self.map is None else f"condition.map={self.map}"
            raise ValueError(f"{given}: set condition.map to a map that {world} have: {', '.join(maps) or 'none'}")
        return self.map
