"""Seconds per sampling step and peak memory: this project against diffusers' pipeline, in one process.

    python benchmarks/sampling.py                                  small model, fp32 and bf16
    python benchmarks/sampling.py --size sd15 --steps 2 --rounds 3     Stable Diffusion 1.5's sizes, random weights
    python benchmarks/sampling.py --size sd15 --device cuda --steps 20 --batch 1 8 --compile

The same weights, latents, prompts and hint, DDIM, guidance 7.5; ours with channels-last weights, as sample.py sets
them, diffusers' as it comes. The two take turns, round by round, so that a loaded machine slows both. Stated are
the medians over rounds and the median of the rounds' ratios. Decoding is left out.
The ratio of CPU times is the steadier one on a CPU with other work. Peak memory is the GPU's; a CPU
has none to read per program. Results go to --out as JSON.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from cldm.control import ControlUnit
from cldm.generation import Sampling
from ldm.samplers import ddim, initial_noise
from tests.pipelines import SD15, SMALL, Both, build

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PROMPT, NEGATIVE = "a large red star left of a blue ring", "blurry"


def quiet(module: nn.Module, seed: int) -> None:
    """Weights of trained size, drawn quickly: a residual network at its usual initial scale, nothing zero."""
    torch.manual_seed(seed)
    for p in module.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.01)


def runners(both: Both, size: int, steps: int, batch: int, compile: bool, device: str) -> dict[str, Callable]:
    """name -> a function that samples once and returns the latents."""
    import diffusers

    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False,
        set_alpha_to_one=False,
    )  # fmt: skip
    pipeline = both.pipeline("StableDiffusionControlNetPipeline", scheduler, both.controlnets)
    dtype = both.diffusion.unet.encoder.conv_in.weight.dtype
    hint = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    noise = initial_noise(range(batch), (4, size // 8, size // 8), device, dtype)
    tokens = both.diffusion.conditioner.tokenize([PROMPT, NEGATIVE]).to(device)
    sampling = Sampling(ddim, steps, "leading", 7.5, compile=compile)
    if compile:
        pipeline.unet = torch.compile(pipeline.unet, mode="reduce-overhead" if device == "cuda" else None)
        pipeline.controlnet = torch.compile(pipeline.controlnet, mode="reduce-overhead" if device == "cuda" else None)

    def ours() -> torch.Tensor:
        seen = {}
        both.diffusion.decode = lambda z: z  # type: ignore[method-assign]
        unit = ControlUnit(both.controls[0], hint)
        sampling(both.diffusion, [PROMPT] * batch, range(batch), (size, size), unit, NEGATIVE,
                 callback=lambda i, z: seen.update(z=z))  # fmt: skip
        return seen["z"]

    def theirs() -> torch.Tensor:
        with torch.no_grad():
            prompt, negative = pipeline.text_encoder(tokens)[0].split(1)
        return pipeline(
            prompt_embeds=prompt.expand(batch, -1, -1), negative_prompt_embeds=negative.expand(batch, -1, -1),
            image=hint, latents=noise.clone(), num_inference_steps=steps, guidance_scale=7.5, output_type="latent",
        ).images  # fmt: skip

    return {"ours": ours, "diffusers": theirs}


def timed(run: Callable, device: str) -> tuple[float, float, float]:
    """Seconds, seconds of CPU time, and peak GPU memory in GiB."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    began, busy = time.perf_counter(), time.process_time()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    return seconds, busy, torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else float("nan")


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
            memory[name] = gib
    apart = (latents["ours"] - latents["diffusers"]).abs().max() / latents["diffusers"].abs().max()
    return {
        **{f"{name}_seconds_per_step": round(statistics.median(values), 5) for name, values in times.items()},
        "speedup": round(statistics.median(b / a for a, b in zip(*times.values(), strict=True)), 3),
        "speedup_range": [round(f(b / a for a, b in zip(*times.values(), strict=True)), 3) for f in (min, max)],
        "cpu_time_speedup": round(statistics.median(b / a for a, b in zip(*cpu.values(), strict=True)), 3),
        **({f"{name}_peak_gib": round(gib, 2) for name, gib in memory.items()} if device == "cuda" else {}),
        "relative_difference": float(f"{apart:.2g}"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "sd15"), default="small")
    parser.add_argument("--pixels", type=int, help="side of the images; 512 for sd15, 128 for small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", choices=[*DTYPES], default=["fp32", "bf16"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path, help="JSON file to add the results to")
    args = parser.parse_args()
    pixels = args.pixels or (512 if args.size == "sd15" else 128)
    both = build(SD15 if args.size == "sd15" else SMALL, controls=1, randomise=quiet)
    machine = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
    for dtype in args.dtypes:
        for module in (both.diffusion, *both.controls, *both.controlnets, *both.parts.values()):
            module.to(args.device, DTYPES[dtype])
        for module in (both.diffusion, *both.controls):
            module.to(memory_format=torch.channels_last)  # as sample.py does
        for batch in args.batch:
            runs = runners(both, pixels, args.steps, batch, args.compile, args.device)
            row = {
                "size": args.size, "pixels": pixels, "device": machine, "threads": torch.get_num_threads(),
                "torch": torch.__version__, "dtype": dtype, "batch": batch, "steps": args.steps,
                "rounds": args.rounds, "compile": args.compile, **measure(runs, args.steps, args.rounds, args.device),
            }  # fmt: skip
            print(json.dumps(row))
            if args.out:
                with args.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
