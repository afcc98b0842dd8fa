"""One data module for every source: endless training batches whose order is a function of (seed, rank, step)."""

import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True)
class Position:
    """Where training stands in its data after a whole number of optimizer steps."""

    steps: int = 0
    epoch: int = 0
    examples: int = 0  # of the epoch that the processes have trained on, all together
    samples: int | None = None  # of all epochs; early checkpoints do not tell


class DataModule(pl.LightningDataModule):
    """A training set behind an endless loader, and a validation set that callbacks and reports index directly.

    A data set's `__getitems__(indices)` returns a whole ldm.batch.Batch, so there is nothing left to collate. It may
    have `groups` and `varies`, see StepSampler's groups and numbered. A data set without numbers (shards) has
    `batches(batch_size, rank, world, start)` instead, which returns an iterable data set of batches.

    Checkpoints hold its Position: training goes on there with another batch size, number of processes or
    accumulation too.
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
        self.began = Position(samples=0)  # of this attempt
        self.per_epoch = sys.maxsize  # batches of a process; of shards without end

    def state_dict(self) -> dict[str, Any]:
        trainer = self.trainer
        assert trainer is not None
        epoch, batches = divmod(self._batches(), self.per_epoch)
        examples = batches * self.batch_size * trainer.world_size
        return asdict(Position(trainer.global_step, epoch, examples, self.samples_seen()))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.began = Position(**state_dict)

    def samples_seen(self) -> int:
        """Samples that all processes have trained on together, over all attempts at the run."""
        trainer = self.trainer
        assert trainer is not None
        a_batch = self.batch_size * trainer.world_size  # of this attempt: those before it may have had another
        before = self.began.samples
        if before is None:
            return self._batches() * a_batch
        return before + self._since() * a_batch

    def _since(self) -> int:
        """Batches of each process in this attempt."""
        trainer = self.trainer
        assert trainer is not None
        return (trainer.global_step - self.began.steps) * trainer.accumulate_grad_batches

    def _batches(self) -> int:
        """Batches that each process has trained on, as this attempt counts them."""
        trainer, began = self.trainer, self.began
        assert trainer is not None
        within = min(began.examples // (self.batch_size * trainer.world_size), self.per_epoch)
        return began.epoch * self.per_epoch + within + self._since()

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        assert trainer is not None
        rank, world = trainer.global_rank, trainer.world_size
        if hasattr(self.train, "batches"):
            batches = self.train.batches(self.batch_size, rank, world, self._batches())
            return DataLoader(batches, batch_size=None, num_workers=self.workers)
        sampler = self._sampler(rank, world)
        self.per_epoch = sampler.per_epoch
        sampler.start = self._batches()
        return DataLoader(self.train, batch_sampler=sampler, num_workers=self.workers, collate_fn=_already_a_batch)

    def check(self, world: int = 1) -> None:
        """ValueError if there are too few examples for a batch of `world` ranks."""
        if not hasattr(self.train, "batches"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # told when the loader is made
                self._sampler(0, world)

    def check_hints(self) -> None:
        """ValueError if a picture to train a branch on is its own hint unasked: the branch would learn to copy."""
        if name := getattr(self.train, "own_hint", None):
            raise ValueError(f"{name} has no ready-made hint, and condition=none makes it its own hint; set condition "
                             "to the kind of hint to make, or data.on_the_fly=true if that is meant")  # fmt: skip

    def _sampler(self, rank: int, world: int) -> StepSampler:
        groups, varies = getattr(self.train, "groups", None), getattr(self.train, "varies", False)
        return StepSampler(len(self.train), self.batch_size, self.seed, rank, world, groups=groups, numbered=varies)


def check_val_count(count: int) -> None:
    """ValueError unless something is held out."""
    if count < 1:
        raise ValueError(f"data.val_count={count} must be at least 1: a run is measured on what it holds out")


def _already_a_batch(batch: Any) -> Any:
    return batch
