"""A part of a published checkpoint as a module (on the meta device: sizes, no memory) and its state dict; strict."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ldm.autoencoder import AutoencoderKL
from ldm.blocks import without_weights
from ldm.interop import names, sizes
from ldm.interop.layouts import EMA, Part
from ldm.interop.published import Published
from ldm.text_encoder import TextEncoder
from ldm.unet import UNet
from ldm.weights import check_shapes, shapes


@dataclass(frozen=True)
class Understood:
    """A part as a module on the meta device, its state dict in the names here, and what shapes do not tell of it."""

    module: nn.Module
    state: dict[str, Tensor]
    settings: dict[str, Any]


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
    with without_weights():
        unet = UNet(sizes.unet_config(told, part.layout, part.settings, what))
    state = translate(part.state, names.unet_table(unet, part.layout), unet, what)
    return Understood(unet, state, unet.config.untold())


def _autoencoder(part: Part, what: str) -> Understood:
    told = autoencoder_sizes(part, what)
    with without_weights():
        autoencoder = AutoencoderKL(**told)
    state = translate(part.state, names.autoencoder_table(autoencoder, part.layout), autoencoder, what)
    state["scale"] = torch.tensor(float(told["scale"]))
    return Understood(autoencoder, state, {key: told[key] for key in ("groups", "scale")})


def _text(part: Part, what: str) -> Understood:
    told = text_sizes(part, what)
    with without_weights():
        encoder = TextEncoder(**told)
    table = _TEXT_TABLES[part.layout](encoder)
    state = {**translate(part.state, table, encoder, what), **part.extra}
    return Understood(encoder, state, encoder.untold())


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
