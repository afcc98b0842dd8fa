"""ControlLDM: a locked latent diffusion model and the control branch that is trained on it."""

import json
from typing import Any

import torch
from torch import Tensor, nn

from cldm.branches.controlnet import Branch, ControlNet
from cldm.sampling.control import ControlUnit
from ldm.batch import Batch
from ldm.diffusion import ControlBranch, LatentDiffusion
from ldm.random import generator
from ldm.training.diffusion import DiffusionTraining, forget_activations
from ldm.training.stage import OptimizerFactory, Sampling
from ldm.unet import ControlResiduals
from ldm.weights import fingerprint

LOCKING: dict[str, tuple[str, ...]] = {
    "locked": (),
    "decoder": ("decoder",),
    "unlocked": ("encoder", "decoder"),
    "scratch": ("encoder", "decoder"),
}
"""stage.module.locking -> the parts of the U-Net that train beside the branch. "decoder" is the original code's
sd_locked=False; "scratch" is "unlocked" with random weights in U-Net and branch (train.py leaves them unloaded)."""


class ControlLDM(DiffusionTraining):
    """Trains `control` on (hint, caption, image) triples; `diffusion` is locked.

    Locked means: no gradient, eval mode, and its encoder runs without a graph; only its decoder carries gradients
    on to the residuals. Prompts are replaced by "" with probability 0.5 (paper, section 3.3), hints by black, which
    says nothing, with probability `hint_dropout`.

    locking: a key of LOCKING: what trains of the U-Net too. Autoencoder and text encoder are locked in any case.
    unlocked_rate: the learning rate of pretrained weights that `locking` lets train, as a share of the branch's. What
        starts from random weights (scratch) trains at the full rate.
    middle_only: add the middle residual only (the original code's only_mid_control). The other zero convolutions are
        zero and stay so, so that the exported branch does the same wherever it is loaded.
    """

    def __init__(
        self,
        diffusion: LatentDiffusion,
        control: Branch,
        optimizer: OptimizerFactory,
        prompt_dropout: float = 0.5,
        warmup_steps: int = 0,
        cosine: bool = False,
        seed: int = 0,
        hint_dropout: float = 0.0,
        locking: str = "locked",
        unlocked_rate: float = 0.2,
        middle_only: bool = False,
        min_snr_gamma: float | None = None,
        checkpointing: bool = False,
        channels_last: bool = True,
        timestep_shift: float = 1.0,
    ):
        super().__init__(
            diffusion, optimizer, prompt_dropout, False, warmup_steps, cosine, seed,
            min_snr_gamma=min_snr_gamma, checkpointing=checkpointing, channels_last=channels_last,
            timestep_shift=timestep_shift,
        )  # fmt: skip
        if not 0 <= hint_dropout <= 1:
            raise ValueError(f"stage.module.hint_dropout is a probability, got {hint_dropout}")
        if locking not in LOCKING:
            raise ValueError(f"stage.module.locking must be one of {', '.join(LOCKING)}, got {locking!r}")
        if middle_only and not isinstance(control, ControlNet):
            raise ValueError("stage.module.middle_only=true needs a middle residual, which control=concat has not")
        if not unlocked_rate > 0:
            raise ValueError(f"stage.module.unlocked_rate must be above 0, got {unlocked_rate}")
        self.control, self.hint_dropout = control, hint_dropout
        if channels_last:
            control.to(memory_format=torch.channels_last)
        self.unlocked_rate = unlocked_rate
        self.locking, self.middle_only = locking, middle_only
        diffusion.requires_grad_(False)
        for part in self._unlocked():
            part.requires_grad_(True)
        if checkpointing:
            forget_activations(control)
        if middle_only and isinstance(control, ControlNet):
            control.zero_convs.requires_grad_(False)
        self.base_fingerprint = fingerprint(diffusion)  # of the base that training starts with

    def _unlocked(self) -> list[nn.Module]:
        return [getattr(self.diffusion.unet, name) for name in LOCKING[self.locking]]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The branch; and what is unlocked of the U-Net, at a rate of its own."""
        unlocked = [p for part in self._unlocked() for p in part.parameters()]
        known = {id(p) for p in unlocked}
        branch = [p for p in self.parameters() if p.requires_grad and id(p) not in known]
        rate = 1.0 if self.locking == "scratch" else self.unlocked_rate
        return [{"params": branch}, *([{"params": unlocked, "rate": rate}] if unlocked else [])]

    def on_fit_start(self) -> None:
        if self.middle_only and isinstance(self.control, ControlNet):  # the weights of init_from may have said more
            for parameter in self.control.zero_convs.parameters():
                nn.init.zeros_(parameter)

    def trained(self) -> Branch:
        return self.control

    def trained_base(self) -> LatentDiffusion | None:
        """The base, where training changes it; None where it is locked."""
        return self.diffusion if LOCKING[self.locking] else None

    def facts(self, dtype: torch.dtype | None = None) -> dict[str, str]:
        """What an exported branch's file says of itself beside its weights (docs/bring_your_own.md).

        dtype: of the file, and so of the base that is exported with it.
        """
        return {
            "base_fingerprint": fingerprint(self.diffusion, dtype) if self.trained_base() else self.base_fingerprint,
            "locking": self.locking,
            "prediction": self.diffusion.schedule.prediction,
            "channels": str(self.control.hint_channels),
            "pooling": "false",
            "settings": json.dumps(
                {"control": self.control.config.untold(), "schedule": self.diffusion.schedule.told()}
            ),
        }

    def train(self, mode: bool = True) -> "ControlLDM":
        """What is locked stays in eval mode whatever Lightning asks for."""
        super().train(mode)
        self.diffusion.eval()
        for part in self._unlocked():
            part.train(mode)
        return self

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self.hint_dropout:
            rng = self.step_generator(batch_idx, "hints", device="cpu")
            kept = self.mine(torch.rand(self.world_size * len(batch["hint"]), generator=rng)) >= self.hint_dropout
            batch = Batch(**{**batch, "hint": batch["hint"] * kept.to(batch["hint"])[:, None, None, None]})
        return super().training_step(batch, batch_idx)

    def branch(self, batch: Batch) -> ControlBranch:
        def residuals(z: Tensor, t: Tensor, context: Tensor) -> ControlResiduals:
            found = self.control(z, t, context, batch["hint"])
            if not self.middle_only:
                return found
            return ControlResiduals(tuple(torch.zeros_like(skip) for skip in found.skips), found.middle)

        return residuals

    @torch.no_grad()
    def hint_use(self, z0: Tensor, context: Tensor, hints: Tensor) -> float:
        """1 - (loss with each item's own hint) / (loss with another item's), at high noise, where the hint decides
        what lies where. 0: the hint makes no difference. Noise and timesteps are the same every time.

        Latents z0 (n, c, h, w), contexts (n, k, d) and hints (n, 3, 8 h, 8 w) of held-out items.
        """
        steps, count = self.diffusion.schedule.steps, len(z0)
        t = torch.linspace(0.6 * steps, steps - 1, count, device=z0.device).long()
        eps = torch.randn(z0.shape, generator=generator("hint use")).to(z0)
        own, other = (
            self.diffusion.loss(z0, context, t, eps, self.branch(Batch(hint=shown))).mean()
            for shown in (hints, hints.roll(1, 0))
        )
        return (1 - own / other).item()

    @torch.no_grad()
    def pictures(self, batch: Batch, sampling: Sampling) -> dict[str, Tensor]:
        size = tuple(batch["image"].shape[-2:])
        prompts, seeds = batch["caption"], batch["id"].tolist()
        unit = ControlUnit(self.control, batch["hint"])
        return {
            "hint": 2.0 * batch["hint"] - 1.0,
            "target": batch["image"],
            "reconstruction": self.diffusion.decode(self.diffusion.encode(batch["image"])),
            "controlled": sampling(self.diffusion, prompts, seeds, size, control=unit),
        }
