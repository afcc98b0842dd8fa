"""Exponential moving average of the trained weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from ldm.sharding import share_like, whole


class EMA(Callback):
    """Exponential moving average of the trainable weights, with warm-up min(decay, (1 + n) / (10 + n)).

    Previews, metrics and exported files use it, see `averaged`; the module's `outcome.average` is it. The state is the
    callback's own, so checkpoints hold it once and the frozen weights never.
    """

    def __init__(self, decay: float = 0.999):
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"trainer EMA decay must be in [0, 1), got {decay}")
        self.decay, self.updates, self.last_step = decay, 0, 0
        self.average: dict[str, Tensor] = {}

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        pl_module.outcome.average = self.average  # also of a run whose training was over when it was cut off

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        current = trainable(pl_module)
        if not self.average:
            self.average = {name: p.detach().clone() for name, p in current.items()}
        elif self.average.keys() != current.keys():
            raise ValueError("the checkpoint's EMA belongs to other trainable weights than this run's")
        self.average = {name: share_like(a, current[name]) for name, a in self.average.items()}
        pl_module.outcome.average = self.average
        self.last_step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step == self.last_step:  # accumulating gradients: the weights have not moved
            return
        self.last_step = trainer.global_step
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        current = trainable(pl_module)
        torch._foreach_lerp_([self.average[n] for n in current], [*current.values()], 1.0 - decay)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {"average": {name: whole(a) for name, a in self.average.items()}, "updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average.clear()  # the same dict: the module's outcome has it
        self.average |= state_dict["average"]
        self.updates = int(state_dict["updates"])


def trainable(module: pl.LightningModule) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


@torch.no_grad()
def _assign(parameters: dict[str, torch.nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


@contextmanager
def averaged(module: Any) -> Iterator[None]:
    """Within the context the stage has its averaged weights, if there are any; afterwards its own, come what may."""
    average: dict[str, Tensor] = module.outcome.average
    current = trainable(module) if average else {}
    own = {name: p.detach().clone() for name, p in current.items()}
    try:
        _assign(current, average)
        yield
    finally:
        _assign(current, own)
