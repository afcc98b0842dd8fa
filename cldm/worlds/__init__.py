"""Worlds: numbered pictures whose truth is known exactly, and what the rest of the house asks of them.

Training, watching, evaluation and tables ask a `World` and its `Judge`; none of them names one. A data set of a world
has `world` and `truths`, one for each item; other data sets have neither.
"""

import importlib
import math
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

WORLDS: dict[str, tuple[str, str]] = {
    "stickers": ("cldm.worlds.stickers.stickers", "Stickers"),
    "scenes": ("cldm.worlds.scenes.scenes", "Scenes"),
    "circles": ("cldm.worlds.circles.circles", "Circles"),
}
"""The worlds by name: module and class, imported when they are asked for."""

HELD_OUT_START = 10_000_000
"""Held-out items, which training watches, are numbered from here; no training set is that long."""

TEST_START = HELD_OUT_START + 1_000_000
"""Items to test on are numbered from here: those that training watches are never used to choose and to judge."""

REFERENCE_START = TEST_START + 1_000_000
"""Real items that generated ones are compared with as a set are numbered from here."""

Scores = dict[str, list[float]]
"""Scores of one image by name: one value for each object that a score is about, or a single one; [] for none."""


class Judge(Protocol):
    """Scores images from pixels alone, against the truth of a world."""

    def read(self, images: Tensor) -> Any:
        """What the judge sees in images (n, 3, h, w) in [-1, 1]: computed once, then asked for scores."""

    def scores(self, reading: Any, truths: Sequence[Any]) -> list[Scores]:
        """Whether each image shows its truth."""

    def prompt_scores(self, reading: Any, prompts: Sequence[str]) -> list[Scores]:
        """Whether each image shows what its prompt says; ValueError for a prompt outside of the world's grammar."""

    @property
    def features(self) -> Callable[[Tensor], Tensor] | None:
        """images -> what they are like, (n, d), to measure how far sets of them lie apart; None if it has none."""

    def facts(self) -> dict[str, str]:
        """What decides its scores beside the images, for the protocol: empty, or the fingerprint of its weights."""


class World(Protocol):
    """A source of numbered pictures with exact truth. An item is a pure function of (seed, index, family)."""

    name: str
    version: int | str
    """Changes with every change of what is drawn: part of every key of what was drawn."""
    unseen: str | None
    """The family of what the control stage's own family (`control`) leaves out, to measure on; None if it leaves out
    nothing."""
    label_classes: Sequence[int]
    """How many class numbers each of the k label maps has, 0 for the ground included."""
    hint_maps: Sequence[str]
    """Which maps of `draw` can be hints (condition=truth): brightness or colours, (n, 1 or 3, h, w) in [0, 1]."""
    titles: dict[str, str]
    """What the scores of its judge are called in tables, those to show in their order."""
    headlines: Sequence[str]
    """Those of them that a finished run prints."""

    def sample(self, seed: int, index: int, family: str) -> Any:
        """The truth of item `index`; ValueError names the known families."""

    def caption(self, truth: Any, seed: int, index: int) -> str:
        """The caption of an item, always the same for an item."""

    def draw(self, truths: Sequence[Any], size: int, maps: Collection[str] = ()) -> dict[str, Tensor]:
        """ "image" (n, 3, size, size) in [-1, 1], and the named truth maps; "labels" are class numbers
        (n, k, size / 8, size / 8) uint8 for the label probe of stage=diffusion, 0 for the ground. Several threads call
        it at once: what is drawn depends on the truths alone."""

    def prompts(self, setting: str, captions: Sequence[str]) -> list[str]:
        """The prompts of the settings that need the grammar: insufficient and conflicting."""

    def judge(self, weights: str | None = None) -> Judge:
        """Its judge, with the weights of a file, or the world's own."""


def get_world(name: str) -> World:
    """The world of that name. ValueError names the known ones."""
    if name not in WORLDS:
        raise ValueError(f"unknown world {name!r}; known worlds: {', '.join(WORLDS)}")
    module, kind = WORLDS[name]
    return getattr(importlib.import_module(module), kind)()


def world_of(dataset: Any) -> World | None:
    """The world of a data set; None for pictures without a known truth."""
    return getattr(dataset, "world", None)


@dataclass(frozen=True)
class Known:
    """Truths of some items, and the judge of their world."""

    judge: Judge
    truths: Sequence[Any]


def known(dataset: Any, items: Sequence[int]) -> Known | None:
    """What a data set knows of its items; None for pictures without a known truth."""
    world = world_of(dataset)
    return None if world is None else Known(world.judge(), [dataset.truths[i] for i in items])


def pooled(scores: Sequence[Scores], prefix: str = "") -> dict[str, float]:
    """The mean of each score over all values of all images: every object counts once. nan where there is none."""
    names = dict.fromkeys(name for row in scores for name in row)
    values = {name: [value for row in scores for value in row.get(name, ())] for name in names}
    finite = {name: [value for value in found if math.isfinite(value)] for name, found in values.items()}
    return {f"{prefix}{name}": float(np.mean(found)) if found else math.nan for name, found in finite.items()}


def by_image(scores: Sequence[Scores], prefix: str = "") -> dict[str, float]:
    """The mean of each score over images, of an image over its own objects: what evaluate.py tells too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a score that no image has is nan
        return {name: float(np.nanmean(column)) for name, column in rows(scores, prefix).items()}


def rows(scores: Sequence[Scores], prefix: str = "") -> dict[str, np.ndarray]:
    """Each score as a column (n,): the mean over an image's own objects, nan where it has none."""
    each = [pooled([row]) for row in scores]
    names = dict.fromkeys(name for row in each for name in row)
    return {f"{prefix}{name}": np.array([row.get(name, math.nan) for row in each]) for name in names}
