"""Names of tensors here, in the original Stable Diffusion files, and in diffusers' and transformers' files.

Everything is generated from a module's sizes and its own state dict. One table serves reading and writing, so what is
read is what would be written: a list of `Spelling`, one for each tensor of the file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldm.autoencoder import AutoencoderKL
from ldm.text_encoder import TextEncoder
from ldm.unet import UNet, UNetConfig

LAYOUTS = ("original", "diffusers")
Names = dict[str, tuple[str, str]]
"""Module here -> its name in the original layout and in diffusers'."""


@dataclass(frozen=True)
class Spelling:
    """One tensor of a published file: its name and shape, and the tensors here that it stacks along axis 0."""

    name: str
    shape: tuple[int, ...]
    ours: tuple[str, ...]


def spell(
    module: nn.Module, name_of: Callable[[str], str | None], pointwise: Callable[[str], bool] = lambda name: False
) -> list[Spelling]:
    """The table of `module`. `name_of` gives a tensor's published name, or None for one that is not published;
    `pointwise` tells which weights the file holds as 1x1 convolutions, with two trailing axes of size 1."""
    groups: dict[str, list[str]] = {}
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    for ours in shapes:
        theirs = name_of(ours)
        if theirs is not None:
            groups.setdefault(theirs, []).append(ours)
    table = []
    for theirs, ours_names in groups.items():
        shape = shapes[ours_names[0]]
        if len(ours_names) > 1:
            shape = (sum(shapes[name][0] for name in ours_names), *shape[1:])
        if pointwise(ours_names[0]):
            shape = (*shape, 1, 1)
        table.append(Spelling(theirs, shape, tuple(ours_names)))
    return table


def to_ours(state: Mapping[str, Tensor], table: list[Spelling], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Tensors of a file, under the names and in the shapes that they have here. No tensor is copied."""
    ours: dict[str, Tensor] = {}
    for spelling in table:
        tensor, count = state[spelling.name], len(spelling.ours)
        pieces = tensor.chunk(count) if count > 1 else [tensor]  # q, k, v: equal parts
        ours |= {name: piece.reshape(shapes[name]) for name, piece in zip(spelling.ours, pieces, strict=True)}
    return ours


def from_ours(state: Mapping[str, Tensor], table: list[Spelling]) -> dict[str, Tensor]:
    """The way back: tensors here, as the file holds them."""
    pieces = {s: [state[name] for name in s.ours] for s in table}
    return {s.name: (torch.cat(p) if len(p) > 1 else p[0]).reshape(s.shape) for s, p in pieces.items()}


def own_table(module: nn.Module) -> list[Spelling]:
    """The tensors of a module as this project's own files hold them: as they are."""
    return spell(module, lambda name: name)


def by_module(names: Names, layout: str) -> Callable[[str], str]:
    """`spell`'s name_of, from a table of modules."""
    column = LAYOUTS.index(layout)

    def name_of(ours: str) -> str:
        module, _, kind = ours.rpartition(".")
        return f"{names[module][column]}.{kind}"

    return name_of


# ------------------------------------------------------------------ U-Net

RES = {
    "norm1": ("in_layers.0", "norm1"),
    "conv1": ("in_layers.2", "conv1"),
    "emb_proj": ("emb_layers.1", "time_emb_proj"),
    "norm2": ("out_layers.0", "norm2"),
    "conv2": ("out_layers.3", "conv2"),
    "skip": ("skip_connection", "conv_shortcut"),
}
BLOCK = {
    **{f"norm{i}": f"norm{i}" for i in (1, 2, 3)},
    **{
        f"{ours}.{a}": f"{theirs}.{b}"
        for ours, theirs in (("self_attention", "attn1"), ("cross_attention", "attn2"))
        for a, b in (("to_q", "to_q"), ("to_k", "to_k"), ("to_v", "to_v"), ("to_out", "to_out.0"))
    },
    "feed_forward.proj": "ff.net.0.proj",
    "feed_forward.out": "ff.net.2",
}


def _transformer(depth: int) -> Names:
    """A SpatialTransformer, which both layouts name alike."""
    names = {f"blocks.{i}.{a}": f"transformer_blocks.{i}.{b}" for i in range(depth) for a, b in BLOCK.items()}
    names |= {name: name for name in ("norm", "proj_in", "proj_out")}
    return {ours: (theirs, theirs) for ours, theirs in names.items()}


def _inside(ours: str, original: str, diffusers: str, table: Names) -> Names:
    return {f"{ours}.{a}": (f"{original}.{b}", f"{diffusers}.{c}") for a, (b, c) in table.items()}


def encoder_names(config: UNetConfig) -> Names:
    """Modules of a UNetEncoder, which the U-Net and the branch share."""
    names: Names = {
        "time_embed.0": ("time_embed.0", "time_embedding.linear_1"),
        "time_embed.2": ("time_embed.2", "time_embedding.linear_2"),
        "conv_in": ("input_blocks.0.0", "conv_in"),
    }
    transformer = _transformer(config.depth)
    stride = config.res_blocks + 1  # the blocks of a level, the change of resolution last
    for n in range(len(config.widths) * stride - 1):
        block, original, (level, j) = f"blocks.{n}", f"input_blocks.{n + 1}", divmod(n, stride)
        names |= _inside(f"{block}.res", f"{original}.0", f"down_blocks.{level}.resnets.{j}", RES)
        names |= _inside(f"{block}.attention", f"{original}.1", f"down_blocks.{level}.attentions.{j}", transformer)
        names[f"{block}.resample.conv"] = (f"{original}.0.op", f"down_blocks.{level}.downsamplers.0.conv")
    for i, ours in enumerate(("res1", "res2")):
        names |= _inside(f"middle.{ours}", f"middle_block.{2 * i}", f"mid_block.resnets.{i}", RES)
    return names | _inside("middle.attention", "middle_block.1", "mid_block.attentions.0", transformer)


def unet_names(config: UNetConfig) -> Names:
    """Modules of a UNet."""
    names = {f"encoder.{ours}": theirs for ours, theirs in encoder_names(config).items()}
    names["decoder.norm_out"] = ("out.0", "conv_norm_out")
    names["decoder.conv_out"] = ("out.2", "conv_out")
    transformer = _transformer(config.depth)
    stride, levels = config.res_blocks + 1, len(config.widths)
    for n in range(levels * stride):
        block, original, (level, j) = f"decoder.blocks.{n}", f"output_blocks.{n}", divmod(n, stride)
        attends = config.attention[levels - 1 - level]
        names |= _inside(f"{block}.res", f"{original}.0", f"up_blocks.{level}.resnets.{j}", RES)
        names |= _inside(f"{block}.attention", f"{original}.1", f"up_blocks.{level}.attentions.{j}", transformer)
        names[f"{block}.resample.conv"] = (
            f"{original}.{2 if attends else 1}.conv",
            f"up_blocks.{level}.upsamplers.0.conv",
        )
    return names


def projections(config: UNetConfig) -> Callable[[str], bool]:
    """`spell`'s pointwise for a U-Net or branch: proj_in and proj_out are 1x1 convolutions in SD1."""
    return lambda name: not config.linear_projections and name.endswith((".proj_in.weight", ".proj_out.weight"))


def unet_table(unet: UNet, layout: str) -> list[Spelling]:
    """The tensors of a U-Net's file (in the original layout, behind `model.diffusion_model.`)."""
    if layout == "own":
        return own_table(unet)
    return spell(unet, by_module(unet_names(unet.config), layout), projections(unet.config))


# ------------------------------------------------------------------ autoencoder

VAE_RES = {
    **{name: (name, name) for name in ("norm1", "conv1", "norm2", "conv2")},
    "skip": ("nin_shortcut", "conv_shortcut"),
}
VAE_ATTENTION = {
    "norm": ("norm", "group_norm"),
    "attention.to_q": ("q", "to_q"),
    "attention.to_k": ("k", "to_k"),
    "attention.to_v": ("v", "to_v"),
    "attention.to_out": ("proj_out", "to_out.0"),
}
OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""What diffusers before 0.17 called the autoencoder's attention."""


def autoencoder_names(autoencoder: AutoencoderKL) -> Names:
    """Modules of an AutoencoderKL. The original counts the decoder's levels from the image's side."""
    names: Names = {name: (name, name) for name in ("quant_conv", "post_quant_conv")}
    levels = len(autoencoder.encoder.levels)
    res_blocks = len(autoencoder.encoder.levels[-1])  # type: ignore[arg-type]  # the last level has no Downsample
    for half, kind, count, sampler in (
        ("encoder", "down", res_blocks, "downsample"),
        ("decoder", "up", res_blocks + 1, "upsample"),
    ):
        names |= {f"{half}.{name}": (f"{half}.{name}", f"{half}.{name}") for name in ("conv_in", "conv_out")}
        names[f"{half}.norm_out"] = (f"{half}.norm_out", f"{half}.conv_norm_out")
        for i in range(levels):
            original = f"{half}.{kind}.{i if half == 'encoder' else levels - 1 - i}"
            ours, diffusers = f"{half}.levels.{i}", f"{half}.{kind}_blocks.{i}"
            for j in range(count):
                names |= _inside(f"{ours}.{j}", f"{original}.block.{j}", f"{diffusers}.resnets.{j}", VAE_RES)
            names[f"{ours}.{count}.conv"] = (f"{original}.{sampler}.conv", f"{diffusers}.{sampler}rs.0.conv")
        middle = f"{half}.mid", f"{half}.mid_block"
        for j in range(2):
            ours = f"{half}.middle.{2 * j}"
            names |= _inside(ours, f"{middle[0]}.block_{j + 1}", f"{middle[1]}.resnets.{j}", VAE_RES)
        names |= _inside(f"{half}.middle.1", f"{middle[0]}.attn_1", f"{middle[1]}.attentions.0", VAE_ATTENTION)
    return names


def autoencoder_table(autoencoder: AutoencoderKL, layout: str) -> list[Spelling]:
    """The tensors of an autoencoder's file (in the original layout, behind `first_stage_model.`).

    The latent scale is in no published file; it is in diffusers' config.json.
    """
    if layout == "own":
        return own_table(autoencoder)
    if autoencoder.patch != 1:
        raise ValueError(f"an autoencoder that folds patches of {autoencoder.patch} pixels has no published form")
    name_of = by_module(autoencoder_names(autoencoder), layout)
    return spell(
        autoencoder,
        lambda name: None if name == "scale" else name_of(name),
        lambda name: layout == "original" and ".attention.to_" in name and name.endswith("weight"),
    )


# ------------------------------------------------------------------ text encoder

CLIP_LAYER = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "to_q": "self_attn.q_proj",
    "to_k": "self_attn.k_proj",
    "to_v": "self_attn.v_proj",
    "to_out": "self_attn.out_proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
OPENCLIP_LAYER = {
    "norm1": "ln_1.",
    "norm2": "ln_2.",
    "to_q": "attn.in_proj_",  # q, k and v are one tensor
    "to_k": "attn.in_proj_",
    "to_v": "attn.in_proj_",
    "to_out": "attn.out_proj.",
    "fc1": "mlp.c_fc.",
    "fc2": "mlp.c_proj.",
}


def _clip_name(ours: str) -> str:
    module, _, kind = ours.rpartition(".")
    if module.startswith("layers."):
        _, i, layer = module.split(".")
        return f"encoder.layers.{i}.{CLIP_LAYER[layer]}.{kind}"
    if module == "final_norm":
        return f"final_layer_norm.{kind}"
    return f"embeddings.{module}.{kind}"


def _openclip_name(ours: str) -> str:
    module, _, kind = ours.rpartition(".")
    if module.startswith("layers."):
        _, i, layer = module.split(".")
        return f"transformer.resblocks.{i}.{OPENCLIP_LAYER[layer]}{kind}"
    if module == "position_embedding":
        return "positional_embedding"
    return f"ln_final.{kind}" if module == "final_norm" else ours


def clip_table(encoder: TextEncoder) -> list[Spelling]:
    """The tensors of a text encoder in transformers' layout (in files, behind `text_model.`), for SD1 and diffusers.

    It has no place for what forward does not use; diffusers ships SD2's 24-layer encoder with 23.
    """
    return spell(encoder, lambda name: _clip_name(name) if encoder.reads(name) else None)


def openclip_table(encoder: TextEncoder) -> list[Spelling]:
    """The tensors of a text encoder in OpenCLIP's layout (behind `cond_stage_model.model.`), for SD2 files."""
    return spell(encoder, _openclip_name)
