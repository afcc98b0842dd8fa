"""The toy set of ControlNet's tutorial, drawn anew: circle outlines that a prompt fills with colours."""

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


def draw(number: int, side: int = SIDE) -> tuple[np.ndarray, np.ndarray, str]:
    """Item `number`: outline (white on black), picture, both (side, side, 3) uint8, and prompt."""
    rng = np.random.default_rng(stable_seed("fill50k", number))
    inside, outside = rng.choice(list(COLORS), 2, replace=False)
    radius = int(rng.uniform(0.08, 0.35) * side)
    center = tuple(int(v) for v in rng.integers(radius // 2, side - radius // 2, 2))
    source = np.zeros((side, side, 3), dtype=np.uint8)
    cv2.circle(source, center, radius, (255, 255, 255), max(side // 256, 1))
    target = np.full((side, side, 3), tuple(bytes.fromhex(COLORS[outside])), dtype=np.uint8)
    cv2.circle(target, center, radius, tuple(bytes.fromhex(COLORS[inside])), -1, cv2.LINE_AA)
    return source, target, f"{inside} circle with {outside} background"


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
