"""Sizes of the modules that fit a file: read from the shapes of its tensors.

What shapes do not tell (heads, groups, activation, ...) comes, in this order, from the file's own metadata (written by
this project), from diffusers' config.json, or from the rule of the family: Stable Diffusion 1.x has 8 heads and
convolutions around its transformers, 2.x has heads of 64 channels and linear layers.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ldm.unet import UNetConfig

State = Mapping[str, Tensor]
Settings = Mapping[str, Any]
"""What shapes do not tell of one part, as keyword arguments of its constructor."""
Step = tuple[int, str]
"""A ResBlock's width, and the prefix of the transformer behind it ("" where there is none)."""

SCALE = 0.18215  # of the latents of Stable Diffusion 1.x and 2.x
FIRST_TO_K = {"own": "blocks.0.cross_attention.to_k", "published": "transformer_blocks.0.attn2.to_k"}


def family(config: UNetConfig) -> str:
    """The family of a U-Net or branch, as people call it."""
    return "Stable Diffusion 2.x" if config.linear_projections else "Stable Diffusion 1.x"


def unet_config(state: State, layout: str, settings: Settings, what: str) -> UNetConfig:
    """The sizes of a U-Net or branch in the layout "original", "diffusers" or "own" (then from `own_encoder`).

    `what` names the part in messages.
    """
    conv_in = state.get("input_blocks.0.0.weight" if layout == "original" else "conv_in.weight")
    levels = _LEVELS[layout](state)
    transformers = [prefix for level in levels for _, prefix in level if prefix]
    if conv_in is None or not transformers:
        raise ValueError(f"{what} is no Stable Diffusion U-Net: it lacks the first convolution or cross-attention")
    if any(len({(width, bool(prefix)) for width, prefix in level}) > 1 for level in levels):
        raise ValueError(f"{what} has a level whose blocks differ, which no Stable Diffusion U-Net has")
    if len({len(level) for level in levels}) > 1:
        raise ValueError(f"{what} has levels of {[len(level) for level in levels]} blocks; they must agree")
    own = layout == "own"
    depths = {_count(state, f"{prefix}.{'blocks' if own else 'transformer_blocks'}") for prefix in transformers}
    if len(depths) > 1:
        raise ValueError(f"{what} has transformers of depth {sorted(depths)}: it is an SDXL model, {NOT_SDXL}")
    context = state[f"{transformers[0]}.{FIRST_TO_K['own' if own else 'published']}.weight"].shape[1]
    linear = (
        settings.get("linear_projections", context == 1024)
        if own
        else (state[f"{transformers[0]}.proj_in.weight"].ndim == 2)
    )
    conv_out = state.get("out.2.weight" if layout == "original" else "conv_out.weight")
    channels, widths = conv_in.shape[0], [level[0][0] for level in levels]
    config = UNetConfig(
        in_channels=conv_in.shape[1],
        out_channels=4 if conv_out is None else conv_out.shape[0],
        channels=channels,
        channel_mult=tuple(w // channels if w % channels == 0 else w / channels for w in widths),  # type: ignore[misc]
        res_blocks=len(levels[0]),
        attention=tuple(bool(level[0][1]) for level in levels),
        context_channels=context,
        depth=depths.pop(),
        linear_projections=linear,
        heads=settings.get("heads", None if linear else 8),
        head_channels=settings.get("head_channels", 64),
        groups=settings.get("groups", 32),
    )
    for width in config.widths:
        if width % (config.heads or config.head_channels) or width % config.groups:
            raise ValueError(
                f"{what}: a width of {width} cannot be split into {config.groups} groups and "
                + (f"{config.heads} heads" if config.heads else f"heads of {config.head_channels} channels")
                + ", which is what its family has; a config.json beside the weights would tell the heads"
            )
    return config


def own_encoder(state: State) -> dict[str, Tensor]:
    """What tells the sizes of a U-Net or branch in this project's own names: its encoder, and the last convolution."""
    found = {name.removeprefix("encoder."): t for name, t in state.items() if name.startswith("encoder.")}
    last = "decoder.conv_out.weight"
    return found | ({"conv_out.weight": state[last]} if last in state else {})


NOT_SDXL = "and this project reads Stable Diffusion 1.x and 2.x"


def _step(state: State, conv1: str, transformer: str) -> Step:
    return state[f"{conv1}.weight"].shape[0], transformer if f"{transformer}.proj_in.weight" in state else ""


def _in_sequence(state: State, block: str, first: int, conv1: str, transformer: str, resample: str) -> list[list[Step]]:
    levels: list[list[Step]] = [[]]
    for n in itertools.count(first):
        prefix = f"{block}.{n}"
        if f"{prefix}.{resample}.weight" in state:
            levels.append([])
        elif f"{prefix}.{conv1}.weight" in state:
            levels[-1].append(_step(state, f"{prefix}.{conv1}", f"{prefix}.{transformer}"))
        else:
            return [level for level in levels if level]
    raise AssertionError("count() is endless")


def _nested(state: State) -> list[list[Step]]:
    def level(i: int) -> list[Step]:
        count = _count(state, f"down_blocks.{i}.resnets")
        prefix = f"down_blocks.{i}"
        return [_step(state, f"{prefix}.resnets.{j}.conv1", f"{prefix}.attentions.{j}") for j in range(count)]

    return [level(i) for i in range(_count(state, "down_blocks"))]


def _count(state: State, prefix: str) -> int:
    """How many numbers follow `prefix` in the names."""
    start = len(prefix) + 1
    return len({name[start:].split(".", 1)[0] for name in state if name.startswith(f"{prefix}.")})


_LEVELS = {
    "original": lambda state: _in_sequence(state, "input_blocks", 1, "0.in_layers.2", "1", "0.op"),
    "own": lambda state: _in_sequence(state, "blocks", 0, "res.conv1", "attention", "resample.conv"),
    "diffusers": _nested,
}


def autoencoder_sizes(state: State, layout: str, settings: Settings, what: str) -> dict[str, Any]:
    """Keyword arguments of AutoencoderKL. Own files may fold patches of pixels into channels, and hold the scale."""
    levels, blocks = _AUTOENCODER_LEVELS[layout]
    try:
        widths = [state[f"{levels}.{i}{blocks}.0.conv1.weight"].shape[0] for i in range(_count(state, levels))]
        post_quant, conv_in = state["post_quant_conv.weight"], state["encoder.conv_in.weight"]
    except KeyError as error:
        raise ValueError(f"{what} is no Stable Diffusion autoencoder: there is no {error.args[0]}") from error
    if not widths or any(width % widths[0] for width in widths):
        raise ValueError(f"{what}: widths {widths} of the autoencoder are not multiples of the first")
    return {
        "channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "res_blocks": _count(state, f"{levels}.{len(widths) - 1}{blocks}"),  # the last level resamples nothing
        "z_channels": post_quant.shape[0],
        **_pixels(conv_in.shape[1], own=layout == "own"),
        "groups": settings.get("groups", 32),
        # own files hold it in float32: 0.18215 comes back as 0.18215000629
        "scale": float(f"{state['scale']:.7g}") if layout == "own" else settings.get("scale", SCALE),
    }


_AUTOENCODER_LEVELS = {
    "original": ("encoder.down", ".block"),
    "diffusers": ("encoder.down_blocks", ".resnets"),
    "own": ("encoder.levels", ""),
}


def _pixels(channels: int, own: bool) -> dict[str, int]:
    """Channels of the images, and the side of the patches of pixels behind so many channels."""
    patch = math.isqrt(channels // 3) if own else 1
    return {"in_channels": channels // patch**2, "patch": patch}


def text_sizes(state: State, layout: str, settings: Settings, what: str) -> dict[str, Any]:
    """Keyword arguments of TextEncoder. layout: "clip" (transformers' names), "openclip" or "own".

    OpenCLIP's published encoder has 24 layers, of which Stable Diffusion 2.x leaves out the last; files that come from
    diffusers have 23 and no contrastive head.
    """
    names = _TEXT_NAMES[layout]
    tokens, positions = state.get(names[0]), state.get(names[1])
    if tokens is None or positions is None:
        raise ValueError(f"{what} is no CLIP text encoder: it lacks the embeddings of tokens or positions")
    layers, projection = _count(state, names[2]), "text_projection" in state
    openclip = layout == "openclip" or projection
    return {
        "vocab_size": tokens.shape[0],
        "width": tokens.shape[1],
        "layers": layers,
        "heads": settings.get("heads", max(tokens.shape[1] // 64, 1)),
        "context_length": positions.shape[0],
        "activation": settings.get("activation", "gelu" if openclip else "quick_gelu"),
        "skip_last": settings.get("skip_last", int(projection or (openclip and layers == 24))),
        "projection": projection,
        "causal": settings.get("causal", True),
    }


_TEXT_NAMES = {
    "clip": ("embeddings.token_embedding.weight", "embeddings.position_embedding.weight", "encoder.layers"),
    "openclip": ("token_embedding.weight", "positional_embedding", "transformer.resblocks"),
    "own": ("token_embedding.weight", "position_embedding.weight", "layers"),
}
"""Names of the embeddings of tokens and of positions, and what the layers' names start with."""


# ------------------------------------------------------------------ diffusers' config.json

FIXED = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "center_input_sample": False,
    "class_embed_type": None,
    "controlnet_conditioning_channel_order": "rgb",
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "norm_eps": 1e-5,
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "time_cond_proj_dim": None,
}
"""What config.json of a U-Net or branch may say of features that this project does not have."""


def unet_settings(config: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Heads and groups from diffusers' config.json of a U-Net or branch; unknown features are refused."""
    odd = [f"{key}={config[key]!r}" for key, value in FIXED.items() if config.get(key, value) != value]
    if odd:
        raise ValueError(f"{what} has {', '.join(odd)} in its config.json, which this project does not have")
    settings: dict[str, Any] = {"groups": config.get("norm_num_groups", 32)}
    # attention_head_dim is the number of heads: diffusers kept the wrong name
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    widths = config.get("block_out_channels", (320, 640, 1280, 1280))
    if isinstance(heads, int):
        return settings | {"heads": heads}
    if len({*heads}) == 1:
        return settings | {"heads": heads[0]}
    per_head = {width / count for width, count in zip(widths, heads, strict=True)}
    if len(per_head) != 1 or not (head_channels := per_head.pop()).is_integer():
        raise ValueError(f"{what}: {heads} heads for widths {widths}: neither the heads nor their widths are equal")
    return settings | {"heads": None, "head_channels": int(head_channels)}


def autoencoder_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Groups and latent scale from diffusers' config.json of an autoencoder. ValueError for shifted latents."""
    odd = [f"{key}={config[key]}" for key in ("shift_factor", "latents_mean", "latents_std") if config.get(key)]
    if odd:
        raise ValueError(f"{', '.join(odd)} in it, which no Stable Diffusion 1.x or 2.x has")
    return {"groups": config.get("norm_num_groups", 32), "scale": config.get("scaling_factor", SCALE)}


def text_settings(config: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Heads and activation from transformers' config.json of a text encoder; its last hidden layer is the one read."""
    config = config.get("text_config", config)
    if config.get("layer_norm_eps", 1e-5) != 1e-5:
        raise ValueError(f"{what} has layer_norm_eps={config['layer_norm_eps']} in its config.json, expected 1e-5")
    return {
        "heads": config.get("num_attention_heads", 8),
        "activation": config.get("hidden_act", "quick_gelu"),
        "skip_last": 0,
    }
