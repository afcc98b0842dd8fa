"""LightningModules that train the autoencoder and the base diffusion model."""

import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldm.autoencoder import AutoencoderKL
from ldm.batch import Batch
from ldm.diffusion import ControlBranch, LatentDiffusion
from ldm.losses import AutoencoderLoss, LabelProbe, adaptive_weight, hinge_discriminator_loss, min_snr_weight
from ldm.random import generator
from ldm.sharding import shard
from ldm.unet import Block, Middle, UNetConfig
from ldm.weights import fingerprint

Rows = TypeVar("Rows", Tensor, list[str])

Sampling = Callable[..., Tensor]
"""(diffusion, prompts, seeds, size, ...) -> images; see cldm.generation.Sampling."""

BANDS = 4  # of timesteps in which held-out losses are told apart

ProbeFactory = Callable[[UNetConfig], LabelProbe]

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


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

    def configure_model(self) -> None:
        """Called by Lightning before training; under trainer=fsdp, weights are shared out over the processes here."""
        if self.device_mesh is not None:
            shard(self, self.device_mesh["data_parallel"], methods=("training_step", "pictures", "held_out_losses"))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out what is frozen: it is named by its fingerprint, not copied."""
        kept, state = self._changing(), checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in state if name in kept}
        checkpoint["base_fingerprint"] = self.base_fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """strict_loading is off, so say here what a strict load would have said."""
        base = checkpoint.get("base_fingerprint", self.base_fingerprint)
        if base != self.base_fingerprint:
            raise ValueError(
                f"the checkpoint was trained on base {base}, but `base` now names {self.base_fingerprint}; "
                "resume with the base it was started with"
            )
        found, wanted = set(checkpoint["state_dict"]), self._changing()
        unexpected = found - set(self.state_dict())
        if unexpected or not wanted <= found:
            raise ValueError(
                f"the checkpoint does not fit what this stage trains: {len(wanted - found)} weights missing, "
                f"{len(unexpected)} unexpected; was it trained with another `control` or `model`?"
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

    def configure_optimizers(self) -> Any:
        optimizer: Any = self.optimizer_factory(p for p in self.parameters() if p.requires_grad)
        # a fused optimizer would undo the scaling of mixed precision within its step, after gradients are clipped;
        # Lightning refuses to clip then. Without the offer it undoes the scaling, then clips, then steps.
        optimizer._step_supports_amp_scaling = False
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @property
    def world_size(self) -> int:
        """Processes that train together."""
        return 1 if self._trainer is None else self._trainer.world_size

    def step_generator(self, batch_idx: int) -> torch.Generator:
        """Randomness of this step; resuming draws the same, logging in between changes nothing.

        It is the same on every rank: what is drawn for the global batch is then shared out (`mine`), so that an
        example gets the same noise however many processes there are.
        """
        return generator(self.seed, 0, self.global_step, batch_idx, device=self.device)

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
        schedulers = [
            torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
            for optimizer, rate in zip(optimizers, rates, strict=True)
        ]
        return optimizers, schedulers

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            raise ValueError("stage=autoencoder is small: use trainer=ddp; trainer=fsdp is for the other stages")

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
        """Give the latents unit standard deviation, once they are final; measured on the same items every time."""
        if not self.decoder_only and self.global_rank == 0:
            loader: Any = self.trainer.train_dataloader
            items = loader.dataset
            batch = items.__getitems__(range(min(64, len(items))))
            set_latent_scale(self.autoencoder, batch["image"].to(self.device))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x = batch["image"]
        posterior = self.autoencoder.posterior(x)
        noise = self.noise_like(posterior.mean, self.step_generator(batch_idx))
        y = self.autoencoder.decode(self.autoencoder.scale * posterior.sample(noise))
        loss, terms = self.loss(x, y, posterior)
        if self.discriminator is not None:
            terms |= self._adversarial_step(self.discriminator, x, y, loss)
        self.log("train/loss", loss.detach(), prog_bar=True)
        self.log_dict({f"train/{name}": value for name, value in terms.items()})
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


def stratified_timesteps(count: int, steps: int, rng: torch.Generator) -> Tensor:
    """Uniform timesteps (count,), one of each of `count` equal bands, in random order: quieter gradients."""
    jitter = torch.rand(count, generator=rng, device=rng.device)
    bands = torch.randperm(count, generator=rng, device=rng.device)
    return ((bands + jitter) / count * steps).long().clamp(max=steps - 1)


def shifted_timesteps(t: Tensor, steps: int, shift: float) -> Tensor:
    """Uniform timesteps t (b,) in 0..steps - 1 made noisier: u = t / steps becomes shift u / (1 + (shift - 1) u) (Esser
    et al. 2024, arXiv:2403.03206, equation 23, without its change of the noise levels themselves)."""
    u = (t + 0.5) / steps
    return (shift * u / (1.0 + (shift - 1.0) * u) * steps).long().clamp(max=steps - 1)


def drop_prompts(prompts: Sequence[str], rate: float, rng: torch.Generator) -> list[str]:
    """Replace each prompt by "" with probability `rate`."""
    dropped = torch.rand(len(prompts), generator=rng, device=rng.device) < rate
    return ["" if drop else prompt for prompt, drop in zip(prompts, dropped.tolist(), strict=True)]


def forget_activations(network: nn.Module) -> None:
    """Let the blocks of a U-Net or branch compute their activations again in the backward pass, instead of keeping."""
    for block in network.modules():
        if isinstance(block, Block | Middle):
            again = functools.partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
            block.forward = again  # type: ignore[method-assign]  # no module around it: the weights keep their names


@contextmanager
def recorded(module: nn.Module) -> Iterator[list[Tensor]]:
    """Within the context, collects what `module` returns."""
    outputs: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


def base_facts(diffusion: LatentDiffusion) -> dict[str, str]:
    """What the file of a base model says of it beside its weights; `python -m cldm convert` reads it."""
    return {"prediction": diffusion.schedule.prediction, "settings": json.dumps(diffusion.untold())}


class DiffusionTraining(Stage):
    """Trains the U-Net and the text encoder on the latents of a fixed autoencoder.

    probe: UNetConfig -> LabelProbe, whose loss on the batch's `labels` is added; it is trained alongside and not
        exported. None leaves it out.
    min_snr_gamma: weights the loss by timestep, see ldm.losses.min_snr_weight (5 is usual); None weights all alike.
    checkpointing: keep no activations within the blocks of the U-Net (and of a branch), compute them again in the
        backward pass: a third more work, a fraction of the memory, the same gradients.
    channels_last: how the U-Net's weights lie in memory: a quarter of the step less in float32 on CPU, but a tenth more
        in bf16-mixed there.
    timestep_shift: above 1, more of the training at high noise levels, where shapes are decided, see
        `shifted_timesteps`.
    """

    def __init__(
        self,
        diffusion: LatentDiffusion,
        optimizer: OptimizerFactory,
        prompt_dropout: float = 0.1,
        train_text_encoder: bool = True,
        warmup_steps: int = 100,
        cosine: bool = True,
        seed: int = 0,
        probe: ProbeFactory | None = None,
        min_snr_gamma: float | None = None,
        checkpointing: bool = False,
        channels_last: bool = True,
        timestep_shift: float = 1.0,
    ):
        super().__init__(optimizer, warmup_steps, cosine, seed)
        if min_snr_gamma is not None and min_snr_gamma <= 0:
            raise ValueError(f"stage.module.min_snr_gamma must be above 0, or null, got {min_snr_gamma}")
        self.timestep_shift = timestep_shift
        self.diffusion, self.prompt_dropout, self.min_snr_gamma = diffusion, prompt_dropout, min_snr_gamma
        if channels_last:
            diffusion.unet.to(memory_format=torch.channels_last)
        if checkpointing:
            forget_activations(diffusion.unet)
        self.probe = probe(diffusion.unet.config) if probe else None
        diffusion.autoencoder.requires_grad_(False)
        diffusion.conditioner.requires_grad_(train_text_encoder)
        self.base_fingerprint = fingerprint(diffusion.autoencoder)

    def trained(self) -> nn.Module:
        return self.diffusion

    def facts(self, dtype: torch.dtype | None = None) -> dict[str, str]:
        return base_facts(self.diffusion)

    def hold_frozen_in(self, precision: str) -> None:
        dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision, torch.float32)
        for parameter in self.diffusion.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)

    def latents(self, batch: Batch, rng: torch.Generator) -> Tensor:
        """Scaled latents drawn from the posterior of the batch's cached moments or images."""
        autoencoder = self.diffusion.autoencoder
        with torch.no_grad():
            moments = batch["moments"] if "moments" in batch else autoencoder.moments(batch["image"])
            noise = self.noise_like(moments[:, : moments.shape[1] // 2], rng)
            return autoencoder.latents(moments, noise)

    def context(self, batch: Batch, rng: torch.Generator) -> Tensor:
        """Contexts of the batch's prompts, some of them dropped; from the cache where the batch has them."""
        prompts = self.mine(drop_prompts([*batch["caption"]] * self.world_size, self.prompt_dropout, rng))
        if "context" not in batch:
            return self.diffusion.context(prompts)
        if any(p.requires_grad for p in self.diffusion.conditioner.parameters()):
            raise ValueError(
                "cached contexts (data=cached) cannot train the text encoder; set train_text_encoder=false"
            )
        with torch.no_grad():
            empty = self.diffusion.context([""])
        kept = torch.tensor([bool(prompt) for prompt in prompts], device=empty.device)
        return torch.where(kept[:, None, None], batch["context"].to(empty.dtype), empty)

    def weighted(self, losses: Tensor, t: Tensor) -> Tensor:
        """Mean of the examples' losses (b,), each weighted by its timestep where min_snr_gamma says so."""
        if self.min_snr_gamma is None:
            return losses.mean()
        schedule = self.diffusion.schedule
        return (min_snr_weight(schedule.snr(t), self.min_snr_gamma, schedule.prediction) * losses).mean()

    def branch(self, batch: Batch) -> ControlBranch | None:
        """The control branch to train with this batch; the base model has none."""
        return None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        rng = self.step_generator(batch_idx)
        z0 = self.latents(batch, rng)
        t = stratified_timesteps(self.world_size * len(z0), self.diffusion.schedule.steps, rng)
        t = self.mine(shifted_timesteps(t, self.diffusion.schedule.steps, self.timestep_shift))
        eps = self.noise_like(z0, rng)
        context = self.context(batch, rng)
        if self.probe is None:
            loss = self.weighted(self.diffusion.loss(z0, context, t, eps, self.branch(batch)), t)
        else:
            with recorded(self.diffusion.unet.decoder.blocks[self.probe.block]) as outputs:
                loss = self.weighted(self.diffusion.loss(z0, context, t, eps, self.branch(batch)), t)
            extra = self.probe(outputs[0], batch["labels"])
            self.log_dict({"train/denoising": loss.detach(), "train/probe": extra.detach()})
            loss = loss + extra
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    @torch.no_grad()
    def pictures(self, batch: Batch, sampling: Sampling) -> dict[str, Tensor]:
        size = batch["image"].shape[-2:]
        images = sampling(self.diffusion, batch["caption"], batch["id"].tolist(), tuple(size))
        reconstruction = self.diffusion.decode(self.diffusion.encode(batch["image"]))
        return {"target": batch["image"], "reconstruction": reconstruction, "sample": images}

    @torch.no_grad()
    def held_out_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Denoising losses (b,) in BANDS bands of timesteps, "0-250", "250-500", ...; prompts and hints are kept."""
        z0, context, ids = self.diffusion.encode(batch["image"]), self.diffusion.context(batch["caption"]), batch["id"]
        width = self.diffusion.schedule.steps // BANDS
        losses = {}
        for first in range(0, BANDS * width, width):
            rngs = [generator("held out", item, first) for item in ids.tolist()]
            t = torch.cat([torch.randint(first, first + width, (1,), generator=rng) for rng in rngs])
            eps = torch.stack([torch.randn(z0.shape[1:], generator=rng) for rng in rngs])
            losses[f"{first}-{first + width}"] = self.diffusion.loss(
                z0, context, t.to(z0.device), eps.to(z0), self.branch(batch)
            )
        return losses
