"""What the stages of training share."""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ldm.batch import Batch
from ldm.diffusion import LatentDiffusion
from ldm.random import generator
from ldm.sharding import shard
from ldm.training.clock import Clock
from ldm.training.outcome import Outcome

Rows = TypeVar("Rows", Tensor, list[str])

Sampling = Callable[..., Tensor]
"""(diffusion, prompts, seeds, size, ...) -> images; see cldm.sampling.generation.Sampling."""

OptimizerFactory = Callable[[Iterable[Any]], torch.optim.Optimizer]


class DoesNotFit(ValueError):
    """A checkpoint that training cannot go on with as it is configured now."""


class Stage(pl.LightningModule):
    """What the training stages share: optimizer, learning-rate schedule, and noise as a function of the step.

    optimizer: parameters -> optimizer. The rate warms up over `warmup_steps` optimizer steps, then stays, or
    falls along a cosine to 2 % at the trainer's max_steps (`cosine=True`).
    """

    def __init__(self, optimizer: OptimizerFactory, warmup_steps: int = 100, cosine: bool = True, seed: int = 0):
        super().__init__()
        self.optimizer_factory, self.warmup_steps, self.cosine, self.seed = (
            optimizer,
            warmup_steps,
            cosine,
            seed,
        )
        self.strict_loading = False  # checkpoints hold no frozen weights
        self.base_fingerprint = ""  # of the frozen model that training starts with, where there is one
        self.clock, self.outcome = Clock(), Outcome()
        self.optimizers_saved: list[str] | None = None  # what they are called in the checkpoint that is resumed
        self._logged: tuple[int, list[dict[str, Tensor]]] = (-1, [])  # of an optimizer step: what its batches said

    def configure_model(self) -> None:
        """Called by Lightning before training; under trainer=fsdp, weights are shared out over the processes here."""
        if self.device_mesh is not None:
            self.to(memory_format=torch.contiguous_format)  # other layouts cannot be shared out
            shard(self, self.device_mesh["data_parallel"], methods=("training_step", "pictures", "held_out_losses"))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out what is frozen: it is named by its fingerprint, not copied."""
        kept, state = self._changing(), checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in state if name in kept}
        checkpoint["base_fingerprint"] = self.base_fingerprint
        checkpoint["seconds"] = self.clock.seconds
        checkpoint["optimizers"] = [type(optimizer).__name__ for optimizer in self.trainer.optimizers]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """strict_loading is off, so say here what a strict load would have said. What had begun of an optimizer step is
        done again: Lightning's count of batches becomes that of whole steps, each of as many as the trainer now takes.
        """
        self._refuse_another(checkpoint)
        self.clock.before, self.optimizers_saved = checkpoint.get("seconds", 0.0), checkpoint.get("optimizers")
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        done = checkpoint["global_step"] * self.trainer.accumulate_grad_batches
        if progress["total"]["ready"] == progress["current"]["ready"]:  # data without end is a single epoch
            for counted in (progress["total"], progress["current"]):
                counted |= dict.fromkeys(("ready", "started", "processed", "completed"), done)
            loop = checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]
            loop["_batches_that_stepped"] = checkpoint["global_step"]  # what the loggers take for the step

    def _refuse_another(self, checkpoint: dict[str, Any]) -> None:
        """DoesNotFit for a checkpoint of another base, of other weights, or of a step past the last."""
        base = checkpoint.get("base_fingerprint", self.base_fingerprint)
        if base != self.base_fingerprint:
            raise DoesNotFit(
                f"the checkpoint was trained on base {base}, but `base` now names {self.base_fingerprint}; "
                "resume with the base it was started with"
            )
        saved, state, wanted = checkpoint["state_dict"], self.state_dict(), self._changing()
        missing, unexpected = wanted - saved.keys(), saved.keys() - wanted
        other = [name for name in saved.keys() & state.keys() if saved[name].shape != state[name].shape]
        if missing or unexpected or other:
            raise DoesNotFit(
                f"the checkpoint does not fit what this stage trains: {len(missing)} weights missing, "
                f"{len(unexpected)} unexpected, {len(other)} of another shape; "
                "was it trained with another `control`, `model` or `stage.module.locking`?"
            )
        if 0 <= self.trainer.max_steps < checkpoint["global_step"]:
            raise DoesNotFit(
                f"steps={self.trainer.max_steps}, but the run is at step {checkpoint['global_step']} already; "
                "ask for more steps"
            )

    def _changing(self) -> set[str]:
        """Names in the state dict of what training changes: weights that train, and buffers beside such weights."""
        parameters = dict(self.named_parameters())
        parts = {name: self.get_submodule(name.rpartition(".")[0]) for name in self.state_dict()}
        return {
            name
            for name, part in parts.items()
            if any(p.requires_grad for p in ([parameters[name]] if name in parameters else part.parameters()))
        }

    def trained(self) -> nn.Module:
        """The module whose weights this stage exists to produce; its exported file holds them."""
        raise NotImplementedError

    def trained_base(self) -> LatentDiffusion | None:
        """A base model that training changes on the way and that the exported file needs; None if there is none."""
        return None

    def exporting(self) -> AbstractContextManager[None]:
        """Within the context the module is as its exported file shall have it."""
        return nullcontext()

    def facts(self, dtype: torch.dtype | None = None) -> dict[str, str]:
        """What the exported file, of this precision, says of itself beside its weights."""
        return {}

    def pictures(self, batch: Batch, sampling: Sampling) -> dict[str, Tensor]:
        """Images (b, 3, h, w) in [-1, 1] to look at, by name, drawn from the current weights."""
        raise NotImplementedError

    def held_out_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Losses (b,) of held-out items by name, with an item's own randomness, the same every time."""
        return {}

    def rate(self, step: int) -> float:
        """Learning-rate factor at an optimizer step."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if not self.cosine:
            return 1.0
        total = max(self.trainer.max_steps - self.warmup_steps, 1)
        progress = min((step - self.warmup_steps) / total, 1.0)
        return 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * progress))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What trains, as the optimizer's groups; a group may have "rate", its share of the optimizer's lr."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def configure_optimizers(self) -> Any:
        groups = self.parameter_groups()
        shares = [group.pop("rate", 1.0) for group in groups]
        optimizer: Any = self.optimizer_factory(groups)
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] *= share
        # a fused optimizer would undo the scaling of mixed precision within its step, after gradients are clipped;
        # Lightning refuses to clip then. Without the offer it undoes the scaling, then clips, then steps.
        optimizer._step_supports_amp_scaling = False
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduled(optimizer), "interval": "step"}}

    def scheduled(self, optimizer: Any, rate: Callable[[int], float] | None = None) -> LambdaLR:
        """The schedule of a new optimizer: `rate`, or the stage's own, times what the configuration says."""
        groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        optimizer.configured = [{**group, "lr": float(group["lr"])} for group in groups]  # a tensor's value changes
        return LambdaLR(optimizer, rate or self.rate)

    def on_train_start(self) -> None:
        """What the configuration says of the optimizers holds, whatever a checkpoint has said; its moments stay."""
        names = [type(optimizer).__name__ for optimizer in self.trainer.optimizers]
        if self.optimizers_saved not in (None, names):
            raise DoesNotFit(
                f"the checkpoint holds the moments of {', '.join(self.optimizers_saved)}, which optimizer._target_ "
                f"({', '.join(names)}) cannot use; go on with that one, or start anew from its weights with init_from="
            )
        schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        for optimizer, scheduler in zip(self.trainer.optimizers, schedulers, strict=True):
            configure(optimizer, scheduler)
        self.clock.start()

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any = None) -> None:
        """Lightning's, and then the gradients' memory is given back: Lightning would keep it until the next backward
        pass, through a forward pass that can use it."""
        super().optimizer_step(epoch, batch_idx, optimizer, closure)
        optimizer.zero_grad()

    def on_train_end(self) -> None:
        self.clock.stop()

    def log_means(self, figures: Mapping[str, Tensor]) -> None:
        """Log figures of this batch as means over all batches of the optimizer step, of every process: a run in two
        processes, or with accumulated gradients, has the curve of one with as large a batch."""
        step, before = self._logged
        mine = {name: value.detach().float() for name, value in figures.items()}
        found = [*(before if step == self.global_step else ()), mine]
        self._logged = self.global_step, found
        for name in figures:
            mean = torch.stack([one[name] for one in found]).mean()
            self.log(name, mean, prog_bar=name == "train/loss", sync_dist=self.world_size > 1)

    @property
    def world_size(self) -> int:
        """Processes that train together."""
        return 1 if self._trainer is None else self._trainer.world_size

    def step_generator(self, batch_idx: int, *names: str, device: torch.device | str | None = None) -> torch.Generator:
        """Randomness of this step, on the module's device or another, and apart from what has other names; resuming
        draws the same, logging in between changes nothing.

        It is the same on every rank: what is drawn for the global batch is then shared out (`mine`), so that an
        example gets the same noise however many processes there are.
        """
        return generator(self.seed, *names, 0, self.global_step, batch_idx, device=device or self.device)

    def mine(self, rows: Rows) -> Rows:
        """This rank's rows of what was drawn for the global batch."""
        share = len(rows) // self.world_size
        return rows[self.global_rank * share :][:share]

    def noise_like(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """Standard normal noise for this rank's examples x (b, ...)."""
        shape = (self.world_size * len(x), *x.shape[1:])
        return self.mine(torch.empty(shape, dtype=x.dtype, device=x.device).normal_(generator=rng))

    def hold_frozen_in(self, precision: str) -> None:
        """Hold weights that do not train in what the trainer computes in ("bf16-mixed", "16-mixed"): half the memory.

        `module.float()` ends it; what was rounded stays so.
        """


def configure(optimizer: Any, scheduler: Any) -> None:
    """Let what the optimizer was made with hold in its groups, and the rates of the schedule follow from it."""
    told = optimizer.configured
    scheduler.base_lrs = [own["lr"] for own in told]
    factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
    rates = scheduler._last_lr = [base * factor for base, factor in zip(scheduler.base_lrs, factors, strict=True)]
    fused = [group.get("fused") for group in optimizer.param_groups]
    for group, own, base, rate in zip(optimizer.param_groups, told, scheduler.base_lrs, rates, strict=True):
        held = group["lr"]
        group |= {**own, "initial_lr": base, "lr": held.fill_(rate) if isinstance(held, Tensor) else rate}
    if fused != [own.get("fused") for own in told]:  # fused code wants step counters on the device of the weights
        optimizer.load_state_dict(optimizer.state_dict())
