"""Published checkpoints: recognised by their keys, read strictly, in the names that the modules have here.

A checkpoint is a file or folder that holds parts: "unet", "autoencoder", "text" and "control". `read` splits it into
them; `understand` turns one into a module (on the meta device: sizes, no memory) and its state dict. Control branches
are understood by cldm.interop.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.autoencoder import AutoencoderKL
from ldm.interop import files, names, sizes
from ldm.text_encoder import TextEncoder
from ldm.unet import UNet
from ldm.weights import check_shapes, shapes

PREFIXES = {
    "model.diffusion_model.": "unet",
    "first_stage_model.": "autoencoder",
    "cond_stage_model.transformer.": "text",  # CLIP, Stable Diffusion 1.x
    "cond_stage_model.model.": "text",  # OpenCLIP, Stable Diffusion 2.x
    "control_model.": "control",
}
FOLDERS = {"unet": "unet", "vae": "autoencoder", "text_encoder": "text", "controlnet": "control"}
CALLED = {
    "unet": "U-Net",
    "autoencoder": "autoencoder",
    "text": "text encoder",
    "control": "ControlNet",
}
OWN = {"autoencoder.": "autoencoder", "conditioner.text_encoder.": "text", "unet.": "unet"}
"""Prefixes in the files of this project's own base models (stage=diffusion, stage=autoencoder)."""
EMA = "model_ema."
UNUSED_TEXT = "openclip_unused.safetensors"
"""Beside a text encoder in diffusers' layout: OpenCLIP's last layer and contrastive head, for which that layout has no
place and which Stable Diffusion 2.x never reads. With them the way back to the original layout loses nothing."""
SETTINGS = "settings"
"""Key of the metadata that holds what shapes do not tell, as JSON by part."""


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


@dataclass(frozen=True)
class Published:
    """A checkpoint, split into parts. `ema`: moving averages of the U-Net; `unknown`: names that nobody claims."""

    path: Path
    layout: str
    parts: dict[str, Part]
    metadata: dict[str, str]
    prediction: str | None = None
    pad: str | None = None
    ema: dict[str, Tensor] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    def part(self, name: str) -> Part:
        """A part that must be there, in a file that holds nothing unknown."""
        if self.unknown:
            raise ValueError(
                f"{self.path} looks like a Stable Diffusion checkpoint in the {self.layout} layout, but "
                f"{len(self.unknown)} of its tensors are unknown ({', '.join(self.unknown[:3])})"
            )
        if name not in self.parts:
            held = " and ".join(CALLED[part] for part in self.parts)
            raise ValueError(f"{self.path} has no {CALLED[name]}; it holds: {held} ({self.layout} layout)")
        return self.parts[name]

    def what(self, name: str) -> str:
        """A part in words, for messages."""
        return f"{self.path} ({CALLED[name]}, {self.layout} layout)"


@dataclass(frozen=True)
class Understood:
    """A part as a module on the meta device, its state dict in the names here, and what shapes do not tell of it."""

    module: nn.Module
    state: dict[str, Tensor]
    settings: dict[str, Any]


# ------------------------------------------------------------------ recognise


def read(path: str | Path) -> Published:
    """Recognise a checkpoint from its keys: a file, or a folder in diffusers' form. Never from a file's name."""
    path = Path(path)
    return _read_folder(path) if path.is_dir() else _read_file(path)


def _read_file(path: Path) -> Published:
    tensors, metadata = files.read_tensors(path)
    _refuse(tensors, path)
    layout, parts, unknown = _split(tensors, path)
    beside = path.parent / "config.json"
    config = files.read_json(beside) if layout == "diffusers" and beside.is_file() else {}
    told = _settings(metadata, path)
    parts = {
        name: Part(part.layout, part.state, {**_config_settings(name, config, str(path)), **told.get(name, {})})
        for name, part in parts.items()
    }
    ema = {name: tensor for name, tensor in tensors.items() if name.startswith(EMA)}
    prediction, pad = told.get("schedule", metadata).get("prediction"), told.get("conditioner", {}).get("pad")
    return Published(path, layout, parts, metadata, prediction, pad, ema, unknown)


def _settings(metadata: Mapping[str, str], path: Path) -> dict[str, dict[str, Any]]:
    try:
        told = json.loads(metadata.get(SETTINGS, "{}"))
        return {name: dict(settings) for name, settings in told.items()}
    except (json.JSONDecodeError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: its metadata '{SETTINGS}' is not a JSON object by part ({error})") from error


def _config_settings(name: str, config: Mapping[str, Any], what: str) -> dict[str, Any]:
    if not config:
        return {}
    if name == "autoencoder":
        return sizes.autoencoder_settings(config)
    if name == "text":
        return sizes.text_settings(config, what)
    settings = sizes.unet_settings(config, what)
    return settings | {"pooling": True} if config.get("global_pool_conditions") else settings


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


def _refuse(tensors: Mapping[str, Tensor], path: Path) -> None:
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


def _split(tensors: dict[str, Tensor], path: Path) -> tuple[str, dict[str, Part], tuple[str, ...]]:
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
        elif name not in SCHEDULE_BUFFERS and not name.startswith(EMA):
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


CLASSES = {
    "UNet2DConditionModel": "unet",
    "AutoencoderKL": "autoencoder",
    "CLIPTextModel": "text",
    "ControlNetModel": "control",
}


def _read_folder(folder: Path) -> Published:
    """A pipeline's folder (unet/, vae/, ...) or that of one model (config.json and weights)."""
    if (folder / "config.json").is_file():
        config = files.read_json(folder / "config.json")
        kind = config.get("_class_name") or (config.get("architectures") or ["nothing known"])[0]
        if kind not in CLASSES:
            raise ValueError(f"{folder}/config.json describes {kind}; expected one of {', '.join(CLASSES)}")
        found = {CLASSES[kind]: folder}
    else:
        found = {part: folder / sub for sub, part in FOLDERS.items() if (folder / sub / "config.json").is_file()}
    if not found:
        raise ValueError(f"{folder} is no diffusers folder: neither config.json nor one of {', '.join(FOLDERS)}/ in it")
    parts: dict[str, Part] = {}
    metadata: dict[str, str] = {}
    for part, place in found.items():
        tensors, metadata = files.read_folder(place)
        _refuse(tensors, place)
        _, split, _ = _split(tensors, place)
        if part not in split:
            raise ValueError(f"{place}/config.json describes a {CALLED[part]}, its weights are another model's")
        settings = _config_settings(part, files.read_json(place / "config.json"), str(place))
        extra = files.read_tensors(place / UNUSED_TEXT)[0] if (place / UNUSED_TEXT).is_file() else {}
        parts[part] = Part(split[part].layout, split[part].state, settings, extra)
    return Published(folder, "diffusers", parts, metadata if len(parts) == 1 else {}, _prediction(folder), _pad(folder))


def _prediction(folder: Path) -> str | None:
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return None
    told = files.read_json(path).get("prediction_type", "epsilon")
    known = {"epsilon": "eps", "v_prediction": "v"}
    if told not in known:
        raise ValueError(f"{path}: prediction_type is {told!r}, expected one of {', '.join(known)}")
    return known[told]


def _pad(folder: Path) -> str | None:
    path = folder / "tokenizer" / "tokenizer_config.json"
    if not path.is_file():
        return None
    token = files.read_json(path).get("pad_token", "<|endoftext|>")
    token = token.get("content") if isinstance(token, dict) else token
    return "zero" if token == "!" else "end"


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
"""Tables of the noise schedule that original files carry; all but the last are written, none is read."""


# ------------------------------------------------------------------ understand


def understand(published: Published, name: str) -> Understood:
    """The U-Net, autoencoder or text encoder of a checkpoint; ValueError lists what does not fit."""
    part, what = published.part(name), published.what(name)
    if part.layout == "own" and not part.settings:
        raise ValueError(
            f"{published.path} was written before base models of this project said their heads and groups: only the "
            f"configuration it was trained with (model={published.metadata.get('model', '?')}) can load it"
        )
    with plain_errors(what):
        return _UNDERSTAND[name](part, what)


@contextmanager
def plain_errors(what: str) -> Iterator[None]:
    """Name the part where a tensor that gives sizes away is absent, or where the settings in its file make no sense."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{what}: there is no {error.args[0]}") from error
    except (TypeError, ZeroDivisionError, IndexError) as error:
        raise ValueError(f"{what}: its sizes or settings make no sense ({error})") from error


def _unet(part: Part, what: str) -> Understood:
    told = sizes.own_encoder(part.state) if part.layout == "own" else part.state
    with torch.device("meta"):
        unet = UNet(sizes.unet_config(told, part.layout, part.settings, what))
    state = translate(part.state, names.unet_table(unet, part.layout), unet, what)
    return Understood(unet, state, unet.config.untold())


def _autoencoder(part: Part, what: str) -> Understood:
    told = autoencoder_sizes(part, what)
    with torch.device("meta"):
        autoencoder = AutoencoderKL(**told)
    state = translate(part.state, names.autoencoder_table(autoencoder, part.layout), autoencoder, what)
    state["scale"] = torch.tensor(float(told["scale"]))
    return Understood(autoencoder, state, {key: told[key] for key in ("groups", "scale")})


def _text(part: Part, what: str) -> Understood:
    told = text_sizes(part, what)
    with torch.device("meta"):
        encoder = TextEncoder(**told)
    table = _TEXT_TABLES[part.layout](encoder)
    state = {**translate(part.state, table, encoder, what), **part.extra}
    return Understood(encoder, state, {key: told[key] for key in ("heads", "activation", "skip_last")})


_TEXT_TABLES = {"openclip": names.openclip_table, "clip": names.clip_table, "own": names.own_table}

_UNDERSTAND: dict[str, Callable[[Part, str], Understood]] = {
    "unet": _unet,
    "autoencoder": _autoencoder,
    "text": _text,
}


def autoencoder_sizes(part: Part, what: str) -> dict[str, Any]:
    """Keyword arguments of AutoencoderKL."""
    return sizes.autoencoder_sizes(part.state, part.layout, part.settings, what)


def text_sizes(part: Part, what: str) -> dict[str, Any]:
    """Keyword arguments of TextEncoder, with the layers that only `extra` has."""
    told = sizes.text_sizes(part.state, part.layout, part.settings, what)
    if not part.extra:
        return told
    more = len({name.split(".")[1] for name in part.extra if name.startswith("layers.")})
    return {**told, "layers": told["layers"] + more, "skip_last": more, "projection": "text_projection" in part.extra}


def translate(
    state: Mapping[str, Tensor], table: list[names.Spelling], module: nn.Module, what: str
) -> dict[str, Tensor]:
    """Strictly: every tensor of the table, and no other, in its shape; then `names.to_ours`."""
    check_shapes(shapes(state), {s.name: s.shape for s in table}, what)
    return names.to_ours(state, table, {name: tensor.shape for name, tensor in module.state_dict().items()})


def averaged(published: Published) -> Published:
    """The checkpoint with the moving averages of its U-Net in place of the weights."""
    if not published.ema:
        raise ValueError(f"{published.path} has no moving averages ({EMA}*)")
    part = published.part("unet")
    flat = {f"{EMA}diffusion_model{key.replace('.', '')}": key for key in part.state}
    check_shapes(
        {name: tuple(t.shape) for name, t in published.ema.items() if name not in (f"{EMA}decay", f"{EMA}num_updates")},
        {name: tuple(part.state[key].shape) for name, key in flat.items()},
        f"{published.path}: moving averages",
    )
    state = {key: published.ema[name] for name, key in flat.items()}
    parts = {**published.parts, "unet": Part(part.layout, state, part.settings)}
    return replace(published, parts=parts)
