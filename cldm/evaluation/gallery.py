"""The images of an evaluation as PNG files, drawn in batches that are always the same: a kill changes nothing."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cldm.data.decoding import read_photo
from cldm.data.hints import image_tensor
from cldm.evaluation.protocol import Shot
from cldm.pictures import save_atomically, to_pil
from cldm.runs.evaluations import SAMPLES
from ldm.files import write_json

KEY = "key.json"


def claim(folder: Path, key: Mapping[str, Any], overwrite: bool) -> None:
    """Reserve `folder` for images of this key; ValueError if it holds those of another and may not be overwritten.

    overwrite: nothing that is there is kept.
    """
    path = folder / KEY
    there = json.loads(path.read_text()) if path.is_file() else None
    begun = (folder / "results.json").is_file() or any(folder.glob("images/*/*.png"))
    if there is not None and begun and (overwrite or there != key):
        changed = "; ".join(f"{k}: {there.get(k)} there, {v} now" for k, v in key.items() if there.get(k) != v)
        if not overwrite:
            raise ValueError(f"{folder} holds another evaluation ({changed}); set out= to another folder, or "
                             "overwrite=true to lose it")  # fmt: skip
        for image in folder.glob("images/*/*.png"):
            image.unlink()
        for name in ("results.json", "per_sample.npz", SAMPLES):
            (folder / name).unlink(missing_ok=True)
    write_json(path, dict(key))


def draw_missing(
    folder: Path, shots: Sequence[Shot], batch_size: int, draw: Callable[[Sequence[Shot]], Tensor], title: str
) -> int:
    """Draw what is not there yet: draw(shots) -> (n, 3, h, w) in [-1, 1]. Returns how many images were drawn.

    A batch is drawn again if any of its files is missing: an image does not depend on what was there before.
    """
    batches = [shots[first : first + batch_size] for first in range(0, len(shots), batch_size)]
    missing = [batch for batch in batches if not all((folder / shot.file).is_file() for shot in batch)]
    there = len(shots) - sum(map(len, missing))
    with tqdm(total=len(shots), initial=there, desc=title, unit="img") as bar:
        for batch in missing:
            for shot, image in zip(batch, draw(batch), strict=True):
                save_atomically(to_pil(image), folder / shot.file)
            bar.update(len(batch))
    return len(shots) - there


def read_images(folder: Path, shots: Sequence[Shot]) -> Tensor:
    """The images (n, 3, h, w) in [-1, 1], of 8 bits."""
    return torch.stack([image_tensor(read_photo(folder / shot.file)) for shot in shots])
