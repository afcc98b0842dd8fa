"""python -m cldm runs: the run folders below a folder as a table."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cldm.runs.folder import differences
from ldm.files import InUse, locked

EXAMPLES = """\
  python -m cldm runs
  python -m cldm runs runs/locking --where stage.module.locking=decoder --sort edge_f1_1px
  python -m cldm runs --columns steps,edge_f1_1px,optimizer.lr --json"""

HIDDEN = ("run_dir", "seed", "logger", "tags", "group")
"""Keys of a configuration that differ between runs and tell nothing of them."""


LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the quick one, where it was built


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs"))
    parser.add_argument("--where", action="append", default=[], metavar="KEY=VALUE", help="only runs with this value")
    parser.add_argument("--columns", help="figures and keys, with commas; default: the figures, and keys that differ")
    parser.add_argument("--sort", metavar="COLUMN", help="largest last; default: by name")
    parser.add_argument("--json", action="store_true", help="for machines")


def run(args: argparse.Namespace) -> None:
    """Read the folders, print them."""
    if not args.folder.is_dir():
        raise ValueError(f"{args.folder} is no folder; runs lie in runs/, or where runs= put them")
    found = [read(path) for path in run_folders(args.folder)]
    for condition in args.where:
        key, is_given, value = condition.partition("=")
        if not is_given:
            raise ValueError(f"--where takes KEY=VALUE, got {condition!r}")
        found = [one for one in found if str(value_of(one, key)) == value]
    columns = args.columns.split(",") if args.columns else [*figures(found), *differing(found)]
    if args.sort:
        found.sort(key=lambda one: _order(value_of(one, args.sort)))
    rows = [{"run": _name(one, args.folder), "state": one["state"]} | {c: value_of(one, c) for c in columns}
            for one in found]  # fmt: skip
    print(json.dumps(rows, indent=2, default=str)) if args.json else show(rows)


def run_folders(folder: Path) -> list[Path]:
    """Folders below `folder`, or itself, that hold or should hold a run: they have a configuration or attempts."""
    marks = {path.parent for name in ("config.yaml", "attempts.jsonl") for path in folder.rglob(name)}
    return sorted(path for path in marks if "wandb" not in path.parts)


def read(folder: Path) -> dict[str, Any]:
    """What a run folder says: its state with the reason, its flat configuration, and its figures. Never raises."""
    config, trouble = _load(folder / "config.yaml")
    results, more = _load(folder / "results.json")
    failed, _ = _load(folder / "FAILED.json")
    done = (folder / "DONE.json").exists()
    state = "done" if done else f"failed: {failed['reason']}" if failed else _unfinished(folder)
    if trouble or (done and more):
        state = f"unreadable: {trouble or more}"
    return {"folder": folder, "state": state, "config": flat(config or {}), "figures": _figures(results or {})}


def _load(path: Path) -> tuple[dict[str, Any] | None, str]:
    """The content of a YAML or JSON file, or None and why."""
    try:
        text = path.read_text()
        loaded = (
            json.loads(text)
            if path.suffix == ".json"
            else yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        )
    except FileNotFoundError:
        return None, f"no {path.name}"
    except (OSError, ValueError, yaml.YAMLError):
        return None, f"{path.name} is broken"
    return (loaded, "") if isinstance(loaded, dict) else (None, f"{path.name} is broken")


def _unfinished(folder: Path) -> str:
    try:
        with locked(folder):
            return "cut off"
    except InUse:
        return "running"
    except OSError as error:
        return f"unreadable: {error}"


def _figures(results: dict[str, Any]) -> dict[str, Any]:
    """The numbers of results.json; of those with bounds, the one with control."""
    fidelity = results.get("fidelity") or {}
    own = {name: value.get("control") if isinstance(value, dict) else value for name, value in fidelity.items()}
    kept = ("steps", "convergence_step", "train_seconds")
    return {name: results[name] for name in kept if results.get(name) is not None} | own


def flat(config: dict[str, Any], above: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return found


def figures(found: Sequence[dict[str, Any]], most: int = 5) -> list[str]:
    """The figures to show: the first ones that any run has."""
    return [*dict.fromkeys(name for one in found for name in one["figures"])][:most]


def differing(found: Sequence[dict[str, Any]], most: int = 4) -> list[str]:
    """Keys in which the runs' configurations differ."""
    configs = [one["config"] for one in found if one["config"]]
    lines = {line.split(":")[0] for config in configs[1:] for line in differences(configs[0], config)}
    return sorted(key for key in lines if not key.startswith(HIDDEN) and not key.startswith("trainer."))[:most]


def value_of(one: dict[str, Any], column: str) -> Any:
    """The figure or the key of a run's configuration; None where it has none."""
    return one["figures"].get(column, one["config"].get(column))


def _name(one: dict[str, Any], folder: Path) -> str:
    return str(one["folder"].relative_to(folder))


def _order(value: Any) -> tuple[int, float, str]:
    return (1, float(value), "") if isinstance(value, int | float) else (0, 0.0, str(value))


def show(rows: Sequence[dict[str, Any]]) -> None:
    """A table in the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*(rows[0] if rows else ("run", "state")), box=None, padding=(0, 1))
    for row in rows:
        table.add_row(*("" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(soft_wrap=True).print(table, markup=False)
    print(f"{len(rows)} runs")
