"""Numbered items of a world as a data set held in memory: images or cached latent moments, hints, labels, captions."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from cldm.conditions import Condition, apply_batch
from cldm.conditions.truth import Truth
from cldm.data.hints import restored, stored
from cldm.worlds import World
from ldm.batch import Batch
from ldm.cores import cores
from ldm.files import locked, whole
from ldm.identity import key

CHUNK = 64  # items drawn at a time
ENCODED = 8  # of them at a time: what more take does not fit the cache of a CPU, and an image takes half as long again


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one CPU thread: the many small operations of drawing are three times slower on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


CONTROL = "control"
"""The family that the control stage trains on, see World.unseen."""


class WorldDataset(Dataset):
    """`count` items of a family, numbered from `start`, drawn once and kept in memory.

    keep: which of "image", "moments" (needs `encode`: images -> moments), "hint" (needs `condition`) and "labels" (see
    World.draw) to hold. With `cache` the tensors are also written below that folder, named by everything they depend on
    (`fingerprint` names the encoder), so that a restart reads them back.
    """

    def __init__(
        self,
        world: World,
        count: int,
        size: int,
        family: str,
        seed: int = 0,
        start: int = 0,
        keep: Sequence[str] = ("image",),
        condition: Condition | None = None,
        encode: Callable[[Tensor], Tensor] | None = None,
        fingerprint: str = "",
        cache: str | Path | None = None,
    ):
        self.world, self.size, self.seed, self.start, self.keep = world, size, seed, start, tuple(keep)
        self.family = family
        self.condition, self.encode = condition, encode
        self.hint_map = None  # of the world; else the condition computes the hint
        if isinstance(condition, Truth) and "hint" in keep:
            self.hint_map = condition.named(world.name, world.hint_maps)
        self.truths = [world.sample(seed, start + i, family) for i in range(count)]
        self.tensors = self._load(Path(cache) / self._name(count, family, fingerprint) if cache else None)

    def __len__(self) -> int:
        return len(self.truths)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        index = torch.as_tensor(indices)
        batch = Batch(caption=[self.caption(i) for i in indices], id=index)
        if "image" in self.tensors:
            batch["image"] = self.tensors["image"][index].float() / 127.5 - 1.0
        if "moments" in self.tensors:
            batch["moments"] = self.tensors["moments"][index].float()
        if "hint" in self.tensors:
            batch["hint"] = restored(self.tensors["hint"][index])
        if "labels" in self.tensors:
            batch["labels"] = self.tensors["labels"][index].long()
        return batch

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def caption(self, index: int) -> str:
        """The caption of an item; always the same for an item."""
        return self.world.caption(self.truths[index], self.seed, self.start + index)

    def unseen(self, count: int) -> "WorldDataset | None":
        """As many items, numbered alike, of what the world keeps from the control stage; None if it keeps nothing, and
        beside items of a family that it does not keep it from."""
        if self.world.unseen is None or self.family != CONTROL:
            return None
        kept = (self.world, count, self.size, self.world.unseen, self.seed, self.start, ("image", "hint"))
        return WorldDataset(*kept, condition=self.condition)

    def _name(self, count: int, family: str, fingerprint: str) -> str:
        drawn = (self.world.version, count, self.size, family, self.seed, self.start, self.keep)
        return f"{self.world.name}-{key(drawn, self.condition, fingerprint)}.pt"

    def _load(self, path: Path | None) -> dict[str, Tensor]:
        if path is None:
            return self._draw_all()
        if path.exists():
            return torch.load(path, weights_only=True)
        # ranks and jobs of a sweep ask at once: one draws, the others wait
        with locked(path.parent, f"{path.stem}.lock", wait=True):
            if path.exists():
                return torch.load(path, weights_only=True)
            tensors = self._draw_all()
            with whole(path) as partial:
                torch.save(tensors, partial)
            return tensors

    def _draw_all(self) -> dict[str, Tensor]:
        chunks = [self.truths[first : first + CHUNK] for first in range(0, len(self.truths), CHUNK)]
        found: list[dict[str, Tensor]] = []
        # A chunk in one thread, as many chunks as cores: threads that share each small operation wait for one another,
        # twenty times as long as they work if another program takes one of two cores.
        pool = ThreadPoolExecutor(max(1, min(cores(), len(chunks))), initializer=torch.set_num_threads, initargs=(1,))
        bar = tqdm(total=len(self.truths), desc=f"drawing {self.size} px {self.world.name}", unit="img")
        with one_thread(), pool, bar:
            for chunk, drawn in zip(chunks, pool.map(self._draw_chunk, chunks), strict=True):
                found.append(drawn)
                bar.update(len(chunk))
        return {name: torch.cat([chunk[name] for chunk in found]) for name in self.keep}

    @torch.no_grad()
    def _draw_chunk(self, truths: Sequence[Any]) -> dict[str, Tensor]:
        maps = [*(["labels"] if "labels" in self.keep else []), *([self.hint_map] if self.hint_map else [])]
        drawn = self.world.draw(truths, self.size, maps)
        tensors = {**drawn, "image": ((drawn["image"] + 1.0) * 127.5).round().to(torch.uint8)}
        image = tensors["image"].float() / 127.5 - 1.0  # hints and moments see the image as it would be stored
        if "moments" in self.keep:
            if self.encode is None:
                raise ValueError("keep=moments needs the autoencoder that encodes them")
            tensors["moments"] = torch.cat([self.encode(part) for part in image.split(ENCODED)]).half().cpu()
        if "hint" in self.keep:
            if self.condition is None:
                raise ValueError("keep=hint needs a condition")
            if self.hint_map is None:
                hint = apply_batch(self.condition, image)
            else:
                hint = drawn[self.hint_map].expand(-1, 3, -1, -1)
            tensors["hint"] = stored((hint * 255).round() / 255)  # 8 bits, as in a file
        return {name: tensors[name] for name in self.keep}
