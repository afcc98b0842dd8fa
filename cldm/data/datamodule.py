"""One data module for every source: endless training batches whose order is a function of (seed, rank, step)."""

from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Sampler

from cldm.conditions import Condition
from ldm.random import generator


class StepSampler(Sampler[list[int]]):
    """Endless batches of indices. Batch k of an epoch's permutation depends on (seed, epoch) only.

    Resuming at `start` (batches already seen per rank) continues the very same order; ranks take turns.
    """

    def __init__(self, length: int, batch_size: int, seed: int, rank: int = 0, world: int = 1, start: int = 0):
        self.per_epoch = length // (batch_size * world)
        if self.per_epoch == 0:
            raise ValueError(
                f"{length} training samples do not fill one batch of {batch_size} x {world} ranks; "
                "lower data.batch_size or raise the number of samples"
            )
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world, self.start = rank, world, start

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start
        while True:
            epoch = step // self.per_epoch
            order = torch.randperm(self.length, generator=generator(self.seed, "order", epoch))
            while step // self.per_epoch == epoch:
                first = (step % self.per_epoch * self.world + self.rank) * self.batch_size
                yield order[first : first + self.batch_size].tolist()
                step += 1


class DataModule(pl.LightningDataModule):
    """A training set behind an endless loader, and a validation set that callbacks and reports index directly.

    A data set's `__getitems__(indices)` returns a whole ldm.batch.Batch, so there is nothing left to collate.
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
        sampler = StepSampler(
            len(self.train),
            self.batch_size,
            self.seed,
            trainer.global_rank,
            trainer.world_size,
            start=trainer.global_step * trainer.accumulate_grad_batches,
        )
        return DataLoader(self.train, batch_sampler=sampler, num_workers=self.workers, collate_fn=_already_a_batch)


def _already_a_batch(batch: Any) -> Any:
    return batch
