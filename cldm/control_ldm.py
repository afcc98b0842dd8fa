"""ControlLDM: a locked latent diffusion model and the control branch that is trained on it."""

import json
from typing import Any

import torch
from torch import Tensor

from cldm.control import ControlUnit
from cldm.controlnet import ControlNet
from ldm.batch import Batch
from ldm.diffusion import ControlBranch, LatentDiffusion
from ldm.random import generator
from ldm.training import DiffusionTraining, OptimizerFactory, Sampling
from ldm.weights import fingerprint


class ControlLDM(DiffusionTraining):
    """Trains `control` on (hint, caption, image) triples; `diffusion` is locked.

    Locked means: no gradient, eval mode, and its encoder runs without a graph; only its decoder carries gradients
    on to the residuals. Prompts are replaced by "" with probability 0.5 (paper, section 3.3), hints by black, which
    says nothing, with probability `hint_dropout`.
    """

    def __init__(
        self,
        diffusion: LatentDiffusion,
        control: ControlNet,
        optimizer: OptimizerFactory,
        prompt_dropout: float = 0.5,
        warmup_steps: int = 0,
        cosine: bool = False,
        seed: int = 0,
        hint_dropout: float = 0.0,
    ):
        super().__init__(diffusion, optimizer, prompt_dropout, False, warmup_steps, cosine, seed)
        if not 0 <= hint_dropout <= 1:
            raise ValueError(f"stage.module.hint_dropout is a probability, got {hint_dropout}")
        self.control, self.hint_dropout = control, hint_dropout
        diffusion.requires_grad_(False)
        self.base_fingerprint = fingerprint(diffusion)  # it is locked: the same before and after training
        self.strict_loading = False  # checkpoints hold the trainable weights only

    def trained(self) -> ControlNet:
        return self.control

    @property
    def facts(self) -> dict[str, str]:
        """What an exported branch's file says of itself beside its weights (docs/bring_your_own.md)."""
        return {
            "base_fingerprint": self.base_fingerprint,
            "prediction": self.diffusion.schedule.prediction,
            "channels": str(self.control.hint_channels),
            "pooling": "false",
            "settings": json.dumps({"control": self.control.encoder.config.untold()}),
        }

    def train(self, mode: bool = True) -> "ControlLDM":
        """The locked model stays in eval mode whatever Lightning asks for."""
        super().train(mode)
        self.diffusion.eval()
        return self

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self.hint_dropout:
            rng = generator(self.seed, "hints", self.global_rank, self.global_step, batch_idx)
            kept = torch.rand(len(batch["hint"]), generator=rng) >= self.hint_dropout
            batch = Batch(**{**batch, "hint": batch["hint"] * kept.to(batch["hint"])[:, None, None, None]})
        return super().training_step(batch, batch_idx)

    def branch(self, batch: Batch) -> ControlBranch:
        return lambda z, t, context: self.control(z, t, context, batch["hint"])

    @torch.no_grad()
    def pictures(self, batch: Batch, sampling: Sampling) -> dict[str, Tensor]:
        size = tuple(batch["image"].shape[-2:])
        prompts, seeds = batch["caption"], batch["id"].tolist()
        return {
            "hint": 2.0 * batch["hint"] - 1.0,
            "controlled": sampling(
                self.diffusion, prompts, seeds, size, control=ControlUnit(self.control, batch["hint"])
            ),
            "real": batch["image"],
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trainable weights only; the base is named by its file, not copied."""
        trainable = {name for name, p in self.named_parameters() if p.requires_grad}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in state if name in trainable}
        checkpoint["base_fingerprint"] = self.base_fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """strict_loading is off, so say here what a strict load would have said."""
        trainable = {name for name, p in self.named_parameters() if p.requires_grad}
        if checkpoint["base_fingerprint"] != self.base_fingerprint:
            raise ValueError(
                f"the checkpoint was trained on base {checkpoint['base_fingerprint']}, but `base` now names "
                f"{self.base_fingerprint}; resume with the base it was started with"
            )
        found = set(checkpoint["state_dict"])
        if found != trainable:
            raise ValueError(
                f"the checkpoint does not fit this control branch: {len(trainable - found)} weights missing, "
                f"{len(found - trainable)} unexpected; was it trained with another `control` or `model`?"
            )
