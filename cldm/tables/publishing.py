"""What a table was made of, without weights: small enough for git, enough to make the table again."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from cldm.tables.records import WEIGHTS, Record
from ldm.files import content, write_json, write_text

RUN_FILES = ("results.json", "DONE.json", "config.yaml", "inputs.json", "convergence.png", "metrics.csv")
EVALUATION_FILES = ("results.json", "per_sample.npz")


def publish(found: Sequence[Record], runs: str | Path, out: Path) -> int:
    """Copy what the records are made of from below `runs` into `out`, at the same places; returns how many runs.

    Weights stay behind; their contents are named in WEIGHTS. `python -m cldm table NAME OUT` makes the same table.
    """
    copied: set[Path] = set()
    for record in found:
        for run in record.runs:
            if run not in copied:
                copied.add(run)
                target = out / run.relative_to(runs)
                _copy(run, target, RUN_FILES)
                kept = [name for name in ("control.safetensors", "base.safetensors") if (run / name).is_file()]
                write_json(target / WEIGHTS, {name: content(run / name) for name in kept})
        for folder in record.evaluations.values():
            _copy(folder, out / folder.relative_to(runs), EVALUATION_FILES)
    return len(copied)


def _copy(source: Path, target: Path, names: Sequence[str]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = source / name
        if not path.is_file():
            continue
        if path.suffix in (".json", ".yaml"):
            write_text(target / name, path.read_text())
        else:
            shutil.copyfile(path, target / name)
