"""An autoencoder of few latent channels starts one of more: what it knows is kept, the new channels begin unheard."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ldm.autoencoder import AutoencoderKL

NEW_LOGVAR = -4.0
"""Log-variance that new latent channels start with: little noise, so that they are soon worth listening to."""


def widened(state: Mapping[str, Tensor], autoencoder: AutoencoderKL, prefix: str = "") -> dict[str, Tensor]:
    """A state dict of AutoencoderKL with fewer latent channels, made to fit `autoencoder`, whatever else it holds.

    prefix: of its names, such as "autoencoder.". The first latent channels are the old ones, and pictures decode as
    they did, bit for bit up to rounding: the decoder does not read the new channels yet (zero columns), which hold
    small random projections of the encoder's features as `autoencoder` has them now. A state that already fits, or has
    more channels, is returned as it is.
    """
    name = f"{prefix}post_quant_conv.weight"
    old, new = len(state[name]) if name in state else autoencoder.z_channels, autoencoder.z_channels
    found = dict(state)
    if old >= new:
        return found
    own = {f"{prefix}{key}": value for key, value in autoencoder.state_dict().items()}
    kept = torch.arange(old)
    moments = torch.cat([kept, new + kept])  # means come first, then log-variances

    def placed(key: str, rows: Tensor | None, columns: Tensor | None, start: Tensor) -> None:
        """The old tensor within `start`, at these rows (and columns)."""
        target = start.clone().to(state[key].dtype)
        every = [torch.arange(size) for size in target.shape[:2]]
        place = [wanted if wanted is not None else all_ for wanted, all_ in zip((rows, columns), every, strict=False)]
        target[torch.meshgrid(*place, indexing="ij") if target.ndim > 1 else place[0]] = state[key]
        found[key] = target

    weight, bias = own[f"{prefix}encoder.conv_out.weight"].clone(), own[f"{prefix}encoder.conv_out.bias"].clone()
    weight[new:], bias[:new], bias[new:] = 0.0, 0.0, NEW_LOGVAR
    placed(f"{prefix}encoder.conv_out.weight", moments, None, weight)
    placed(f"{prefix}encoder.conv_out.bias", moments, None, bias)
    for layer, places, size in (("quant_conv", moments, 2 * new), ("post_quant_conv", kept, new)):
        placed(f"{prefix}{layer}.weight", places, places, torch.eye(size)[..., None, None])
        placed(f"{prefix}{layer}.bias", places, None, torch.zeros(size))
    reader = f"{prefix}decoder.conv_in.weight"
    placed(reader, None, kept, torch.zeros_like(own[reader]))
    return found
