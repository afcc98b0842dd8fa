"""Figures of samples while a base model trains, and at its end: what their captions say, by the shipped judge."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from cldm.worlds.stickers.judge import Judge, load_judge
from cldm.worlds.stickers.scores import caption_rows, pooled

SHIPPED = Path(__file__).parents[3] / "configs" / "protocol" / "judge.safetensors"


@lru_cache(maxsize=1)
def shipped_judge() -> Judge:
    """The judge in the repository."""
    return load_judge(SHIPPED)


def caption_scores(images: Tensor, captions: Sequence[str]) -> dict[str, float]:
    """How well images (b, 3, h, w) in [-1, 1] show their captions: the means of `scores.caption_rows`."""
    return pooled(caption_rows(shipped_judge(), images, captions))


def diffusion_metrics(pictures: Mapping[str, Tensor], batch: Any, scenes: Any, condition: Any) -> dict[str, float]:
    """`caption_scores` of the samples, for the watch callback."""
    return caption_scores(pictures["sample"], batch["caption"])
