"""python -m cldm annotate: pictures in, a training set out."""

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from cldm.conditions import get_condition, known_conditions
from cldm.data.annotate import SKIPPED, Annotation, annotate
from cldm.data.fill50k import SIDE, write_fill50k
from cldm.data.listing import list_items
from cldm.data.transforms import check_size
from cldm.runs.quoting import written
from ldm.cores import cores

EXAMPLES = """\
  python -m cldm annotate photos/ sets/canny --size 512 --condition canny --set low=50 --workers 2 --preview 12
  python -m cldm annotate photos/ sets/depth --size 512 --condition depth --set folder=models/depth-anything-small-hf
  python -m cldm annotate list.jsonl sets/lines --size 512 768 --condition lineart_standard
  python -m cldm annotate --fill50k 2000 runs/fill50k
then: python train.py data=folder data.path=sets/canny size=512 condition=canny condition.low=50
Give the size of training: a map is the one that sampling makes only at the size of the drawing. Maps of another size
are made anew while training.
A run that was killed goes on where it was: type the same again. Pictures that cannot be used are listed, each with
its reason, in skipped.jsonl. Captions come from the list, from metadata.jsonl or from a .txt beside each picture."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATH", help="INPUT OUTPUT (with --fill50k: only OUTPUT)")
    parser.add_argument("--condition", default="canny", help=f"one of {', '.join(known_conditions())}")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a parameter of the condition; repeatable"
    )
    parser.add_argument(
        "--size", type=int, nargs="+", metavar="N", help="height and width to crop to, or one number: that of training"
    )
    parser.add_argument("--resolution", type=int, help="short side of maps and pictures in pixels (default: as it is)")
    parser.add_argument("--min-side", type=int, default=64, help="skip pictures with a shorter side (default: 64)")
    parser.add_argument("--workers", type=int, default=cores(), help="processes; 0 works in this one")
    parser.add_argument("--preview", type=int, default=0, metavar="N", help="write preview.png, a sheet of N items")
    parser.add_argument("--link", action="store_true", help="hard-link pictures instead of copying them")
    parser.add_argument("--fill50k", type=int, metavar="N", help="draw N items of the tutorial's toy set instead")


def run(args: argparse.Namespace) -> None:
    if args.fill50k is not None:
        if len(args.paths) != 1 or args.fill50k < 1:
            raise ValueError("--fill50k takes a positive number and one folder: --fill50k 2000 runs/fill50k")
        folder = write_fill50k(args.fill50k, args.paths[0], args.resolution or SIDE)
        command = ["python", "train.py", "data=fill50k", f"data.path={written(str(folder))}"]
        print(f"{args.fill50k} items in {folder}; train with: {shlex.join(command)}")
        return
    if len(args.paths) != 2:
        raise ValueError(f"annotate takes INPUT and OUTPUT, got {len(args.paths)} path(s)")
    source, out = map(Path, args.paths)
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"OUTPUT {out} lies inside INPUT {source}: its pictures would be annotated too")
    if args.preview < 0 or args.min_side < 1:
        raise ValueError(f"--preview must be at least 0 and --min-side at least 1, got {args.preview}, {args.min_side}")
    if args.resolution is not None and args.resolution < 8:
        raise ValueError(f"--resolution must be at least 8, got {args.resolution}")
    if args.size and (args.resolution is not None or len(args.size) > 2):
        raise ValueError("--size takes one or two numbers, and no --resolution beside it")
    size = check_size(args.size if len(args.size) == 2 else args.size[0], "--size") if args.size else None
    condition = get_condition(args.condition, **dict(parameter(text) for text in args.set))
    workers = 0 if condition.needs_weights else args.workers
    job = Annotation(condition, out, args.resolution, size, args.min_side, args.link)
    report = annotate(list_items(source), job, workers, args.preview)
    for name, value in report.items():
        print(f"{name:16} {value if not isinstance(value, dict) else json.dumps(value)}")
    if report["skipped"]:
        print(f"reasons for what was skipped: {out / SKIPPED}")


def parameter(text: str) -> tuple[str, Any]:
    """ "low=50" -> ("low", 50); values are JSON where they can be, else text."""
    key, sign, value = text.partition("=")
    if not key or not sign:
        raise ValueError(f"--set takes KEY=VALUE, got {text!r}")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
