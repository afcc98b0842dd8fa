"""Training that cannot go on ends with its state saved."""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor

from cldm.training.callbacks.average import trainable
from ldm.files import whole


def save_checkpoint(trainer: pl.Trainer, path: Path) -> None:
    """Write a complete training checkpoint; one that lies there is replaced whole. Every rank has to call this."""
    if trainer.is_global_zero:
        with whole(path) as partial:
            trainer.save_checkpoint(partial, weights_only=False)
    else:  # takes part in collecting what is shared out, and writes nothing
        trainer.save_checkpoint(path, weights_only=False)


class NotFinite(FloatingPointError):
    """A loss is nan or infinite, of this process or another."""

    def __init__(self, message: str, weights_are_good: bool):
        super().__init__(message)
        self.weights_are_good = weights_are_good


def anywhere(trainer: pl.Trainer, happened: Tensor) -> bool:
    """Whether it has happened in any of the processes, which all ask."""
    return bool(trainer.strategy.reduce(happened.float(), reduce_op="sum"))


def ask_to_end(*_: Any) -> None:
    """Ask this process to save its state and end, as SIGTERM does."""
    os.kill(os.getpid(), signal.SIGTERM)


class Guard(Callback):
    """Ends a run that cannot go on, with its last good state on disk.

    A job that is told to stop (SIGTERM, or SIGUSR1 / SIGUSR2 where nobody else listens, as clusters send them before
    the time is up, or Ctrl-C, once) saves `<checkpoints>/last.ckpt` at the next step; so does one that runs out of
    memory. A loss that is not finite, in whatever process, ends all of them before it could touch the weights, which
    are saved.
    """

    def __init__(self, checkpoints: str):
        self.path = Path(checkpoints) / "last.ckpt"
        self.stepping = False  # the optimizer is at work: weights may be half old, half new
        self.losses: list[Tensor] = []  # since the last optimizer step

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for name in ("SIGUSR1", "SIGUSR2"):
            number = getattr(signal, name, None)  # not on Windows
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, ask_to_end)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._interrupted)

    def _interrupted(self, *_: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nstopping after this step, which is saved; Ctrl-C again stops at once", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGTERM)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if signal.getsignal(signal.SIGINT) == self._interrupted:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        self.losses.append(loss.detach())  # looked at once a step: every look waits for the device

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        losses, self.losses = torch.stack(self.losses), []
        # every process has looked at examples of its own; one that ended alone would leave the others waiting
        if anywhere(trainer, ~losses.isfinite().all()):
            values = [getattr(p, "to_local", lambda p=p: p)().isfinite().all() for p in trainable(pl_module).values()]
            good = not anywhere(trainer, ~torch.stack(values).all())
            kept = f"its state is in {self.path}" if good else f"so are weights; {self.path} holds the last state saved"
            raise NotFinite(
                f"the loss is {losses.sum().item()} at step {trainer.global_step + 1}; {kept}. Lower optimizer.lr, "
                "lengthen stage.module.warmup_steps, or use trainer.precision=bf16-mixed instead of 16-mixed, then go "
                "on with resume=<run folder>",
                good,
            )
        self.stepping = True

    def on_train_batch_end(self, *_: Any) -> None:
        self.stepping = False

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        no_memory = isinstance(exception, torch.OutOfMemoryError)
        # of several processes the others go on to wait for this one: there is no saving together any more
        alone = trainer.world_size == 1
        diverged = isinstance(exception, NotFinite) and exception.weights_are_good  # in all processes at once
        if isinstance(exception, SIGTERMException) or diverged or (no_memory and alone and not self.stepping):
            if no_memory:
                pl_module.zero_grad()
                torch.cuda.empty_cache()
            save_checkpoint(trainer, self.path)
        if no_memory:
            kept = f"its state is in {self.path}; " if self.path.exists() else ""
            print(
                f"out of memory at step {trainer.global_step}; {kept}lower batch_size and raise "
                "trainer.accumulate_grad_batches by the same factor, set stage.module.checkpointing=true, or use "
                "trainer.precision=bf16-mixed, then go on with resume=<run folder>",
                file=sys.stderr,
            )
