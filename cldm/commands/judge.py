"""python -m cldm judge: train the judge of stickers."""

import argparse
from pathlib import Path

import torch

from cldm.runs.checkout import commit
from cldm.worlds import HELD_OUT_START, pooled
from cldm.worlds.stickers.composer import render
from cldm.worlds.stickers.drawings import artwork
from cldm.worlds.stickers.judge import SIZE, train_judge
from cldm.worlds.stickers.scores import read, scores
from cldm.worlds.stickers.world import VERSION, compose
from ldm.weights import save_weights

EXAMPLES = """\
  python -m cldm judge
  python -m cldm judge --steps 3000 --out judge.safetensors"""

ITEMS = 256  # held-out compositions that its accuracy is measured on


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--out", type=Path, default=Path("configs/protocol/judge.safetensors"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--count", type=int, default=5000, help="compositions to train on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads")


def run(args: argparse.Namespace) -> None:
    """Train, measure on held-out compositions, write the file."""
    if args.steps < 1 or args.count < 1:
        raise ValueError(f"--steps and --count must be at least 1, got {args.steps} and {args.count}")
    if args.threads:
        torch.set_num_threads(args.threads)
    net = train_judge(args.steps, count=args.count, seed=args.seed)
    held_out = [compose(args.seed, HELD_OUT_START + i) for i in range(ITEMS)]
    found = pooled(scores(read(net, render(held_out, SIZE).image), held_out))
    metadata = {"stage": "judge", "steps": str(args.steps), "count": str(args.count), "seed": str(args.seed),
                "commit": commit(), "artwork": artwork(), "world": str(VERSION),
                **{name: f"{found[name]:.4f}" for name in ("concept", "category")}}  # fmt: skip
    save_weights(net, args.out, metadata, torch.float16)
    print(f"concept {found['concept']:.3f}, category {found['category']:.3f} on {ITEMS} held-out pictures; {args.out}")
