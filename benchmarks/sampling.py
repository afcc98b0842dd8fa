"""Seconds per sampling step and peak memory: this project against diffusers' pipeline, in one process.

    python -m benchmarks.sampling                      small model, fp32 and bf16
    python -m benchmarks.sampling --size sd15          Stable Diffusion 1.5's sizes at 256 px, random weights, minutes
    python -m benchmarks.sampling --size sd15 --device cuda --batch 1 8 --compile          512 px

The same weights, latents, prompts and hint, DDIM, guidance 7.5; ours with channels-last weights, as sample.py sets
them, diffusers' as it comes. The two take turns, round by round, so that a loaded machine slows both. Stated are
the medians over rounds and the median of the rounds' ratios. Decoding is left out.
The ratio of CPU times is the steadier one on a CPU with other work. Peak memory is what a run needs beyond what is
there before it: of the GPU, or on Linux of the process. A table ends the output; --out adds the results to a file.
"""

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.measuring import now, peak_gib, quiet, reset_peak, since
from cldm.sampling.control import ControlUnit
from cldm.sampling.generation import Sampling
from ldm.samplers import ddim, initial_noise
from tests.pipelines import SD15, SMALL, Both, build

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PROMPT, NEGATIVE = "a large red star left of a blue ring", "blurry"


def ours(both: Both, size: int, steps: int, batch: int, compile: bool, device: str) -> Callable[[], torch.Tensor]:
    """A function that samples once, with all branches, and returns the latents."""
    sampling = Sampling(ddim, steps, "leading", 7.5, compile=compile)
    units = [ControlUnit(control, hint_of(both, size, device)) for control in both.controls]
    both.diffusion.decode = lambda z: z  # type: ignore[method-assign]

    def run() -> torch.Tensor:
        seen = {}
        sampling(both.diffusion, [PROMPT] * batch, range(batch), (size, size), units, NEGATIVE,
                 callback=lambda i, z: seen.update(z=z))  # fmt: skip
        return seen["z"]

    return run


def hint_of(both: Both, size: int, device: str) -> torch.Tensor:
    """A random hint in the model's precision."""
    hint = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    return hint.to(device, both.diffusion.unet.encoder.conv_in.weight.dtype)


def theirs(both: Both, size: int, steps: int, batch: int, compile: bool, device: str) -> Callable[[], torch.Tensor]:
    """The same by diffusers' pipeline."""
    import diffusers

    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False,
        set_alpha_to_one=False,
    )  # fmt: skip
    pipeline = both.pipeline("StableDiffusionControlNetPipeline", scheduler, both.controlnets)
    hint = hint_of(both, size, device)
    noise = initial_noise(
        range(batch), (both.diffusion.autoencoder.z_channels, size // 8, size // 8), device, hint.dtype
    )
    tokens = both.diffusion.conditioner.tokenize([PROMPT, NEGATIVE]).to(device)
    if compile:
        pipeline.unet = torch.compile(pipeline.unet, mode="reduce-overhead" if device == "cuda" else None)
        pipeline.controlnet = torch.compile(pipeline.controlnet, mode="reduce-overhead" if device == "cuda" else None)

    def run() -> torch.Tensor:
        with torch.no_grad():
            prompt, negative = pipeline.text_encoder(tokens)[0].split(1)
        return pipeline(
            prompt_embeds=prompt.expand(batch, -1, -1), negative_prompt_embeds=negative.expand(batch, -1, -1),
            image=hint, latents=noise.clone(), num_inference_steps=steps, guidance_scale=7.5, output_type="latent",
        ).images  # fmt: skip

    return run


def timed(run: Callable, device: str) -> tuple[float, float, float]:
    """Seconds, seconds of CPU time, and the memory in GiB that the run needs at its peak."""
    before, began = reset_peak(device), now(device)
    run()
    return *since(began, device), peak_gib(device) - before


def measure(runs: dict[str, Callable], steps: int, rounds: int, device: str) -> dict:
    """Medians per step, the median of the rounds' ratios, and how far the latents are apart."""
    latents = {name: run().float().cpu() for name, run in runs.items()}  # warm up, and compare
    times: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    memory = dict.fromkeys(runs, 0.0)
    for i in range(rounds):
        for name in list(runs) if i % 2 == 0 else list(reversed(runs)):
            seconds, busy, gib = timed(runs[name], device)
            times[name].append(seconds / steps)
            cpu[name].append(busy)
            memory[name] = max(memory[name], gib)
    apart = (latents["ours"] - latents["diffusers"]).abs().max() / latents["diffusers"].abs().max()
    return {
        **{f"{name}_seconds_per_step": round(statistics.median(values), 5) for name, values in times.items()},
        "speedup": round(statistics.median(b / a for a, b in zip(*times.values(), strict=True)), 3),
        "speedup_range": [round(f(b / a for a, b in zip(*times.values(), strict=True)), 3) for f in (min, max)],
        "cpu_time_speedup": round(statistics.median(b / a for a, b in zip(*cpu.values(), strict=True)), 3),
        **{f"{name}_peak_gib": round(gib, 3) for name, gib in memory.items()},
        "relative_difference": float(f"{apart:.2g}"),
    }


def table(rows: list[dict]) -> str:
    """The results for people."""
    lines = [
        "dtype  batch   ours s/step   diffusers s/step   ratio (range)        CPU time   peak GiB: ours, diffusers"
    ]
    for row in rows:
        low, high = row["speedup_range"]
        lines.append(
            f"{row['dtype']:5} {row['batch']:6} {row['ours_seconds_per_step']:13.4f} "
            f"{row['diffusers_seconds_per_step']:18.4f}   {row['speedup']:.2f} ({low:.2f} to {high:.2f}) "
            f"{row['cpu_time_speedup']:11.2f}   {row['ours_peak_gib']:14.3f}, {row['diffusers_peak_gib']:.3f}"
        )
    return "\n".join(lines)


DEFAULTS = {  # (size, on a GPU?) -> pixels, steps, rounds
    ("small", False): (128, 10, 5),
    ("small", True): (128, 20, 5),
    ("sd15", False): (256, 2, 3),
    ("sd15", True): (512, 20, 5),
}


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "sd15"), default="small")
    parser.add_argument("--pixels", type=int, help="side of the images (default: 128 small, 256 sd15, 512 on a GPU)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", choices=[*DTYPES], default=["fp32", "bf16"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--steps", type=int, help="default: 10 small, 2 sd15, 20 on a GPU")
    parser.add_argument("--rounds", type=int, help="default: 5, or 3 for sd15 on a CPU")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path, help="JSON file to add the results to")
    return parser


def main() -> None:
    args = options().parse_args()
    usual = DEFAULTS[args.size, args.device == "cuda"]
    pixels, steps, rounds = (a or b for a, b in zip((args.pixels, args.steps, args.rounds), usual, strict=True))
    both = build(SD15 if args.size == "sd15" else SMALL, controls=1, randomise=quiet)
    machine = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
    rows = []
    for dtype in args.dtypes:
        for module in (both.diffusion, *both.controls, *both.controlnets, *both.parts.values()):
            module.to(args.device, DTYPES[dtype])
        for module in (both.diffusion, *both.controls):
            module.to(memory_format=torch.channels_last)  # as sample.py does
        for batch in args.batch:
            asked = (both, pixels, steps, batch, args.compile, args.device)
            runs = {"ours": ours(*asked), "diffusers": theirs(*asked)}
            row = {
                "size": args.size, "pixels": pixels, "device": machine, "threads": torch.get_num_threads(),
                "torch": torch.__version__, "dtype": dtype, "batch": batch, "steps": steps,
                "rounds": rounds, "compile": args.compile, **measure(runs, steps, rounds, args.device),
            }  # fmt: skip
            print(json.dumps(row), flush=True)
            rows.append(row)
            if args.out:
                with args.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
