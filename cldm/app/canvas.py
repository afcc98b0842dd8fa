"""The canvas of the page: its paper and pens, and what was drawn as a picture file."""

from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from cldm.conditions import Condition
from cldm.data.transforms import Size

SIDE = 512  # pixels of the canvas's longer side: maps are small, hands are not
PAPERS = {"black on white": ("#ffffff", "#000000"), "white on black": ("#000000", "#ffffff")}
"""The two ways to draw lines: paper and pen."""


def canvas_size(size: Size) -> tuple[int, int]:
    """Width and height of the canvas for drawings of `size` (h, w)."""
    scale = SIDE / max(size)
    return round(size[1] * scale), round(size[0] * scale)


def flat(drawn: dict[str, Any] | None, paper: str, size: Size) -> Image.Image:
    """What an editor holds (`composite`, RGBA) on its paper; the paper alone where nothing was drawn."""
    top = (drawn or {}).get("composite")
    if top is None:
        return Image.new("RGB", canvas_size(size), paper)
    sheet = Image.new("RGBA", top.size, paper)
    sheet.alpha_composite(top.convert("RGBA"))
    return sheet.convert("RGB")


def save_map(drawn: dict[str, Any] | None, paper: str, size: Size, condition: Condition, path: Path) -> Path:
    """Write the drawing as a map of the condition's kind: lines are white on black, whatever they were drawn on."""
    picture = flat(drawn, paper, size)
    if condition.polarity == "white_on_black" and paper == "#ffffff":
        picture = ImageOps.invert(picture)
    picture.save(path)
    return path
