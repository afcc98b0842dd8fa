"""What a run and its control file recorded of how they were trained, taken over without running anything of theirs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ldm.files import FILES, to_json

FILE = "control.safetensors"
"""Of a run: the branch, as it exports it."""

SETTINGS = "condition_settings"
"""Key of a control file's metadata that holds the parameters of its condition, as JSON."""


def exported(path: Path) -> Path:
    """The weights that a run folder holds; other paths are what they are."""
    files = [path / f"{stage}.safetensors" for stage in ("control", "diffusion", "autoencoder")]
    return next((file for file in files if file.is_file() and (path / "attempts.jsonl").is_file()), path)


def settings_told(cfg: DictConfig) -> str:
    """The parameters of cfg.condition as a control file tells them: all but files, which lie elsewhere elsewhere."""
    given: Any = OmegaConf.to_container(cfg.condition, resolve=True)
    return to_json({k: v for k, v in given.items() if not k.startswith("_") and k not in FILES})


def condition_settings(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """The parameters of the condition that the file at `path` tells; nothing for files that do not."""
    text = metadata.get(SETTINGS, "{}")
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise SystemExit(f"{path}: its metadata {SETTINGS!r} is not a JSON object: {text[:60]}")
    return {name: value for name, value in found.items() if name not in FILES}


def recorded_values(path: Path, training: DictConfig) -> DictConfig:
    """`training` with the values of model, control and condition, and the size, that the run recorded whose file it is.

    Only values under names that are there already are taken over, and only scalars and lists of scalars of their own
    type, never what is to be built (`_target_`): a run folder from elsewhere cannot make this program run its code.
    """
    record = path.parent / "config.yaml"
    if path.name != FILE or not record.is_file():
        return training
    run, merged = OmegaConf.load(record), training.copy()
    OmegaConf.resolve(run)
    for key in ("size", "model", "control", "condition"):
        if key in run and key in merged:
            merged[key] = with_values(OmegaConf.to_container(merged)[key], OmegaConf.to_container(run)[key])  # type: ignore
    return merged


def with_values(ours: Any, recorded: Any) -> Any:
    """`ours` with the recorded values under its names, where they are scalars, or lists of them, of the same type."""
    if isinstance(ours, dict) and isinstance(recorded, dict):
        return {k: v if k.startswith("_") else with_values(v, recorded.get(k, v)) for k, v in ours.items()}
    return recorded if _alike(ours, recorded) else ours


def _alike(ours: Any, recorded: Any) -> bool:
    """Whether `recorded` is a scalar, or a list of scalars, of the type of `ours`; null has any, and is any."""
    values = recorded if isinstance(recorded, list) else [recorded]
    scalars = all(value is None or isinstance(value, bool | int | float | str) for value in values)
    if isinstance(ours, dict) or not scalars:
        return False
    known = {_kind(value) for value in (ours if isinstance(ours, list) else [ours])} - {"null"}
    return not known or {_kind(value) for value in values} <= {*known, "null"}


def _kind(value: Any) -> str:
    """number, bool, str or null: 1 may stand where 0.5 stood."""
    names = {bool: "bool", int: "number", float: "number", type(None): "null"}
    return names.get(type(value), type(value).__name__)
