"""Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598): wraps a model, returns a denoiser."""

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.samplers import Denoiser

ConditionalModel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(z (b, c, h, w), t (b,), context (b, n, d)) -> eps (b, c, h, w)."""


def classifier_free_guidance(
    model: ConditionalModel, context: Tensor, negative: Tensor | None, scale: float
) -> Denoiser:
    """Denoiser eps = eps_uc + scale (eps_c - eps_uc), where eps_c sees `context` and eps_uc `negative`.

    context and negative are (b, n, d), with b the batch size that the denoiser will be called with.
    Each step calls the model once, on both halves as one batch of 2b. The negative half comes first: a model
    that treats the halves differently (guess mode) relies on it. At scale 1 the negative half cancels: the
    model sees `context` alone, and `negative` may be None. The paper's guidance weight w is scale - 1.
    """
    if scale == 1:
        return lambda z, t: model(z, t, context)
    if negative is None:
        raise ValueError(f"guidance scale {scale} needs a negative context (say, the empty prompt), got None")
    if negative.shape != context.shape:
        shapes = f"{tuple(context.shape)}, got {tuple(negative.shape)}"
        raise ValueError(f"the negative context must have the context's shape {shapes}")
    contexts = torch.cat([negative, context])

    def denoiser(z: Tensor, t: Tensor) -> Tensor:
        eps = model(torch.cat([z, z]), torch.cat([t, t]), contexts)
        eps_uc, eps_c = eps.float().chunk(2)  # the scale would amplify a half-precision difference's rounding
        return eps_uc + scale * (eps_c - eps_uc)

    return denoiser
