"""What decides a content decides its name: the one way in which keys are made. See docs/identity.md."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from ldm.autoencoder import AutoencoderKL
from ldm.conditioner import Conditioner
from ldm.files import FILES, content
from ldm.weights import fingerprint


def key(*parts: Any) -> str:
    """16 hex digits that change with any of the parts; see `decisive`."""
    text = json.dumps(decisive(parts), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def decisive(value: Any) -> Any:
    """What decides a value, as plain JSON, the same on any day and in any place.

    Of an object of parameters (a dataclass) its name, version and parameters, of a file or folder among them the
    content, of a module the weights, of a function its name, and of a partial its arguments too. ValueError for what
    has no such name, such as a lambda.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return content(value)
    if isinstance(value, dict):
        return {str(name): decisive(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [decisive(item) for item in value]
    if isinstance(value, functools.partial):
        return [decisive(value.func), decisive(value.args), decisive(value.keywords)]
    if isinstance(value, nn.Module):
        return fingerprint(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dict(_parameters(value))
    name = getattr(value, "__qualname__", "<")
    if callable(value) and "<" not in name:
        return f"{value.__module__}.{name}"
    raise ValueError(f"{value!r} has no name that outlives this process; give a function or class of a module")


def encoder_key(autoencoder: AutoencoderKL) -> str:
    """A name for the encoder: cached moments belong to it, whatever the decoder."""
    return key(autoencoder.encoder, autoencoder.quant_conv, autoencoder.untold())


def conditioner_key(conditioner: Conditioner) -> str:
    """A name for the text encoder and its tokenizer: cached contexts belong to them."""
    return key(conditioner, conditioner.text_encoder.untold(), conditioner.pad, conditioner.vocabulary)


def _parameters(value: Any) -> Iterator[tuple[str, Any]]:
    yield "name", getattr(value, "name", type(value).__qualname__)
    yield "version", getattr(value, "version", 1)
    for field in dataclasses.fields(value):
        held = getattr(value, field.name)
        there = field.name in FILES and isinstance(held, str) and Path(held).expanduser().exists()
        yield field.name, content(held) if there else decisive(held)
