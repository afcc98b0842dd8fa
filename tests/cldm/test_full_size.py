"""Stable Diffusion 1.5 at its real size: one pass of the controlled U-Net, here and in diffusers.

The two share their 1,220,800,084 weights, so that one copy of 4.9 GB is in memory.
"""

import time

import pytest
import torch
from torch import nn

from cldm.controlnet import ControlNet
from cldm.interop import control_table
from ldm.interop.names import Spelling, to_ours, unet_table
from ldm.unet import UNet, UNetConfig, UNetEncoder

TOLERANCE = 1e-4


@torch.no_grad()
def fill(module: nn.Module, seed: int) -> None:
    """Random values of the size that training leaves, in place; the zero convolutions too."""
    module.to_empty(device="cpu")
    rng = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        if p.ndim > 1:
            p.normal_(std=p[0].numel() ** -0.5, generator=rng)
        else:
            p.normal_(mean=float("norm" in name and name.endswith("weight")), std=0.1, generator=rng)
    module.eval().requires_grad_(False)


def share(ours: nn.Module, table: list[Spelling], theirs: nn.Module) -> nn.Module:
    """`ours`, built on the meta device, with views of the tensors of `theirs`."""
    state = to_ours(theirs.state_dict(), table, {name: t.shape for name, t in ours.state_dict().items()})
    ours.load_state_dict(state, strict=True, assign=True)
    return ours.eval().requires_grad_(False)


@pytest.mark.slow
@torch.no_grad()
def test_the_controlled_unet_of_stable_diffusion_1_5_gives_diffusers_numbers(capsys):
    diffusers = pytest.importorskip("diffusers")
    config = UNetConfig()
    with torch.device("meta"):
        their_unet = diffusers.UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        their_control = diffusers.ControlNetModel(cross_attention_dim=768, attention_head_dim=8)
        unet, control = UNet(config), ControlNet(UNetEncoder(config))
    fill(their_unet, 0)
    fill(their_control, 1)
    share(unet, unet_table(unet, "diffusers"), their_unet)
    share(control, control_table(control, "diffusers"), their_control)
    rng = torch.Generator().manual_seed(2)
    z, context = torch.randn(1, 4, 64, 64, generator=rng), torch.randn(1, 77, 768, generator=rng)
    hint, t = torch.rand(1, 3, 512, 512, generator=rng), torch.tensor([501])

    began = time.perf_counter()
    residuals = control(z, t, context, hint)
    ours = unet(z, t, context, residuals)
    seconds = time.perf_counter() - began
    down, middle = their_control(z, t, context, controlnet_cond=hint, return_dict=False)
    errors = [
        (a - b).abs().max().item() for a, b in zip([*residuals.skips, residuals.middle], [*down, middle], strict=True)
    ]
    assert all(r.std() > 0.01 for r in [*down, middle])
    theirs = their_unet(
        z, t, context, down_block_additional_residuals=down, mid_block_additional_residual=middle
    ).sample
    assert theirs.std() > 0.05
    assert (unet(z, t, context) - theirs).abs().max() > 0.05  # the control counts
    error = (ours - theirs).abs().max().item()
    with capsys.disabled():
        print(f"\nSD1.5, 64x64 latents, fp32: max abs error {error:.1e}, of the 13 residuals {max(errors):.1e}, "
              f"spread of the output {theirs.std():.2f}; our pass {seconds:.1f} s")  # fmt: skip
    assert max(*errors, error) <= TOLERANCE
