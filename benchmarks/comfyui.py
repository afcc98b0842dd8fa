"""Does ComfyUI draw the same images from the files that `convert` writes? For whoever has a copy of it:

    PYTHONPATH=. python benchmarks/comfyui.py FOLDER_OF_COMFYUI                 Stable Diffusion 1.5's sizes
    PYTHONPATH=. python benchmarks/comfyui.py FOLDER_OF_COMFYUI --model sd21    v-prediction, linear projections

A base and a ControlNet of random weights are converted, loaded by ComfyUI's own loaders and by ours, and drawn with by
both: 128 px, four Euler steps, guidance 7.5, strength 0.8, fp32 on the CPU, from the same noise. Printed are the
largest differences of the prompt's encoding, of the latents (both relative to their largest value) and of the image,
whose range is 0..1. Takes some minutes, 16 GB of memory and 8 GB of disk.
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cldm.branches.controlnet import ControlNet
from cldm.commands.cli import main as cldm
from cldm.runs.building import instantiate
from cldm.runs.configs import composed
from cldm.sampling.control import ControlUnit
from ldm.diffusion import LatentDiffusion
from ldm.samplers import initial_noise
from ldm.training.diffusion import base_facts
from ldm.weights import save_weights

PROMPT, NEGATIVE, SIZE, STEPS, GUIDANCE, STRENGTH = "a red house by the sea", "blurry", 128, 4, 7.5, 0.8


def fill(module: nn.Module) -> None:
    """Random values where a fresh network has zeros, so that everything counts."""
    for p in module.parameters():
        if not p.any():
            p.normal_(std=p[0].numel() ** -0.5 if p.ndim > 1 else 0.1)


def written(folder: Path, diffusion: LatentDiffusion, control: ControlNet) -> dict[str, Path]:
    """The two models in every layout that ComfyUI reads."""
    save_weights(diffusion, folder / "diffusion.safetensors", base_facts(diffusion))
    save_weights(control, folder / "control.safetensors", {})
    files = {"base": folder / "base.safetensors", "original": folder / "original.safetensors"}
    assert cldm(["convert", str(folder / "diffusion.safetensors"), str(files["base"]), "--to", "original"]) == 0
    (folder / "diffusion.safetensors").unlink()
    for layout, target in (("original", files["original"]), ("diffusers", folder / "diffusers")):
        assert cldm(["convert", str(folder / "control.safetensors"), str(target), "--to", layout]) == 0
    return files | {"diffusers": folder / "diffusers" / "diffusion_pytorch_model.safetensors"}


def drawn_by_comfyui(
    comfyui: Path, files: dict[str, Path], noise: Tensor, hint: Tensor, grid: Tensor
) -> dict[str, Any]:
    """Encoding of the prompt, and by layout of the ControlNet's file: latents and image (1, h, w, 3) in [0, 1]."""
    sys.path.append(str(comfyui))
    sys.argv = ["comfyui", "--cpu", "--force-fp32", "--fp32-text-enc"]  # it reads them as it is imported
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.controlnet
    import comfy.sample
    import comfy.samplers
    import comfy.sd

    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(files["base"]))
    positive, negative = (clip.encode_from_tokens(clip.tokenize(text)) for text in (PROMPT, NEGATIVE))
    sigmas = torch.cat([model.model.model_sampling.sigma(grid.float()), torch.zeros(1)])
    euler, found = comfy.samplers.ksampler("euler"), {"context": positive}
    for layout in ("original", "diffusers"):
        control = comfy.controlnet.load_controlnet(str(files[layout])).set_cond_hint(hint, STRENGTH)
        conditions = [[positive, {"control": control, "control_apply_to_uncond": True}]], [[negative, {}]]
        z = comfy.sample.sample_custom(model, noise, GUIDANCE, euler, sigmas, *conditions, torch.zeros_like(noise))
        found[layout] = z, vae.decode(z)
    return found


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", type=Path, help="folder that holds comfy/")
    parser.add_argument("--model", choices=("sd15", "sd21"), default="sd15")
    args = parser.parse_args()
    if not (args.comfyui / "comfy" / "sd.py").is_file():
        raise SystemExit(f"{args.comfyui} holds no comfy/sd.py; give the folder of a ComfyUI")
    torch.manual_seed(0)
    cfg = composed([f"model={args.model}", "base=random", "sampler=euler"])
    diffusion = instantiate(cfg.model, _convert_="all").eval()
    fill(diffusion.unet)
    control = instantiate(cfg.control, _convert_="all")(diffusion.unet).eval()
    fill(control)
    sampling = replace(instantiate(cfg.sampler, _convert_="all"), steps=STEPS, guidance=GUIDANCE)
    noise = initial_noise([0], diffusion.latent_shape(SIZE, SIZE), torch.device("cpu"), torch.float32)
    hint, latents = torch.rand(1, 3, SIZE, SIZE), []
    unit = ControlUnit(control, hint, STRENGTH)
    image = sampling(
        diffusion, [PROMPT], [0], (SIZE, SIZE), unit, NEGATIVE, callback=lambda _, z: latents.append(z)
    )  # fmt: skip
    context = diffusion.context([PROMPT])
    with tempfile.TemporaryDirectory() as folder:
        files = written(Path(folder), diffusion, control)
        theirs = drawn_by_comfyui(args.comfyui, files, noise, hint, sampling.timesteps(diffusion, 1.0))
    scale, own = diffusion.autoencoder.scale, (image / 2 + 0.5).permute(0, 2, 3, 1)
    print(f"prompt: {relative(theirs['context'], context):.1e}")
    for layout in ("original", "diffusers"):
        z, picture = theirs[layout]
        apart = (picture - own).abs().max()
        print(f"{layout} file: latents {relative(z * scale, latents[-1]):.1e}, image {apart:.1e}")


def relative(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


if __name__ == "__main__":
    main()
