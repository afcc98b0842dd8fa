"""ControlNet files in every published form <-> ControlNet.

Read: the original layout with or without `control_model.`, inside a full checkpoint, diffusers' folder or file, this
project's own files, and the two forms that need their base: differences (sd-webui) and Control-LoRA.
Written: the original layout, which ComfyUI, the web UI and diffusers load as one file, and diffusers' folder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cldm.branches.controlnet import Branch, ControlNet
from ldm.blocks import without_weights
from ldm.files import write_json
from ldm.interop import names, sizes
from ldm.interop.layouts import Part
from ldm.interop.published import Published, read
from ldm.interop.understand import Understood, plain_errors, translate, understand
from ldm.interop.write import unet_config
from ldm.unet import UNet, UNetConfig, UNetEncoder
from ldm.weights import check_finite, check_shapes, load_weights, shapes, write_tensors

PREFIX = "control_model."
HINT = {"original": "input_hint_block.0", "diffusers": "controlnet_cond_embedding.conv_in", "own": "hint_encoder.0"}


# ------------------------------------------------------------------ names


def control_table(control: ControlNet, layout: str) -> list[names.Spelling]:
    """The tensors of a branch's file, without prefix."""
    config = control.encoder.config
    if layout == "own":
        return names.own_table(control)
    return names.spell(control, names.by_module(_control_names(control), layout), names.projections(config))


def _control_names(control: ControlNet) -> names.Names:
    table = {f"encoder.{ours}": theirs for ours, theirs in names.encoder_names(control.encoder.config).items()}
    last = len(control.hint_encoder) - 1
    for i in range(0, last + 1, 2):  # SiLU between
        place = "conv_in" if i == 0 else "conv_out" if i == last else f"blocks.{i // 2 - 1}"
        table[f"hint_encoder.{i}"] = (f"input_hint_block.{i}", f"controlnet_cond_embedding.{place}")
    for i in range(len(control.zero_convs)):
        table[f"zero_convs.{i}"] = (f"zero_convs.{i}.0", f"controlnet_down_blocks.{i}")
    return table | {"zero_conv_middle": ("middle_block_out.0", "controlnet_mid_block")}


# ------------------------------------------------------------------ read


def understand_control(published: Published, base: Published | None = None) -> Understood:
    """The branch of a checkpoint as a ControlNet on the meta device and its state dict; strict.

    base: the model that a difference or a Control-LoRA was made from; ValueError if one is needed and missing.
    """
    part, what = published.part("control"), published.what("control")
    if part.layout in ("difference", "lora"):
        if base is None:
            raise ValueError(f"{published.path} is a {published.layout}: it holds changes to its base; give --base")
        part = _on_base(part, base, what)
    with plain_errors(what):
        return _understand(part, what)


def _understand(part: Part, what: str) -> Understood:
    state = part.state
    inside = sizes.own_encoder(state) if part.layout == "own" else state
    config = sizes.unet_config(inside, part.layout, part.settings, what)
    widths, hint_channels = _hint_sizes(state, part.layout, what)
    with without_weights():
        control = ControlNet(UNetEncoder(config), hint_channels, widths)
    settings = {**config.untold(), "pooling": bool(part.settings.get("pooling", False))}
    return Understood(control, translate(state, control_table(control, part.layout), control, what), settings)


def _hint_sizes(state: Mapping[str, Tensor], layout: str, what: str) -> tuple[list[int], int]:
    """Widths of the hint encoder's levels and channels of its hint."""
    first = state.get(f"{HINT[layout]}.weight")
    if first is None:
        raise ValueError(f"{what} has no hint encoder: there is no {HINT[layout]}.weight")
    if layout == "diffusers":
        inner = [f"controlnet_cond_embedding.blocks.{i}.weight" for i in range(len(state))]
    else:
        inner = [f"{HINT[layout][:-1]}{2 * i}.weight" for i in range(1, len(state))]
    found = [state[name].shape[0] for name in inner if name in state]
    if layout != "diffusers":
        found = found[:-1]  # the last convolution leads to the U-Net's width
    return [first.shape[0], *found[1::2]], first.shape[1]


def _on_base(part: Part, base: Published, what: str) -> Part:
    """The branch that a difference or Control-LoRA stands for, in the original layout."""
    unet = understand(base, "unet")
    table = names.unet_table(unet.module, "original")  # type: ignore[arg-type]
    locked = names.from_ours(unet.state, table)
    shared = {name: t for name, t in locked.items() if not name.startswith(("output_blocks.", "out."))}
    if part.layout == "difference":
        state = {name: _sum(t, shared[name], name, what) if name in shared else t for name, t in part.state.items()}
    else:
        state = {**shared, **{n: t for n, t in part.state.items() if not n.endswith((".up", ".down"))}}
        for name in (n.removesuffix(".up") for n in part.state if n.endswith(".up")):
            state[f"{name}.weight"] = _with_lora(part.state, name, shared, what)
    return Part("original", state, base.part("unet").settings)


def _sum(change: Tensor, base: Tensor, name: str, what: str) -> Tensor:
    if change.shape != base.shape:
        raise ValueError(f"{what}: {name} is {tuple(change.shape)}, in the base {tuple(base.shape)}; is it its base?")
    return (change.float() + base.float()).to(change.dtype)


def _with_lora(state: Mapping[str, Tensor], name: str, base: Mapping[str, Tensor], what: str) -> Tensor:
    """W + up down, both flattened to matrices: (out, rank, ...) and (rank, in, ...)."""
    weight, up, down = base.get(f"{name}.weight"), state[f"{name}.up"], state.get(f"{name}.down")
    if weight is None or down is None or up.shape[0] * down[0].numel() != weight.numel():
        raise ValueError(f"{what}: {name}.up and .down do not fit a weight of the base; is it its base?")
    change = (up.float().flatten(1) @ down.float().flatten(1)).reshape(weight.shape)
    return (weight.float() + change).to(weight.dtype)


def load_control(control: Branch, path: str | Path, base: str | Path | None = None, pools: bool = False) -> None:
    """Load a branch's weights of any known form into `control`, strictly.

    pools: whether the caller can average residuals over space (ControlUnit.pool), as shuffle models want it.
    """
    published = read(path)
    published.part("control")  # or one sentence says what the file holds
    if published.layout == "own":
        load_weights(control, path)
        return
    found = understand_control(published, None if base is None else read(base))
    assert isinstance(found.module, ControlNet)
    if found.settings["pooling"] and not pools:
        raise ValueError(f"{path} averages its residuals over space (shuffle models do): sample.py can, training not")
    ours, theirs = control.config, found.module.encoder.config
    if ours.context_channels != theirs.context_channels:
        raise ValueError(
            f"{path} is a ControlNet for {sizes.family(theirs)} (context of {theirs.context_channels} channels), "
            f"this model is {sizes.family(ours)} ({ours.context_channels})"
        )
    check_shapes(shapes(found.state), shapes(control.state_dict()), f"{path} does not fit this control branch")
    check_finite(found.state, str(path))
    control.load_state_dict(found.state)


# ------------------------------------------------------------------ transfer


def transfer(control: Understood, source: Published, target: Published) -> Understood:
    """Move a branch from the base it was trained on to another: W + (W_target - W_source) for each weight that it
    shares with them (tool_transfer_control of the original code). The 42 tensors that are its own stay."""
    before, after = (understand(base, "unet") for base in (source, target))
    for base, known in ((source, before), (target, after)):
        assert isinstance(known.module, UNet)
        wanted = {
            name: shape for name, shape in shapes(control.module.state_dict()).items() if name.startswith("encoder.")
        }
        found = {name: shape for name, shape in shapes(known.state).items() if name.startswith("encoder.")}
        check_shapes(found, wanted, f"{base.path} is no base of this branch")
    state = {
        name: (t.float() + (after.state[name].float() - before.state[name].float())).to(t.dtype)
        if name.startswith("encoder.")
        else t
        for name, t in control.state.items()
    }
    return Understood(control.module, state, control.settings)


# ------------------------------------------------------------------ write


def control_tensors(control: Understood, layout: str = "original") -> dict[str, Tensor]:
    """The tensors of the branch's file, behind `control_model.` in the original layout."""
    assert isinstance(control.module, ControlNet)
    tensors = names.from_ours(control.state, control_table(control.module, layout))
    return {PREFIX + name: t for name, t in tensors.items()} if layout == "original" else tensors


def write_control_folder(
    control: Understood, folder: Path, metadata: Mapping[str, str], dtype: torch.dtype | None
) -> None:
    """diffusers' folder: config.json and weights."""
    assert isinstance(control.module, ControlNet)
    write_json(folder / "config.json", _folder_config(control.module, control.settings["pooling"]))
    tensors = control_tensors(control, "diffusers")
    write_tensors(tensors, folder / "diffusion_pytorch_model.safetensors", metadata, dtype)


def _folder_config(control: ControlNet, pooling: bool) -> dict[str, Any]:
    config: UNetConfig = control.encoder.config
    convs = [layer.out_channels for layer in control.hint_encoder if isinstance(layer, torch.nn.Conv2d)]
    return {
        "_class_name": "ControlNetModel",
        **unet_config(config),
        "conditioning_channels": control.hint_channels,
        "conditioning_embedding_out_channels": [convs[0], *convs[2:-1:2]],
        "controlnet_conditioning_channel_order": "rgb",
        "global_pool_conditions": pooling,
    }


def describe(control: Understood) -> dict[str, str]:
    """Metadata of a branch's file, for people: what its tensors and its source tell."""
    assert isinstance(control.module, ControlNet)
    return {
        "base_family": sizes.family(control.module.encoder.config),
        "channels": str(control.module.hint_channels),
        "pooling": str(control.settings["pooling"]).lower(),
    }
