"""One data module for every source: endless training batches whose order is a function of (seed, rank, step)."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from cldm.conditions import Condition
from ldm.random import generator


class StepSampler(Sampler[list[int]]):
    """Endless batches of indices. Batch k of an epoch depends on (seed, epoch) only, and on the size of the global
    batch, batch_size * world: ranks take turns in it, whatever their number.

    Resuming at `start` (batches already seen per rank) continues the very same order.
    groups: a number for each sample (its aspect-ratio bucket); a global batch then holds samples of one group.
    numbered: add epoch * length to each index, for data sets that draw a sample differently in each epoch.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        groups: Sequence[int] | None = None,
        numbered: bool = False,
    ):
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world, self.start, self.numbered = rank, world, start, numbered
        self.groups = None if groups is None else torch.as_tensor(groups)
        sizes = [length] if self.groups is None else self.groups.unique(return_counts=True)[1].tolist()
        self.per_epoch = sum(size // (batch_size * world) for size in sizes)
        if self.per_epoch == 0:
            raise ValueError(
                f"{length} training samples do not fill one batch of {batch_size} x {world} ranks; "
                "lower data.batch_size or raise the number of samples"
            )
        if unused := sum(size for size in sizes if size < batch_size * world):
            warnings.warn(
                f"{unused} of {length} samples are in buckets too small for one batch of {batch_size} x {world} "
                "ranks and are never seen; lower data.batch_size or raise data.bucket_step",
                stacklevel=2,
            )

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start
        while True:
            epoch = step // self.per_epoch
            batches = self._global_batches(epoch)
            while step // self.per_epoch == epoch:
                mine = batches[step % self.per_epoch].view(self.world, self.batch_size)[self.rank]
                yield (mine + epoch * self.length if self.numbered else mine).tolist()
                step += 1

    def _global_batches(self, epoch: int) -> Tensor:
        """(per_epoch, world * batch_size) indices."""
        order = torch.randperm(self.length, generator=generator(self.seed, "order", epoch))
        together = self.batch_size * self.world
        if self.groups is None:
            return order[: self.per_epoch * together].view(-1, together)
        parts = [order[self.groups[order] == group] for group in self.groups.unique()]
        batches = torch.cat([part[: len(part) // together * together].view(-1, together) for part in parts])
        return batches[torch.randperm(self.per_epoch, generator=generator(self.seed, "buckets", epoch))]


class DataModule(pl.LightningDataModule):
    """A training set behind an endless loader, and a validation set that callbacks and reports index directly.

    A data set's `__getitems__(indices)` returns a whole ldm.batch.Batch, so there is nothing left to collate. It may
    have `groups` and `varies`, see StepSampler's groups and numbered. A data set without numbers (shards) has
    `batches(batch_size, rank, world, start)` instead, which returns an iterable data set of batches.
    """

    def __init__(
        self,
        train: Any,
        validation: Any,
        batch_size: int,
        seed: int = 0,
        workers: int = 0,
        condition: Condition | None = None,
    ):
        super().__init__()
        self.train, self.validation, self.condition = train, validation, condition
        self.batch_size, self.seed, self.workers = batch_size, seed, workers

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        assert trainer is not None
        rank, world = trainer.global_rank, trainer.world_size
        start = trainer.global_step * trainer.accumulate_grad_batches
        if hasattr(self.train, "batches"):
            batches = self.train.batches(self.batch_size, rank, world, start)
            return DataLoader(batches, batch_size=None, num_workers=self.workers)
        sampler = StepSampler(
            len(self.train),
            self.batch_size,
            self.seed,
            rank,
            world,
            start,
            getattr(self.train, "groups", None),
            getattr(self.train, "varies", False),
        )
        return DataLoader(self.train, batch_sampler=sampler, num_workers=self.workers, collate_fn=_already_a_batch)


def _already_a_batch(batch: Any) -> Any:
    return batch
