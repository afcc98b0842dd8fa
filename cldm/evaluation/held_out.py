"""Items to measure on: neither trained on nor watched during training. evaluate.py hands over condition and size."""

from collections.abc import Sequence

from cldm.conditions import Condition
from cldm.data.folder import FolderDataset, split
from cldm.data.listing import list_items
from cldm.worlds.scenes.datamodule import HELD_OUT_START
from cldm.worlds.scenes.dataset import ScenesDataset

TEST_START = HELD_OUT_START + 1_000_000
"""Scenes to test on are numbered from here: those that training watches are never used to choose and to judge."""

REFERENCE_START = TEST_START + 1_000_000
"""Real scenes that generated ones are compared with as a set are numbered from here."""


def scene_items(
    condition: Condition, size: int, count: int, family: str = "control", seed: int = 0, start: int = TEST_START
) -> ScenesDataset:
    """`count` scenes of a family with images, hints and captions."""
    return ScenesDataset(count, size, family, seed, start, ("image", "hint"), condition=condition)


def folder_items(
    condition: Condition,
    size: int | Sequence[int],
    count: int,
    path: str,
    held_out: int | None = None,
    on_the_fly: bool = False,
) -> FolderDataset:
    """The first `count` items of `path` (see cldm.data.listing.list_items) by name.

    held_out: take them from the items that training with data.val_count=held_out of the same path sets aside.
    """
    items = list_items(path)
    if held_out is not None:
        _, items = split(items, held_out)
    if len(items) < count:
        raise ValueError(f"items={count}, but {path} has {len(items)} to measure on; lower items")
    return FolderDataset(items[:count], size, condition, on_the_fly)
