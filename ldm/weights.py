"""Weights in safetensors files: written atomically with metadata, read strictly."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm import files
from ldm.sharding import whole, writes

Shapes = Mapping[str, tuple[int, ...]]


def save_weights(
    module: nn.Module,
    path: str | Path,
    metadata: dict[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write the state dict of `module`, floating tensors cast to `dtype` if given, atomically.

    Of a module that is shared out over processes every one calls this, and the first writes.
    """
    state = {name: whole(tensor.detach()).cpu() for name, tensor in module.state_dict().items()}
    if writes(module):
        write_tensors(state, path, metadata, dtype)
    return Path(path)


def write_tensors(
    tensors: Mapping[str, Tensor],
    path: str | Path,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a safetensors file, whole; floating tensors are cast to `dtype` if given."""
    cast = {name: t.to(dtype) if dtype and t.is_floating_point() else t for name, t in tensors.items()}
    with files.whole(path) as partial:
        save_file({name: t.contiguous() for name, t in cast.items()}, partial, {"format": "pt", **(metadata or {})})
        _sort_metadata(partial)
        _make_readable(partial)


def _sort_metadata(path: Path) -> None:
    """Else the same weights, written again, would be a file of other content: safetensors has no order of metadata."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        if len(text) == length:
            file.seek(8)
            file.write(text)


def _make_readable(path: Path) -> None:
    """Give a file the mode of the user's other new files; safetensors makes its own readable by the owner only."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def fingerprint(module: nn.Module, dtype: torch.dtype | None = None) -> str:
    """16 hex digits that change with any weight of the module: names the base that a branch was trained on.

    dtype: of the file that the weights will have been through when they are asked for it again.
    """
    return state_fingerprint(module.state_dict(), dtype)


def state_fingerprint(state: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> str:
    """`fingerprint` of the module that has this state dict."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        tensor = whole(tensor.detach()).to(dtype if dtype and tensor.is_floating_point() else tensor.dtype)
        digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def opened(path: str | Path) -> Iterator[Any]:
    """A safetensors file; ValueError that names it where it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is a damaged safetensors file, perhaps cut short") from error


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file, without the format that every file of PyTorch names."""
    with opened(path) as file:
        return {name: value for name, value in (file.metadata() or {}).items() if name != "format"}


def load_weights(
    module: nn.Module,
    path: str | Path,
    parts: Iterable[str] | None = None,
    adapt: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
) -> None:
    """Load a file of `save_weights` into `module`, strictly: every name and shape must agree.

    parts: load only the tensors of these direct children, such as ("autoencoder",); others are left alone.
    adapt: what becomes of the state dict read before it has to agree, such as ldm.widening.widened.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    parts = None if parts is None else tuple(parts)
    children = dict(module.named_children())
    if parts is not None and (not parts or not children.keys() >= set(parts)):
        raise ValueError(f"parts to load must be among {[*children]}, got {[*parts]}")
    prefixes = None if parts is None else tuple(f"{part}." for part in parts)
    with opened(path) as file:
        names = [name for name in file.keys() if prefixes is None or name.startswith(prefixes)]  # noqa: SIM118
        state = {name: file.get_tensor(name) for name in names}
    state = adapt(state) if adapt else state
    wanted = {k: v for k, v in module.state_dict().items() if prefixes is None or k.startswith(prefixes)}
    check_shapes(shapes(state), shapes(wanted), f"{path} does not fit this model")
    check_finite(state, str(path))
    module.load_state_dict(state, strict=False)


def check_shapes(found: Shapes, wanted: Shapes, what: str) -> None:
    """ValueError that begins with `what` and lists missing, unexpected and mis-shaped tensors, if there are any."""
    problems = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unexpected": sorted(found.keys() - wanted.keys()),
        "of another shape": [
            f"{name} {tuple(found[name])} instead of {tuple(wanted[name])}"
            for name in sorted(wanted.keys() & found.keys())
            if tuple(found[name]) != tuple(wanted[name])
        ],
    }
    if any(problems.values()):
        told = "; ".join(
            f"{len(listed)} {problem} ({', '.join(listed[:3])}{', ...' if len(listed) > 3 else ''})"
            for problem, listed in problems.items()
            if listed
        )
        raise ValueError(f"{what}: {told}")


def check_finite(state: Mapping[str, Tensor], what: str) -> None:
    """ValueError that begins with `what` if a tensor holds NaN or infinity: such weights draw nothing but black."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{what} holds values that are not finite (NaN or infinity), first in {name}")


def shapes(state: Mapping[str, Tensor]) -> Shapes:
    """Shapes of the tensors of a state dict."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
