"""What the locked model makes of a data set, once: VAE moments and text contexts in safetensors shards.

    index.json             the key, the captions, where each item lies; written last: without it the cache is unfinished
    moments-00000.safetensors   moments (n, 2c, h/f, w/f) float16 and hint (n, 3, h, w), as cldm.data.hints.stored
                                has it, of n items of one size
    contexts-00000.safetensors  context (m, tokens, width) float16 of m different captions
    validation.safetensors      the held-out items as they are

Moments are mean and log-variance, not one sample. Prompts are dropped after the cache, and no hint is baked in
beyond what was asked for. Every file is written whole or not at all; a killed run goes on with the next one.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from cldm.conditions import Condition
from cldm.data.datamodule import DataModule
from cldm.data.folder import FolderDataset
from cldm.data.hints import restored, stored
from cldm.data.transforms import check_size
from ldm.batch import Batch
from ldm.diffusion import LatentDiffusion
from ldm.files import locked, remove_partial, write_json
from ldm.identity import conditioner_key, decisive, encoder_key, key
from ldm.weights import write_tensors

INDEX, KEY, VALIDATION = "index.json", "key.json", "validation.safetensors"
VERSION = 2  # of reading, cropping and resizing in cldm.data.folder; a cache of another version is refused

REASONS = {
    "vae": "the VAE's encoder has other weights or settings (`base`, `model`)",
    "text_encoder": "the text encoder has other weights or settings (`base`, `model`)",
    "resolution": "the resolution or the buckets differ (`size`, `data.buckets`)",
    "condition": "the condition or its parameters differ (`condition`)",
    "preprocessing": "this version prepares images otherwise",
    "items": "the pictures or captions differ (`data.path`)",
    "held_out": "the held-out pictures or captions differ (`data.path`, `data.val_path`)",
    "shards": "the number of items in a file differs (`--shard-size`)",
}
"""What each part of the key means to the user, and which config keys it hangs on."""


def model_key(model: LatentDiffusion, condition: Condition) -> dict[str, str]:
    """What a training run must agree on with the cache it reads."""
    return {
        "vae": encoder_key(model.autoencoder),
        "text_encoder": conditioner_key(model.conditioner),
        "condition": ", ".join(f"{name}={value}" for name, value in decisive(condition).items()),
        "preprocessing": str(VERSION),
    }


def data_key(train: FolderDataset, validation: FolderDataset, shard_size: int) -> dict[str, str]:
    """What a cache that is being built must agree on with what lies there already."""
    sizes = train.buckets if train.groups else train.size
    items, held_out = (
        key([(item.name, item.caption, item.image, item.hint) for item in data.items], data.on_the_fly)
        for data in (train, validation)
    )
    return {"resolution": repr(sizes), "items": items, "held_out": held_out, "shards": str(shard_size)}


def check_key(there: dict[str, str], now: dict[str, str], folder: Path) -> None:
    """Raises ValueError with the reasons if the two disagree on a part of `now`."""
    wrong = [part for part in now if there.get(part) != now[part]]
    if wrong:
        told = "; ".join(f"{REASONS[part]}: {there.get(part)} there, {now[part]} now" for part in wrong)
        raise ValueError(f"the cache in {folder} does not fit: {told}. Build another one with `python -m cldm cache`")


@torch.no_grad()
def build_cache(
    train: FolderDataset,
    validation: FolderDataset,
    model: LatentDiffusion,
    folder: str | Path,
    batch_size: int = 8,
    shard_size: int = 512,
) -> Path:
    """Encode both data sets into `folder`; goes on where a killed run stopped. Returns the folder.

    Raises ValueError for augmented data, and if `folder` holds a cache with another key or another process works there.
    """
    with locked(Path(folder)):
        return _build(train, validation, model, Path(folder), batch_size, shard_size)


def _build(
    train: FolderDataset,
    validation: FolderDataset,
    model: LatentDiffusion,
    folder: Path,
    batch_size: int,
    shard_size: int,
) -> Path:
    train.without_unreadable("training", whole=False)
    found = _open(folder, train, validation, model, shard_size)
    device = model.schedule.betas.device
    captions = [item.caption for item in train.items]
    texts = list(dict.fromkeys(captions))
    numbers = {text: i for i, text in enumerate(texts)}

    def encode(indices: Sequence[int]) -> dict[str, Tensor]:
        batch = train.__getitems__(indices)
        moments = model.autoencoder.moments(batch["image"].to(device))
        return {"moments": moments.half().cpu(), "hint": stored(batch["hint"])}

    def read(indices: Sequence[int]) -> dict[str, Tensor]:
        return {"context": model.context([texts[i] for i in indices]).half().cpu()}

    shards, place = _plan(train.groups or [0] * len(train), shard_size)
    _write_shards(folder / "moments", shards, encode, batch_size)
    _write_shards(folder / "contexts", _plan([0] * len(texts), shard_size)[0], read, batch_size)
    index = {
        "key": found,
        "size": list(train.size),
        "shard_size": shard_size,
        "place": place,
        "groups": list(train.groups) if train.groups else None,
        "texts": texts,
        "captions": [numbers[caption] for caption in captions],
        "pictures": train.pictures,
        "own_hint": train.own_hint,
        "held_out": validation.pictures,
        "validation": _write_validation(folder, validation),
    }
    write_json(folder / INDEX, index, indent=None)
    return folder


def _open(
    folder: Path, train: FolderDataset, validation: FolderDataset, model: LatentDiffusion, shard_size: int
) -> dict[str, str]:
    """Find the folder new, or begun with the same key; returns the key."""
    if train.varies:
        raise ValueError("a cache holds each item once: set data.augment.flip=0, random_crop=false and vary=false")
    if shard_size < 1:
        raise ValueError(f"--shard-size must be at least 1, got {shard_size}")
    now = {**model_key(model, train.condition), **data_key(train, validation, shard_size)}
    remove_partial(folder)
    if (folder / KEY).exists():
        check_key(json.loads((folder / KEY).read_text()), now, folder)
    else:
        write_json(folder / KEY, now)
    return now


def _plan(groups: Sequence[int], shard_size: int) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Shards as lists of item numbers, each of one group; and the (shard, row) of each item."""
    shards: list[list[int]] = []
    place = [(0, 0)] * len(groups)
    for group in sorted(set(groups)):
        members = [i for i, own in enumerate(groups) if own == group]
        for first in range(0, len(members), shard_size):
            rows = members[first : first + shard_size]
            for row, item in enumerate(rows):
                place[item] = (len(shards), row)
            shards.append(rows)
    return shards, place


def _write_shards(
    path: Path, shards: Sequence[Sequence[int]], make: Callable[[Sequence[int]], dict[str, Tensor]], batch_size: int
) -> None:
    """`make` of each shard's items, in batches, into PATH-00000.safetensors and so on; what is there stays."""
    with tqdm(total=sum(map(len, shards)), desc=path.name, unit="item") as bar:
        for number, indices in enumerate(shards):
            file = path.with_name(f"{path.name}-{number:05d}.safetensors")
            if not file.exists():
                parts = [make(indices[first : first + batch_size]) for first in range(0, len(indices), batch_size)]
                write_tensors({name: torch.cat([part[name] for part in parts]) for name in parts[0]}, file)
            bar.update(len(indices))


def _write_validation(folder: Path, validation: FolderDataset) -> list[str]:
    """The held-out images and hints into one file; returns their captions."""
    batch = validation.__getitems__(range(len(validation)))
    image = ((batch["image"] + 1) * 127.5).round().byte()
    write_tensors({"image": image, "hint": stored(batch["hint"])}, folder / VALIDATION)
    return batch["caption"]


class CachedDataset(Dataset):
    """The training items of a finished cache, in the order of the data set that it was made of."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / INDEX).is_file():
            found = (
                "it is unfinished, run the same command again" if (self.folder / KEY).is_file() else "no cache there"
            )
            raise FileNotFoundError(f"data.path={folder}: {found} (`python -m cldm cache`)")
        index = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
        self.key: dict[str, str] = index["key"]
        self.size = tuple(index.get("size", ()))
        self.groups: list[int] | None = index["groups"]
        self.place, self.texts, self.captions = index["place"], index["texts"], index["captions"]
        self.shard_size, self.validation = index["shard_size"], index["validation"]
        self.own_hint: str | None = index.get("own_hint")
        self.pictures, self.held_out = index.get("pictures", []), index.get("held_out", [])
        self._files: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.place)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        places = [self.place[int(i)] for i in indices]
        numbers = [self.captions[int(i)] for i in indices]
        contexts = [divmod(number, self.shard_size) for number in numbers]
        return Batch(
            moments=torch.cat([self._row("moments", shard, row, "moments") for shard, row in places]).float(),
            hint=torch.cat([restored(self._row("moments", shard, row, "hint")) for shard, row in places]),
            context=torch.cat([self._row("contexts", shard, row, "context") for shard, row in contexts]).float(),
            caption=[self.texts[n] for n in numbers],
            id=torch.as_tensor([int(i) for i in indices]),
        )

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def _row(self, kind: str, shard: int, row: int, name: str) -> Tensor:
        file = f"{kind}-{shard:05d}.safetensors"
        if file not in self._files:
            self._files[file] = safe_open(self.folder / file, framework="pt")
        return self._files[file].get_slice(name)[row : row + 1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}  # each worker opens its own


class CachedValidation(Dataset):
    """The held-out items of a cache: images, hints, captions."""

    def __init__(self, cache: CachedDataset):
        self.captions, self.pictures = cache.validation, cache.held_out
        with safe_open(cache.folder / VALIDATION, framework="pt") as file:
            self.image, self.hint = file.get_tensor("image"), file.get_tensor("hint")

    def __len__(self) -> int:
        return len(self.captions)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        rows = torch.as_tensor(list(indices))
        return Batch(
            image=self.image[rows].float() / 127.5 - 1,
            hint=restored(self.hint[rows]),
            caption=[self.captions[int(i)] for i in indices],
            id=rows,
        )


def cached_data(
    condition: Condition,
    model: LatentDiffusion,
    path: str,
    batch_size: int,
    size: int | Sequence[int],
    seed: int = 0,
    workers: int = 0,
) -> DataModule:
    """A finished cache at `path`, refused if it was made with another VAE, text encoder, condition or size."""
    train = CachedDataset(path)
    check_key(train.key, model_key(model, condition), train.folder)
    if train.size != check_size(size, "size"):
        raise ValueError(f"the cache in {path} was made with size={list(train.size)}, size is {size} now; "
                         "set size to that, or build another cache")  # fmt: skip
    return DataModule(train, CachedValidation(train), batch_size, seed, workers, condition)
