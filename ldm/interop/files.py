"""Tensors from files: safetensors, pickles (tensors only), shards. What a file is, is read from its bytes."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.weights import opened

WEIGHTS = ("diffusion_pytorch_model", "model", "pytorch_model")  # stems of the weights in diffusers' folders


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, mapped and not yet read from disk where possible, and its metadata.

    Raises ValueError in one sentence for whatever is not a whole file of tensors. Nothing in the file is executed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    with path.open("rb") as file:
        start = file.read(512)
    kind = _kind(start)
    if kind == "safetensors":
        return _read_safetensors(path)
    if kind == "pickle":
        return _read_pickle(path), {}
    raise ValueError(f"{path} {kind}")


def _kind(start: bytes) -> str:
    """ "safetensors", "pickle", or what is wrong with a file that starts like this."""
    if not start:
        return "is empty (0 bytes)"
    if start[8:9] == b"{":  # first: the length before it may begin with any byte, a pickle's 0x80 included
        return "safetensors"
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return "pickle"
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not weights; download the file itself, not the page that shows it"
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not weights; run `git lfs pull` where it came from"
    return "is neither a safetensors file nor a PyTorch checkpoint"


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        # torch's own message advises to load without care; it is not passed on
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it asks for {asked[1]}" if asked else "it is no plain dict of tensors"
        raise ValueError(
            f"{path} is a pickle that holds more than tensors ({reason}); loading it could run code, so it is refused: "
            "take the .safetensors edition of the file"
        ) from error
    except Exception as error:  # readers of pickles and archives raise whatever they come across in a broken file
        reason = str(error).split("\n")[0]
        raise ValueError(f"{path} is a damaged PyTorch checkpoint, perhaps cut short ({reason})") from error
    while isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dict of tensors")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def read_folder(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of one model's folder in diffusers' or transformers' form: one file, or the shards of an index."""
    for stem in WEIGHTS:
        for suffix in (".safetensors", ".bin"):
            index = folder / f"{stem}{suffix}.index.json"
            if index.is_file():
                return _read_shards(index)
            if (folder / f"{stem}{suffix}").is_file():
                return read_tensors(folder / f"{stem}{suffix}")
    fp16 = sorted(path.name for stem in WEIGHTS for path in folder.glob(f"{stem}.*.safetensors"))
    if fp16:
        return read_tensors(folder / fp16[0])
    raise FileNotFoundError(f"no weights in {folder}; expected {WEIGHTS[0]}.safetensors or {WEIGHTS[1]}.safetensors")


def _read_shards(index: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    places: dict[str, str] = read_json(index).get("weight_map", {})
    tensors: dict[str, Tensor] = {}
    for shard in sorted({Path(name).name for name in places.values()}):  # a file name, never a way out of the folder
        tensors |= read_tensors(index.parent / shard)[0]
    absent = sorted(places.keys() - tensors.keys())
    if absent:
        raise ValueError(f"{index} promises {len(absent)} tensors that its shards lack ({', '.join(absent[:3])})")
    return tensors, {}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; ValueError names the file if it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content
