"""Checkpoints of training: the last state and the best one, replaced whole; each says what run it belongs to."""

import math
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from cldm.training.callbacks.guard import save_checkpoint
from ldm.files import whole
from ldm.training.outcome import History


class Checkpoints(Checkpoint):
    """Writes <folder>/last.ckpt every `every_n_train_steps` optimizer steps, every `minutes` if given, and at the end;
    keeps the one with the best watched figure as <folder>/best.ckpt.

    best: figures of the looks with "max" or "min"; the first of them that the run measures counts.
    """

    def __init__(
        self,
        folder: str,
        every_n_train_steps: int = 200,
        minutes: float | None = None,
        best: Mapping[str, str] | None = None,
    ):
        if every_n_train_steps < 1:
            raise ValueError(
                f"trainer.callbacks.checkpoint.every_n_train_steps must be at least 1, got {every_n_train_steps}"
            )
        for figure, mode in (best or {}).items():
            if mode not in ("max", "min"):
                raise ValueError(f"trainer.callbacks.checkpoint.best.{figure} must be max or min, got {mode!r}")
        self.folder, self.every, self.minutes, self.best = Path(folder), every_n_train_steps, minutes, dict(best or {})
        self.record: dict[str, Any] = {}  # of the best checkpoint: figure, value, step
        self.last_step, self.saved_step, self.saved_at = -1, -1, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.last_step = self.saved_step = trainer.global_step
        self.saved_at = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        step = trainer.global_step
        if step == self.last_step:  # accumulating gradients
            return
        self.last_step = step
        better = self._better(trainer, pl_module.outcome.looks)
        if better or step % self.every == 0 or step == trainer.max_steps or self._time_is_up(trainer):
            self._save(trainer, better)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step != self.saved_step:  # ended by something else than max_steps
            self._save(trainer, False)

    def _better(self, trainer: pl.Trainer, history: History) -> bool:
        """Whether the figure was measured at this step, and is the best so far; all ranks agree."""
        figure = next((name for name in self.best if name in history), None)
        better = False
        if figure is not None and history["step"][-1:] == [trainer.global_step]:
            value = history[figure][-1]
            # a look that the history has forgotten measured otherwise
            same = self.record.get("figure") == figure and self.record["step"] in history["step"]
            before = self.record["value"] if same else None
            better = math.isfinite(value) and (
                before is None or (value > before if self.best[figure] == "max" else value < before)
            )
            if better:
                self.record = {"figure": figure, "value": value, "step": trainer.global_step}
        return trainer.strategy.broadcast(better) if trainer.world_size > 1 else better

    def _time_is_up(self, trainer: pl.Trainer) -> bool:
        if self.minutes is None:
            return False
        late = time.monotonic() - self.saved_at >= 60.0 * self.minutes
        return trainer.strategy.broadcast(late) if trainer.world_size > 1 else late

    def _save(self, trainer: pl.Trainer, better: bool) -> None:
        last = self.folder / "last.ckpt"
        with trainer.lightning_module.clock.paused():  # type: ignore[operator,union-attr]
            save_checkpoint(trainer, last)
        self.saved_step, self.saved_at = trainer.global_step, time.monotonic()
        if better and trainer.is_global_zero:
            _second_name(last, self.folder / "best.ckpt")

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict) -> None:
        checkpoint |= pl_module.outcome.facts

    def state_dict(self) -> dict[str, Any]:
        return {"record": self.record}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.record = dict(state_dict["record"])


def _second_name(path: Path, other: Path) -> None:
    """Replace `other` by the file at `path`, without a copy where the file system can: neither is ever written into."""
    with whole(other) as partial:
        try:
            os.link(path, partial)
        except OSError:
            shutil.copyfile(path, partial)
