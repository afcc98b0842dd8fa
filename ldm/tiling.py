"""Decoding large images in little memory: one image at a time, in overlapping tiles."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor


def decode_tiled(decode: Callable[[Tensor], Tensor], z: Tensor, tile: int = 64, overlap: int = 16) -> Tensor:
    """decode(z), image by image and tile by tile: (b, c, h, w) latents -> (b, 3, f h, f w).

    tile, overlap: in latent pixels. Tiles are mixed by weights that fall linearly over the overlap. What fits in
    one tile is decoded as a whole: the same image up to rounding. A tile does not see beyond its edge, and its
    group norms and attention see less than the whole, so larger images differ a little in tone between tiles.
    """
    if not 0 < overlap < tile:
        raise ValueError(f"tiles of {tile} latent pixels cannot overlap by {overlap}")
    return torch.cat([_decode_one(decode, image[None], tile, overlap) for image in z])


def _decode_one(decode: Callable[[Tensor], Tensor], z: Tensor, tile: int, overlap: int) -> Tensor:
    height, width = z.shape[-2:]
    if height <= tile and width <= tile:
        return decode(z)
    image = total = torch.zeros(())
    for top, left in itertools.product(_starts(height, tile, overlap), _starts(width, tile, overlap)):
        part = decode(z[..., top : top + tile, left : left + tile])
        factor = part.shape[-1] // min(tile, width)
        rows, columns = (_ramp(side, overlap * factor, part) for side in part.shape[-2:])
        if image.ndim == 0:
            image = part.new_zeros(1, part.shape[1], height * factor, width * factor)
            total = part.new_zeros(height * factor, width * factor)
        here = (
            ...,
            slice(top * factor, top * factor + len(rows)),
            slice(left * factor, left * factor + len(columns)),
        )
        weight = rows[:, None] * columns
        image[here] += weight * part
        total[here] += weight
    return image / total


def _starts(side: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin: every tile - overlap, the last one flush with the end."""
    last = max(side - tile, 0)
    return sorted({*range(0, last, tile - overlap), last})


def _ramp(side: int, overlap: int, like: Tensor) -> Tensor:
    """(side,): 1 in the middle, down to near 0 over the overlap at both ends."""
    distance = torch.arange(1, side + 1, device=like.device, dtype=like.dtype)
    return torch.minimum(distance, distance.flip(0)).clamp(max=overlap) / overlap
