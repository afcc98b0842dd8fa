"""The progress bar."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar


class Progress(TQDMProgressBar):
    """Lightning's bar over optimizer steps, with the loss and the watched figure beside it."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: Any) -> dict[str, Any]:
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        if shown := pl_module.outcome.shown:
            items[shown[0]] = round(shown[1], 3)
        return items

    def init_train_tqdm(self) -> Any:
        bar = super().init_train_tqdm()
        bar.unit = "step"
        return bar

    def on_train_start(self, *args: Any) -> None:
        super().on_train_start(*args)
        self._show_all_steps()  # a run that resumes within an epoch is not told of the epoch's start

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        super().on_train_epoch_start(trainer)
        self._show_all_steps()

    def _show_all_steps(self) -> None:
        # the data never ends, so Lightning would show a bar without an end
        bar, done = self.train_progress_bar, self.trainer.global_step * self.trainer.accumulate_grad_batches
        bar.reset(self.trainer.max_steps * self.trainer.accumulate_grad_batches)
        bar.n = bar.initial = done
        bar.set_description("training")
