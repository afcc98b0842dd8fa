"""Stable Diffusion at its real size: one pass of the controlled U-Net, here and in diffusers.

The two share their weights, 1.2 billion.
"""

import time
from collections import defaultdict

import pytest
import torch
from torch import nn

from cldm.branches.controlnet import ControlNet
from cldm.branches.interop import control_table
from ldm.interop.names import Spelling, to_ours, unet_table
from ldm.unet import UNet, UNetConfig, UNetEncoder

TOLERANCE = 1e-4
SHIFT = 112  # numbers between the beginnings of two weights: 448 bytes, seven lines of a cache


@torch.no_grad()
def fill(module: nn.Module, seed: int) -> None:
    """Random values of the size that training leaves, for a module on the meta device; the zero convolutions too.

    Weights of one fan-in are stretches of the same numbers, each with a beginning of its own: drawing and writing 1.2
    billion takes longer than the passes.
    """
    alike = defaultdict(list)
    for name, p in module.named_parameters():
        alike[p[0].numel() ** -0.5 if p.ndim > 1 else 0.1].append((name, p))
    drawn = torch.randn(40_000_000, generator=torch.Generator().manual_seed(seed))
    state = {}
    for scale, named in alike.items():
        numbers = scale * drawn[: max(p.numel() for _, p in named) + SHIFT * len(named)]
        for i, (name, p) in enumerate(named):
            values = numbers[SHIFT * i : SHIFT * i + p.numel()].view_as(p)
            state[name] = 1.0 + values if "norm" in name and p.ndim == 1 and name.endswith("weight") else values
    module.load_state_dict(state, strict=True, assign=True)
    module.eval().requires_grad_(False)


def share(ours: nn.Module, table: list[Spelling], theirs: nn.Module) -> nn.Module:
    """`ours`, built on the meta device, with views of the tensors of `theirs`."""
    state = to_ours(theirs.state_dict(), table, {name: t.shape for name, t in ours.state_dict().items()})
    ours.load_state_dict(state, strict=True, assign=True)
    return ours.eval().requires_grad_(False)


SD1 = {"cross_attention_dim": 768, "attention_head_dim": 8}
SD2 = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [(SD1, {}), (SD2, {"context_channels": 1024, "heads": None, "linear_projections": True})],
    ids=["1.5", "2.1"],
)
@torch.no_grad()
def test_the_controlled_unet_of_stable_diffusion_gives_diffusers_numbers(capsys, theirs, ours):
    """On latents of a quarter of the side, which take a tenth of the time."""
    side = 16
    diffusers = pytest.importorskip("diffusers")
    config = UNetConfig(**ours)
    with torch.device("meta"):
        their_unet, their_control = diffusers.UNet2DConditionModel(**theirs), diffusers.ControlNetModel(**theirs)
        unet, control = UNet(config), ControlNet(UNetEncoder(config))
    fill(their_unet, 0)
    fill(their_control, 1)
    share(unet, unet_table(unet, "diffusers"), their_unet)
    share(control, control_table(control, "diffusers"), their_control)
    rng = torch.Generator().manual_seed(2)
    z, context = (torch.randn(shape, generator=rng) for shape in ((1, 4, side, side), (1, 77, config.context_channels)))
    hint, t = torch.rand(1, 3, 8 * side, 8 * side, generator=rng), torch.tensor([501])

    began = time.perf_counter()
    residuals = control(z, t, context, hint)
    found = unet(z, t, context, residuals)
    seconds = time.perf_counter() - began
    down, middle = their_control(z, t, context, controlnet_cond=hint, return_dict=False)
    errors = [
        (a - b).abs().max().item() for a, b in zip([*residuals.skips, residuals.middle], [*down, middle], strict=True)
    ]
    assert all(r.std() > 0.01 for r in [*down, middle])
    expected = their_unet(
        z, t, context, down_block_additional_residuals=down, mid_block_additional_residual=middle
    ).sample
    assert expected.std() > 0.05
    corner, few = z[..., :8, :8], control(z[..., :8, :8], t, context, hint[..., :64, :64])
    assert (unet(corner, t, context) - unet(corner, t, context, few)).abs().max() > 0.05  # the control counts
    error = (found - expected).abs().max().item()
    with capsys.disabled():
        print(f"\n{side}x{side} latents, fp32: max abs error {error:.1e}, of the 13 residuals {max(errors):.1e}, "
              f"spread of the output {expected.std():.2f}; our pass {seconds:.1f} s")  # fmt: skip
    assert max(*errors, error) <= TOLERANCE
