"""A job that its cluster takes back is queued again with its state saved."""

import os
import signal
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from cldm.training.callbacks.guard import anywhere, ask_to_end, save_checkpoint


class Preempted(SystemExit):
    """The launcher has queued the job again and ends this process."""


class Requeue(Callback):
    """Where a launcher (submitit) listens for SIGUSR1 or SIGUSR2: saves `<checkpoints>/last.ckpt` after the step that
    the signal finds, then hands the signal on to the launcher, which queues the job again.

    It is handed on without a save where a second signal comes, or `patience` seconds have passed: a look or a save
    that takes too long must not cost the job its place in the queue. Where nobody else listens, Guard does.
    """

    def __init__(self, checkpoints: str, patience: float = 60.0):
        self.path, self.patience = Path(checkpoints) / "last.ckpt", patience
        self.listeners: dict[int, Callable[..., Any]] = {}
        self.told: int | None = None  # the signal
        self.training, self.process = False, os.getpid()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for name in ("SIGUSR1", "SIGUSR2"):
            number = getattr(signal, name, None)  # not on Windows
            listener = signal.getsignal(number) if number is not None else None
            if number is not None and callable(listener) and listener is not ask_to_end:
                self.listeners[number] = listener
                signal.signal(number, self._hear)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.training = False
        for number, listener in self.listeners.items():
            signal.signal(number, listener)

    def _hear(self, number: int, frame: Any) -> None:
        if os.getpid() != self.process:  # of a process that loads data
            return
        if not self.training or self.told is not None:
            self.listeners[number](number, frame)
            return
        self.told = number
        again = threading.Timer(self.patience, os.kill, (self.process, number))
        again.daemon = True
        again.start()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.training = True

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Between two batches the state is whole, and every callback has seen the last one."""
        if not self.listeners:
            return
        told = torch.tensor(self.told is not None)
        if anywhere(trainer, told.to(trainer.strategy.root_device)) if trainer.world_size > 1 else bool(told):
            try:
                save_checkpoint(trainer, self.path)
            except Exception as error:
                warnings.warn(f"the state could not be saved before the job is queued again: {error}", stacklevel=2)
            self._hand_on()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.training = False
        self._hand_on()  # the state at the end is saved

    def _hand_on(self) -> None:
        """Preempted where the listener ends this process; of several processes only the first one's does."""
        if self.told is not None:
            try:
                self.listeners[self.told](self.told, None)
            except SystemExit as error:
                raise Preempted(error.code) from None
