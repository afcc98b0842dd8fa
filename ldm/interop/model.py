"""LatentDiffusion from published checkpoints: its sizes, and its weights."""

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ldm.autoencoder import AutoencoderKL
from ldm.conditioner import Conditioner
from ldm.diffusion import LatentDiffusion
from ldm.interop import schedules, sizes
from ldm.interop.layouts import CALLED
from ldm.interop.published import Published, read
from ldm.interop.understand import autoencoder_sizes, text_sizes, understand
from ldm.schedule import NoiseSchedule
from ldm.text_encoder import TextEncoder
from ldm.unet import UNet
from ldm.weights import check_finite, check_shapes, load_weights, shapes, state_fingerprint
from ldm.widening import widened

PARTS = {"autoencoder": "autoencoder", "conditioner": "text", "unet": "unet"}
"""Parts of a LatentDiffusion -> parts of a checkpoint."""


def prediction_of(published: Published, told: str | None = None) -> str:
    """What the U-Net predicts, "eps" or "v": as the file says, as the family has it, or as `told`."""
    if told is not None or published.prediction is not None:
        if told and published.prediction and told != published.prediction:
            raise ValueError(f"{published.path} says prediction={published.prediction}, the configuration says {told}")
        return str(told or published.prediction)
    module = understand(published, "unet").module
    assert isinstance(module, UNet)
    if not module.config.linear_projections and published.layout != "own":
        return "eps"  # all of Stable Diffusion 1.x
    raise ValueError(
        f"{published.path} is {sizes.family(module.config)} and does not say what it predicts: set model.prediction "
        "(convert: --prediction) to v (2.1, 768 px) or eps (2.1-base, 512 px)"
    )


def schedule_of(published: Published, prediction: str | None = None, zero_snr: bool | None = None) -> NoiseSchedule:
    """The noise schedule that the model was trained with: as the file says, or as told where it does not."""
    told = {**published.schedule, "prediction": prediction_of(published, prediction)}
    if zero_snr is not None:
        if told.setdefault("zero_snr", zero_snr) != zero_snr and published.layout != "original":
            raise ValueError(f"{published.path} says zero_snr={told['zero_snr']}, the configuration says {zero_snr}")
        told["zero_snr"] = zero_snr
    return NoiseSchedule(**schedules.valid(told, str(published.path)))


def pretrained(
    path: str, prediction: str | None = None, backend: str = "auto", zero_snr: bool | None = None
) -> LatentDiffusion:
    """A model in the sizes of the checkpoint at `path` (file or diffusers folder), with weights yet to be loaded.

    prediction: "eps" or "v"; zero_snr: whether it was trained with zero terminal SNR; both where the file cannot tell
    (Stable Diffusion 2.x in the original layout).
    """
    published = read(path)
    if published.layout == "own":
        raise ValueError(f"model.path={path} is in this project's own layout; use the config it was trained with")
    unet = understand(published, "unet").module
    assert isinstance(unet, UNet)
    if unet.config.in_channels != unet.config.out_channels:
        raise ValueError(
            f"{path} is a U-Net of {unet.config.in_channels} input channels (inpainting, for instance); "
            f"training and sampling here need as many as it has outputs ({unet.config.out_channels})"
        )
    text = published.part("text")
    encoder = TextEncoder(**text_sizes(text, published.what("text")))
    config = {k: v for k, v in vars(unet.config).items() if k != "widths"}
    return LatentDiffusion(
        AutoencoderKL(**autoencoder_sizes(published.part("autoencoder"), published.what("autoencoder"))),
        Conditioner(encoder, pad=pad_of(published)),
        UNet(type(unet.config)(**{**config, "backend": backend})),
        schedule_of(published, prediction, zero_snr),
    )


def pad_of(published: Published) -> str:
    """How prompts are padded: as the file says, or with zeros for OpenCLIP's text encoder (Stable Diffusion 2.x)."""
    openclip = text_sizes(published.part("text"), published.what("text"))["activation"] == "gelu"
    return published.pad or ("zero" if openclip else "end")


def load_base(
    model: LatentDiffusion, path: str | Path | None, parts: Iterable[str] | None = None, widen: bool = False
) -> None:
    """Load weights of any known layout into `model`, strictly; see `load_weights` for `parts`.

    widen: let an autoencoder of fewer latent channels start a wider one, see ldm.widening.
    """
    if path is None:
        return
    parts, published = None if parts is None else [*parts], read(path)
    for part in PARTS if parts is None else parts:
        published.part(PARTS[part])  # or one sentence says what the file holds
    if published.layout == "own" and Path(path).is_file():
        if parts is None or "unet" in parts:
            schedules.check(model.schedule, published.schedule, published.path)
        own = functools.partial(widened, autoencoder=model.autoencoder, prefix="autoencoder.")
        load_weights(model, path, parts, own if widen else None)
        return
    if "unet" in published.parts:
        _same_family(model, published)
    states = {part: _state(model, published, part, widen) for part in (PARTS if parts is None else parts)}
    for part, state in states.items():  # after all of them have been found to fit
        _root(model, part).load_state_dict(state)


def _root(model: LatentDiffusion, part: str) -> torch.nn.Module:
    return model.conditioner.text_encoder if part == "conditioner" else getattr(model, part)


def _state(model: LatentDiffusion, published: Published, part: str, widen: bool) -> dict[str, Tensor]:
    """The state dict of one part of `model` from the checkpoint, every name and shape checked."""
    name, module = PARTS[part], _root(model, part)
    found = understand(published, name)
    wanted, state = module.state_dict(), filled(found.state, module)
    if isinstance(module, AutoencoderKL) and widen:
        state = widened(state, module)
    check_shapes(shapes(state), shapes(wanted), f"the {CALLED[name]} of {published.path} does not fit this model")
    check_finite(state, f"the {CALLED[name]} of {published.path}")
    return state


def filled(state: Mapping[str, Tensor], module: torch.nn.Module) -> dict[str, Tensor]:
    """A part's state dict with what diffusers' files of Stable Diffusion 2.x lack, since forward never reads it."""
    if not isinstance(module, TextEncoder):
        return dict(state)
    absent = {key: t for key, t in module.state_dict().items() if key not in state and not module.reads(key)}
    return {**state, **{key: torch.zeros(t.shape) for key, t in absent.items()}}


def base_fingerprint(published: Published) -> str | None:
    """`fingerprint` of the model in a checkpoint once it is loaded; None for one that lacks a part."""
    if not published.parts.keys() >= {*PARTS.values()}:
        return None
    state: dict[str, Tensor] = {}
    for part, name in PARTS.items():
        found, root = understand(published, name), "conditioner.text_encoder" if part == "conditioner" else part
        state |= {f"{root}.{key}": tensor for key, tensor in filled(found.state, found.module).items()}
    return state_fingerprint(state)


def _same_family(model: LatentDiffusion, published: Published) -> None:
    """One clear sentence for the mix-ups of Stable Diffusion 1 and 2."""
    theirs = understand(published, "unet").module
    assert isinstance(theirs, UNet)
    if model.unet.config.context_channels != theirs.config.context_channels:
        raise ValueError(
            f"{published.path} is {_described(theirs)}, this model is {_described(model.unet)}; "
            "choose the model that fits: model=sd15, model=sd21 (v), model=sd21_base (eps) or model=pretrained"
        )
    schedules.check(model.schedule, published.schedule, published.path)


def _described(unet: UNet) -> str:
    return f"{sizes.family(unet.config)} (context of {unet.config.context_channels} channels)"
