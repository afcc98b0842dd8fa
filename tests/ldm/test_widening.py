"""An autoencoder of few latent channels starts one of more."""

import pytest
import torch

from ldm.autoencoder import AutoencoderKL
from ldm.widening import widened


def autoencoder(z_channels: int) -> AutoencoderKL:
    torch.manual_seed(z_channels)
    return AutoencoderKL(channels=8, channel_mult=(1, 2), res_blocks=1, z_channels=z_channels, groups=4, scale=0.7)


@pytest.mark.parametrize("prefix", ["", "autoencoder."])
def test_a_widened_autoencoder_decodes_as_the_old_one_did(prefix):
    old, new = autoencoder(4), autoencoder(8)
    state = widened({prefix + k: v for k, v in old.state_dict().items()}, new, prefix)
    new.load_state_dict({k.removeprefix(prefix): v for k, v in state.items()})
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        posterior, before = new.posterior(x), old.posterior(x)
        torch.testing.assert_close(posterior.mean[:, :4], before.mean)
        torch.testing.assert_close(posterior.logvar[:, :4], before.logvar)
        torch.testing.assert_close(new.decode(new.encode(x)), old.decode(old.encode(x)))
        assert 0.01 < posterior.mean[:, 4:].std() < 3.0  # the new channels say something of the picture


def test_the_new_channels_are_heard_after_one_step():
    new = autoencoder(8)
    new.load_state_dict(widened(autoencoder(4).state_dict(), new))
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    (new.decode(new.encode(x)) - x).square().mean().backward()
    assert new.decoder.conv_in.weight.grad is not None
    assert (new.decoder.conv_in.weight.grad[:, 4:] != 0).any()


def test_what_fits_already_is_left_alone():
    state = autoencoder(8).state_dict()
    found = widened(state, autoencoder(8))
    assert all(found[name] is state[name] for name in state)


def test_an_autoencoder_is_not_made_narrower():
    state = autoencoder(8).state_dict()
    assert all(found is state[name] for name, found in widened(state, autoencoder(4)).items())
