"""Rendered scenes as a data set held in memory: images or cached latent moments, hints, captions."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from einops import rearrange
from filelock import FileLock
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from cldm.conditions import Condition, apply_batch
from cldm.data.whole import whole
from cldm.worlds.scenes.captions import caption
from cldm.worlds.scenes.renderer import render
from cldm.worlds.scenes.world import COLORS, KINDS, MAX_OBJECTS, Scene, get_family, sample_scene
from ldm.batch import Batch

CHUNK = 64  # scenes rendered at a time
LABEL_STRIDE = 8  # pixels per label: the autoencoder's factor


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one CPU thread: the renderer's many small operations are three times slower on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class ScenesDataset(Dataset):
    """`count` scenes of a family, numbered from `start`, rendered once and kept in memory.

    keep: which of "image", "moments" (needs `encode`: images -> moments), "hint" (needs `condition`) and "labels"
    (kind and colour at the centre of every LABEL_STRIDE-th pixel square, numbered from 1 in the order of KINDS and
    COLORS, 0 for the background) to hold.
    With `cache` the tensors are also written below that folder, named by everything they depend on
    (`fingerprint` names the encoder), so that a restart reads them back.
    """

    def __init__(
        self,
        count: int,
        size: int = 128,
        family: str = "base",
        seed: int = 0,
        start: int = 0,
        keep: Sequence[str] = ("image",),
        condition: Condition | None = None,
        encode: Callable[[Tensor], Tensor] | None = None,
        fingerprint: str = "",
        cache: str | Path | None = None,
    ):
        self.size, self.seed, self.start, self.keep = size, seed, start, tuple(keep)
        self.condition, self.encode = condition, encode
        self.scenes = [sample_scene(seed, start + i, get_family(family)) for i in range(count)]
        key = json.dumps([count, size, family, seed, start, self.keep, repr(condition), fingerprint])
        name = f"scenes-{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}.pt"
        self.tensors = self._load(Path(cache) / name if cache else None)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        index = torch.as_tensor(indices)
        batch = Batch(caption=[self.caption(i) for i in indices], id=index)
        if "image" in self.tensors:
            batch["image"] = self.tensors["image"][index].float() / 127.5 - 1.0
        if "moments" in self.tensors:
            batch["moments"] = self.tensors["moments"][index].float()
        if "hint" in self.tensors:
            batch["hint"] = self.tensors["hint"][index].float() / 255.0
        if "labels" in self.tensors:
            batch["labels"] = self.tensors["labels"][index].long()
        return batch

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def caption(self, index: int) -> str:
        """The scene's caption; always the same for a scene."""
        return caption(self.scenes[index], self.seed, self.start + index)

    def _load(self, path: Path | None) -> dict[str, Tensor]:
        if path is None:
            return self._render_all()
        if path.exists():
            return torch.load(path, weights_only=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # ranks and jobs of a sweep ask at once: one renders, the others wait
            if path.exists():
                return torch.load(path, weights_only=True)
            tensors = self._render_all()
            with whole(path) as partial:
                torch.save(tensors, partial)
            return tensors

    def _render_all(self) -> dict[str, Tensor]:
        chunks: list[dict[str, Tensor]] = []
        with tqdm(total=len(self.scenes), desc=f"rendering {self.size} px scenes", unit="img") as bar:
            for first in range(0, len(self.scenes), CHUNK):
                scenes = self.scenes[first : first + CHUNK]
                chunks.append(self._render_chunk(scenes))
                bar.update(len(scenes))
        return {name: torch.cat([chunk[name] for chunk in chunks]) for name in self.keep}

    @torch.no_grad()
    def _render_chunk(self, scenes: Sequence[Scene]) -> dict[str, Tensor]:
        with one_thread():
            rendered = render(scenes, self.size)
        image = rendered.image
        tensors = {"image": ((image + 1.0) * 127.5).round().to(torch.uint8)}
        image = tensors["image"].float() / 127.5 - 1.0  # hints and moments see the image as it would be stored
        if "moments" in self.keep:
            if self.encode is None:
                raise ValueError("keep=moments needs the autoencoder that encodes them")
            tensors["moments"] = self.encode(image).half().cpu()
        if "hint" in self.keep:
            if self.condition is None:
                raise ValueError("keep=hint needs a condition")
            tensors["hint"] = (apply_batch(self.condition, image) * 255.0).round().to(torch.uint8)
        if "labels" in self.keep:
            tensors["labels"] = class_maps(scenes, rendered.labels)
        return {name: tensors[name] for name in self.keep}


def class_maps(scenes: Sequence[Scene], labels: Tensor) -> Tensor:
    """Object numbers (b, h, w) of rendered scenes -> numbers of kind and colour (b, 2, h/8, w/8) uint8."""
    half = LABEL_STRIDE // 2
    coarse = labels[:, half::LABEL_STRIDE, half::LABEL_STRIDE]
    classes = torch.zeros(len(scenes), 2, MAX_OBJECTS + 1, dtype=torch.uint8)
    for i, scene in enumerate(scenes):
        for k, item in enumerate(scene.objects, start=1):
            classes[i, 0, k] = 1 + KINDS.index(item.kind)
            classes[i, 1, k] = 1 + [*COLORS].index(item.color)
    index = rearrange(coarse, "b h w -> b 1 (h w)").expand(-1, 2, -1)
    return classes.gather(2, index).unflatten(2, coarse.shape[1:])
