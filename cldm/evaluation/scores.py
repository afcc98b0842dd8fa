"""Every score of single images, by name: what evaluate.py writes into a row. docs/evaluation.md explains each."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cldm.conditions import Condition, apply_like
from cldm.conditions.segmentation import colors_to_labels
from cldm.evaluation.clip import ClipScore
from cldm.evaluation.fidelity import edge_scores
from cldm.worlds import Known, rows
from cldm.worlds.agreement import class_scores, color_difference, depth_scores, normal_angle, structural_similarity

Rows = dict[str, np.ndarray]
"""A column (n,) float64 for each score; nan where an image has no such score."""


@dataclass(frozen=True)
class Target:
    """What n images are measured against: (n, 3, h, w) hints, captions, prompts, and truths where they are known."""

    hints: Tensor
    captions: Sequence[str]
    prompts: Sequence[str]
    known: Known | None = None


def score(images: Tensor, target: Target, condition: Condition, clip: ClipScore | None = None) -> Rows:
    """All scores of images (n, 3, h, w) in [-1, 1]."""
    found = hint_scores(images, target.hints, condition)
    if target.known is not None:
        found |= world_scores(images, target.known, target.captions, target.prompts)
    if clip is not None:
        texts = {"clip_caption": target.captions, "clip_prompt": target.prompts}
        found |= {name: text_scores(images, said, clip) for name, said in texts.items() if any(map(str.strip, said))}
    return found


def text_scores(images: Tensor, texts: Sequence[str], clip: ClipScore) -> np.ndarray:
    """How well images (n, 3, h, w) show their texts: (n,) float64, nan where a text is empty."""
    said = [i for i, text in enumerate(texts) if text.strip()]
    found = np.full(len(texts), np.nan)
    found[said] = clip(images[said], [texts[i] for i in said]).double().numpy()
    return found


def world_scores(images: Tensor, known: Known, captions: Sequence[str], prompts: Sequence[str]) -> Rows:
    """What the judge says: of the truth, of its caption, and of a prompt that says something else."""
    judge = known.judge
    reading = judge.read(images)
    found = rows(judge.scores(reading, known.truths)) | rows(judge.prompt_scores(reading, captions), "caption_")
    if all(prompts) and tuple(prompts) != tuple(captions):
        with contextlib.suppress(ValueError):  # a prompt outside of the grammar
            found |= rows(judge.prompt_scores(reading, prompts), "prompt_")
    return found


def hint_scores(images: Tensor, hints: Tensor, condition: Condition) -> Rows:
    """How well each image obeys its hint, by the condition of the image itself; nothing where that is impossible."""
    if not condition.measurable:
        return {}
    maps, hints = apply_like(condition, images, hints).cpu(), hints.cpu()
    if condition.name == "segmentation":
        classes = class_scores(_classes(maps), _classes(hints))
        return _numpy({"hint_miou": classes.miou, "hint_accuracy": classes.accuracy})
    if condition.name == "normal":
        return _numpy({"hint_angle": normal_angle(maps * 2 - 1, hints * 2 - 1)})
    found: dict[str, Tensor] = {}
    if condition.polarity == "white_on_black":
        ours, theirs = ((m > 0.5).any(dim=1) for m in (maps, hints))
        for px in (1, 2):
            edges = edge_scores(ours, theirs, px)
            found |= {f"edge_f1_{px}px": edges.f1, f"edge_precision_{px}px": edges.precision,
                     f"edge_recall_{px}px": edges.recall}  # fmt: skip
    if condition.polarity == "near_white":
        depth = depth_scores(maps.mean(1), hints.mean(1))
        found |= {"hint_rmse": depth.rmse, "hint_absrel": depth.absrel, "hint_delta1": depth.delta1}
    if not condition.binary:
        found["hint_error"] = (maps - hints).abs().mean(dim=(1, 2, 3))
        found["hint_ssim"] = structural_similarity(maps.clamp(0, 1), hints.clamp(0, 1))
    if condition.polarity == "color":
        found["hint_color"] = color_difference(maps.clamp(0, 1), hints.clamp(0, 1))
    return _numpy(found)


def _classes(maps: Tensor) -> Tensor:
    """ADE20K's class numbers (b, h, w) of colours (b, 3, h, w) in [0, 1]; -1 for other colours."""
    pixels = (maps * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return torch.from_numpy(np.stack([colors_to_labels(image) for image in pixels]))


def _numpy(found: Mapping[str, Tensor]) -> Rows:
    return {name: values.double().cpu().numpy() for name, values in found.items()}


def join(parts: Sequence[Rows]) -> Rows:
    """Parts one below the other; a score that a part lacks is nan there."""
    names = dict.fromkeys(name for part in parts for name in part)
    if not names:  # no score at all can be computed
        return {}
    lengths = [len(next(iter(part.values()))) for part in parts]
    return {
        name: np.concatenate([part.get(name, np.full(n, np.nan)) for part, n in zip(parts, lengths, strict=True)])
        for name in names
    }


def means(rows: Rows) -> dict[str, float]:
    """Mean of each column over the images that have the score; nan where none has."""
    return {name: float(np.nanmean(v)) if np.isfinite(v).any() else float("nan") for name, v in rows.items()}


def by_setting(rows: Rows) -> dict[str, dict[str, float]]:
    """{prompt setting: {score: mean}}."""
    settings = dict.fromkeys(rows["setting"].tolist())
    scores = {name: values for name, values in rows.items() if name not in ("item", "setting", "noise")}
    return {
        setting: means({name: values[rows["setting"] == setting] for name, values in scores.items()})
        for setting in settings
    }


def slices(count: int, size: int) -> list[slice]:
    """0..count-1 in slices of at most `size`."""
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]


def as_files(images: Tensor) -> Tensor:
    """Images in [-1, 1] as they would be read back from an 8-bit file."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1
