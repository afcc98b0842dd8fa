"""python -m cldm inspect: what a file is."""

import argparse
import json
from pathlib import Path

from cldm.branches.controlnet import ControlNet
from cldm.branches.interop import understand_control
from cldm.runs.recorded import exported
from ldm.autoencoder import AutoencoderKL
from ldm.interop.layouts import CALLED
from ldm.interop.published import SETTINGS, Published, read
from ldm.interop.sizes import family
from ldm.interop.understand import Understood, understand
from ldm.schedule import NoiseSchedule
from ldm.text_encoder import TextEncoder
from ldm.unet import UNet, UNetConfig

EXAMPLES = """\
  python -m cldm inspect control_v11p_sd15_canny.pth
  python -m cldm inspect sd15/"""


LAYOUTS = {"own": "this project's own"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("file", type=Path, help="file, diffusers folder or run folder")
    parser.add_argument("--base", type=Path, help="base model, where FILE is a Control-LoRA or a difference")


def run(args: argparse.Namespace) -> None:
    """Print what is found; ValueError, after it, if a part does not fit its module."""
    file = exported(args.file)
    published = read(file)
    print(f"{file}\n  layout        {LAYOUTS.get(published.layout, published.layout)}")
    problems = []
    for name, part in published.parts.items():
        count = sum(tensor.numel() for tensor in part.state.values())
        kinds = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in part.state.values()})
        head = f"  {CALLED[name]:<14}{count:,} parameters in {len(part.state)} tensors, {', '.join(kinds)}"
        try:
            print(f"{head}{_details(published, name, args.base)}")
        except ValueError as error:
            print(head)
            problems.append(str(error))
    print(f"  prediction    {published.prediction or _usual_prediction(published)}")
    usual = NoiseSchedule().told()
    other = {k: v for k, v in published.schedule.items() if k != "prediction" and v != usual[k]}
    if other:
        print(f"  schedule      {', '.join(f'{key}={value}' for key, value in other.items())}")
    if published.ema:
        print(f"  averages      {len(published.ema)} tensors (convert --ema takes them)")
    for key, value in sorted(published.metadata.items()):
        if key not in ("format", "prediction", SETTINGS):
            print(f"  {key:<13} {_lines(value)}")
    if problems:
        raise ValueError("; ".join(dict.fromkeys(problems)))
    print("  problems      none")


def _lines(value: str) -> str:
    """A value of the metadata; of lists and objects in JSON an entry a line, cut where it is long."""
    try:
        found = json.loads(value)
    except ValueError:
        return value
    if isinstance(found, dict):
        entries = [f"{name}: {json.dumps(entry)}" for name, entry in found.items()]
    elif isinstance(found, list):
        entries = [json.dumps(entry) for entry in found]
    else:
        return value
    return f"\n{'':16}".join(_shorten(entry) for entry in entries)


def _shorten(text: str, length: int = 160) -> str:
    """The text, or its beginning if it is longer."""
    return text if len(text) <= length else f"{text[:length]} ... ({len(text):,} characters)"


def _details(published: Published, name: str, base: Path | None) -> str:
    if published.layout == "own" and SETTINGS not in published.metadata:  # of an early version
        return f", sizes as in its config (model={published.metadata.get('model', 'not said')})"
    if name == "control":
        if published.parts[name].layout in ("lora", "difference") and base is None:
            return f", a {published.layout} (its base tells the rest: --base FILE)"
        return _told(understand_control(published, None if base is None else read(base)))
    return _told(understand(published, name))


def _told(part: Understood) -> str:
    module = part.module
    if isinstance(module, UNet):
        return f"\n{'':16}{_unet(module.config)}"
    if isinstance(module, ControlNet):
        return f"\n{'':16}{_unet(module.encoder.config)}, hint of {module.hint_channels} channels"
    if isinstance(module, AutoencoderKL):
        patch = f" (patches of {module.patch} pixels, this project's own)" if module.patch > 1 else ""
        return f"\n{'':16}{module.z_channels} latent channels, factor {module.factor}{patch}"
    assert isinstance(module, TextEncoder)
    kind = "OpenCLIP" if module.activation == "gelu" else "CLIP"
    return f"\n{'':16}{kind}, width {module.width}, {len(module.layers)} layers, last {module.skip_last} not read"


def _unet(config: UNetConfig) -> str:
    heads = f"{config.heads} heads" if config.heads else f"heads of {config.head_channels} channels"
    inpainting = ", 9 input channels (inpainting)" if config.in_channels == 9 else ""
    return f"{family(config)}, widths {config.widths}, context {config.context_channels}, {heads}{inpainting}"


def _usual_prediction(published: Published) -> str:
    name = next((name for name in ("unet", "control") if name in published.parts), None)
    try:
        module = understand(published, "unet").module if name == "unet" else None
    except ValueError:
        module = None
    if isinstance(module, UNet) and not module.config.linear_projections and published.layout != "own":
        return "eps (as all of Stable Diffusion 1.x)"
    return "not said by the file"
