"""Published checkpoints: a file, or a folder in diffusers' form, as the parts it holds.

The parts are "unet", "autoencoder", "text" and "control"; ldm.interop.layouts tells them by their keys, and
ldm.interop.understand turns one into a module and its state dict. Control branches are understood by
cldm.branches.interop.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.interop import files, schedules, sizes
from ldm.interop.layouts import CALLED, EMA, Part, refuse, split

FOLDERS = {"unet": "unet", "vae": "autoencoder", "text_encoder": "text", "controlnet": "control"}
UNUSED_TEXT = "openclip_unused.safetensors"
"""Beside a text encoder in diffusers' layout: OpenCLIP's last layer and contrastive head, for which that layout has no
place and which Stable Diffusion 2.x never reads. With them the way back to the original layout loses nothing."""
SETTINGS = "settings"
"""Key of the metadata that holds what shapes do not tell, as JSON by part."""


@dataclass(frozen=True)
class Published:
    """A checkpoint, split into parts. `schedule`: what it says of the noise schedule, see ldm.interop.schedules; `ema`:
    moving averages of the U-Net; `unknown`: names that nobody claims."""

    path: Path
    layout: str
    parts: dict[str, Part]
    metadata: dict[str, str]
    schedule: dict[str, Any] = field(default_factory=dict)
    pad: str | None = None
    ema: dict[str, Tensor] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    @property
    def prediction(self) -> str | None:
        """What the U-Net predicts, "eps" or "v", if the file says so."""
        return self.schedule.get("prediction")

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


def read(path: str | Path) -> Published:
    """Recognise a checkpoint from its keys: a file, or a folder in diffusers' form. Never from a file's name."""
    path = Path(path)
    return _read_folder(path) if path.is_dir() else _read_file(path)


def _read_file(path: Path) -> Published:
    tensors, metadata = files.read_tensors(path)
    refuse(tensors, path)
    layout, parts, unknown = split(tensors, path)
    beside = path.parent / "config.json"
    config = files.read_json(beside) if layout == "diffusers" and beside.is_file() else {}
    told = _settings(metadata, path)
    parts = {
        name: Part(part.layout, part.state, {**_config_settings(name, config, str(path)), **told.get(name, {})})
        for name, part in parts.items()
    }
    ema = {name: tensor for name, tensor in tensors.items() if name.startswith(EMA)}
    schedule = {**schedules.from_tensors(tensors, path), **_schedule(told, metadata, path)}
    pad = told.get("conditioner", {}).get("pad")
    return Published(path, layout, parts, metadata, schedule, pad, ema, unknown)


def _schedule(told: Mapping[str, dict[str, Any]], metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """What our metadata says of the schedule; early files say the prediction alone."""
    early = {"prediction": metadata["prediction"]} if "prediction" in metadata else {}
    return schedules.valid({**early, **told.get("schedule", {})}, str(path))


def _settings(metadata: Mapping[str, str], path: Path) -> dict[str, dict[str, Any]]:
    try:
        told = json.loads(metadata.get(SETTINGS, "{}"))
        return {name: dict(settings) for name, settings in told.items()}
    except (json.JSONDecodeError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: its metadata '{SETTINGS}' is not a JSON object by part ({error})") from error


def _config_settings(name: str, config: Mapping[str, Any], what: str) -> dict[str, Any]:
    if not config:
        return {}
    try:
        if name == "autoencoder":
            return sizes.autoencoder_settings(config)
        if name == "text":
            return sizes.text_settings(config, what)
        settings = sizes.unet_settings(config, what)
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        told = (
            str(error) if what in str(error) else f"{what}: config.json of its {CALLED[name]} makes no sense ({error})"
        )
        raise ValueError(told) from error
    return settings | {"pooling": True} if config.get("global_pool_conditions") else settings


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
        named = config.get("architectures") or ["nothing known"]
        kind = config.get("_class_name") or (named[0] if isinstance(named, list) else named)
        if not isinstance(kind, str) or kind not in CLASSES:
            raise ValueError(f"{folder}/config.json describes {kind}; expected one of {', '.join(CLASSES)}")
        found = {CLASSES[kind]: folder}
    else:
        found = {part: folder / sub for sub, part in FOLDERS.items() if (folder / sub / "config.json").is_file()}
    if not found:
        raise ValueError(f"{folder} is no diffusers folder: neither config.json nor one of {', '.join(FOLDERS)}/ in it")
    parts: dict[str, Part] = {}
    told: list[dict[str, str]] = []
    for part, place in found.items():
        tensors, own = files.read_folder(place)
        told.append(own)
        refuse(tensors, place)
        _, held, _ = split(tensors, place)
        if part not in held:
            raise ValueError(f"{place}/config.json describes a {CALLED[part]}, its weights are another model's")
        settings = _config_settings(part, files.read_json(place / "config.json"), str(place))
        extra = files.read_tensors(place / UNUSED_TEXT)[0] if (place / UNUSED_TEXT).is_file() else {}
        parts[part] = Part(held[part].layout, held[part].state, settings, extra)
    metadata = {key: value for key, value in told[0].items() if all(own.get(key) == value for own in told)}
    schedule = {**_schedule(_settings(metadata, folder), metadata, folder), **_scheduler(folder)}
    return Published(folder, "diffusers", parts, metadata, schedule, _pad(folder))


def _scheduler(folder: Path) -> dict[str, Any]:
    path = folder / "scheduler" / "scheduler_config.json"
    return schedules.from_scheduler(files.read_json(path), path) if path.is_file() else {}


def _pad(folder: Path) -> str | None:
    path = folder / "tokenizer" / "tokenizer_config.json"
    if not path.is_file():
        return None
    token = files.read_json(path).get("pad_token", "<|endoftext|>")
    token = token.get("content") if isinstance(token, dict) else token
    return "zero" if token == "!" else "end"
