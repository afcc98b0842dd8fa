"""Composed stickers as a data set held in memory: images or cached latent moments, hints, label maps, captions."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from cldm.conditions import Condition, apply_batch
from cldm.data.whole import whole
from cldm.worlds.stickers.captions import caption
from cldm.worlds.stickers.composer import render
from cldm.worlds.stickers.drawings import artwork
from cldm.worlds.stickers.metrics import caption_scores
from cldm.worlds.stickers.world import GROUNDS, VERSION, Composition, compose, get_family
from ldm.batch import Batch

CHUNK = 64  # compositions rendered at a time
LABEL_MAPS = 2
LABEL_STRIDE = 8  # pixels per label: the autoencoder's factor


class StickersDataset(Dataset):
    """`count` compositions of a family, numbered from `start`, rendered once and kept in memory.

    keep: which of "image", "moments" (needs `encode`: images -> moments), "hint" (needs `condition`) and "labels"
    (two maps, at the centre of every LABEL_STRIDE-th pixel square: Concept.number, 0 on the ground; and the number of
    the picture's ground, from 1, everywhere) to hold.
    With `cache` the tensors are also written below that folder, named by everything they depend on (`fingerprint`
    names the encoder), so that a restart reads them back.
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
        self.compositions = [compose(seed, start + i, get_family(family)) for i in range(count)]
        told = [count, size, family, seed, start, self.keep, repr(condition), fingerprint]
        told += [VERSION, artwork(), LABEL_MAPS]
        name = f"stickers-{hashlib.blake2b(json.dumps(told).encode(), digest_size=8).hexdigest()}.pt"
        self.tensors = self._load(Path(cache) / name if cache else None)

    def __len__(self) -> int:
        return len(self.compositions)

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
        """The composition's caption; always the same for a composition."""
        return caption(self.compositions[index], self.seed, self.start + index)

    def caption_scores(self, images: Tensor, captions: Sequence[str]) -> dict[str, float]:
        """How well images (b, 3, h, w) in [-1, 1] show captions of this world, by the shipped judge."""
        return caption_scores(images, captions)

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
        with tqdm(total=len(self), desc=f"composing {self.size} px stickers", unit="img") as bar:
            for first in range(0, len(self), CHUNK):
                part = self.compositions[first : first + CHUNK]
                chunks.append(self._render_chunk(part))
                bar.update(len(part))
        return {name: torch.cat([chunk[name] for chunk in chunks]) for name in self.keep}

    @torch.no_grad()
    def _render_chunk(self, compositions: Sequence[Composition]) -> dict[str, Tensor]:
        labelled = "labels" in self.keep
        rendered = render(compositions, self.size, ("concepts",) if labelled else ())
        tensors = {"image": ((rendered.image + 1.0) * 127.5).round().to(torch.uint8)}
        image = tensors["image"].float() / 127.5 - 1.0  # hints and moments see the image as it would be stored
        if "moments" in self.keep:
            if self.encode is None:
                raise ValueError("keep=moments needs the autoencoder that encodes them")
            tensors["moments"] = self.encode(image).half().cpu()
        if "hint" in self.keep:
            if self.condition is None:
                raise ValueError("keep=hint needs a condition")
            tensors["hint"] = (apply_batch(self.condition, image) * 255.0).round().to(torch.uint8)
        if labelled:
            half = LABEL_STRIDE // 2
            coarse = rendered.maps["concepts"][:, half::LABEL_STRIDE, half::LABEL_STRIDE]
            tensors["labels"] = torch.stack([coarse, ground_numbers(compositions, coarse)], dim=1).to(torch.uint8)
        return {name: tensors[name] for name in self.keep}


def ground_numbers(compositions: Sequence[Composition], like: Tensor) -> Tensor:
    """(b, h, w) int64 as `like`: the number of each picture's ground, from 1 in the order of GROUNDS."""
    numbers = torch.tensor([1 + list(GROUNDS).index(composition.ground) for composition in compositions])
    return numbers[:, None, None].expand_as(like)
