"""How far and how fast: what runs with other batch sizes and machines are compared by."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from cldm.runs.tracking import RunCSV


def position(trainer: pl.Trainer, module: Any) -> dict[str, float]:
    """Samples that training has seen, of all processes and attempts, and the seconds that it took."""
    return {"samples_seen": float(trainer.datamodule.samples_seen()), "train_seconds": module.clock.seconds}  # type: ignore[attr-defined]


def log_figures(trainer: pl.Trainer, module: Any, figures: Mapping[str, float]) -> None:
    """Hand figures to every logger, with the place on each axis that they may be drawn over."""
    for logger in trainer.loggers:
        logger.log_metrics({**figures, **position(trainer, module)}, trainer.global_step)


def rates(trainer: pl.Trainer) -> dict[str, float]:
    """The learning rate that the newest optimizer step took: train/lr, and of unlocked weights train/lr_unlocked."""
    scheduler: Any = trainer.lr_scheduler_configs[0].scheduler
    factors = [factor(trainer.global_step - 1) for factor in scheduler.lr_lambdas]
    taken = [base * factor for base, factor in zip(scheduler.base_lrs, factors, strict=True)]
    return dict(zip(("train/lr", "train/lr_unlocked"), taken, strict=False))


class Pace(Callback):
    """Beside every logged loss: `samples_seen`, `train_seconds`, the learning rate that the step took, and since the
    last one `pace/seconds_per_step` and `pace/samples_per_second` of all processes together. Looks and checkpoints do
    not count."""

    def __init__(self) -> None:
        self.last_step, self.last, self.resumed = 0, {"samples_seen": 0.0, "train_seconds": 0.0}, False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._remember(trainer, position(trainer, pl_module))
        self.resumed = trainer.global_step > 0

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """The first row of metrics.csv says where a resumed attempt begins; one that is refused before writes none."""
        if self.resumed:
            for logger in trainer.loggers:
                if isinstance(logger, RunCSV):
                    logger.log_metrics(self.last, self.last_step)
            self.resumed = False

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if not trainer._logger_connector.should_update_logs or trainer.global_step == self.last_step:
            return
        now = position(trainer, pl_module)
        samples, seconds = (now[name] - self.last[name] for name in ("samples_seen", "train_seconds"))
        pace = {"pace/seconds_per_step": seconds / (trainer.global_step - self.last_step)}
        pace["pace/samples_per_second"] = samples / max(seconds, 1e-9)
        self._remember(trainer, now)
        done = {"step": float(trainer.global_step)}  # else Lightning counts the row to the step before it
        pl_module.log_dict(now | pace | rates(trainer) | done)

    def _remember(self, trainer: pl.Trainer, now: dict[str, float]) -> None:
        self.last_step, self.last = trainer.global_step, now
