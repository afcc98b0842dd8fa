"""Pictures and figures along the way."""

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from math import isfinite, nan
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from cldm.pictures import grid, save_atomically
from cldm.runs.tracking import log_look
from cldm.training.callbacks.average import averaged
from cldm.training.callbacks.pace import log_figures
from cldm.worlds import known
from ldm.files import append_line
from ldm.identity import key
from ldm.sharding import is_sharded, unsharded
from ldm.training.outcome import History

Metrics = Callable[..., dict[str, float]]
"""(pictures, batch, known, condition) -> figures; see cldm.evaluation.metrics."""

Sampling = Callable[..., Tensor]
"""See cldm.sampling.generation.Sampling."""


def batch_digest(batch: Mapping[str, Any]) -> str:
    """16 hex digits that change with any pixel, caption or number of the items."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(batch.items()):
        content = value.cpu().contiguous().numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode()
        digest.update(name.encode() + content)
    return digest.hexdigest()


class Watch(Callback):
    """Every `every` optimizer steps: pictures, figures and losses of the same held-out items, with averaged weights.

    Prompts, seeds, timesteps and noise of an item are the same every time, and none of them are training's. Writes
    previews/step_*.png with a line in previews/manifest.jsonl (and one for each resumption, with the step it goes on
    from), logs the figures as watch/* and the losses as val/*, and keeps their history (`history["step"]` and one list
    per figure; losses are `loss` and `loss_0-250`, ...) for the convergence curve; checkpoints carry it. `key` names
    the figure that the progress bar shows, the first that there is.
    """

    def __init__(
        self,
        metrics: Metrics,
        sampling: Sampling,
        every: int = 500,
        count: int = 32,
        shown: int = 12,
        key: str | Sequence[str] = (),
    ):
        self.metrics, self.sampling = metrics, sampling
        self.keys = [key] if isinstance(key, str) else [*key]
        self.every, self.count, self.shown = every, count, shown
        self.history: History = {"step": []}
        self.measure = ""  # what decides the figures beside the weights
        self.last_step = -1
        self.looked = False  # in this attempt: what never changes is handed to loggers once

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        pl_module.outcome.looks = self.history  # also of a run whose training was over when it was cut off

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.outcome.shown = self._shown()  # of the run that goes on
        if trainer.global_step == 0:
            self._look(trainer, pl_module)
        elif trainer.is_global_zero:
            append_line(_manifest(trainer), {"resumed": trainer.global_step})
        self.last_step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step != self.last_step and (step % self.every == 0 or step == trainer.max_steps):
            with pl_module.clock.paused():  # type: ignore[operator,union-attr]
                self._look(trainer, pl_module)
        self.last_step = step

    def _shown(self) -> tuple[str, float] | None:
        """The newest value of the figure to show beside the progress bar."""
        newest = ((key, self.history[key][-1]) for key in self.keys if self.history.get(key))
        return next(((key, value) for key, value in newest if isfinite(value)), None)

    @torch.no_grad()
    def _look(self, trainer: pl.Trainer, module: Any) -> None:
        """The first process looks; where the weights are shared out all do, since none can without the others."""
        if not (trainer.is_global_zero or is_sharded(module)):
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        items = range(min(self.count, len(data.validation)))
        batch, truth = data.validation.__getitems__(items), known(data.validation, items)
        on_device = trainer.strategy.batch_to_device(batch)
        was_training = module.training
        # what is frozen may be held in the precision that the trainer computes in
        with averaged(module), unsharded(module), trainer.precision_plugin.forward_context():
            module.eval()
            pictures = {name: p.float().cpu() for name, p in module.pictures(on_device, self.sampling).items()}
            losses = {name: loss.mean().item() for name, loss in module.held_out_losses(on_device).items()}
        module.train(was_training)
        broken = [name for name, images in pictures.items() if not bool(images.isfinite().all())]
        if broken:
            warnings.warn(f"step {trainer.global_step}: images ({', '.join(broken)}) are not finite; this look is left "
                          "out", stacklevel=2)  # fmt: skip
        elif trainer.is_global_zero:
            self._begin_anew(key(batch_digest(batch), self.sampling, data.condition))
            found = self.metrics(pictures, batch, truth, data.condition)
            self._record(trainer, module, pictures, batch, found, losses)

    def _begin_anew(self, measure: str) -> None:
        """Forget looks that measured otherwise, of a run that goes on under another configuration."""
        if self.measure not in ("", measure):
            warnings.warn("the held-out items, the condition or the sampler differ from those of the looks "
                          "so far: curve and best checkpoint begin anew", stacklevel=2)  # fmt: skip
            self.history.clear()
            self.history["step"] = []
        self.measure = measure

    def _remember(self, look: dict[str, float]) -> None:
        """Add a look; a figure has nan for the looks that did not measure it, such as those before a resumption."""
        looks = len(self.history["step"])
        for name in {**self.history, **look}:
            values = self.history.setdefault(name, [])
            values += [*[nan] * (looks - len(values)), look.get(name, nan)]

    def _record(
        self,
        trainer: pl.Trainer,
        module: Any,
        pictures: dict[str, Tensor],
        batch: Any,
        found: dict[str, float],
        losses: dict[str, float],
    ) -> None:
        step = trainer.global_step
        if losses:
            losses = {"loss": sum(losses.values()) / len(losses), **{f"loss_{k}": v for k, v in losses.items()}}
        self._remember({"step": step, **found, **losses})
        module.outcome.shown = self._shown()
        watched = {f"watch/{name}": value for name, value in found.items()}
        log_figures(trainer, module, {**watched, **{f"val/{name}": value for name, value in losses.items()}})
        manifest = _manifest(trainer)
        captions, ids = batch["caption"][: self.shown], batch["id"][: self.shown].tolist()
        columns = {name: images[: self.shown] for name, images in pictures.items()}
        sheet = grid(columns, captions)
        save_atomically(sheet, manifest.parent / f"step_{step:07d}.png")
        line = {"file": f"step_{step:07d}.png", "step": step, "columns": [*columns], "ids": ids, "captions": captions}
        append_line(manifest, {**line, **found, **losses})
        for logger in trainer.loggers:
            log_look(logger, sheet, columns, captions, step, not self.looked)
        self.looked = True

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "measure": self.measure}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history.clear()  # the same dict: the module's outcome has it
        self.history |= {name: list(values) for name, values in state_dict["history"].items()}
        self.measure = state_dict.get("measure", "")  # of a checkpoint of an older commit


def _manifest(trainer: pl.Trainer) -> Path:
    return Path(trainer.default_root_dir) / "previews" / "manifest.jsonl"
