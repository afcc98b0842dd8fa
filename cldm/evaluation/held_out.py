"""Pictures to measure on. evaluate.py hands over condition and size."""

from collections.abc import Sequence

from cldm.conditions import Condition
from cldm.data.folder import FolderDataset, chosen, split
from cldm.data.listing import list_items


def folder_items(
    condition: Condition,
    size: int | Sequence[int],
    count: int,
    path: str,
    held_out: int | None = None,
    on_the_fly: bool = False,
) -> FolderDataset:
    """The first `count` pictures of `path` (see cldm.data.listing.list_items) by name.

    held_out: take them from the items that training with data.val_count=held_out of the same path sets aside.
    """
    items = list_items(path)
    if held_out is not None:
        _, items = split(items, held_out)
    return FolderDataset(chosen(items, count, f"items={count} of {path}"), size, condition, on_the_fly, replace=False)
