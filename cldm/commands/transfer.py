"""python -m cldm transfer: move a ControlNet from the base it was trained on to another."""

import argparse
import contextlib
from pathlib import Path

from cldm.branches.interop import control_tensors, describe, transfer, understand_control
from cldm.runs.recorded import exported
from ldm.files import whole
from ldm.interop.model import base_fingerprint, prediction_of
from ldm.interop.published import read
from ldm.interop.write import settings_metadata
from ldm.weights import write_tensors

EXAMPLES = """\
  python -m cldm transfer canny.safetensors --from-base sd15.safetensors --to-base painting.safetensors \\
    canny_painting.safetensors"""

OF_THE_OLD_BASE = ("base_fingerprint", "metrics", "prediction", "locking")
"""Metadata that is not true of a branch on another base."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("control", type=Path, help="ControlNet in any form, or run folder")
    parser.add_argument("--from-base", type=Path, required=True, metavar="A", help="base that it was trained on")
    parser.add_argument("--to-base", type=Path, required=True, metavar="B", help="base to move it to")
    parser.add_argument("dst", type=Path, help="new .safetensors file, in the original layout")


def run(args: argparse.Namespace) -> None:
    """Read all three, then write."""
    if args.dst.exists():
        raise FileExistsError(f"{args.dst} exists; remove it or choose another name")
    if args.dst.suffix != ".safetensors":
        raise ValueError(f"transfer writes a file: end DST with .safetensors (got {args.dst})")
    published, source, target = (read(exported(p)) for p in (args.control, args.from_base, args.to_base))
    before, after = base_fingerprint(source), base_fingerprint(target)
    if before is not None and before == after:
        print(f"note: {args.from_base} and {args.to_base} hold the same weights: the branch stays as it is")
    if before and (trained_on := published.metadata.get("base_fingerprint", before)) != before:
        print(f"note: {args.control} was trained on base {trained_on}, A is {before}: the difference of A and B "
              "is not what it needs")  # fmt: skip
    print("moving the branch ...")
    moved = transfer(understand_control(published, source), source, target)
    schedule = {**published.schedule, **target.schedule}
    with contextlib.suppress(ValueError):  # Stable Diffusion 2.x in the original layout does not say
        schedule["prediction"] = prediction_of(target)
        if (other := prediction_of(source)) != schedule["prediction"]:
            print(f"note: A predicts {other}, B {schedule['prediction']}; a branch is trained for one of the two")
    earlier = [told] if (told := published.metadata.get("transferred_from")) else []
    metadata = {
        **describe(moved),
        **{key: value for key, value in published.metadata.items() if key not in OF_THE_OLD_BASE},
        **settings_metadata({"control": moved}, schedule, None),
        **({"prediction": schedule["prediction"]} if "prediction" in schedule else {}),
        "locking": "locked",  # it has left the base that may have trained with it
        "base": args.to_base.name,
        "transferred_from": ", ".join([*earlier, args.from_base.name]),
        **({"base_fingerprint": after} if after else {}),
    }
    with whole(args.dst, new=True) as partial:
        write_tensors(control_tensors(moved), partial, metadata)
    print(f"wrote {args.dst}")
