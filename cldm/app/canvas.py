"""The canvases of the page: paper and pens, and what was drawn on them as picture files."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from cldm.conditions import Condition
from cldm.data.decoding import Picture, Source, decode
from cldm.data.hints import Origin, ready_map
from cldm.data.transforms import Size

SIDE = 512  # pixels of the canvas's longer side, about: maps are small, hands are not
WHITE, BLACK = "#ffffff", "#000000"
PENS: dict[str, list[str | tuple[str, float]]] = {
    "white_on_black": [BLACK],
    "near_white": ["#ffffff", "#c0c0c0", "#808080", "#404040", "#000000"],
    "color": ["#ffffff", "#e03131", "#f08c00", "#ffd43b", "#2f9e44", "#1971c2", "#7048e8", "#000000"],
}
"""The colours to draw a map with, by the polarity of the condition. Lines are drawn in ink on paper."""

Editor = dict[str, Any]
"""What gradio's ImageEditor holds: `background`, `layers` and `composite`, pictures or None."""


def canvas_size(size: Size) -> tuple[int, int]:
    """Width and height of the canvas for drawings of `size` (h, w): a whole number of its pixels for each of theirs."""
    scale = max(round(SIDE / max(size)), 1)
    return size[1] * scale, size[0] * scale


def paper_of(condition: Condition) -> str:
    """White for lines, which are drawn in ink; black, "nothing here", for other maps."""
    return WHITE if condition.polarity == "white_on_black" else BLACK


def read_layer(source: Source, what: str, name: str) -> Image.Image:
    """A picture of an editor, RGBA; PictureError where it is none. Its size is checked before it is read."""
    picture = decode(source, what, name)
    rgb = picture.rgb if picture.rgb.dtype == np.uint8 else np.rint(picture.rgb * 255).astype(np.uint8)
    layer = Image.fromarray(rgb).convert("RGBA")
    if picture.alpha is not None:
        layer.putalpha(Image.fromarray(np.rint(picture.alpha * 255).astype(np.uint8)))
    return layer


def ground_of(drawn: Editor | None, paper: str) -> str:
    """The paper that a drawing lies on; `paper` where the editor holds none yet. The field for the paper may be ahead
    of the canvas: a browser changes it at once, and the drawing when the page has turned it."""
    ground = (drawn or {}).get("background")
    if ground is None or ground.convert("RGBA").getextrema()[-1][1] == 0:
        return paper
    return WHITE if np.median(np.asarray(ground.convert("L"))) > 127 else BLACK


def flat(drawn: Editor | None, paper: str, size: Size) -> Image.Image:
    """The drawing on its paper, RGB; the paper alone where nothing was drawn."""
    pictures = _pictures(drawn)
    sheet = Image.new("RGBA", pictures[0].size if pictures else canvas_size(size), paper)
    for picture in pictures:
        sheet.alpha_composite(picture.convert("RGBA"))
    return sheet.convert("RGB")


def _pictures(drawn: Editor | None) -> list[Image.Image]:
    """What lies on the paper, from below: the composite, or its parts where there is none, as before the first stroke
    on what the page has put there."""
    drawn = drawn or {}
    whole = drawn.get("composite")
    parts = [drawn.get("background"), *(drawn.get("layers") or [])] if whole is None else [whole]
    return [part for part in parts if part is not None]


def blank(paper: str, size: Size) -> Editor:
    """What an editor holds before anything is drawn."""
    return {"background": Image.new("RGB", canvas_size(size), paper), "layers": [], "composite": None}


def on_paper(drawn: Editor | None, paper: str, size: Size) -> Editor:
    """The drawing on `paper`: in the other ink where it lies on the other paper. The eraser finds it as before."""
    layers = [layer for layer in (drawn or {}).get("layers") or [] if layer is not None]
    turn = _inverted if ground_of(drawn, paper) != paper else lambda layer: layer
    return {**blank(paper, size), "layers": [turn(layer) for layer in layers]}


def with_map(seen: Image.Image, paper: str, size: Size, condition: Condition) -> Editor:
    """An editor that holds a map as strokes on `paper`: opaque where it differs from the paper, so that the eraser
    takes it away and what is left alone keeps its values."""
    picture = flat_map(seen.convert("RGB"), paper, condition)
    ink = np.any(np.asarray(picture) != np.asarray(Image.new("RGB", (1, 1), paper)), axis=2)
    picture.putalpha(Image.fromarray(ink.astype(np.uint8) * 255))
    return {**blank(paper, size), "layers": [picture.resize(canvas_size(size), Image.Resampling.NEAREST)]}


def _inverted(picture: Image.Image) -> Image.Image:
    result = ImageOps.invert(picture.convert("RGB"))
    result.putalpha(picture.convert("RGBA").getchannel("A"))
    return result


def save_map(drawn: Editor | None, paper: str, size: Size, condition: Condition, path: Path) -> Path:
    """Write the drawing as a map of the condition's kind: lines are white on black, whatever they were drawn on, and
    however much ink there is. The file says that it is a map, so that nothing inverts it again."""
    paper = ground_of(drawn, paper)
    picture = Picture("the drawing", np.asarray(flat(drawn, paper, size)))
    pixels = ready_map(picture, condition, invert=_inked(paper, condition))
    made = Image.fromarray(np.rint(pixels * 255).astype(np.uint8))
    made.save(path, pnginfo=Origin.of(condition, size).info())
    return path


def flat_map(picture: Image.Image, paper: str, condition: Condition) -> Image.Image:
    """A drawing as the map that it stands for, and a map as the drawing: ink on white paper is light on black."""
    return ImageOps.invert(picture) if _inked(paper, condition) else picture


def _inked(paper: str, condition: Condition) -> bool:
    return condition.polarity == "white_on_black" and paper == WHITE


def painted(drawn: Editor | None) -> Image.Image | None:
    """A mask (mode L), white where a layer of the editor was painted; None where nothing was."""
    layers = [layer.convert("RGBA").getchannel("A") for layer in (drawn or {}).get("layers") or [] if layer is not None]
    masks = [np.asarray(layer) > 127 for layer in layers]
    if not any(mask.any() for mask in masks):
        return None
    return Image.fromarray(np.any(masks, axis=0).astype(np.uint8) * 255)
