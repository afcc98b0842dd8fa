"""The toy set of ControlNet's tutorial, drawn anew: circle outlines that a prompt fills with colours."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from cldm.pictures import save_atomically
from ldm.files import json_lines, write_text
from ldm.random import stable_seed

SIDE = 512
COLORS = {
    "black": "000000", "dim gray": "696969", "silver": "c0c0c0", "white": "ffffff", "dark red": "8b0000",
    "red": "ff0000", "salmon": "fa8072", "coral": "ff7f50", "chocolate": "d2691e", "orange": "ffa500",
    "pale golden rod": "eee8aa", "yellow": "ffff00", "khaki": "f0e68c", "olive": "808000", "dark green": "006400",
    "lime green": "32cd32", "spring green": "00ff7f", "teal": "008080", "cyan": "00ffff", "sky blue": "87ceeb",
    "steel blue": "4682b4", "royal blue": "4169e1", "navy": "000080", "indigo": "4b0082", "medium purple": "9370db",
    "violet": "ee82ee", "magenta": "ff00ff", "hot pink": "ff69b4", "old lace": "fdf5e6", "saddle brown": "8b4513",
}  # fmt: skip
FRACTION_BITS = 6  # of the coordinates that cv2 draws at


@dataclass(frozen=True)
class Circle:
    """A filled circle on a ground: names of COLORS; center and radius in sides of the picture."""

    inside: str
    outside: str
    x: float
    y: float
    radius: float

    @property
    def caption(self) -> str:
        return f"{self.inside} circle with {self.outside} background"


def random_circle(*place: int | str) -> Circle:
    """The circle that belongs to these numbers or names. It covers less than half of the picture."""
    rng = np.random.default_rng(stable_seed(*place))
    inside, outside = (str(name) for name in rng.choice(list(COLORS), 2, replace=False))
    radius = float(rng.uniform(0.08, 0.35))
    x, y = (float(v) for v in rng.uniform(radius / 2, 1 - radius / 2, 2))
    return Circle(inside, outside, x, y, radius)


def picture(circle: Circle, side: int) -> np.ndarray:
    """The filled circle, smooth at its border: (side, side, 3) uint8."""
    pixels = np.full((side, side, 3), tuple(bytes.fromhex(COLORS[circle.outside])), dtype=np.uint8)
    return _draw(pixels, circle, bytes.fromhex(COLORS[circle.inside]), -1, cv2.LINE_AA)


def outline(circle: Circle, side: int) -> np.ndarray:
    """Its hint, a white line on black: (side, side, 3) uint8."""
    pixels = np.zeros((side, side, 3), dtype=np.uint8)
    return _draw(pixels, circle, b"\xff\xff\xff", max(side // 256, 1), cv2.LINE_8)


def _draw(pixels: np.ndarray, circle: Circle, color: bytes, thickness: int, line: int) -> np.ndarray:
    side = len(pixels)
    # cv2 counts from the middle of the first pixel, and a radius up to the middle of the last
    x, y, radius = (round((v * side - 0.5) * 2**FRACTION_BITS) for v in (circle.x, circle.y, circle.radius))
    cv2.circle(pixels, (x, y), radius, tuple(color), thickness, line, FRACTION_BITS)
    return pixels


def draw(number: int, side: int = SIDE) -> tuple[np.ndarray, np.ndarray, str]:
    """Item `number`: outline, picture, both (side, side, 3) uint8, and prompt."""
    circle = random_circle("fill50k", number)
    return outline(circle, side), picture(circle, side), circle.caption


def write_fill50k(count: int, folder: str | Path, side: int = SIDE) -> Path:
    """Items 0..count - 1 in the published layout: source/, target/ and prompt.json. Goes on after a kill."""
    folder = Path(folder)
    lines = []
    for i in tqdm(range(count), desc="fill50k", unit="img"):
        names = {"source": f"source/{i}.png", "target": f"target/{i}.png"}
        source, target, prompt = draw(i, side)
        for key, pixels in (("source", source), ("target", target)):
            if not (folder / names[key]).exists():
                save_atomically(Image.fromarray(pixels), folder / names[key])
        lines.append({**names, "prompt": prompt})
    write_text(folder / "prompt.json", json_lines(lines))
    return folder
