"""Extractors' weights: local files and folders only, nothing executed from them, clear words when they are missing."""

import pickle
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def device() -> torch.device:
    """Where extractors run: the first GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_device(net: Module) -> Module:
    """The net for inference: frozen, in eval mode, on `device()`."""
    return net.requires_grad_(False).eval().to(device())


def read_state(path: str | Path, key: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a pickle that loads with weights_only. `key` is the config's."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{key}={path}: there is no such file; nothing is downloaded, put it there yourself")
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{key}={path} is no file of plain tensors: {str(error).splitlines()[0]}") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{key}={path} must hold a state dict: names and tensors")
    return state


def model_folder(folder: str | Path, condition: str) -> Path:
    """A transformers folder that has its three files. Raises FileNotFoundError that names the missing ones."""
    folder = Path(folder).expanduser()
    there = {
        "config.json": (folder / "config.json").is_file(),
        "preprocessor_config.json": any(folder.glob("*processor_config.json")),
        "model.safetensors": any(folder.glob("model*.safetensors")),
    }
    missing = [name for name, found in there.items() if not found]
    if missing:
        raise FileNotFoundError(
            f"condition.folder={folder} of {condition!r} lacks {', '.join(missing)}; it must be a local transformers "
            "folder, downloaded by you (its licence is on its model page): nothing is fetched at run time"
        )
    return folder


def needs_transformers(condition: str) -> ValueError:
    """What to say when the optional package is missing."""
    return ValueError(f"condition {condition!r} needs transformers: pip install -e '.[annotate]'")
