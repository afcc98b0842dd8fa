"""python -m cldm cache: encode a data set once, train on it many times."""

import argparse
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from cldm.runs.quoting import written

EXAMPLES = """\
  python -m cldm cache runs/cache/canny data=folder data.path=sets/canny condition=canny
then: python train.py data=cached data.path=runs/cache/canny condition=canny
Give the same model, condition and size as for training; a cache that does not fit is refused with the reason. A
run that was killed goes on where it was: type the same again."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", help="folder of the cache")
    parser.add_argument("overrides", nargs="+", metavar="OVERRIDE", help="as for train.py; data=... must name pictures")
    parser.add_argument("--shard-size", type=int, default=512, help="items in a file (default: 512)")


def run(args: argparse.Namespace) -> None:
    # late: every command of `python -m cldm` imports this file
    import torch

    from cldm.data.cache import build_cache
    from cldm.data.folder import FolderDataset
    from cldm.runs.building import instantiate
    from cldm.runs.configs import composed, mistakes_refused
    from cldm.runs.trained import base_of, built_for
    from ldm.interop import load_base

    cfg = composed(args.overrides)
    model = built_for(cfg, base_of(cfg))
    load_base(model, base_of(cfg), ["autoencoder", "conditioner"])
    model = model.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")
    condition = instantiate(cfg.condition, _convert_="all")
    with mistakes_refused():
        data = instantiate(cfg.data, _convert_="all")(condition=condition, model=model)
    if not isinstance(data.train, FolderDataset):
        raise ValueError(
            "only data=folder and data=fill50k are cached by this command: scenes keeps a cache of its own, and shards "
            "(data=webdataset) are read as a stream; unpack them into a folder first"
        )
    build_cache(data.train, data.validation, model, args.out, data.batch_size, args.shard_size)
    size = sum(path.stat().st_size for path in Path(args.out).iterdir()) / 2**20
    print(f"{len(data.train)} items in {args.out}, {size:.1f} MiB")
    print(f"train with: {training_command(args.out, args.overrides)}")


def training_command(folder: str, overrides: Sequence[str]) -> str:
    """What to type to train on the cache in `folder`, which was made with these overrides: a line for a shell."""
    kept = [item for item in overrides if re.match(r"[+~]*data[.=]", item) is None]
    sizes = [item.removeprefix("data.") for item in overrides if item.startswith("data.size=")]
    return shlex.join(["python", "train.py", "data=cached", f"data.path={written(folder)}", *sizes, *kept])
