"""Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598): wraps a model, returns one answer per latent."""

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.samplers import Denoiser
from ldm.schedule import NoiseSchedule

Model = Callable[[Tensor, Tensor], Tensor]
"""(z (b, c, h, w), t (b,)) -> the network's eps or v: (b, c, h, w), or (2b, c, h, w) where it is to be guided."""


def classifier_free_guidance(model: Model, scale: float, rescale: float = 0.0) -> Model:
    """uc + scale (c - uc), of a model that answers twice: (2b, ...), under the negative prompts, then the prompts.

    One call of the model answers both, so that it can share what does not depend on the prompt. Both eps and v
    may be guided: the two views of a prediction differ by a linear map. The paper's guidance weight w is scale - 1.

    rescale in [0, 1]: how far the result is brought back to the standard deviation of c, image by image, which
    high scales inflate (Lin et al. 2023, arXiv:2305.08891, section 3.4, phi; they use 0.7).
    """
    if not 0 <= rescale <= 1:
        raise ValueError(f"sampler.rescale must be in [0, 1], got {rescale}")

    def guided(z: Tensor, t: Tensor) -> Tensor:
        uc, c = model(z, t).float().chunk(2)  # the scale would amplify a half-precision difference's rounding
        out = uc + scale * (c - uc)
        if rescale == 0:
            return out
        axes = tuple(range(1, out.ndim))
        same_std = out * (c.std(axes, keepdim=True) / out.std(axes, keepdim=True))
        return torch.lerp(out, same_std, rescale)

    return guided


def known_outside(denoiser: Denoiser, z0: Tensor, mask: Tensor, schedule: NoiseSchedule) -> Denoiser:
    """Inpainting with any base: eps where mask (b, 1, h, w) is 1, and where it is 0 the eps that leads to z0.

    Started from `schedule.add_noise(z0, noise, t)`, a deterministic sampler then carries the known latents z0
    along their own noised path: the blend after each step that latent inpainting is, for samplers that keep a
    history too.
    """

    def blended(z: Tensor, t: Tensor) -> Tensor:
        known = schedule.eps_from_z0(z0, z, t)
        return torch.lerp(known, denoiser(z, t).to(known.dtype), mask.to(known.dtype))

    return blended
