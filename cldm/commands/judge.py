"""python -m cldm judge: train the judge of stickers, or ask it about an autoencoder."""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cldm.conditions import apply_batch, get_condition
from cldm.evaluation.fidelity import edge_fidelity, psnr
from cldm.runs.checkout import commit
from cldm.worlds import HELD_OUT_START, pooled
from cldm.worlds.stickers.captions import caption
from cldm.worlds.stickers.composer import render
from cldm.worlds.stickers.drawings import artwork
from cldm.worlds.stickers.judge import SIZE, Judge, load_judge, train_judge
from cldm.worlds.stickers.scores import caption_scores, read, scores
from cldm.worlds.stickers.world import VERSION, Composition, compose
from ldm.interop.published import read as read_published
from ldm.interop.understand import understand
from ldm.weights import save_weights

EXAMPLES = """\
  python -m cldm judge
  python -m cldm judge --steps 3000 --out judge.safetensors
  python -m cldm judge --measure configs/model/stickers.safetensors   # before and after an autoencoder"""

ITEMS = 256  # held-out compositions that accuracy is measured on


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--out", type=Path, default=Path("configs/protocol/judge.safetensors"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--count", type=int, default=5000, help="compositions to train on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--measure", type=Path, metavar="FILE", help="train nothing; measure the autoencoder of FILE")


def run(args: argparse.Namespace) -> None:
    """Train, measure on held-out compositions, write the file; or measure an autoencoder with the judge in --out."""
    if args.steps < 1 or args.count < 1:
        raise ValueError(f"--steps and --count must be at least 1, got {args.steps} and {args.count}")
    if args.threads:
        torch.set_num_threads(args.threads)
    held_out = [compose(args.seed, HELD_OUT_START + i) for i in range(ITEMS)]
    images = render(held_out, SIZE).image
    if args.measure:
        for line in measured(load_judge(args.out), args.measure, images, held_out, args.seed):
            print(line)
        return
    net = train_judge(args.steps, count=args.count, seed=args.seed)
    found = pooled(scores(read(net, images), held_out))
    metadata = {"stage": "judge", "steps": str(args.steps), "count": str(args.count), "seed": str(args.seed),
                "commit": commit(), "artwork": artwork(), "world": str(VERSION),
                **{name: f"{found[name]:.4f}" for name in ("concept", "category")}}  # fmt: skip
    save_weights(net, args.out, metadata, torch.float16)
    print(f"concept {found['concept']:.3f}, category {found['category']:.3f} on {ITEMS} held-out pictures; {args.out}")


def measured(judge: Judge, file: Path, images: Tensor, held_out: list[Composition], seed: int) -> list[str]:
    """A table: the judge's scores of real pictures and of their reconstructions, and PSNR and edge F1 of the latter."""
    again = reconstructions(file, images)
    captions = [caption(composition, seed, HELD_OUT_START + i) for i, composition in enumerate(held_out)]
    columns = []
    for reading in (read(judge, images), read(judge, again)):
        columns.append({
            **pooled(scores(reading, held_out)), **pooled(caption_scores(reading, captions), "caption_")
        })  # fmt: skip
    canny = get_condition("canny")
    edges = edge_fidelity(again, apply_batch(canny, images), canny)
    lines = [f"{'':26}{'real':>8}{'after':>8}   {len(held_out)} held-out pictures; after the autoencoder of {file}"]
    lines += [f"{name:26}{columns[0][name]:8.3f}{columns[1][name]:8.3f}" for name in columns[0]]
    lines += [f"{'psnr':26}{'':8}{psnr(again, images).mean().item():8.3f}"]
    return lines + [f"{name:26}{'':8}{value:8.3f}" for name, value in edges.items()]


@torch.no_grad()
def reconstructions(file: Path, images: Tensor) -> Tensor:
    """Images (b, 3, h, w) in [-1, 1] through the autoencoder in a file of any known layout."""
    found = understand(read_published(file), "autoencoder")
    autoencoder: Any = found.module.to_empty(device="cpu").float().eval()
    autoencoder.load_state_dict(found.state)
    return torch.cat([autoencoder.decode(autoencoder.encode(part)).clamp(-1, 1) for part in images.split(32)])
