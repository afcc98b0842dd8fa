"""Samples in tar shards, local or remote, for sets that are too large for a file listing (webdataset's layout).

A sample is the files of one key: KEY.jpg (or png, webp), its caption KEY.txt or KEY.json, and KEY.hint.png (or jpg,
webp) if the hint is ready-made.
"""

import itertools
import json
import random
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from cldm.conditions import Condition
from cldm.data.datamodule import DataModule, check_val_count
from cldm.data.decoding import PictureError
from cldm.data.folder import NOTHING_VARIES, Sample, read_sample
from cldm.data.listing import caption_of
from cldm.data.text import decode_text, one_line
from cldm.data.transforms import Augment, check_size
from ldm.batch import Batch
from ldm.files import also_in
from ldm.random import generator, stable_seed

FORMATS = ("jpg", "jpeg", "png", "webp")
IMAGE_ENDINGS = (*FORMATS, "target.png", "target.jpg", "target.jpeg", "target.webp")
HINT_ENDINGS = ("hint.png", "source.png", *(f"{n}.{f}" for n in ("hint", "source") for f in FORMATS if f != "png"))

Raw = dict[str, Any]
"""A sample's files by ending, undecoded, and __key__."""


class ShardDataset:
    """Endless samples of tar shards: `urls` as webdataset takes them ("data/{0000..0099}.tar", "https://...").

    Every epoch is a permutation of the shards by (seed, epoch), dealt in turn to the streams: one for each worker
    of each rank. Where there are fewer shards than streams, every stream reads all shards, and they take turns sample
    by sample. No stream ever ends. Within a stream, samples pass a shuffle buffer.
    With the same numbers of ranks and workers a resumed run sees the very same samples: what was seen before is
    read over without decoding it.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        size: int | Sequence[int],
        condition: Condition,
        on_the_fly: bool = False,
        augment: Augment | None = None,
        shuffle: int = 1000,
        seed: int = 0,
    ):
        self.urls, self.size, self.condition = expand(urls), check_size(size), condition
        self.on_the_fly, self.augment, self.shuffle, self.seed = on_the_fly, augment or Augment(), shuffle, seed
        if on_the_fly and not condition.computable:
            raise ValueError("data.on_the_fly=true makes every hint, but condition "
                             f"{condition.name!r} cannot be computed from a picture")  # fmt: skip

    def check(self) -> None:
        """ValueError where the first sample shows that the shards cannot be trained on as asked for."""
        ready = self._ready(self._first)
        if ready is None and not self.condition.computable:
            raise ValueError(f"sample {_name(self._first)} has no ready-made hint, but condition "
                             f"{self.condition.name!r} cannot be computed from a picture")  # fmt: skip
        if ready is not None and self.augment.vary:
            raise ValueError(NOTHING_VARIES)

    @property
    def own_hint(self) -> str | None:
        """The first sample if it is its own hint without being asked for."""
        unasked = self.condition.name == "none" and not self.on_the_fly
        return f"sample {_name(self._first)}" if unasked and self._ready(self._first) is None else None

    @cached_property
    def _first(self) -> Raw:
        return next(self._samples(0, 1))

    def batches(self, batch_size: int, rank: int = 0, world: int = 1, start: int = 0) -> "ShardBatches":
        """What a DataLoader of one rank iterates; `start` counts this rank's batches seen before."""
        return ShardBatches(self, batch_size, rank, world, start)

    def stream(self, number: int, count: int) -> Iterator[Raw]:
        """Undecoded samples of stream `number` of `count`, without end."""
        wds = _library()
        if len(self.urls) < count:
            samples: Iterator[Raw] = itertools.islice(self._samples(0, 1), number, None, count)
        else:
            samples = self._samples(number, count)
        if self.shuffle < 2:
            return samples
        rng = random.Random(stable_seed(self.seed, "buffer", number, count))
        return wds.shuffle(self.shuffle, initial=self.shuffle, rng=rng)(samples)

    def _samples(self, number: int, count: int) -> Iterator[Raw]:
        """Samples of this stream's shards. ValueError where as many shards as there are have none in a row."""
        wds, barren = _library(), 0
        for shard in self._shards(number, count):
            barren += 1
            for raw in wds.tariterators.tarfile_samples(iter([shard]), handler=wds.warn_and_continue):
                barren = 0
                yield raw
            if barren >= max(len(self.urls), 2):
                raise ValueError(f"data.urls={self.urls[:3]} hold no readable samples")

    def _shards(self, number: int, count: int) -> Iterator[dict[str, str]]:
        for epoch, first in zip(itertools.count(), itertools.count(step=len(self.urls))):
            order = torch.randperm(len(self.urls), generator=generator(self.seed, "shards", epoch)).tolist()
            for position, shard in enumerate(order, start=first):
                if position % count == number:
                    yield {"url": self.urls[shard]}

    def decode(self, raw: Raw, draw: int) -> Sample:
        """Image, hint and caption. Raises PictureError for what is broken or not there."""
        name = _name(raw)
        image = next((raw[ending] for ending in IMAGE_ENDINGS if ending in raw), None)
        if image is None:
            raise PictureError(f"cannot use sample {name}: none of its files ends in {', '.join(IMAGE_ENDINGS)}")
        ready = self._ready(raw)
        seed = stable_seed(self.seed, "augment", raw["__key__"], draw)
        return read_sample(image, ready, _caption(raw, name), self.size, self.condition, self.augment, seed, name)

    def _ready(self, raw: Raw) -> bytes | None:
        """The ready-made hint of a sample; None where it is to be made. ValueError for one in a format that is not
        read."""
        if self.on_the_fly:
            return None
        found = next((raw[ending] for ending in HINT_ENDINGS if ending in raw), None)
        if found is None and (others := [ending for ending in raw if ending.startswith("hint")]):
            raise ValueError(f"sample {_name(raw)} has a hint that is not read, .{others[0]}; hints end in "
                             f"{', '.join(HINT_ENDINGS)}")  # fmt: skip
        return found

    def collate(self, raws: Sequence[Raw], draw: int, replace: bool = True) -> Batch:
        """A batch; what cannot be decoded is replaced by others of the same batch, with a warning.

        replace: False raises ValueError instead, for samples to measure on.
        """
        samples: list[Sample] = []
        for raw in raws:
            try:
                samples.append(self.decode(raw, draw))
            except PictureError as error:
                if not replace:
                    raise ValueError(f"{error}; mend it or take it out, another would be measured twice") from error
                warnings.warn(f"{error}; another sample of the batch takes its place", stacklevel=2)
        if not samples:
            raise ValueError(f"no sample of a whole batch could be read, from {raws[0]['__key__']} on; check data.urls")
        full = list(itertools.islice(itertools.cycle(samples), len(raws)))
        return Batch(
            image=torch.stack([image for image, _, _ in full]),
            hint=torch.stack([hint for _, hint, _ in full]),
            caption=[caption for _, _, caption in full],
            id=torch.tensor([stable_seed(raw["__key__"]) for raw in raws]),
        )


class ShardBatches(IterableDataset):
    """Batches of one rank, each worker making its own; batch k comes from stream k % workers of the rank."""

    def __init__(self, shards: ShardDataset, batch_size: int, rank: int, world: int, start: int):
        self.shards, self.batch_size = shards, batch_size
        self.rank, self.world, self.start = rank, world, start

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        first = self.start + worker  # the loader asks its workers in turn, from worker 0 on
        done, own = divmod(first, workers)
        stream = self.shards.stream(self.rank * workers + own, self.world * workers)
        raws = itertools.islice(stream, done * self.batch_size, None)
        for draw in itertools.count(done):
            chunk = list(itertools.islice(raws, self.batch_size))
            yield self.shards.collate(chunk, draw)


class ShardItems(Dataset):
    """The first `count` samples of shards, decoded and kept in memory: held-out items."""

    def __init__(self, shards: ShardDataset, count: int):
        wds = _library()
        sources = ({"url": url} for url in shards.urls)
        samples = wds.tariterators.tarfile_samples(sources, handler=wds.warn_and_continue)
        raws = list(itertools.islice(samples, count))
        if len(raws) < count:
            raise ValueError(
                f"data.val_urls={shards.urls[:3]} hold {len(raws) or 'no'} samples, data.val_count={count}"
            )
        self.batch = shards.collate(raws, 0, replace=False)

    def __len__(self) -> int:
        return len(self.batch["caption"])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        rows = torch.as_tensor(list(indices))
        return Batch(
            image=self.batch["image"][rows],
            hint=self.batch["hint"][rows],
            caption=[self.batch["caption"][int(i)] for i in indices],
            id=rows,
        )


def expand(urls: str | Sequence[str]) -> list[str]:
    """Every shard's address: braces expanded. Raises ValueError for commands, which webdataset would run."""
    found = _library().shardlists.expand_urls(urls) if isinstance(urls, str) else list(urls)
    commands = [url for url in found if url.startswith("pipe:")]
    if not found or commands:
        raise ValueError(f"data.urls must name tar files, got {commands[:1] or urls}; commands (pipe:) are not run")
    return found


def _name(raw: Raw) -> str:
    return f"{raw.get('__url__', '')}:{raw['__key__']}"


def _local(urls: Sequence[str]) -> list[Path]:
    return [path for path in (Path(url).expanduser() for url in urls) if path.is_file()]


def _caption(raw: Raw, name: str) -> str:
    """The caption of a sample; PictureError for one that cannot be read."""
    try:
        if "txt" in raw:
            return one_line(decode_text(raw["txt"], "its caption"))
        return caption_of(json.loads(decode_text(raw["json"], "its caption"))) if "json" in raw else ""
    except (ValueError, RecursionError) as error:
        raise PictureError(f"cannot use sample {name}: {error}") from error


def _library() -> Any:
    try:
        import webdataset
    except ImportError as error:
        raise ImportError("data=webdataset needs webdataset: pip install -e '.[webdataset]'") from error
    return webdataset


def webdataset_data(
    condition: Condition,
    model: Any,
    urls: str | Sequence[str],
    val_urls: str | Sequence[str],
    size: int | Sequence[int],
    batch_size: int,
    val_count: int = 16,
    on_the_fly: bool = False,
    augment: Augment | None = None,
    shuffle: int = 1000,
    seed: int = 0,
    workers: int = 0,
) -> DataModule:
    """Training samples of `urls`; validation with the first `val_count` samples of `val_urls`, other shards.

    ValueError for nothing held out, shards that are in both, and hints that cannot be as asked for.
    """
    check_val_count(val_count)
    train = ShardDataset(urls, size, condition, on_the_fly, augment, shuffle, seed)
    measured = ShardDataset(val_urls, size, condition, on_the_fly)
    if shared := also_in(_local(measured.urls), _local(train.urls)):
        raise ValueError(f"data.val_urls names {len(shared)} shards that are trained on ({shared[0]}, ...)")
    train.check()
    held_out = ShardItems(measured, val_count)
    return DataModule(train, held_out, batch_size, seed, workers, condition)
