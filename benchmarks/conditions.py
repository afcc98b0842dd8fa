"""Every weight-free condition on real photographs, as a contact sheet, and images per second of each.

    python benchmarks/conditions.py docs/conditions.jpg

The photographs ship in scikit-image's wheel (`pip install -e '.[test]'`); nothing is downloaded.
"""

import sys
import time
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import torch

from cldm.conditions import get_condition, known_conditions
from cldm.conditions.depth import near_white
from cldm.conditions.normal import normals_from_depth
from cldm.pictures import grid

SIDE = 168
NEED_MORE = {"depth", "normal", "segmentation", "softedge", "pose"}  # a model of yours, or an extractor
IN_PIXELS = {
    "color_grid": {"block": 21},
    "shuffle": {"scale": 84},
    "blur": {"sigma": 3.0},
    "scribble": {"thickness": 2},
}  # smaller, as the pictures are


def square(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """The centre square, resized."""
    s = min(image.shape[:2])
    top, left = (image.shape[0] - s) // 2, (image.shape[1] - s) // 2
    return cv2.resize(image[top : top + s, left : left + s], (side, side), interpolation=cv2.INTER_AREA)


def photographs(side: int = SIDE) -> dict[str, np.ndarray]:
    left, _, disparity = skimage.data.stereo_motorcycle()
    photos = {
        "astronaut": skimage.data.astronaut(),
        "chelsea": skimage.data.chelsea(),
        "coffee": skimage.data.coffee(),
        "motorcycle": left,
    }
    maps = {"disparity": near_white(np.where(np.isfinite(disparity), disparity, np.nan))}
    return {name: square(image, side) for name, image in (photos | maps).items()}


def to_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).float() / 127.5 - 1


def main() -> None:
    path = Path(sys.argv[1])
    photos = photographs()
    depth = photos.pop("disparity")
    columns = {}
    for name in ("image", *[name for name in known_conditions() if name not in NEED_MORE | {"none"}]):
        condition = get_condition("none" if name == "image" else name, **IN_PIXELS.get(name, {}))
        columns[name] = torch.stack([to_tensor(condition(photo)[:, :, :3]) for photo in photos.values()])
    sheet = {name: columns[name] for name in columns}
    blank = torch.ones(len(photos) - 1, 3, SIDE, SIDE)
    for name, colors in (
        ("true depth", np.dstack([depth] * 3)),
        ("normal of it", normals_from_depth(depth.astype(np.float32) / 255)),
    ):
        sheet[name] = torch.cat([blank, to_tensor(colors)[None]])
    half = -(-len(sheet) // 2)
    names = [*sheet]
    parts = [grid({n: sheet[n] for n in some}, [*photos], pairs=1) for some in (names[:half], names[half:])]
    width, height = max(p.width for p in parts), sum(p.height for p in parts)
    whole = parts[0].resize((width, height))
    whole.paste((255, 255, 255), (0, 0, width, height))
    whole.paste(parts[0], (0, 0))
    whole.paste(parts[1], (0, parts[0].height))
    whole.save(path, quality=85)
    print(f"{path}\n\nimages/s at 512 px, one process, {torch.get_num_threads()} torch threads:")
    image = square(skimage.data.astronaut(), 512)
    for name in known_conditions():
        if name not in NEED_MORE:
            condition = get_condition(name)
            condition(image)
            began, count = time.perf_counter(), 0
            while time.perf_counter() - began < 1.0:
                condition(image)
                count += 1
            print(f"{name:18} {count / (time.perf_counter() - began):7.1f}")


if __name__ == "__main__":
    main()
