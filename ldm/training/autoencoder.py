"""Training of the autoencoder."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn

from ldm.autoencoder import AutoencoderKL
from ldm.batch import Batch
from ldm.losses import AutoencoderLoss, adaptive_weight, hinge_discriminator_loss
from ldm.training.stage import OptimizerFactory, Sampling, Stage


class AutoencoderTraining(Stage):
    """Trains AutoencoderKL; optionally only its decoder (the latents stay), optionally against a patch GAN.

    discriminator: images (b, 3, h, w) -> logits, such as PatchDiscriminator; None trains without a GAN. From
    step `discriminator_start` on, each step also trains the discriminator, with its own optimizer, and adds
    discriminator_weight * adaptive_weight * adversarial loss to the autoencoder's (Esser et al. 2021). A GAN
    clips gradients to the norm `gradient_clip` by itself: set trainer.gradient_clip_val=null. `global_step`,
    and with it max_steps and every schedule, counts the autoencoder's steps alone.
    """

    def __init__(
        self,
        autoencoder: AutoencoderKL,
        loss: AutoencoderLoss,
        optimizer: OptimizerFactory,
        decoder_only: bool = False,
        warmup_steps: int = 100,
        cosine: bool = True,
        seed: int = 0,
        discriminator: nn.Module | None = None,
        discriminator_start: int = 0,
        discriminator_weight: float = 0.5,
        gradient_clip: float = 1.0,
    ):
        super().__init__(optimizer, warmup_steps, cosine, seed)
        # convolutions of images are a fifth faster so on CPU, and tensor cores want it too
        self.autoencoder = autoencoder.to(memory_format=torch.channels_last)
        self.loss, self.decoder_only = loss, decoder_only
        self.discriminator, self.discriminator_start = discriminator, discriminator_start
        self.discriminator_weight, self.gradient_clip = discriminator_weight, gradient_clip
        self._measured_on: Tensor | None = None
        self.automatic_optimization = discriminator is None  # Lightning's own loop knows one optimizer
        if decoder_only:
            autoencoder.encoder.requires_grad_(False)
            autoencoder.quant_conv.requires_grad_(False)

    def configure_optimizers(self) -> Any:
        if self.discriminator is None:
            return super().configure_optimizers()
        optimizers = [
            self.optimizer_factory(p for p in network.parameters() if p.requires_grad)
            for network in (self.autoencoder, self.discriminator)
        ]
        # the discriminator's counts its own steps: it warms up too, then falls as the autoencoder's does
        rates = [self.rate, lambda step: min(self.rate(step), self.rate(step + self.discriminator_start))]
        return optimizers, [self.scheduled(*pair) for pair in zip(optimizers, rates, strict=True)]

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            raise ValueError("stage=autoencoder is small: use trainer=ddp; trainer=fsdp is for the other stages")

    def setup(self, stage: str) -> None:
        strategy = self.trainer.strategy
        if self.discriminator is not None and isinstance(strategy, DDPStrategy):
            # each backward pass reaches one of the two networks: DDP must not wait for gradients of the other
            strategy._ddp_kwargs["find_unused_parameters"] = True

    def on_fit_start(self) -> None:
        if self.discriminator is not None and self.trainer.precision == "16-mixed":
            raise ValueError("stage.module.discriminator needs trainer.precision=bf16-mixed, not 16-mixed")

    def trained(self) -> nn.Module:
        return nn.ModuleDict({"autoencoder": self.autoencoder})  # named as in LatentDiffusion

    def facts(self, dtype: torch.dtype | None = None) -> dict[str, str]:
        return {"settings": json.dumps({"autoencoder": self.autoencoder.untold()})}

    @torch.no_grad()
    def pictures(self, batch: Batch, sampling: Sampling) -> dict[str, Tensor]:
        x = batch["image"]
        y = self.autoencoder.decode(self.autoencoder.encode(x))
        return {"image": x, "reconstruction": y.clamp(-1, 1)}

    def on_train_end(self) -> None:
        """Give the latents unit standard deviation, once they are final."""
        super().on_train_end()
        if self.global_rank == 0:
            self._scale_latents()

    @contextmanager
    def exporting(self) -> Iterator[None]:
        """With the latent scale of the weights that are written now, averaged ones for instance; training goes on
        with its own."""
        before = self.autoencoder.scale.clone()
        self._scale_latents()
        try:
            yield
        finally:
            self.autoencoder.scale.copy_(before)

    def _scale_latents(self) -> None:
        """Measured on the same items every time; latents of a fixed encoder keep their scale."""
        if self.decoder_only:
            return
        if self._measured_on is None:
            data: Any = getattr(self.trainer, "datamodule", None)  # shards have numbered items for validation only
            items = data.validation if data else self.trainer.train_dataloader.dataset  # type: ignore[union-attr]
            self._measured_on = items.__getitems__(range(min(64, len(items))))["image"]
        set_latent_scale(self.autoencoder, self._measured_on.to(self.autoencoder.scale.device))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x = batch["image"]
        posterior = self.autoencoder.posterior(x)
        noise = self.noise_like(posterior.mean, self.step_generator(batch_idx))
        y = self.autoencoder.decode(self.autoencoder.scale * posterior.sample(noise))
        loss, terms = self.loss(x, y, posterior)
        if self.discriminator is not None:
            terms |= self._adversarial_step(self.discriminator, x, y, loss)
        self.log_means({"train/loss": loss, **{f"train/{name}": value for name, value in terms.items()}})
        return loss

    def _adversarial_step(self, discriminator: nn.Module, x: Tensor, y: Tensor, loss: Tensor) -> dict[str, Tensor]:
        """One step of the autoencoder, for `loss` and the discriminator's verdict on y; then, once the
        discriminator has begun, one step of it."""
        # Lightning's wrapped optimizer counts global_step. Stepping the discriminator's bare one keeps it the
        # number of autoencoder steps, which every schedule, callback and checkpoint goes by.
        optimizer: Any = self.optimizers()[0]  # type: ignore[index]
        bare: Any = self.optimizers(use_pl_optimizer=False)
        schedulers: Any = self.lr_schedulers()
        begun = self.global_step >= self.discriminator_start
        terms = {}
        if begun:
            discriminator.requires_grad_(False)  # the autoencoder's step needs no gradient of its weights
            adversarial = -discriminator(y).mean()
            discriminator.requires_grad_(True)
            weight = self.discriminator_weight * adaptive_weight(
                loss, adversarial, self.autoencoder.decoder.conv_out.weight
            )
            loss = loss + weight * adversarial
            terms = {"adversarial": adversarial.detach(), "adversarial_weight": weight}
        self._descend(optimizer, schedulers[0], loss)
        if begun:
            terms["discriminator"] = hinge_discriminator_loss(discriminator(x), discriminator(y.detach()))
            self._descend(bare[1], schedulers[1], terms["discriminator"])
        return {name: term.detach() for name, term in terms.items()}

    def _descend(self, optimizer: Any, scheduler: Any, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, self.gradient_clip)
        optimizer.step()
        scheduler.step()


@torch.no_grad()
def set_latent_scale(autoencoder: AutoencoderKL, images: Tensor) -> None:
    """scale = 1 / std of the latents of these images (Rombach et al. 2022, appendix G)."""
    autoencoder.scale.fill_(1.0)
    autoencoder.scale.copy_(1.0 / autoencoder.encode(images).std())
