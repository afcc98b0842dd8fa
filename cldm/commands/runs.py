"""python -m cldm runs: the run folders below a folder as a table."""

import argparse
import json
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from textwrap import shorten
from typing import Any

from cldm.runs.listing import EVALUATED, RunFolder, differing, figures, read, refuse_unknown, run_folders
from ldm.files import to_json

REASON = 60  # letters of a reason that are shown
VALUE = 32  # letters of a value: of a path its end tells more
EXAMPLES = """\
  python -m cldm runs
  python -m cldm runs runs/locking --where stage.module.locking=decoder --sort edge_f1_1px
  python -m cldm runs --where state=done --columns eval/quick/perfect/edge_f1_1px     figures of evaluate.py
  python -m cldm runs --columns steps,edge_f1_1px,optimizer.lr --json"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs"))
    parser.add_argument("--where", action="append", default=[], metavar="KEY=VALUE", help="only runs with this value")
    parser.add_argument("--columns", help="figures and keys, with commas; default: figures, keys that differ")
    parser.add_argument("--sort", metavar="COLUMN", help="largest last; default: by name")
    parser.add_argument("--json", action="store_true", help="for machines")


def run(args: argparse.Namespace) -> None:
    """Read the folders, print them."""
    if not args.folder.is_dir():
        raise ValueError(f"{args.folder} is no folder; runs lie in runs/, or where runs= put them")
    found = [read(path) for path in run_folders(args.folder)]
    typed = [column.strip() for column in (args.columns or "").split(",")] if args.columns else []
    known = known_columns(found, [*args.where, *typed, args.sort or ""])
    for condition in args.where:
        key, is_given, value = condition.partition("=")
        if not is_given:
            raise ValueError(f"--where takes KEY=VALUE, got {condition!r}")
        refuse_unknown(key, known)
        found = [one for one in found if _is(one.value(key), value, as_typed(value), key == "state")]
    columns = typed or [*figures(found)[:5], *differing(found)[:4]]
    for column in [*typed, *([args.sort] if args.sort else ())]:
        refuse_unknown(column, known)
    if args.sort:
        found.sort(key=lambda one: _order(one.value(args.sort)))
    rows = [
        {"run": str(one.folder.relative_to(args.folder)), "state": one.state}
        | {c: one.value(c) for c in columns if c != "run"}
        for one in found
    ]
    print(as_json(rows)) if args.json else show(rows)


def as_json(rows: Sequence[dict[str, Any]]) -> str:
    """Rows for machines: what JSON has no words for, such as a date, as text, and nan as null."""
    return to_json(json.loads(json.dumps(rows, default=str)), indent=2)


def known_columns(found: Sequence[RunFolder], asked: Sequence[str]) -> set[str]:
    """What any run has; evaluations are read only where what is asked for is a figure of one."""
    known = {name for one in found for name in ("run", "state", *one.figures, *one.choices, *one.config)}
    evaluated = found if any(item.startswith(EVALUATED) for item in asked) else ()
    return known | {name for one in evaluated for name in one.evaluated}


def as_typed(value: str) -> Any:
    """A value as train.py would read it: 2e-3 is a number, null is nothing. ValueError for several."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    try:
        override = OverridesParser.create().parse_override(f"value={value}")
    except OverrideParseException:
        return value
    if override.is_sweep_override():
        raise ValueError(f"--where takes one value of a key, got {value}")
    return override.value()


def _is(found: Any, typed: str, wanted: Any, is_state: bool) -> bool:
    """Equal; 1 is 1.0, but not true. A state is also what it says before its reason: failed, stopped, unreadable."""
    if is_state and found.partition(":")[0] == typed:
        return True
    return str(found) == typed or (found == wanted and isinstance(found, bool) == isinstance(wanted, bool))


def _order(value: Any) -> tuple[int, float, str]:
    is_number = isinstance(value, int | float) and not isnan(value)
    return (1, float(value), "") if is_number else (0, 0.0, str(value))


def show(rows: Sequence[dict[str, Any]]) -> None:
    """A table in the terminal, as wide as its names are; reasons are cut to a line."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*(rows[0] if rows else ("run", "state")), box=None, padding=(0, 1))
    for row in rows:
        told = {**row, "state": shorten(row["state"], REASON, placeholder=" …")}
        table.add_row(*(_cell(v) if name in ("run", "state") else _cut(_cell(v)) for name, v in told.items()))
    Console(width=10_000).print(table, markup=False, no_wrap=True, crop=False)
    print(f"{len(rows)} runs")


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _cut(text: str) -> str:
    return text if len(text) <= VALUE else f"…{text[1 - VALUE :]}"
