"""Pictures on disk as a data set: fill50k, JSON lines, Hugging Face image folders, plain folders."""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cldm.conditions import Condition
from cldm.data.datamodule import DataModule, check_val_count
from cldm.data.decoding import PictureError, Source, decode, picture_size, read_photo
from cldm.data.hints import Notify, image_tensor, made_hint, map_tensor, silent, training_map
from cldm.data.listing import Item, list_items
from cldm.data.transforms import (
    Augment,
    Size,
    bucket_sizes,
    check_alike,
    check_size,
    cover,
    cover_map,
    may_flip,
    nearest_bucket,
)
from ldm.batch import Batch
from ldm.files import also_in
from ldm.random import stable_seed

Sample = tuple[Tensor, Tensor, str]
"""Image (3, h, w) in [-1, 1], hint (3, h, w) in [0, 1], caption."""

NOTHING_VARIES = ("data.augment.vary=true draws parameters of hints made on the fly; "
                  "set data.on_the_fly=true, or vary=false for ready-made hints")  # fmt: skip
TRIES = 20  # unreadable pictures in a row before the run gives up


class FolderDataset(Dataset):
    """Items read when asked for: (image, hint, caption), at one size or in aspect-ratio buckets.

    on_the_fly: make the hint from the picture even where a ready-made one exists; items without one always do.
    buckets: sizes to choose from by aspect ratio (`groups` tells each item's bucket), or None for `size`.
    Index i + n * len(self) is item i as drawn in epoch n: augmentation is a function of (seed, index) alone.
    An unreadable picture is replaced by the next one, with a warning; replace=False: it is a ValueError.
    """

    def __init__(
        self,
        items: Sequence[Item],
        size: int | Sequence[int],
        condition: Condition,
        on_the_fly: bool = False,
        augment: Augment | None = None,
        buckets: Sequence[Size] | None = None,
        seed: int = 0,
        replace: bool = True,
    ):
        self.items, self.condition, self.on_the_fly, self.seed = list(items), condition, on_the_fly, seed
        self.replace = replace
        self.size, self.augment = check_size(size), augment or Augment()
        self.buckets = [check_size(bucket) for bucket in buckets] if buckets else [self.size]
        self.groups = [self._bucket(item) for item in self.items] if buckets else None
        self.varies = self.augment.active
        self._told: set[str] = set()
        self._refuse_what_cannot_be()

    def _refuse_what_cannot_be(self) -> None:
        bare = next((item for item in self.items if item.hint is None), None)
        if (bare or self.on_the_fly) and not self.condition.computable:
            which = f"{bare.image} has no ready-made hint" if bare else "data.on_the_fly=true makes every hint"
            raise ValueError(f"{which}, but condition {self.condition.name!r} cannot be computed from a picture")
        if self.augment.vary and not self.on_the_fly and bare is None:
            raise ValueError(NOTHING_VARIES)

    @property
    def pictures(self) -> list[str]:
        """Where they lie, as a run records what it trains on and holds out."""
        return [str(item.image.resolve()) for item in self.items]

    @property
    def own_hint(self) -> str | None:
        """A picture that is its own hint without being asked for; None where no picture is."""
        unasked = self.condition.name == "none" and not self.on_the_fly
        return next((str(item.image) for item in self.items if item.hint is None), None) if unasked else None

    def _bucket(self, item: Item) -> int:
        try:
            return nearest_bucket(picture_size(item.image), self.buckets)
        except PictureError:
            return 0  # replaced when it is its turn

    def __len__(self) -> int:
        return len(self.items)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        samples = [self.sample(int(index)) for index in indices]
        return Batch(
            image=torch.stack([image for image, _, _ in samples]),
            hint=torch.stack([hint for _, hint, _ in samples]),
            caption=[caption for _, _, caption in samples],
            id=torch.as_tensor([int(index) % len(self) for index in indices]),
        )

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def sample(self, index: int) -> Sample:
        """Item `index` % len(self), as drawn for this index."""
        number = index % len(self)
        size = self.buckets[self.groups[number] if self.groups else 0]
        for step in range(TRIES):
            item = self.items[(number + step) % len(self)]
            try:
                return self._read(item, size, stable_seed(self.seed, "augment", index))
            except PictureError as error:
                if not self.replace:
                    raise ValueError(
                        f"{error}; mend it or take it out, another picture would be measured twice"
                    ) from error
                warnings.warn(f"{error}; the next item takes its place", stacklevel=2)
        raise ValueError(f"{TRIES} pictures in a row cannot be read, from {self.items[number].image} on; run "
                         "`python -m cldm annotate` on them, it sorts out what is broken")  # fmt: skip

    def without_unreadable(self, what: str = "held-out", whole: bool = True) -> Self:
        """Itself, without the items that cannot be used, of which one warning tells; ValueError if none is left. For
        what is measured, or kept: no other item may stand in its place.

        whole: make the hints too; otherwise only the pictures are read.
        """
        troubles: dict[str, PictureError] = {}
        for item in self.items:
            try:
                self._read(item, self.buckets[0], 0) if whole else read_photo(item.image)
            except PictureError as error:
                troubles[item.name] = error
        if troubles:
            first = next(iter(troubles.values()))
            told = f"{len(troubles)} of {len(self.items)} {what} pictures cannot be used ({first})"
            kept = [i for i, item in enumerate(self.items) if item.name not in troubles]
            self.items = [self.items[i] for i in kept]
            self.groups = [self.groups[i] for i in kept] if self.groups else None
            if not self.items:
                raise ValueError(told)
            warnings.warn(f"{told}; they are left out", stacklevel=2)
        self.replace = False
        return self

    def _read(self, item: Item, size: Size, seed: int) -> Sample:
        hint = None if self.on_the_fly else item.hint
        return read_sample(item.image, hint, item.caption, size, self.condition, self.augment, seed, str(item.image),
                           self._note)  # fmt: skip

    def _note(self, line: str) -> None:
        """Say once for all maps what is done to one of them."""
        kind = line.partition(": ")[2]
        if kind not in self._told:
            self._told.add(kind)
            warnings.warn(f"{line}; the same for others like it", stacklevel=2)


def read_sample(
    image: Source,
    ready: Source | None,
    caption: str,
    size: Size,
    condition: Condition,
    augment: Augment,
    seed: int,
    name: str,
    notify: Notify = silent,
) -> Sample:
    """A picture and its ready map, or None to make it here -> one sample at `size`.

    What is random is a function of `seed`. `name` says in errors which sample it was, `notify` hears what is done to a
    map. Raises PictureError for what cannot be used.
    """
    rng = np.random.default_rng(seed)
    flip, at = rng.random() < augment.flip, (float(rng.random()), float(rng.random()))
    at = at if augment.random_crop else (0.5, 0.5)
    pixels = read_photo(image, name=name)
    found = None
    if ready is not None:
        found = training_map(decode(ready, "hint", name), condition, size, notify)
    if found is not None:
        check_alike({name: pixels.shape[:2], "its hint": found.shape[:2]})
        found = cover_map(found, size, condition, at)
    pixels = cover(pixels, size, at)
    if flip and (augment.flip_all or may_flip(caption, condition, found is not None)):
        pixels, found = np.ascontiguousarray(pixels[:, ::-1]), None if found is None else found[:, ::-1]
    if found is not None:
        return image_tensor(pixels), map_tensor(found), caption
    try:
        return image_tensor(pixels), made_hint(pixels, condition.vary(rng) if augment.vary else condition), caption
    except PictureError as error:
        raise PictureError(f"cannot use image {name}: {error}") from error


def one_for_each_picture(items: Iterable[Item]) -> list[Item]:
    """The first item of each picture, of which several captions make several: it is measured once."""
    first: dict[Path, Item] = {}
    for item in items:
        first.setdefault(item.image.resolve(), item)
    return [*first.values()]


def split(items: Sequence[Item], held_out: int) -> tuple[list[Item], list[Item]]:
    """Training and validation items. Which are held out depends on names alone, not on what was added since.

    A picture with several captions is held out or trained on with all of them; it is measured with the first.
    """
    first = one_for_each_picture(items)
    if not 0 < held_out < len(first):
        raise ValueError(f"data.val_count={held_out} must be at least 1 and below the {len(first)} pictures there are")
    chosen = sorted(first, key=lambda item: stable_seed("held out", item.name))[:held_out]
    measured, pictures = {*chosen}, {item.image.resolve() for item in chosen}
    train = [item for item in items if item.image.resolve() not in pictures]
    return train, [item for item in first if item in measured]


def chosen(items: Sequence[Item], count: int, told: str) -> list[Item]:
    """The first `count` pictures to measure on. ValueError, beginning with `told`, where there are fewer."""
    found = one_for_each_picture(items)
    if len(found) < count:
        raise ValueError(f"{told}, but there are {len(found)} pictures")
    return found[:count]


def refuse_shared(train: Sequence[Item], held_out: Sequence[Item]) -> None:
    """ValueError if a picture is in both, under whatever name."""
    places = ({item.image.resolve() for item in items if item.image.is_file()} for items in (held_out, train))
    if shared := also_in(*places):
        raise ValueError(f"{len(shared)} held-out pictures are in data.path too ({shared[0]}, ...)")


def folder_data(
    condition: Condition,
    model: Any,
    path: str,
    size: int | Sequence[int],
    batch_size: int,
    val_count: int = 16,
    val_path: str | None = None,
    on_the_fly: bool = False,
    augment: Augment | None = None,
    buckets: bool = False,
    bucket_step: int = 64,
    seed: int = 0,
    workers: int = 0,
) -> DataModule:
    """Training and held-out items of `path` (see cldm.data.listing.list_items); validation is never augmented.

    val_path: held-out items from there instead. The autoencoder encodes the images in every step: `python -m cldm
    cache` does it once.
    """
    check_size(size)
    check_val_count(val_count)
    if not Path(path).expanduser().exists():
        raise FileNotFoundError(f"data.path={path}: there is nothing there; make it with `python -m cldm annotate`")
    items = list_items(path)
    if val_path:
        train, held_out = items, chosen(list_items(val_path), val_count, f"data.val_count={val_count}, data.val_path="
                                        f"{val_path}")  # fmt: skip
        refuse_shared(train, held_out)
    else:
        train, held_out = split(items, val_count)
    sizes = bucket_sizes(size, bucket_step) if buckets else None
    return DataModule(
        FolderDataset(train, size, condition, on_the_fly, augment, sizes, seed),
        FolderDataset(held_out, size, condition, on_the_fly, seed=seed, replace=False).without_unreadable(),
        batch_size,
        seed,
        workers,
        condition,
    )
