"""Is the hint used? A measure cheap enough to date sudden convergence by."""

import warnings
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from cldm.branches.controlnet import ControlNet
from cldm.training.callbacks.pace import log_figures
from cldm.training.callbacks.watch import batch_digest
from ldm.sharding import is_sharded
from ldm.training.outcome import History


class HintUse(Callback):
    """Every `every` optimizer steps: the share of the loss that the right hint saves, on `count` held-out items, and
    the norm of each zero convolution. Both are logged (hint_use, zero_convs/00 ...), the first is kept in checkpoints.

    See ControlLDM.hint_use. Two forward passes of `count` images: every 10 steps and for 8 of a batch of 8 to 16, less
    than a tenth of the step time. Shared-out weights (trainer=fsdp) would have to be gathered each time: there it is
    off.
    """

    def __init__(self, every: int = 10, count: int = 8):
        self.every, self.count = every, count
        self.history: History = {"step": [], "hint_use": []}
        self.measure = ""  # what decides the figures beside the weights
        self.last_step = -1
        self.items: tuple[Tensor, Tensor, Tensor] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        pl_module.outcome.hint_use = self.history  # also of a run whose training was over when it was cut off

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not hasattr(pl_module, "hint_use") or not trainer.is_global_zero or is_sharded(pl_module):
            return
        validation = trainer.datamodule.validation  # type: ignore[attr-defined]
        batch = validation.__getitems__(range(min(self.count, len(validation))))
        self._begin_anew(batch_digest(batch))
        items = trainer.strategy.batch_to_device(batch)
        if len(items["caption"]) > 1:  # else there is no other item's hint
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                diffusion: Any = pl_module.diffusion  # its latents and contexts never change: encoded once
                self.items = diffusion.encode(items["image"]), diffusion.context(items["caption"]), items["hint"]
        if trainer.global_step == 0:
            self._look(trainer, pl_module)
        self.last_step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step != self.last_step and step % self.every == 0:
            with pl_module.clock.paused():  # type: ignore[operator,union-attr]
                self._look(trainer, pl_module)
        self.last_step = step

    def _begin_anew(self, measure: str) -> None:
        """Forget figures of other items or hints, of a run that goes on under another configuration."""
        if self.measure not in ("", measure):
            warnings.warn("the held-out items or their hints differ from those of the curve of hint_use so far: it "
                          "begins anew", stacklevel=2)  # fmt: skip
            self.history |= {"step": [], "hint_use": []}
        self.measure = measure

    def _look(self, trainer: pl.Trainer, module: Any) -> None:
        if self.items is None:
            return
        with trainer.precision_plugin.forward_context():
            use = module.hint_use(*self.items)
        self.history["step"].append(trainer.global_step)
        self.history["hint_use"].append(use)
        log_figures(trainer, module, {"hint_use": use, **zero_conv_norms(module.control)})

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "measure": self.measure}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history.clear()  # the same dict: the module's outcome has it
        self.history |= {name: list(values) for name, values in state_dict["history"].items()}
        self.measure = state_dict.get("measure", "")  # of a checkpoint of an older commit


def zero_conv_norms(branch: nn.Module) -> dict[str, float]:
    """The norm of the weights of each zero convolution of a ControlNet, shallowest first, the middle's last."""
    if not isinstance(branch, ControlNet):
        return {}
    convs = [*branch.zero_convs, branch.zero_conv_middle]
    norms = torch.stack([conv.weight.detach().norm() for conv in convs]).tolist()  # one wait for the device
    return {f"zero_convs/{i:02}": norm for i, norm in enumerate(norms)}
