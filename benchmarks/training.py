"""Seconds, memory and operations of a training step: this project against diffusers' recipe and plain fine-tuning.

    python -m benchmarks.training                                      the main job's sizes, fp32
    python -m benchmarks.training --size sd15 --dtypes fp32 bf16       Stable Diffusion 1.5's sizes at 256 px, batch 1
    python -m benchmarks.training --size sd15 --device cuda --batch 1 8 32 [--compile] [--checkpointing]       512 px

    cached      ControlLDM on cached moments and contexts (data=cached), by Lightning's Trainer as train.py runs it
    uncached    ControlLDM on images and prompts (data=folder)
    diffusers   diffusers' modules in the loop of its train_controlnet script: VAE and text encoder in every step
    finetune    all of the U-Net trained, no branch, cached: what the paper's overhead is measured against
    decoder     the U-Net's decoder trained, no branch, cached

The same random weights, images, batch, precision and AdamW. Each side runs in a process of its own, since two do not
fit into 24 GiB; the sides take turns, round by round, so that a loaded machine slows all of them. Stated are medians
over the steps of all rounds, their range, and the share of the matrix-product peak that was measured in the same
process. The last line is ours (cached) against diffusers: `ratio R memory M`, above 1 and below 1 where ours is ahead.
"""

import argparse
import gc
import itertools
import json
import logging
import os
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import machine, now, peak_gib, quiet, reset_peak, since

SIDES = ("cached", "uncached", "diffusers", "finetune", "decoder")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PROMPT = "a large red star left of a blue ring"
LR = 1e-5
MAIN_JOB: dict[str, Any] = {
    "widths": (32, 64, 128, 128), "attention": (False, True, True, False), "heads": None, "latent": 8, "context": 128,
    "hint_widths": (8, 16, 32, 64), "autoencoder": (32, 32, 64, 64),
}  # fmt: skip
"""U-Net and branch of configs/model/stickers.yaml; autoencoder and text encoder are others of like size."""


def batches(pixels: int, batch: int) -> Iterator[dict[str, Any]]:
    """Endless batches of random images in [-1, 1], hints in [0, 1] and prompts."""
    rng = torch.Generator().manual_seed(0)
    while True:
        image = torch.rand(batch, 3, pixels, pixels, generator=rng) * 2 - 1
        hint = (torch.rand(batch, 3, pixels, pixels, generator=rng) < 0.05).float()
        yield {"image": image, "hint": hint, "caption": [PROMPT] * batch, "id": torch.arange(batch)}


def optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=LR, fused=True)


def module_of(side: str, both: Any, args: argparse.Namespace) -> Any:
    """The training module of a side of ours."""
    from cldm.training.control_ldm import ControlLDM
    from ldm.training.diffusion import DiffusionTraining

    diffusion = both.diffusion
    options = {
        "optimizer": optimizer, "warmup_steps": 0, "cosine": False, "checkpointing": args.checkpointing,
        "channels_last": args.device == "cuda" or (args.size == "small" and args.dtype == "fp32"),  # where it pays
    }  # fmt: skip
    if side in ("cached", "uncached"):
        return ControlLDM(diffusion, both.controls[0], **options)
    if side == "decoder":
        diffusion.unet.encoder.requires_grad_(False)
    return DiffusionTraining(diffusion, train_text_encoder=False, **options)


@torch.no_grad()
def items_of(diffusion: Any, cached: bool, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Four batches; cached: with moments and contexts instead of images and prompts."""
    mine = args.batch_size // args.ranks
    items = [batch for batch, _ in zip(batches(args.pixels, mine), range(4), strict=False)]
    if not cached:
        return items
    diffusion.autoencoder.to(args.device)
    context, device = diffusion.context([PROMPT] * mine), next(diffusion.parameters()).device
    moments = [diffusion.autoencoder.moments(item.pop("image").to(device)).cpu() for item in items]
    diffusion.autoencoder.to("cpu")  # a cached run does not need it
    return [{**item, "moments": own, "context": context} for item, own in zip(items, moments, strict=True)]


def ours(side: str, both: Any, args: argparse.Namespace) -> Callable[[int], Iterator[tuple[float, float]]]:
    """steps -> the times of that many steps of Lightning's Trainer."""
    import pytorch_lightning as pl  # here, for the memory of the other sides

    module = module_of(side, both, args)
    items = items_of(both.diffusion, side != "uncached", args)
    if args.compile:
        both.diffusion.unet.compile()
    precision: Any = {"fp32": "32-true", "bf16": "bf16-mixed"}[args.dtype]
    module.hold_frozen_in(precision)

    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[Any]:
            return itertools.cycle(items)

    class Clock(pl.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            self.began = now(args.device)

        def on_train_batch_end(self, *_: Any) -> None:
            times.append(since(self.began, args.device))

    times: list[Any] = []

    def run(steps: int) -> Iterator[tuple[float, float]]:
        times.clear()
        trainer = pl.Trainer(
            max_steps=steps, accelerator="cuda" if args.device == "cuda" else "cpu", devices=args.ranks,
            strategy="ddp" if args.ranks > 1 else "auto", precision=precision, gradient_clip_val=1.0,
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            callbacks=[Clock()],
        )  # fmt: skip
        trainer.fit(module, torch.utils.data.DataLoader(Endless(), batch_size=None))
        module.trainer = None  # which holds an optimizer, and with it twice the size of the branch
        yield from times

    return run


def theirs(both: Any, args: argparse.Namespace) -> Callable[[int], Iterator[tuple[float, float]]]:
    """steps -> the times of that many steps of train_controlnet's loop."""
    import diffusers

    device, dtype = args.device, DTYPES[args.dtype]
    vae, text, unet = (
        both.parts[name].requires_grad_(False).to(device, dtype) for name in ("vae", "text_encoder", "unet")
    )
    control = both.controlnets[0].to(device).train()
    if args.checkpointing:
        control.enable_gradient_checkpointing()
    if args.compile:
        unet.compile()
        control.compile()
    scheduler = diffusers.DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )
    adam = optimizer(control.parameters())
    stream = batches(args.pixels, args.batch_size)
    tokens = both.diffusion.conditioner.tokenize([PROMPT] * args.batch_size).to(device)

    def step(batch: dict[str, Any]) -> Tensor:
        latents = vae.encode(batch["image"].to(device, dtype)).latent_dist.sample() * 0.18215
        noise = torch.randn_like(latents)
        t = torch.randint(0, 1000, (len(latents),), device=device)
        noisy = scheduler.add_noise(latents.float(), noise.float(), t).to(dtype)
        context = text(tokens, return_dict=False)[0]
        hint = batch["hint"].to(device, dtype)
        down, middle = control(noisy, t, context, controlnet_cond=hint, return_dict=False)
        found = unet(
            noisy, t, context, down_block_additional_residuals=[r.to(dtype) for r in down],
            mid_block_additional_residual=middle.to(dtype), return_dict=False,
        )[0]  # fmt: skip
        return F.mse_loss(found.float(), noise.float())

    def run(steps: int) -> Iterator[tuple[float, float]]:
        for _ in range(steps):
            batch, began = next(stream), now(device)
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                loss = step(batch)
            loss.backward()
            nn.utils.clip_grad_norm_(control.parameters(), 1.0)
            adam.step()
            adam.zero_grad(set_to_none=True)
            loss.detach().item()
            yield since(began, device)

    return run


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """GFLOP/s of a large matrix product: the best of eight."""
    side = 8192 if device == "cuda" else 1536
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        began = now(device)[0]
        a @ b
        best = min(best, now(device)[0] - began)
    return 2 * side**3 / best / 1e9


def sizes(name: str) -> Any:
    """The model's widths: Stable Diffusion 1.5's, or the main job's."""
    from tests.pipelines import SD15, Sizes

    return SD15 if name == "sd15" else Sizes(**MAIN_JOB)


def work(args: argparse.Namespace) -> dict[str, Any]:
    """One side's steps, in this process."""
    from tests.pipelines import build

    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    both = build(sizes(args.size), controls=1, randomise=quiet)
    if args.side == "diffusers":
        run = theirs(both, args)
    else:
        both.parts.clear()
        both.controlnets.clear()
        run = ours(args.side, both, args)
    with FlopCounterMode(display=False) as counter:
        [*run(1)]
    flops = counter.get_total_flops()
    gc.collect()
    reset_peak(args.device)
    times: list[Any] = [*run(args.warmup + args.steps)][args.warmup :]
    return {
        "seconds": [wall for wall, _ in times],
        "cpu_seconds": [busy for _, busy in times],
        "peak_gib": peak_gib(args.device),
        "gflop": flops / 1e9,
        "peak_gflops": matmul_peak(args.device, DTYPES[args.dtype]),
    }


def once(side: str, args: argparse.Namespace) -> dict[str, Any]:
    """What `work` finds of a side in a fresh process. RuntimeError with its last words if that fails."""
    given = ["--side", side, "--size", args.size, "--device", args.device, "--pixels", args.pixels,
             "--steps", args.steps, "--warmup", args.warmup, "--batch", args.batch_size, "--dtypes", args.dtype,
             "--ranks", args.ranks,
             *(f"--{flag}" for flag in ("compile", "checkpointing") if getattr(args, flag))]  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.training", *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{side}: {done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Every side, in turns, each time in a fresh process. A side that fails, often of memory, is told and left out."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in args.sides}
    for i in range(args.rounds):
        for side in [*found] if i % 2 == 0 else [*reversed(found)]:
            try:
                found[side].append(once(side, args))
            except RuntimeError as error:
                print(error, file=sys.stderr)
                del found[side]
                continue
            print(f"round {i + 1}, {side}: {statistics.median(found[side][-1]['seconds']):.4f} s/step", file=sys.stderr)
    return {side: summary(rounds, args.batch_size) for side, rounds in found.items()}


def summary(rounds: list[dict[str, Any]], batch: int) -> dict[str, Any]:
    """What the table says of a side."""
    seconds = [s for one in rounds for s in one["seconds"]]
    median = statistics.median(seconds)
    return {
        "seconds": median, "min": min(seconds), "max": max(seconds), "samples_per_second": batch / median,
        "cpu_seconds": statistics.median(s for one in rounds for s in one["cpu_seconds"]),
        "peak_gib": max(one["peak_gib"] for one in rounds), "gflop": rounds[0]["gflop"],
        "share_of_peak": rounds[0]["gflop"] / median / max(one["peak_gflops"] for one in rounds),
    }  # fmt: skip


def table(found: dict[str, dict[str, Any]], args: argparse.Namespace) -> str:
    """The results as Markdown."""
    lines = [
        f"{args.size}, {args.pixels} px, batch {args.batch_size}, {args.dtype}"
        + f", {args.ranks} processes" * (args.ranks > 1)
        + ", compiled" * args.compile + ", checkpointing" * args.checkpointing + f"; {machine(args.device)}",
        "",
        "| side | s/step (min to max) | CPU s/step | samples/s | peak GiB | GFLOP/step | share of matmul peak |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for side, row in found.items():
        lines.append(
            f"| {side} | {row['seconds']:.3f} ({row['min']:.3f} to {row['max']:.3f}) | {row['cpu_seconds']:.3f} "
            f"| {row['samples_per_second']:.2f} | {row['peak_gib']:.2f} | {row['gflop']:.0f} "
            f"| {row['share_of_peak']:.0%} |"
        )
    if {"cached", "diffusers"} <= found.keys():
        a, b = found["cached"], found["diffusers"]
        ratios = b["seconds"] / a["seconds"], b["cpu_seconds"] / a["cpu_seconds"], a["peak_gib"] / b["peak_gib"]
        lines.append("\nCPU time ratio {1:.2f}\nratio {0:.2f} memory {2:.2f}".format(*ratios))
    return "\n".join(lines)


BATCH = {"small": 8, "sd15": 1}
PIXELS = {("small", "cpu"): 128, ("small", "cuda"): 128, ("sd15", "cpu"): 256, ("sd15", "cuda"): 512}


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "sd15"), default="small")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=[*SIDES])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtypes", nargs="+", choices=[*DTYPES], default=["fp32"])
    parser.add_argument("--batch", nargs="+", type=int, help="default: 8 small, 1 sd15")
    parser.add_argument("--pixels", type=int, help="side of the images: 128 small, 256 sd15, 512 on a GPU")
    parser.add_argument("--steps", type=int, help="timed in each round: 10 small, 3 sd15, 10 on a GPU")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them")
    parser.add_argument("--rounds", type=int, help="default: 3 small, 2 sd15")
    parser.add_argument("--ranks", type=int, default=1, help="processes (DDP) that share each batch; not for diffusers")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--out", type=Path, help="JSON lines to add the results to")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    parser = options()
    args = parser.parse_args()
    small, gpu = args.size == "small", args.device == "cuda"
    args.pixels = args.pixels or PIXELS[args.size, args.device]
    args.steps, args.rounds = args.steps or (10 if small or gpu else 3), args.rounds or (3 if small else 2)
    args.batch = args.batch or [BATCH[args.size]]
    if args.ranks > 1 and "diffusers" in ([args.side] if args.side else args.sides):
        parser.error("--ranks needs --sides without diffusers, whose loop runs in one process")
    if any(batch % args.ranks for batch in args.batch):
        parser.error(f"--ranks {args.ranks} must divide every --batch")
    failed: set[str] = set()
    for dtype, batch in itertools.product(args.dtypes, args.batch):
        one = argparse.Namespace(**{**vars(args), "dtype": dtype, "batch_size": batch})
        if args.side:
            found = work(one)
            if os.environ.get("LOCAL_RANK", "0") == "0":  # Lightning starts this command again for every other rank
                print(json.dumps(found))
            continue
        found = measure(one)
        print("\n" + table(found, one), flush=True)
        failed |= {*args.sides} - {*found}
        if args.out:
            told = {key: getattr(one, key) for key in ("size", "pixels", "batch_size", "dtype", "compile")}
            with args.out.open("a") as file:
                file.write(json.dumps({**told, "machine": machine(args.device), "sides": found}) + "\n")
    if failed:
        raise SystemExit(f"failed: {', '.join(sorted(failed))}")


if __name__ == "__main__":
    main()
