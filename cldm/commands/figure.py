"""python -m cldm figure: samples of a table's runs side by side, or of one run over its steps."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

    from cldm.tables.records import Record
    from cldm.tables.spec import Spec

EXAMPLES = """\
  python -m cldm figure architecture              figure 8: hint and prompt settings x variants
  python -m cldm figure dataset_size              a strip: the same items, more and more training images
  python -m cldm figure conditions --items 0 1 2
  python -m cldm figure runs/control-canny-.../seed-0     sudden convergence: samples over steps above the curve
The images are those of `python -m cldm table TABLE --train --evaluate`; what to show is in the table file (figure:).
A run's are its previews (trainer.callbacks.watch)."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("source", metavar="TABLE_OR_RUN", help="a name of configs/table, a table file, or a run folder")
    parser.add_argument("runs", nargs="?", default="runs", metavar="RUNS", help="where run folders lie (default: runs)")
    parser.add_argument("--items", type=int, nargs="+", metavar="N", help="numbers of the held-out items to show")
    parser.add_argument("--settings", nargs="+", metavar="NAME", help="prompt settings to show (tables)")
    parser.add_argument("--seed", type=int, help="training seed to show (tables; default: the first)")
    parser.add_argument("--metric", default="edge_f1_1px", help="of the curve (runs; default: edge_f1_1px)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="PNG (default: beside the table, or in RUN)")


def run(args: argparse.Namespace) -> None:
    """Draw and save the figure."""
    from cldm.commands.table import spec_file
    from cldm.pictures import save_atomically
    from cldm.tables.spec import read_spec

    source = Path(args.source)
    if source.is_dir():
        page, default = _run_strip(source, args), source / "convergence_strip.png"
    else:
        spec = read_spec(spec_file(args.source))
        page, default = _table_sheet(spec, args), Path(args.runs) / "tables" / spec.name / "figure.png"
    save_atomically(page, args.out or default)
    print(args.out or default)


def _run_strip(folder: Path, args: argparse.Namespace) -> "Image.Image":
    from omegaconf import OmegaConf

    from cldm.tables.sheets import convergence_strip

    if not (folder / "config.yaml").is_file():
        raise ValueError(f"{folder} is no run folder: there is no config.yaml in it")
    size = OmegaConf.load(folder / "config.yaml")["size"]  # type: ignore[index]
    if not isinstance(size, int):
        raise ValueError(f"previews of {folder} are not square ({size}); a strip is made of square ones")
    return convergence_strip(folder, args.items or [0, 1], size, args.metric)


def _table_sheet(spec: "Spec", args: argparse.Namespace) -> "Image.Image":
    from cldm.commands.table import plan
    from cldm.tables.records import records
    from cldm.tables.sheets import sample, sheet

    if not spec.figure:
        raise ValueError(f"table {spec.name!r} says nothing of a figure (figure: in its file)")
    seed = spec.seeds[0] if args.seed is None else args.seed
    if seed not in spec.seeds:
        raise ValueError(f"--seed must be one of the table's, {', '.join(map(str, spec.seeds))}; got {seed}")
    name, items = spec.figure["evaluation"], args.items or spec.figure["items"]
    settings = args.settings or spec.figure["settings"]
    found = [record for record in records(spec, plan(spec, args.runs)) if record.seed == seed]
    branches = min(len(record.runs) for record in found)  # rows with more show the hints that all have
    heads = ["hint"] if branches == 1 else [f"hint {i + 1}" for i in range(branches)]
    if spec.figure.get("layout") == "strip":
        hints = _hints(spec, found[0], name, items)
        cells = [[*hints[i][:branches], *(sample(r.evaluations[name], settings[0], item) for r in found)]
                 for i, item in enumerate(items)]  # fmt: skip
        return sheet(cells, [*heads, *(record.row.title for record in found)], [f"item {item}" for item in items])
    cells = []
    for record in found:
        hints = _hints(spec, record, name, items)
        row: list[Image.Image] = []
        for i, item in enumerate(items):
            row += hints[i][:branches]
            row += [sample(record.evaluations[name], setting, item) for setting in settings]
        cells.append(row)
    return sheet(cells, [*heads, *settings] * len(items), [record.row.title for record in found])


def _hints(spec: "Spec", record: "Record", evaluation: str, items: list[int]) -> "list[list[Image.Image]]":
    """For each item the hints of the row's branches, drawn anew as evaluate.py does."""
    from cldm.commands.table import training
    from cldm.pictures import to_pil
    from cldm.runs.building import instantiate
    from cldm.runs.configs import composed, planned

    cfg: Any = composed([*spec.evaluations[evaluation], *record.row.evaluate], "evaluate")
    data = instantiate(cfg.data, _convert_="all")
    columns = []
    for overrides in record.row.trainings:
        train_cfg = planned(training(overrides, record.seed, "runs"))
        condition = instantiate(train_cfg.condition, _convert_="all")
        made = data(condition=condition, size=cfg.size or train_cfg.size, count=max(items) + 1)
        columns.append([to_pil(2 * hint - 1) for hint in made.__getitems__(items)["hint"]])
    return [list(row) for row in zip(*columns, strict=True)]
