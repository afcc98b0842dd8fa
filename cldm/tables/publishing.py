"""What a table was made of, without weights: small enough for git, enough to make the table again."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from cldm.tables.records import WEIGHTS, Record
from ldm.files import content, write_json, write_text

RUN_FILES = ("results.json", "DONE.json", "config.yaml", "inputs.json", "metrics.csv")
EVALUATION_FILES = ("results.json", "per_sample.npz")


def publish(name: str, found: Sequence[Record], runs: str | Path, out: Path) -> int:
    """Copy what the records of a table are made of from below `runs` into `out`/COMMIT, at the same places; returns
    how many runs.

    Weights stay behind; their contents are named in WEIGHTS. `python -m cldm table NAME OUT` makes the same table, from
    the folders that `published_plan` names: the same configuration may have another name in later versions, and the
    same name stands for other code at another commit.
    """
    places: dict[Path, str] = {}
    for record in found:
        for run, trained in zip(record.runs, record.trained, strict=True):
            if trained is not None:
                places[run] = f"{str(trained['commit'])[:8]}/{run.relative_to(runs)}"
    for run, place in places.items():
        _copy(run, out / place, RUN_FILES)
        write_json(out / place / WEIGHTS, _weights(run))
    for record in found:
        for folder in record.evaluations.values() if record.run in places else ():
            _copy(folder, out / places[record.run] / folder.relative_to(record.run), EVALUATION_FILES)
    plan = [[r.row.title, r.seed, [places.get(run, str(run.relative_to(runs))) for run in r.runs]] for r in found]
    write_json(_plan_file(name, out), plan)
    return len(places)


def published_plan(name: str, runs: str | Path) -> dict[tuple[str, int], list[Path]] | None:
    """{(row title, seed): run folders} of a table that was published into `runs`; None if it was not."""
    file = _plan_file(name, Path(runs))
    if not file.is_file():
        return None
    return {(title, seed): [Path(runs) / run for run in places] for title, seed, places in json.loads(file.read_text())}


def _plan_file(name: str, runs: Path) -> Path:
    return runs / f"{name}.table.json"


def _weights(run: Path) -> dict[str, str]:
    """The contents of a run's weights by file name; of a run that was itself published, as it names them."""
    named = json.loads((run / WEIGHTS).read_text()) if (run / WEIGHTS).is_file() else {}
    kept = [name for name in ("control.safetensors", "base.safetensors") if (run / name).is_file()]
    return {**named, **{name: content(run / name) for name in kept}}


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
