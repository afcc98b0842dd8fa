"""What a checkpoint's keys tell: its layout, and the tensors of each part under the part's own names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.interop import names, sizes
from ldm.interop.schedules import MARKS

PREFIXES = {
    "model.diffusion_model.": "unet",
    "first_stage_model.": "autoencoder",
    "cond_stage_model.transformer.": "text",  # CLIP, Stable Diffusion 1.x
    "cond_stage_model.model.": "text",  # OpenCLIP, Stable Diffusion 2.x
    "control_model.": "control",
}
CALLED = {
    "unet": "U-Net",
    "autoencoder": "autoencoder",
    "text": "text encoder",
    "control": "ControlNet",
}
OWN = {"autoencoder.": "autoencoder", "conditioner.text_encoder.": "text", "unet.": "unet"}
"""Prefixes in the files of this project's own base models (stage=diffusion, stage=autoencoder)."""
EMA = "model_ema."

SCHEDULE_BUFFERS = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "logvar",
    "lvlb_weights",
)
"""Tables of the noise schedule that original files carry; all but the last are written, abar and betas are read."""


@dataclass(frozen=True)
class Part:
    """The tensors of one part under its own names.

    layout: "original", "diffusers", "own"; of a text encoder "clip" or "openclip"; of a branch also "lora" and
        "difference", which need their base. settings: what shapes do not tell, see ldm.interop.sizes.
    """

    layout: str
    state: dict[str, Tensor]
    settings: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Tensor] = field(default_factory=dict)


FOREIGN: tuple[tuple[Callable[[str], bool], str], ...] = (
    (
        lambda name: (
            name.startswith(("conditioner.embedders.", "lora_te2_")) or "add_embedding." in name or "label_emb." in name
        ),
        f"is a Stable Diffusion XL model, {sizes.NOT_SDXL}",
    ),
    (
        lambda name: name.startswith("control.hint_encoder."),
        "is a training checkpoint of this project; take the control.safetensors of its run folder",
    ),
    (
        lambda name: "double_blocks." in name or "joint_blocks." in name,
        f"is a diffusion transformer (SD3, Flux), {sizes.NOT_SDXL}",
    ),
    (
        lambda name: ".lora_" in name or ".lora." in name or name.startswith(("lora_unet_", "lora_te")),
        "is a LoRA: small changes to a model, not a model; merge it into its base first",
    ),
)


def refuse(tensors: Mapping[str, Tensor], path: Path) -> None:
    """ValueError for models that can be told but are of no use here."""
    if not tensors:
        raise ValueError(f"{path} holds no tensors")
    for belongs, sentence in FOREIGN:
        if any(map(belongs, tensors)):
            raise ValueError(f"{path} {sentence}")


BARE: tuple[tuple[str, str, str], ...] = (
    ("hint_encoder.0.weight", "control", "own"),
    ("controlnet_cond_embedding.conv_in.weight", "control", "diffusers"),
    ("zero_convs.0.0.weight", "control", "original"),
    ("input_blocks.0.0.weight", "unet", "original"),
    ("down_blocks.0.resnets.0.conv1.weight", "unet", "diffusers"),
    ("encoder.down.0.block.0.conv1.weight", "autoencoder", "original"),
    ("encoder.down_blocks.0.resnets.0.conv1.weight", "autoencoder", "diffusers"),
    ("text_model.embeddings.token_embedding.weight", "text", "clip"),
    ("embeddings.token_embedding.weight", "text", "clip"),
    ("transformer.resblocks.0.ln_1.weight", "text", "openclip"),
)
"""A key that only one kind of part has when it comes alone, the part and its layout; the first that is found."""


def split(tensors: dict[str, Tensor], path: Path) -> tuple[str, dict[str, Part], tuple[str, ...]]:
    """Layout, parts and the names that belong to none of them."""
    if "lora_controlnet" in tensors:
        return "Control-LoRA", {"control": Part("lora", _without(tensors, "lora_controlnet"))}, ()
    if "difference" in tensors:
        control = {k.removeprefix("control_model."): v for k, v in _without(tensors, "difference").items()}
        return "difference", {"control": Part("difference", control)}, ()
    if any(name.startswith((*PREFIXES, "cond_stage_model.")) for name in tensors):
        return _split_original(tensors)
    if "autoencoder.scale" in tensors:
        return _split_own(tensors)
    for key, name, layout in BARE:
        if key in tensors:
            shown = "original" if layout == "openclip" else "diffusers" if layout == "clip" else layout
            return shown, {name: Part(layout, _clean(name, layout, tensors))}, ()
    raise ValueError(
        f"{path} is no Stable Diffusion checkpoint that is known here; its {len(tensors)} tensors begin with "
        f"{', '.join(sorted(tensors)[:3])}"
    )


def _split_own(tensors: dict[str, Tensor]) -> tuple[str, dict[str, Part], tuple[str, ...]]:
    states: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for name, tensor in tensors.items():
        prefix = next((prefix for prefix in OWN if name.startswith(prefix)), None)
        if prefix is None:
            unknown.append(name)
        else:
            states.setdefault(OWN[prefix], {})[name.removeprefix(prefix)] = tensor
    return "own", {name: Part("own", states[name]) for name in OWN.values() if name in states}, tuple(unknown)


def _split_original(tensors: dict[str, Tensor]) -> tuple[str, dict[str, Part], tuple[str, ...]]:
    states: dict[str, dict[str, Tensor]] = {}
    layouts: dict[str, str] = {}
    unknown = []
    for name, tensor in tensors.items():
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
        if prefix is not None:
            part = PREFIXES[prefix]
            states.setdefault(part, {})[name.removeprefix(prefix)] = tensor
            text = "openclip" if prefix == "cond_stage_model.model." else "clip"
            layouts[part] = text if part == "text" else "original"
        elif name not in (*SCHEDULE_BUFFERS, *MARKS) and not name.startswith(EMA):
            unknown.append(name)
    parts = {name: Part(layouts[name], _clean(name, layouts[name], state)) for name, state in states.items()}
    return "original", parts, tuple(unknown)


def _without(tensors: dict[str, Tensor], *left_out: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name not in left_out}


def _clean(name: str, layout: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as the tables have them: without what old files carry and no module needs."""
    if name == "text" and layout == "clip":  # transformers 5 has no `text_model.`, files do
        state = {key.removeprefix("text_model."): tensor for key, tensor in state.items()}
        return _without(state, "embeddings.position_ids")
    if name == "text":
        return _without(state, "attn_mask")
    if name == "autoencoder" and layout == "original":  # of its training
        return {key: t for key, t in state.items() if not key.startswith(("loss.", EMA))}
    if name == "autoencoder":
        return {_renewed(key): tensor for key, tensor in state.items()}
    return state


def _renewed(key: str) -> str:
    for old, new in names.OLD_VAE_ATTENTION.items():
        key = key.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
    return key
