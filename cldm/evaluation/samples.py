"""What stands behind the figures: each image beside its hint, the real picture, and the hint of the image itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cldm.conditions import Condition, apply_like
from cldm.data.hints import Origin
from cldm.evaluation.protocol import Shot
from cldm.evaluation.scores import Target, slices
from cldm.pictures import save_atomically, to_pil
from cldm.runs.evaluations import SAMPLES
from ldm.files import json_lines, write_text


def write_samples(
    folder: Path, images: Tensor, shots: Sequence[Shot], target: Target, real: Tensor, condition: Condition
) -> None:
    """Write samples.jsonl, and the pictures that it names beside `images/`: hints and real pictures in `items/`, the
    hints that the condition finds in the images in `hints/`.

    images: (n, 3, h, w) in [-1, 1], of the shots. target: of the shots. real: (items, 3, h, w) in [-1, 1].
    """
    found = hints_of(images, target.hints, condition)
    written: dict[int, dict[str, str]] = {}
    lines = []
    for i, shot in enumerate(shots):
        if shot.item not in written:
            written[shot.item] = {name: f"items/{shot.item:05d}_{name}.png" for name in ("hint", "real")}
            hint, origin = target.hints[i], Origin.of(condition, (target.hints.shape[-2], target.hints.shape[-1]))
            told = {} if condition.reads_alpha else {"pnginfo": origin.info()}  # a hole is lost here
            save_atomically(to_pil(2 * hint - 1), folder / written[shot.item]["hint"], **told)
            save_atomically(to_pil(real[shot.item]), folder / written[shot.item]["real"])
        line: dict[str, Any] = {"item": shot.item, "setting": shot.setting, "noise": shot.noise, "seed": shot.seed,
                "caption": target.captions[i], "prompt": shot.prompt, "image": f"images/{shot.file}",
                **written[shot.item]}  # fmt: skip
        if found is not None:
            line["hint_of_image"] = f"hints/{shot.file}"
            save_atomically(to_pil(2 * found[i] - 1), folder / line["hint_of_image"])
        lines.append(line)
    write_text(folder / SAMPLES, json_lines(lines))


def hints_of(images: Tensor, hints: Tensor, condition: Condition) -> Tensor | None:
    """The hints (n, 3, h, w) in [0, 1] that the condition finds in images; None where it cannot be computed."""
    if not condition.measurable:
        return None
    return torch.cat([apply_like(condition, images[part], hints[part]).cpu() for part in slices(len(images), 64)])
