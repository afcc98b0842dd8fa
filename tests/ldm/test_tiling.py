"""Promises of tiled decoding: the whole image where it fits, no seams, every pixel once."""

import pytest
import torch
import torch.nn.functional as F

from ldm.tiling import decode_tiled


def blow_up(z):
    """A decoder that sees one latent pixel at a time: tiles must not be visible at all."""
    return F.interpolate(z[:, :3] * 2 + 1, scale_factor=8, mode="nearest")


@pytest.mark.parametrize("size", [(16, 16), (17, 40), (100, 9), (33, 33), (8, 8)])
@pytest.mark.parametrize(("tile", "overlap"), [(16, 4), (16, 15), (9, 1)])
def test_tiles_fit_together(size, tile, overlap):
    z = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(decode_tiled(blow_up, z, tile, overlap), blow_up(z), rtol=0, atol=1e-5)


@torch.no_grad()
def test_what_fits_in_a_tile_is_decoded_whole_and_one_image_at_a_time(diffusion):
    z, seen = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)), []

    def decode(z):
        seen.append(tuple(z.shape))
        return diffusion.decode(z)

    torch.testing.assert_close(decode_tiled(decode, z), diffusion.decode(z), rtol=0, atol=1e-5)
    assert seen == [(1, 4, 8, 8)] * 3


@torch.no_grad()
def test_no_call_decodes_more_than_a_tile(diffusion):
    z, seen = torch.randn(1, 4, 20, 30, generator=torch.Generator().manual_seed(0)), []

    def decode(z):
        seen.append(tuple(z.shape[-2:]))
        return diffusion.decode(z)

    image = decode_tiled(decode, z, tile=12, overlap=4)
    assert image.shape == (1, 3, 160, 240)
    assert set(seen) == {(12, 12)}
    assert image.isfinite().all()


def test_an_overlap_that_leaves_no_step_is_refused():
    with pytest.raises(ValueError, match="cannot overlap by 16"):
        decode_tiled(blow_up, torch.zeros(1, 4, 32, 32), tile=16, overlap=16)
