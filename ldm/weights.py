"""Weights in safetensors files: written atomically with metadata, read strictly."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


def save_weights(
    module: nn.Module,
    path: str | Path,
    metadata: dict[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write the state dict of `module`, floating tensors cast to `dtype` if given, atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.detach().cpu().to(dtype if dtype and tensor.is_floating_point() else tensor.dtype)
        for name, tensor in module.state_dict().items()
    }
    partial = path.with_name(path.name + ".partial")
    try:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, partial, metadata)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def fingerprint(module: nn.Module) -> str:
    """16 hex digits that change with any weight of the module: names the base that a branch was trained on."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def load_weights(module: nn.Module, path: str | Path, parts: Iterable[str] | None = None) -> None:
    """Load a file of `save_weights` into `module`, strictly: every name and shape must agree.

    parts: load only the tensors of these direct children, such as ("autoencoder",); others are left alone.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    parts = None if parts is None else tuple(parts)
    children = dict(module.named_children())
    if parts is not None and (not parts or not children.keys() >= set(parts)):
        raise ValueError(f"parts to load must be among {[*children]}, got {[*parts]}")
    prefixes = None if parts is None else tuple(f"{part}." for part in parts)
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if prefixes is None or name.startswith(prefixes)]  # noqa: SIM118
        state = {name: file.get_tensor(name) for name in names}
    wanted = {k: v for k, v in module.state_dict().items() if prefixes is None or k.startswith(prefixes)}
    _check(state, wanted, path)
    module.load_state_dict(state, strict=False)


def _check(state: dict[str, Tensor], wanted: dict[str, Tensor], path: Path) -> None:
    problems = {
        "missing": sorted(wanted.keys() - state.keys()),
        "unexpected": sorted(state.keys() - wanted.keys()),
        "of another shape": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
            for name in sorted(wanted.keys() & state.keys())
            if state[name].shape != wanted[name].shape
        ],
    }
    if any(problems.values()):
        told = "; ".join(
            f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for what, names in problems.items()
            if names
        )
        raise ValueError(f"{path} does not fit this model: {told}")
