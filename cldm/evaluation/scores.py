"""Every score of single images, by name: what evaluate.py writes into a row. docs/evaluation.md explains each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from cldm.conditions import Condition, apply_batch
from cldm.data.scenes import Scene
from cldm.evaluation.captions import caption_rows, scene_rows
from cldm.evaluation.fidelity import edge_scores

Rows = dict[str, np.ndarray]
"""A column (n,) float64 for each score; nan where an image has no such score."""


@dataclass(frozen=True)
class Target:
    """What n images are measured against: (n, 3, h, w) hints, captions, prompts, and scenes where they are known."""

    hints: Tensor
    captions: Sequence[str]
    prompts: Sequence[str]
    scenes: Sequence[Scene] | None = None


def score(images: Tensor, target: Target, condition: Condition) -> Rows:
    """All scores of images (n, 3, h, w) in [-1, 1]."""
    rows = hint_scores(images, target.hints, condition)
    if target.scenes is not None:
        rows |= columns(scene_rows(images, target.scenes))
        rows |= columns(caption_rows(images, target.captions), "caption_")
        if all(target.prompts) and tuple(target.prompts) != tuple(target.captions):
            rows |= prompt_scores(images, target.prompts)
    return rows


def hint_scores(images: Tensor, hints: Tensor, condition: Condition) -> Rows:
    """How well each image obeys its hint, by the condition of the image itself; nothing where that is impossible."""
    if not condition.computable:
        return {}
    found = apply_batch(condition, images)
    rows: dict[str, Tensor] = {}
    if condition.polarity == "white_on_black":
        ours, theirs = ((maps > 0.5).any(dim=1) for maps in (found, hints))
        for px in (1, 2):
            scores = edge_scores(ours, theirs, px)
            rows |= {f"edge_f1_{px}px": scores.f1, f"edge_precision_{px}px": scores.precision,
                     f"edge_recall_{px}px": scores.recall}  # fmt: skip
    if not condition.binary:
        rows["hint_error"] = (found - hints).abs().mean(dim=(1, 2, 3))
    return {name: values.double().numpy() for name, values in rows.items()}


def prompt_scores(images: Tensor, prompts: Sequence[str]) -> Rows:
    """The scores of captions for prompts that differ from the caption; none for prompts outside of the grammar."""
    try:
        return columns(caption_rows(images, prompts), "prompt_")
    except ValueError:
        return {}


def columns(rows: Sequence[Mapping[str, float]], prefix: str = "") -> Rows:
    """Rows of one set of names as columns."""
    return {f"{prefix}{name}": np.array([row[name] for row in rows]) for name in rows[0]}


def join(parts: Sequence[Rows]) -> Rows:
    """Parts one below the other; a score that a part lacks is nan there."""
    names = dict.fromkeys(name for part in parts for name in part)
    lengths = [len(next(iter(part.values()))) for part in parts]
    return {
        name: np.concatenate([part.get(name, np.full(n, np.nan)) for part, n in zip(parts, lengths, strict=True)])
        for name in names
    }


def means(rows: Rows) -> dict[str, float]:
    """Mean of each column over the images that have the score; nan where none has."""
    return {name: float(np.nanmean(v)) if np.isfinite(v).any() else float("nan") for name, v in rows.items()}


def slices(count: int, size: int) -> list[slice]:
    """0..count-1 in slices of at most `size`."""
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]


def as_files(images: Tensor) -> Tensor:
    """Images in [-1, 1] as they would be read back from an 8-bit file."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1
