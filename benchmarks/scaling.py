"""How a training step, a sampling step and the data grow: tables in Markdown, each point in a process of its own.

    python -m benchmarks.scaling                                    the main job's sizes on a CPU
    python -m benchmarks.scaling --parts data --items 256 1024
    python -m benchmarks.scaling --size sd15 --device cuda          Stable Diffusion 1.5's sizes in bf16

    resolution, batch    a cached training step (benchmarks.training) and a sampling step with one branch and guidance
    controls             a sampling step with no branch, one, two and three
    data                 drawing compositions; data sets of a world and of a cache, made, opened again and read
    ranks                one and two processes (DDP; gloo on a CPU, as many as there are GPUs on them), the same batch

Weights are random. Ratios are to the first row of a table: of CPU time on a CPU, which other work there changes least,
and of time on a GPU. A training step's memory is the peak of the process, or of the GPU; elsewhere what came on top of
what was there before. The cache is of 512 px pictures; stand-ins for autoencoder and text encoder make it, so that
reading, hints and files are what is timed.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks import training
from benchmarks.annotate_kills import picture
from benchmarks.measuring import machine, peak_gib, quiet, reset_peak

PARTS = ("resolution", "batch", "controls", "data", "ranks")
PIXELS = {"small": (64, 128, 256), "sd15": (256, 512, 768)}  # the middle one is that of the other parts
BATCHES, CONTROLS = (1, 4, 16), (0, 1, 2, 3)
CACHED_PIXELS, LOADED = 512, 16  # of the cache; examples in a batch of a loader
H100 = 120
"""Samples/s that a cached step at Stable Diffusion 1.5's sizes is expected to take on an H100: an estimate."""


# ------------------------------------------------------------------ points, each in a process of its own


def sample(args: argparse.Namespace, pixels: int, batch: int, controls: int) -> dict[str, float]:
    """A step of DDIM with guidance."""
    from benchmarks.sampling import ours, timed
    from tests.pipelines import build

    both = build(training.sizes(args.size), controls, quiet)
    both.parts.clear()
    both.controlnets.clear()
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    for module in (both.diffusion, *both.controls):
        module.to(args.device, dtype).to(memory_format=torch.channels_last)
    run = ours(both, pixels, args.steps, batch, False, args.device)
    first, *times = (timed(run, args.device) for _ in range(4))  # the first warms up, and asks for all the memory
    seconds, busy, _ = zip(*times, strict=True)
    found = {"seconds": statistics.median(seconds), "cpu_seconds": statistics.median(busy)}
    return {**{name: value / args.steps for name, value in found.items()}, "peak_gib": first[-1]}


def draw(args: argparse.Namespace, pixels: int, count: int) -> dict[str, float]:
    """Compositions a second."""
    from cldm.worlds import get_world
    from cldm.worlds.dataset import WorldDataset

    world = get_world("stickers")
    WorldDataset(world, 1, pixels, "control")  # reads the artwork
    return {"rate": count / clocked(lambda: WorldDataset(world, count, pixels, "control"))[0]}


def stickers(args: argparse.Namespace, count: int) -> dict[str, float]:
    """The main job's data: moments and hints in memory."""
    from cldm.runs.building import instantiate
    from cldm.runs.configs import composed
    from cldm.runs.trained import base_of
    from ldm.interop import load_base

    with tempfile.TemporaryDirectory() as folder:
        given = [f"batch_size={LOADED}", f"data.train_count={count}", "data.val_count=1", f"data.cache={folder}"]
        cfg = composed(given)
        model = instantiate(cfg.model, _convert_="all")
        load_base(model, base_of(cfg), ["autoencoder"])
        condition = instantiate(cfg.condition, _convert_="all")
        source = instantiate(cfg.data, _convert_="all")
        made, _ = clocked(lambda: source(condition=condition, model=model))
        return {"made": count / made, **read(lambda: source(condition=condition, model=model))}


def cached(args: argparse.Namespace, count: int) -> dict[str, float]:
    """data=cached at Stable Diffusion's sizes: latents 4 x 64 x 64, hints 512 x 512, 77 x 768 for each caption."""
    import numpy as np

    from cldm.conditions import get_condition
    from cldm.data.cache import build_cache, cached_data
    from cldm.data.folder import folder_data
    from cldm.runs.building import instantiate
    from cldm.runs.configs import composed

    model = instantiate(composed(["model=tiny"]).model, _convert_="all")
    model.autoencoder.moments = lambda x: F.avg_pool2d(x, 8).repeat(1, 3, 1, 1)[:, :8]
    model.context = lambda texts: torch.zeros(len(texts), 77, 768)
    condition, rng = get_condition("canny"), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        pictures, out = Path(folder, "pictures"), Path(folder, "cache")
        pictures.mkdir()
        for i in range(count + 1):
            picture(rng, CACHED_PIXELS).save(pictures / f"{i:05d}.jpg")
            (pictures / f"{i:05d}.txt").write_text(f"picture number {i}")
        data = folder_data(condition, model, str(pictures), CACHED_PIXELS, LOADED, val_count=1)
        made, _ = clocked(lambda: build_cache(data.train, data.validation, model, out))
        return {"made": count / made, **read(lambda: cached_data(condition, model, str(out), LOADED, CACHED_PIXELS))}


def read(source: Callable[[], Any]) -> dict[str, float]:
    """Seconds to open a data module that was made before, examples a second of its loader, and memory."""
    before = reset_peak("cpu")
    opened, data = clocked(source)
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, global_step=0, accumulate_grad_batches=1)
    batches = iter(data.train_dataloader())
    next(batches)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < 3:
        count += len(next(batches)["id"])
    rate = count / (time.perf_counter() - began)
    return {"opened": opened, "rate": rate, "peak_gib": peak_gib("cpu") - before}


def clocked(make: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what was made."""
    began = time.perf_counter()
    made = make()
    return time.perf_counter() - began, made


POINTS: dict[str, Callable[..., dict[str, float]]] = {
    "sample": sample, "draw": draw, "stickers": stickers, "cached": cached,
}  # fmt: skip


def point(args: argparse.Namespace, name: str, **options: int) -> dict[str, float]:
    """What a function of POINTS finds in a fresh process."""
    given = ["--size", args.size, "--device", args.device, "--steps", str(args.steps)]
    asked = ["--point", json.dumps({"name": name, **options})]
    command = [sys.executable, "-m", "benchmarks.scaling", *given, *asked]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} {options}: {done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def train(args: argparse.Namespace, pixels: int, batch: int, ranks: int = 1) -> dict[str, Any]:
    """A cached training step."""
    dtype = "bf16" if args.device == "cuda" else "fp32"
    own = {"pixels": pixels, "batch_size": batch, "dtype": dtype, "ranks": ranks, "warmup": 1}
    asked = argparse.Namespace(**{**vars(args), **own}, compile=False, checkpointing=False)
    return training.summary([training.once("cached", asked)], batch)


# ------------------------------------------------------------------ parts, each a table or two


def clock(args: argparse.Namespace) -> tuple[str, str]:
    """Which time the ratios are of, and its title."""
    return ("seconds", "s/step") if args.device == "cuda" else ("cpu_seconds", "CPU s/step")


def cells(found: dict[str, Any], first: dict[str, Any], key: str) -> list[str]:
    """Time, its ratio to the first row's, memory."""
    return [f"{found[key]:.3f}", f"{found[key] / first[key]:.2f}", f"{1024 * found['peak_gib']:.0f}"]


def steps_table(args: argparse.Namespace, points: dict[str, dict[str, int]]) -> str:
    """Training and sampling steps of each point: its name, and its pixels and batch."""
    key, title = clock(args)
    found = {name: (train(args, **asked), point(args, "sample", controls=1, **asked)) for name, asked in points.items()}
    firsts = next(iter(found.values()))
    rows = [
        [name, *(cell for two in zip(pair, firsts, strict=True) for cell in cells(*two, key))]
        for name, pair in found.items()
    ]
    return table(["", f"training {title}", "ratio", "peak MiB", f"sampling {title}", "ratio", "MiB more"], rows)


def resolution(args: argparse.Namespace) -> str:
    return steps_table(args, {f"{side} px": {"pixels": side, "batch": 1} for side in PIXELS[args.size]})


def batch(args: argparse.Namespace) -> str:
    return steps_table(args, {f"batch {n}": {"pixels": PIXELS[args.size][1], "batch": n} for n in BATCHES})


def controls(args: argparse.Namespace) -> str:
    key, title = clock(args)
    found = [point(args, "sample", pixels=PIXELS[args.size][1], batch=1, controls=n) for n in CONTROLS]
    rows = [[f"{n} controls", *cells(one, found[0], key)] for n, one in zip(CONTROLS, found, strict=True)]
    return table(["", f"sampling {title}", "ratio", "MiB more"], rows)


def data(args: argparse.Namespace) -> str:
    drawn = [[f"{side} px", f"{point(args, 'draw', pixels=side, count=128)['rate']:.0f}"] for side in PIXELS["small"]]
    rows = []
    for name, title in (("stickers", "stickers, 128 px"), ("cached", f"data=cached, {CACHED_PIXELS} px")):
        for count in args.items:
            one = point(args, name, count=count)
            read = f"{one['rate']:.0f}", f"{one['rate'] / H100:.1f}", f"{1024 * one['peak_gib']:.0f}"
            rows.append([f"{title}, {count} items", f"{one['made']:.0f}", f"{one['opened']:.2f}", *read])
    head = ["", "made, items/s", "opened again, s", "loader, items/s", f"ratio to {H100}/s (H100)", "MiB more"]
    return table(["stickers", "compositions/s"], drawn) + "\n\n" + table(head, rows)


def ranks(args: argparse.Namespace) -> str:
    there = torch.cuda.device_count() if args.device == "cuda" else 2
    counts = [n for n in (1, 2, 4, 8) if n <= there]
    size = 16 if args.size == "small" else 8
    found = [train(args, PIXELS[args.size][1], size, n) for n in counts]
    rows = [
        [f"{n} x batch {size // n}", f"{one['seconds']:.3f}", f"{one['seconds'] / found[0]['seconds']:.2f}",
         f"{one['cpu_seconds']:.3f}", f"{one['samples_per_second']:.1f}"]
        for n, one in zip(counts, found, strict=True)
    ]  # fmt: skip
    return table(["", "s/step", "ratio", "CPU s/step of a process", "samples/s"], rows)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--size", choices=("small", "sd15"), default="small")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a point (default: 4)")
    parser.add_argument("--items", nargs="+", type=int, default=[256, 1024], help="sizes of the data sets")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    args = options().parse_args()
    if args.point:
        name = args.point.pop("name")
        print(json.dumps(POINTS[name](args, **args.point)))
        return
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    command = shlex.join(["python", "-m", "benchmarks.scaling", *sys.argv[1:]])
    print(f"`{command}`: {args.size}; {machine(args.device)}, {load}")
    makers = {"resolution": resolution, "batch": batch, "controls": controls, "data": data, "ranks": ranks}
    for part in args.parts:
        print(f"\n**{part.capitalize()}**\n\n{makers[part](args)}", flush=True)


if __name__ == "__main__":
    main()
