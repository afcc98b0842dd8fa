"""Training of the base diffusion model, and what every denoising stage draws and records."""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldm.batch import Batch
from ldm.diffusion import ControlBranch, LatentDiffusion
from ldm.losses import LabelProbe, min_snr_weight
from ldm.random import generator
from ldm.training.stage import OptimizerFactory, Sampling, Stage
from ldm.unet import Block, Middle, UNetConfig
from ldm.weights import fingerprint

BANDS = 4  # of timesteps in which held-out losses are told apart

ProbeFactory = Callable[[UNetConfig], LabelProbe | None]


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
    channels_last: how weights of convolutions lie in memory. On a CPU a step at the main job's sizes takes a tenth to
        a quarter less time with it in float32, and a tenth more in bf16-mixed; at Stable Diffusion's sizes a quarter
        more, since gradients come in the other layout and are copied.
    timestep_shift: above 1, more of the training at high noise levels, where shapes are decided, see
        `shifted_timesteps`.
    pure_noise: share of the examples at the last timestep. With zero terminal SNR the words alone say there what lies
        where; one timestep earlier, the noisy latents tell it too.
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
        pure_noise: float = 0.0,
    ):
        super().__init__(optimizer, warmup_steps, cosine, seed)
        if min_snr_gamma is not None and min_snr_gamma <= 0:
            raise ValueError(f"stage.module.min_snr_gamma must be above 0, or null, got {min_snr_gamma}")
        if not 0 < timestep_shift < float("inf"):
            raise ValueError(f"stage.module.timestep_shift must be above 0, 1 for no shift, got {timestep_shift}")
        if not 0 <= pure_noise <= 1:
            raise ValueError(f"stage.module.pure_noise is a share, 0 to 1, got {pure_noise}")
        self.timestep_shift, self.pure_noise = timestep_shift, pure_noise
        self.diffusion, self.prompt_dropout, self.min_snr_gamma = diffusion, prompt_dropout, min_snr_gamma
        if channels_last:
            diffusion.unet.to(memory_format=torch.channels_last)
        if checkpointing:
            forget_activations(diffusion.unet)
        self.probe = probe(diffusion.unet.config) if probe else None
        diffusion.autoencoder.requires_grad_(False)
        diffusion.conditioner.requires_grad_(train_text_encoder)
        text_encoder = diffusion.conditioner.text_encoder
        for name, parameter in text_encoder.named_parameters():
            if not text_encoder.reads(name):  # no gradient ever comes there, for which DDP would wait
                parameter.requires_grad_(False)
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

    def context(self, batch: Batch, batch_idx: int) -> Tensor:
        """Contexts of the batch's prompts, some of them dropped; from the cache where the batch has them."""
        rng = self.step_generator(batch_idx, "prompts", device="cpu")  # words are dropped without asking a GPU
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

    def timesteps(self, count: int, rng: torch.Generator) -> Tensor:
        """Timesteps (count,) to train on."""
        steps = self.diffusion.schedule.steps
        t = shifted_timesteps(stratified_timesteps(count, steps, rng), steps, self.timestep_shift)
        if not self.pure_noise:
            return t
        return t.masked_fill(torch.rand(count, generator=rng, device=rng.device) < self.pure_noise, steps - 1)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        rng = self.step_generator(batch_idx)
        z0 = self.latents(batch, rng)
        t = self.mine(self.timesteps(self.world_size * len(z0), rng))
        eps = self.noise_like(z0, rng)
        context = self.context(batch, batch_idx)
        parts: dict[str, Tensor] = {}
        if self.probe is None:
            loss = self.weighted(self.diffusion.loss(z0, context, t, eps, self.branch(batch)), t)
        else:
            with recorded(self.diffusion.unet.decoder.blocks[self.probe.block]) as outputs:
                loss = self.weighted(self.diffusion.loss(z0, context, t, eps, self.branch(batch)), t)
            extra = self.probe(outputs[0], batch["labels"])
            parts = {"train/denoising": loss, "train/probe": extra}
            loss = loss + extra
        self.log_means({"train/loss": loss, **parts})
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
