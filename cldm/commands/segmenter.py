"""python -m cldm segmenter: train the judge of segmentation."""

import argparse
from pathlib import Path

import torch

from cldm.runs.checkout import commit
from cldm.worlds import HELD_OUT_START
from cldm.worlds.agreement import class_scores
from cldm.worlds.scenes import get_family, render, sample_scene
from cldm.worlds.scenes.segmenter import kind_labels, train_segmenter
from ldm.weights import save_weights

EXAMPLES = """\
  python -m cldm segmenter
  python -m cldm segmenter --steps 2000 --out segmenter.safetensors"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--out", type=Path, default=Path("configs/protocol/segmenter.safetensors"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--scenes", type=int, default=2400, help="to train on")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> None:
    """Train, measure on held-out renders, write the file."""
    if args.steps < 1 or args.scenes < 1:
        raise ValueError(f"--steps and --scenes must be at least 1, got {args.steps} and {args.scenes}")
    net = train_segmenter(args.steps, scenes=args.scenes, seed=args.seed)
    scenes = [sample_scene(args.seed, HELD_OUT_START + i, get_family("base")) for i in range(128)]
    with torch.no_grad():
        found = class_scores(net.labels(render(scenes, 128).image), kind_labels(scenes))
    miou, accuracy = found.miou.mean().item(), found.accuracy.mean().item()
    metadata = {"stage": "segmenter", "miou": f"{miou:.4f}", "accuracy": f"{accuracy:.4f}", "steps": str(args.steps),
                "scenes": str(args.scenes), "seed": str(args.seed), "commit": commit()}  # fmt: skip
    save_weights(net, args.out, metadata, torch.float16)
    print(f"mIoU {miou:.3f}, accuracy {accuracy:.3f} on {len(scenes)} held-out renders; {args.out}")
