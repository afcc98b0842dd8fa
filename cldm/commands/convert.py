"""python -m cldm convert: a checkpoint from one published layout to the other."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from cldm.branches.interop import control_tensors, describe, understand_control, write_control_folder
from cldm.runs.folder import BASE_FILE
from cldm.runs.recorded import exported
from ldm.files import whole
from ldm.interop.layouts import CALLED
from ldm.interop.model import pad_of, schedule_of
from ldm.interop.published import FOLDERS, SETTINGS, Published, read
from ldm.interop.understand import Understood, averaged, understand
from ldm.interop.write import (
    original_tensors,
    schedule_tensors,
    settings_metadata,
    write_diffusers_part,
    write_pipeline,
)
from ldm.schedule import PREDICTIONS, NoiseSchedule
from ldm.text_encoder import TextEncoder
from ldm.weights import write_tensors

EXAMPLES = """\
  a trained ControlNet, for ComfyUI and the web UI, in half precision:
    python -m cldm convert runs/R/control.safetensors control_canny_sd15.safetensors --to original --dtype fp16
  the same for diffusers' ControlNetModel.from_pretrained:
    python -m cldm convert runs/R/control.safetensors control_canny_sd15 --to diffusers
  a downloaded model to a folder of diffusers, and back:
    python -m cldm convert v1-5-pruned.safetensors sd15 --to diffusers
    python -m cldm convert sd15 sd15.safetensors --to original
  the branch alone, out of a full checkpoint of the original code:
    python -m cldm convert control_sd15_canny.pth canny.safetensors --to original --part control"""

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PARTS = {"control": "control", "unet": "unet", "vae": "autoencoder", "text": "text"}
WHOLE = {"unet", "autoencoder", "text"}
OWN = {SETTINGS, "format", "prediction"}
"""Keys of the metadata that no --set may write."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("src", type=Path, help="file, diffusers folder or run folder; its layout is read from its keys")
    parser.add_argument("dst", type=Path, help="new .safetensors file (original) or new folder (diffusers)")
    parser.add_argument("--to", choices=("original", "diffusers"), required=True, help="layout to write")
    parser.add_argument("--dtype", choices=DTYPES, help="precision to write; the source's if not given")
    parser.add_argument("--part", choices=(*PARTS, "all"), default="all", help="write only this part (default: all)")
    parser.add_argument("--base", type=Path, help="base model, where SRC is a Control-LoRA or a difference")
    parser.add_argument("--ema", action="store_true", help="take the moving averages of the U-Net, where SRC has them")
    parser.add_argument("--prediction", choices=PREDICTIONS, help="what a Stable Diffusion 2.x model predicts")
    parser.add_argument("--zero-snr", action="store_true", help="the model was trained with zero terminal SNR")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="metadata to write, such as condition=canny"
    )


def run(args: argparse.Namespace) -> None:
    """Read everything, then write; nothing is left behind where either fails."""
    dtype = DTYPES[args.dtype] if args.dtype else None
    _check_target(args.dst, args.to)
    typed = _metadata(args.set)
    published = read(exported(args.src))
    published = averaged(published) if args.ema else published
    parts = understood_parts(published, args.part, None if args.base is None else read(exported(args.base)))
    told = _schedule(published, parts, args.prediction, args.zero_snr or None)
    pad = pad_of(published) if "text" in parts else None
    metadata = {**published.metadata, **settings_metadata(parts, told, pad), **typed}
    metadata |= {"prediction": told["prediction"]} if "prediction" in told else {}
    if "control" in parts:
        metadata = {**describe(parts["control"]), **metadata}
    with whole(args.dst, new=True) as target:
        if args.to == "original":
            _write_original(parts, target, metadata, dtype, told)
        else:
            _write_diffusers(parts, target, metadata, dtype, told, pad)
    if metadata.get("locking", "locked") != "locked":
        print(f"note: this branch was trained together with its base: take the {BASE_FILE} of its run along")
    print(f"wrote {args.dst} ({args.to} layout, {args.dtype or 'precision of the source'})")


def _check_target(dst: Path, to: str) -> None:
    if dst.exists():
        raise FileExistsError(f"{dst} exists; remove it or choose another name")
    if (dst.suffix == ".safetensors") != (to == "original"):
        wanted = "a file: end DST with .safetensors" if to == "original" else "a folder: DST must not end like a file"
        raise ValueError(f"--to {to} writes {wanted} (got {dst})")


def _metadata(pairs: list[str]) -> dict[str, str]:
    odd = [pair for pair in pairs if not pair.partition("=")[0] or "=" not in pair]
    if odd:
        raise ValueError(f"--set takes KEY=VALUE, got {odd[0]!r}")
    told = dict(pair.split("=", 1) for pair in pairs)
    if own := told.keys() & OWN:
        raise ValueError(f"--set {own.pop()}=: convert writes this key itself, from what the weights are (see --help)")
    return told


def _schedule(
    published: Published, parts: Mapping[str, Understood], prediction: str | None, zero_snr: bool | None
) -> Mapping[str, Any]:
    """What the new file says of the noise schedule: all of it for a whole model, else what is known."""
    if parts.keys() >= WHOLE:
        return schedule_of(published, prediction, zero_snr).told()
    typed = {k: v for k, v in (("prediction", prediction), ("zero_snr", zero_snr)) if v is not None}
    if typed and not parts.keys() & {"unet", "control"}:
        raise ValueError(f"--prediction and --zero-snr are of a U-Net or a ControlNet; written: {', '.join(parts)}")
    for key, value in typed.items():
        if (said := published.schedule.get(key, value)) != value:
            raise ValueError(f"{published.path} says {key}={said}, the command says {value}")
    return {**published.schedule, **typed}


def understood_parts(published: Published, part: str, base: Published | None) -> dict[str, Understood]:
    """The parts to write, each found to fit its module; progress is shown."""
    names = [*published.parts] if part == "all" else [PARTS[part]]
    parts = {}
    for name in (bar := tqdm(names, desc="reading", unit="part", leave=False)):
        bar.set_postfix_str(CALLED[name])
        parts[name] = understand_control(published, base) if name == "control" else understand(published, name)
    return parts


def _write_original(
    parts: Mapping[str, Understood],
    target: Path,
    metadata: Mapping[str, str],
    dtype: torch.dtype | None,
    told: Mapping[str, Any],
) -> None:
    tensors: dict[str, torch.Tensor] = {}
    alone = [*parts] == ["autoencoder"]  # the web UI and ComfyUI want an autoencoder's file without prefix
    for name, part in parts.items():
        tensors |= control_tensors(part) if name == "control" else original_tensors(part, prefix=not alone)
    size = sum(t.numel() * (dtype.itemsize if dtype else t.element_size()) for t in tensors.values())
    print(f"writing {len(tensors)} tensors, {size / 1e9:.2f} GB")
    if parts.keys() >= WHOLE:  # with the tables that original files have; they stay fp32 at any dtype
        tensors = {name: t.to(dtype) if dtype else t for name, t in tensors.items()}
        tensors |= schedule_tensors(NoiseSchedule(**told))
        dtype = None
    write_tensors(tensors, target, metadata, dtype)


def _write_diffusers(
    parts: Mapping[str, Understood],
    target: Path,
    metadata: Mapping[str, str],
    dtype: torch.dtype | None,
    told: Mapping[str, Any],
    pad: str | None,
) -> None:
    subfolder = {part: target if len(parts) == 1 else target / sub for sub, part in FOLDERS.items()}
    for name, part in (bar := tqdm(parts.items(), desc="writing", unit="part", leave=False)):
        bar.set_postfix_str(CALLED[name])
        if name == "control":
            write_control_folder(part, subfolder[name], metadata, dtype)
        else:
            write_diffusers_part(part, subfolder[name], metadata, dtype, told.get("prediction"))
    if parts.keys() >= WHOLE and pad:
        encoder = parts["text"].module
        assert isinstance(encoder, TextEncoder)
        write_pipeline(target, NoiseSchedule(**told), pad, encoder.context_length, controlled="control" in parts)
