"""Callbacks of the training stages: average of the trained weights, and pictures and figures along the way."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, TQDMProgressBar
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor

from cldm.evaluation.metrics import scenes_of
from cldm.pictures import grid, save_atomically
from cldm.tracking import commit, log_grid, to_json
from ldm.sharding import is_sharded, share_like, unsharded, whole
from ldm.training import base_facts
from ldm.weights import save_weights

Metrics = Callable[..., dict[str, float]]
"""(pictures, batch, scenes, condition) -> figures; see cldm.evaluation.metrics."""

Sampling = Callable[..., Tensor]
"""See cldm.generation.Sampling."""


class EMA(Callback):
    """Exponential moving average of the trainable weights, with warm-up min(decay, (1 + n) / (10 + n)).

    `swapped(module)` lends the averaged weights to the module: previews, metrics and exported files use them.
    The state is the callback's own, so checkpoints hold it once and the frozen weights never.
    """

    def __init__(self, decay: float = 0.999):
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"trainer EMA decay must be in [0, 1), got {decay}")
        self.decay, self.updates, self.last_step = decay, 0, 0
        self.average: dict[str, Tensor] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        current = _trainable(pl_module)
        if not self.average:
            self.average = {name: p.detach().clone() for name, p in current.items()}
        elif self.average.keys() != current.keys():
            raise ValueError("the checkpoint's EMA belongs to other trainable weights than this run's")
        self.average = {name: share_like(a, current[name]) for name, a in self.average.items()}
        self.last_step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step == self.last_step:  # accumulating gradients: the weights have not moved
            return
        self.last_step = trainer.global_step
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        current = _trainable(pl_module)
        torch._foreach_lerp_([self.average[n] for n in current], [*current.values()], 1.0 - decay)
        self.updates += 1

    @contextmanager
    def swapped(self, module: pl.LightningModule) -> Iterator[None]:
        """Within the context `module` holds the averaged weights; afterwards its own again, come what may."""
        current = _trainable(module)
        raw = {name: p.detach().clone() for name, p in current.items()}
        try:
            _assign(current, self.average or raw)
            yield
        finally:
            _assign(current, raw)

    def state_dict(self) -> dict[str, Any]:
        return {"average": {name: whole(a) for name, a in self.average.items()}, "updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average, self.updates = dict(state_dict["average"]), int(state_dict["updates"])


def _trainable(module: pl.LightningModule) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


@torch.no_grad()
def _assign(parameters: dict[str, torch.nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


@contextmanager
def averaged(trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[None]:
    """The module with its averaged weights if the trainer has an EMA callback, else as it is."""
    ema = next((c for c in trainer.callbacks if isinstance(c, EMA)), None)  # type: ignore[attr-defined]
    if ema is None or not ema.average:
        yield
    else:
        with ema.swapped(module):
            yield


class Watch(Callback):
    """Every `every` optimizer steps: pictures, figures and losses of the same held-out items, with averaged weights.

    Prompts, seeds, timesteps and noise of an item are the same every time, and none of them are training's. Writes
    previews/step_*.png with a line in previews/manifest.jsonl, logs the figures as watch/* and the losses as val/*,
    and keeps their history (`history["step"]` and one list per figure; losses are `loss` and `loss_0-250`, ...) for
    the convergence curve; checkpoints carry it. `key` names the figure that the progress bar shows.
    """

    def __init__(
        self,
        metrics: Metrics,
        sampling: Sampling,
        every: int = 500,
        count: int = 32,
        shown: int = 12,
        key: str | None = None,
    ):
        self.metrics, self.sampling, self.key = metrics, sampling, key
        self.every, self.count, self.shown = every, count, shown
        self.history: dict[str, list[float]] = {"step": []}
        self.last_step = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0:
            self._look(trainer, pl_module)
        self.last_step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step != self.last_step and (step % self.every == 0 or step == trainer.max_steps):
            self._look(trainer, pl_module)
        self.last_step = step

    @torch.no_grad()
    def _look(self, trainer: pl.Trainer, module: Any) -> None:
        """The first process looks; where the weights are shared out all do, since none can without the others."""
        if not (trainer.is_global_zero or is_sharded(module)):
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        items = range(min(self.count, len(data.validation)))
        batch, scenes = data.validation.__getitems__(items), scenes_of(data.validation, items)
        on_device = trainer.strategy.batch_to_device(batch)
        was_training = module.training
        # what is frozen may be held in the precision that the trainer computes in
        with averaged(trainer, module), unsharded(module), trainer.precision_plugin.forward_context():
            module.eval()
            pictures = {name: p.float().cpu() for name, p in module.pictures(on_device, self.sampling).items()}
            losses = {name: loss.mean().item() for name, loss in module.held_out_losses(on_device).items()}
        module.train(was_training)
        if trainer.is_global_zero:
            found = self.metrics(pictures, batch, scenes, data.condition)
            self._record(trainer, pictures, batch, found, losses)

    def _record(
        self,
        trainer: pl.Trainer,
        pictures: dict[str, Tensor],
        batch: Any,
        found: dict[str, float],
        losses: dict[str, float],
    ) -> None:
        step = trainer.global_step
        if losses:
            losses = {"loss": sum(losses.values()) / len(losses), **{f"loss_{k}": v for k, v in losses.items()}}
        self.history["step"].append(step)
        for name, value in {**found, **losses}.items():
            self.history.setdefault(name, []).append(value)
        watched = {f"watch/{name}": value for name, value in found.items()}
        for logger in trainer.loggers:
            logger.log_metrics({**watched, **{f"val/{name}": value for name, value in losses.items()}}, step)
        folder = Path(trainer.default_root_dir) / "previews"
        captions, ids = batch["caption"][: self.shown], batch["id"][: self.shown].tolist()
        columns = {name: images[: self.shown] for name, images in pictures.items()}
        sheet = grid(columns, captions)
        save_atomically(sheet, folder / f"step_{step:07d}.png")
        line = {"file": f"step_{step:07d}.png", "step": step, "columns": [*columns], "ids": ids, "captions": captions}
        with open(folder / "manifest.jsonl", "a") as manifest:
            manifest.write(to_json({**line, **found, **losses}) + "\n")
        for logger in trainer.loggers:
            log_grid(logger, "preview", sheet, columns, captions, step)

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = {name: list(values) for name, values in state_dict["history"].items()}


def save_checkpoint(trainer: pl.Trainer, path: Path) -> None:
    """Write a complete training checkpoint; one that lies there is replaced whole. Every rank has to call this."""
    partial = path.with_name(path.name + ".partial")
    trainer.save_checkpoint(partial, weights_only=False)
    if trainer.is_global_zero:
        partial.replace(path)


class NotFinite(FloatingPointError):
    """A loss is nan or infinite, of this process or another."""

    def __init__(self, message: str, weights_are_good: bool):
        super().__init__(message)
        self.weights_are_good = weights_are_good


def _anywhere(trainer: pl.Trainer, happened: Tensor) -> bool:
    """Whether it has happened in any of the processes, which all ask."""
    return bool(trainer.strategy.reduce(happened.float(), reduce_op="sum"))


class Guard(Callback):
    """Ends a run that cannot go on, with its last good state on disk.

    A job that is told to stop (SIGTERM, or SIGUSR1 / SIGUSR2 where nobody else listens, as clusters send them before
    the time is up) saves `<checkpoints>/last.ckpt` at the next step; so does one that runs out of memory. A loss that
    is not finite, in whatever process, ends all of them before it could touch the weights, which are saved.
    """

    def __init__(self, checkpoints: str):
        self.path = Path(checkpoints) / "last.ckpt"
        self.stepping = False  # the optimizer is at work: weights may be half old, half new

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for name in ("SIGUSR1", "SIGUSR2"):
            number = getattr(signal, name, None)  # not on Windows
            main = threading.current_thread() is threading.main_thread()
            if number is not None and main and signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, lambda *_: os.kill(os.getpid(), signal.SIGTERM))

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        # every process has looked at examples of its own; one that ended alone would leave the others waiting
        if _anywhere(trainer, ~loss.detach().isfinite()):
            values = [getattr(p, "to_local", lambda p=p: p)().isfinite().all() for p in _trainable(pl_module).values()]
            good = not _anywhere(trainer, ~torch.stack(values).all())
            kept = f"its state is in {self.path}" if good else f"so are weights; {self.path} holds the last state saved"
            raise NotFinite(
                f"the loss is {loss.item()} at step {trainer.global_step + 1}; {kept}. Lower optimizer.lr, lengthen "
                "stage.module.warmup_steps, or use trainer.precision=bf16-mixed instead of 16-mixed, then go on with "
                "resume=<run folder>",
                good,
            )

    def on_before_optimizer_step(self, *_: Any) -> None:
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

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        """A checkpoint between two micro-batches counts those of whole optimizer steps: the rest is done again."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        done = trainer.global_step * trainer.accumulate_grad_batches
        for counted in (progress["total"], progress["current"]):
            counted |= dict.fromkeys(("ready", "started", "processed", "completed"), done)


BASE_FILE = "base.safetensors"
"""Beside a branch that was trained with an unlocked base: that base, complete."""


class Export(Callback):
    """Beside every checkpoint: the stage's averaged weights as <stage>.safetensors, ready to sample with.

    A control stage that trains its base too writes that as well, first (base.safetensors).

    metadata: what the file says of itself, such as {"stage": "control", "condition": "canny"}.
    dtype: "float32", or "float16" for a file of half the size.
    """

    def __init__(self, folder: str, metadata: dict[str, str], dtype: str = "float32"):
        if dtype not in ("float32", "float16", "bfloat16"):
            raise ValueError(f"export dtype must be float32, float16 or bfloat16, got {dtype!r}")
        self.folder, self.metadata, self.dtype = Path(folder), metadata, getattr(torch, dtype)

    def write(self, trainer: pl.Trainer, module: Any, **facts: str) -> None:
        """Write the file, with further facts in its metadata; all processes take part where weights are shared out."""
        if not (trainer.is_global_zero or is_sharded(module)):
            return
        metadata = {
            **{name: str(value) for name, value in self.metadata.items()},
            **facts,
            "steps": str(trainer.global_step),
            "commit": commit(),
            "command": " ".join(["python", *sys.argv]),
        }
        with averaged(trainer, module):
            if (base := module.trained_base()) is not None:
                save_weights(base, self.folder / BASE_FILE, {**metadata, **base_facts(base)}, self.dtype)
            path = self.folder / f"{self.metadata['stage']}.safetensors"
            save_weights(module.trained(), path, {**metadata, **module.facts(self.dtype)}, self.dtype)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.write(trainer, pl_module)


class Progress(TQDMProgressBar):
    """Lightning's bar over optimizer steps, with the loss and the watched figure beside it."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Watch) and callback.key and callback.history.get(callback.key):
                items[callback.key] = round(callback.history[callback.key][-1], 3)
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
