"""Images from prompts: guidance, control and a sampler around a LatentDiffusion."""

import contextlib
import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cldm.sampling.control import ControlUnit, PreparedUnit
from ldm.diffusion import LatentDiffusion
from ldm.guidance import Model, classifier_free_guidance, known_outside
from ldm.precision import fast_products
from ldm.prompts import chunk_count, encode_prompts, match_lengths
from ldm.reuse import compiled, keys_values, time_table
from ldm.samplers import Denoiser, PerImageNoise, initial_noise
from ldm.tiling import decode_tiled


@dataclass(frozen=True)
class Sampling:
    """How images are drawn; one file in configs/sampler.

    sampler: see ldm.samplers. steps: exact number of steps, 1..1000. spacing: see NoiseSchedule.timesteps.
    guidance: scale of classifier-free guidance, 1 turns it off; rescale: see ldm.guidance.
    clip_skip: last layers of the text encoder to leave out.
    prompt_weights: read (word:1.2) and prompts beyond the encoder's length (ldm.prompts); off, prompts are read as
        in training: literally, and cut off.
    compile: torch.compile of U-Net and branches, with CUDA graphs on a GPU; the first image takes minutes.
    low_memory: the device to work on with little memory, for a model that lies elsewhere: text encoder, U-Net with
        branches, and autoencoder go there one after another, and images are decoded one by one in tiles.
    """

    sampler: Callable[..., Tensor]
    steps: int = 20
    spacing: str = "trailing"
    guidance: float = 7.5
    rescale: float = 0.0
    clip_skip: int = 0
    prompt_weights: bool = False
    compile: bool = False
    low_memory: str | None = None

    @torch.no_grad()
    def __call__(
        self,
        diffusion: LatentDiffusion,
        prompts: Sequence[str],
        seeds: Sequence[int],
        size: tuple[int, int],
        control: ControlUnit | Sequence[ControlUnit] | None = None,
        negative: str | Sequence[str] = "",
        image: Tensor | None = None,
        strength: float = 1.0,
        mask: Tensor | None = None,
        callback: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """One image per (prompt, seed): (b, 3, height, width) in [-1, 1]. A seed names an image in any batch.

        control: units, whose residuals add. negative: one for all, or one per prompt.
        image: (b or 1, 3, height, width) in [-1, 1], drawn over from int(steps * strength) steps before the end.
        mask: (b or 1, 1, height, width), 1 where `image` is to be painted anew: every latent that has a pixel of
            it. The other latents stay those of the image.
        """
        if len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds; give one seed per prompt")
        if mask is not None and image is None:
            raise ValueError("a mask needs the image to paint on")
        units = [control] if isinstance(control, ControlUnit) else [*(control or ())]
        lengths = self._lengths(diffusion, prompts, negative)
        if len({*lengths}) > 1:  # 3, 4 and 5 chunks side by side would be 60 each
            images: list[Tensor] = [torch.empty(0)] * len(prompts)
            for length in dict.fromkeys(lengths):
                rows = [i for i, own in enumerate(lengths) if own == length]
                mine = [replace(unit, hint=_rows(unit.hint, rows), mask=_rows(unit.mask, rows)) for unit in units]
                others = negative if isinstance(negative, str) else [negative[i] for i in rows]
                drawn = self(diffusion, [prompts[i] for i in rows], [seeds[i] for i in rows], size, mine, others,
                             _rows(image, rows), strength, _rows(mask, rows), callback)  # fmt: skip
                for i, one in zip(rows, drawn, strict=True):
                    images[i] = one
            return torch.stack(images)
        shape = diffusion.latent_shape(*size)
        timesteps = self.timesteps(diffusion, strength if image is not None else 1.0)
        place = Placement(self.low_memory, diffusion.schedule.betas.device)
        dtype = diffusion.unet.encoder.conv_in.weight.dtype
        with contextlib.nullcontext() if self.compile else fast_products(dtype, place.device):
            with place.visit(diffusion.conditioner):
                context, negatives = self.contexts(diffusion, prompts, negative, units)
            z = noise = initial_noise(seeds, shape, place.device, context.dtype)
            if image is not None:
                with place.visit(diffusion.autoencoder):
                    z0 = diffusion.encode(image.to(z)).expand_as(z)
                z = diffusion.schedule.add_noise(z0, noise, timesteps[:1]).to(z)
            with place.visit(diffusion.unet, *(unit.net for unit in units)):
                denoiser = self.denoiser(diffusion, units, context, negatives, timesteps)
                if mask is not None:
                    here = F.adaptive_max_pool2d(mask.to(z), shape[-2:])
                    denoiser = known_outside(denoiser, z0, here, diffusion.schedule)
                z = self.sampler(
                    denoiser, z, timesteps, diffusion.schedule, generator=PerImageNoise(seeds), callback=callback
                )
            if mask is not None:
                z = torch.lerp(z0, z, here)
            with place.visit(diffusion.autoencoder):
                return decode_tiled(diffusion.decode, z) if self.low_memory else diffusion.decode(z)

    def _lengths(
        self, diffusion: LatentDiffusion, prompts: Sequence[str], negative: str | Sequence[str]
    ) -> list[tuple[int, int]]:
        """Chunks of the prompt and of the negative prompt of each image."""
        negatives = [negative] * len(prompts) if isinstance(negative, str) else [*negative]
        if not self.prompt_weights or len(negatives) != len(prompts):
            return [(1, 1)] * len(prompts)
        count = {text: chunk_count(diffusion.conditioner, text) for text in {*prompts, *negatives}}
        return [(count[prompt], count[other]) for prompt, other in zip(prompts, negatives, strict=True)]

    def check_numbers(self) -> None:
        """ValueError for settings that are no numbers, or no whole ones where they must be, and for no steps."""
        own = {f"sampler.{name}": getattr(self, name) for name in ("steps", "clip_skip", "guidance", "rescale")}
        given = own | {f"sampler.sampler.{k}": v for k, v in getattr(self.sampler, "keywords", {}).items()}
        for name, value in given.items():
            whole = name in ("sampler.steps", "sampler.clip_skip")
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not isfinite(value):
                raise ValueError(f"{name} must be a {'whole ' * whole}number, got {value!r}")
        if self.steps < 1:
            raise ValueError(f"sampler.steps must be at least 1, got {self.steps}")

    def check(self, diffusion: LatentDiffusion, strength: float = 1.0) -> None:
        """ValueError for settings that this model, which needs no weights for that, cannot be drawn with."""
        timesteps = self.timesteps(diffusion, strength)
        classifier_free_guidance(lambda z, _: z, self.guidance, self.rescale)
        text = diffusion.conditioner.text_encoder
        if not 0 <= self.clip_skip <= (most := len(text.layers) - text.skip_last):
            raise ValueError(f"sampler.clip_skip must be in 0..{most}, got {self.clip_skip}")
        nothing = torch.zeros(1, 1, 1, 1)  # the sampler knows its own limits
        self.sampler(lambda z, _: z, nothing, timesteps, diffusion.schedule, generator=PerImageNoise([0]))

    def timesteps(self, diffusion: LatentDiffusion, strength: float) -> Tensor:
        """The grid, or its last int(steps * strength) entries."""
        self.check_numbers()
        kept = int(self.steps * strength)
        if not 0 < strength <= 1 or kept < 1:
            raise ValueError(f"strength must be in (0, 1] and leave a step of {self.steps}, got {strength}")
        return diffusion.schedule.timesteps(self.steps, self.spacing)[self.steps - kept :]

    def contexts(
        self,
        diffusion: LatentDiffusion,
        prompts: Sequence[str],
        negative: str | Sequence[str],
        units: Sequence[ControlUnit],
    ) -> tuple[Tensor, Tensor | None]:
        """Prompts and negative prompts (b, n, d); None where guidance has no effect and half the work is saved."""

        def encode(texts: Sequence[str]) -> Tensor:
            distinct = [*dict.fromkeys(texts)]
            if self.prompt_weights:
                found = encode_prompts(diffusion.conditioner, distinct, self.clip_skip)
            else:
                found = diffusion.context(distinct, self.clip_skip)
            return found[[distinct.index(text) for text in texts]]

        context = encode(prompts)
        if self.guidance == 1:
            return context, None
        negatives = encode([negative] * len(prompts) if isinstance(negative, str) else negative)
        if len(negatives) != len(context):
            raise ValueError(f"{len(prompts)} prompts but {len(negatives)} negative prompts; give one, or one for each")
        context, negatives = match_lengths(context, negatives)
        # the same prompt in both halves: uc + s (c - uc) is c, unless a hint tells the halves apart
        if torch.equal(context, negatives) and not any(unit.conditional_only for unit in units):
            return context, None
        return context, negatives

    def denoiser(
        self,
        diffusion: LatentDiffusion,
        units: Sequence[ControlUnit],
        context: Tensor,
        negatives: Tensor | None,
        timesteps: Tensor,
    ) -> Denoiser:
        """(z, t) -> eps at the given timesteps, with everything that does not change between them computed here."""
        unet, schedule = diffusion.unet, diffusion.schedule
        asked = context if negatives is None else torch.cat([negatives, context])
        memory, times = keys_values(unet, asked), time_table(unet, unet.encoder, timesteps)
        prepared = [PreparedUnit(unit, context, negatives, timesteps, self.compile) for unit in units]
        step_of = {t: i for i, t in enumerate(timesteps.tolist())}
        network = compiled(unet) if self.compile else unet

        def model(z: Tensor, t: Tensor) -> Tensor:
            step = step_of[t[0].item()]
            control = [unit.residuals(z, step) for unit in prepared if unit.active[step]]
            return network(z, times[step], memory, functools.reduce(operator.add, control) if control else None)

        guided: Model = model
        if negatives is not None:
            guided = classifier_free_guidance(model, self.guidance, self.rescale)
        return lambda z, t: schedule.to_eps(guided(z, t), z, t)


def _rows(tensor: Any, rows: Sequence[int]) -> Any:
    """Those rows of a tensor, or its only one; None stays."""
    return tensor if tensor is None or len(tensor) == 1 else tensor[[*rows]]


class Placement:
    """Where the parts of a model work: where they lie, or, one after another, on a device with little memory."""

    def __init__(self, low_memory: str | None, home: torch.device):
        self.low_memory = low_memory is not None
        self.device = home if low_memory is None else torch.device(low_memory)

    @contextlib.contextmanager
    def visit(self, *parts: nn.Module) -> Iterator[None]:
        """Bring the parts to the device for a while."""
        if not self.low_memory:
            yield
            return
        homes = [next(part.parameters()).device for part in parts]
        try:
            for part in parts:
                part.to(self.device)
            yield
        finally:
            for part, home in zip(parts, homes, strict=True):
                part.to(home)
