"""Tables of results: a file in git names rows, columns, seeds and protocol; its numbers come from run folders.

configs/table/NAME.yaml:

    title: text above the table
    about: what it asks, and of which claim of the paper
    train: [override, ...]              of train.py, for every row
    seeds: [0, 1, 2]                    of training
    rows: {NAME: {train: [override, ...], evaluate: [override, ...]}}     of train.py and of evaluate.py
    reference: NAME                     the row that the others are compared with
    evaluations: {NAME: [override, ...]}                                  of evaluate.py
    columns:
      - {title: T, from: EVALUATION, metric: edge_f1_1px, setting: perfect, better: higher, digits: 3}
      - {title: T, from: run, metric: convergence_step, better: lower}    of the run's own results.json
    figure: {layout: sheet, ...}        see cldm.evaluation.sheets
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from cldm.evaluation.statistics import bootstrap_interval, mean_and_std, means_by, t_interval

RUN = "run"  # the source of columns that a run's own results.json fills
KINDS = ("missing", "commits", "protocols")
"""What a table refuses unless told to allow it."""


@dataclass(frozen=True)
class Column:
    """One score. better: "higher", "lower", or None where no row is better than another."""

    title: str
    source: str
    metric: str
    setting: str | None = None
    better: str | None = None
    digits: int = 3


@dataclass(frozen=True)
class Row:
    """One method: overrides of train.py, and those of evaluate.py that are its own."""

    title: str
    train: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spec:
    """A table file."""

    name: str
    title: str
    about: str
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    reference: str
    evaluations: dict[str, tuple[str, ...]]
    columns: tuple[Column, ...]
    figure: dict[str, Any] = field(default_factory=dict)


def read_spec(path: Path) -> Spec:
    """The table in a file; ValueError names what is wrong with it."""
    if not path.is_file():
        raise ValueError(f"there is no table file {path}")
    given: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    try:
        return _spec(path.stem, given)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: {reason} (cldm/evaluation/tables.py shows the layout)") from error


def _spec(name: str, given: dict[str, Any]) -> Spec:
    known = {"title", "about", "train", "seeds", "rows", "reference", "evaluations", "columns", "figure"}
    _refuse_unknown(given, known, "the table")
    common = tuple(given.get("train") or ())
    rows = []
    for title, row in given["rows"].items():
        row = row or {}
        _refuse_unknown(row, {"train", "evaluate"}, f"row {title!r}")
        rows.append(Row(str(title), (*common, *row.get("train", ())), tuple(row.get("evaluate", ()))))
    evaluations = {key: tuple(overrides) for key, overrides in (given.get("evaluations") or {}).items()}
    columns = []
    for column in given["columns"]:
        column = dict(column)
        columns.append(Column(source=column.pop("from"), **column))
        if columns[-1].source not in (RUN, *evaluations):
            raise ValueError(f"column {columns[-1].title!r} is from {columns[-1].source!r}, which is no evaluation")
        if columns[-1].better not in (None, "higher", "lower"):
            raise ValueError(f"column {columns[-1].title!r}: better must be higher or lower")
    reference = str(given.get("reference", rows[0].title))
    if reference not in [row.title for row in rows]:
        raise ValueError(f"reference {reference!r} is none of the rows")
    seeds = tuple(int(seed) for seed in given["seeds"])
    if not seeds or len({*seeds}) < len(seeds):
        raise ValueError(f"seeds must be different numbers, at least one, got {[*seeds]}")
    return Spec(name, given["title"], given.get("about", ""), seeds, tuple(rows), reference, evaluations,
                tuple(columns), given.get("figure") or {})  # fmt: skip


def _refuse_unknown(given: Mapping[str, Any], known: set[str], what: str) -> None:
    if unknown := {*given} - known:
        raise ValueError(f"{what} has unknown keys: {', '.join(sorted(map(str, unknown)))}")


def evaluation_folder(run: Path, overrides: Sequence[str]) -> Path:
    """Where the results of evaluate.py with these overrides lie in a run: the same overrides, the same folder."""
    protocol = next((item.split("=", 1)[1] for item in overrides if item.startswith("protocol=")), "scenes")
    digest = hashlib.blake2b(json.dumps(sorted(overrides)).encode(), digest_size=4).hexdigest()
    return run / "evaluation" / f"{protocol}-{digest}"


# ------------------------------------------------------------------ what was measured


@dataclass(frozen=True)
class Record:
    """One training run of a row, and its evaluations by name; what does not exist is None."""

    row: Row
    seed: int
    run: Path
    evaluations: dict[str, Path]

    @cached_property
    def results(self) -> dict[str, Any] | None:
        """results.json of the finished run."""
        return _json(self.run / "results.json") if (self.run / "DONE.json").exists() else None

    @cached_property
    def evaluated(self) -> dict[str, dict[str, Any] | None]:
        """results.json of each evaluation of the weights that the run now holds."""
        return {name: self._current(_json(folder / "results.json")) for name, folder in self.evaluations.items()}

    def _current(self, found: dict[str, Any] | None) -> dict[str, Any] | None:
        weights = self.run / "control.safetensors"
        if found is None or not weights.is_file():
            return None
        return found if found["checkpoint_sha256"] == self._sha256 else None

    @cached_property
    def _sha256(self) -> str:
        return hashlib.sha256((self.run / "control.safetensors").read_bytes()).hexdigest()

    def value(self, column: Column) -> float | None:
        """The score of a column; None if it was not measured, or does not exist (a model that never converged)."""
        if column.source == RUN:
            found = (self.results or {}).get(column.metric)
        else:
            found = ((self.evaluated[column.source] or {}).get("metrics") or {}).get(column.setting, {})
            found = found.get(column.metric)
        return None if found is None else float(found)

    def items(self, column: Column) -> dict[tuple[int, int], float]:
        """{(item, noise seed): score} of single images."""
        path = self.evaluations[column.source] / "per_sample.npz"
        with np.load(path) as rows:
            if column.metric not in rows:
                return {}
            chosen = rows["setting"] == column.setting
            keys = zip(rows["item"][chosen].tolist(), rows["noise"][chosen].tolist(), strict=True)
            return dict(zip(keys, rows[column.metric][chosen].tolist(), strict=True))


def _json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None


def records(spec: Spec, runs: Mapping[tuple[str, int], Path]) -> list[Record]:
    """The records of a table whose runs lie in these folders, by (row title, seed)."""
    return [
        Record(row, seed, runs[row.title, seed], {
            name: evaluation_folder(runs[row.title, seed], (*overrides, *row.evaluate))
            for name, overrides in spec.evaluations.items()
        })
        for row in spec.rows for seed in spec.seeds
    ]  # fmt: skip


# ------------------------------------------------------------------ what must not be mixed


def problems(spec: Spec, found: Sequence[Record]) -> dict[str, list[str]]:
    """Why these records make no table, in words, by KINDS."""
    return {"missing": _missing(found), "commits": _commits(found), "protocols": _protocols(spec, found)}


def _missing(found: Sequence[Record]) -> list[str]:
    lines = [f"{r.row.title}, seed {r.seed}: not trained ({r.run})" for r in found if r.results is None]
    for r in found:
        if r.results is not None:
            gone = [name for name, results in r.evaluated.items() if results is None]
            lines += [f"{r.row.title}, seed {r.seed}: no evaluation {name!r} ({r.evaluations[name]})" for name in gone]
    return lines


def commits(found: Sequence[Record]) -> dict[str, list[str]]:
    """{commit: what was made with it}."""
    by_commit: dict[str, list[str]] = {}
    for r in found:
        who = f"{r.row.title} seed {r.seed}"
        if r.results is not None:
            by_commit.setdefault(str(r.results["commit"]), []).append(f"{who} trained")
        for name, results in r.evaluated.items():
            if results is not None:
                by_commit.setdefault(str(results["evaluated_at_commit"]), []).append(f"{who} evaluated ({name})")
    return by_commit


def _commits(found: Sequence[Record]) -> list[str]:
    by_commit = commits(found)
    lines = [f"{_short(commit)}: {'; '.join(who)}" for commit, who in by_commit.items()] if len(by_commit) > 1 else []
    return lines + [
        f"{commit[:12]} with changes that are in no commit" for commit in by_commit if commit.endswith("+changes")
    ]


def _short(commit: str) -> str:
    sha, plus, changes = commit.partition("+")
    return sha[:12] + plus + changes


def _protocols(spec: Spec, found: Sequence[Record]) -> list[str]:
    lines = []
    for name in spec.evaluations:
        first: dict[str, Any] | None = None
        for r in found:
            results = r.evaluated[name]
            if results is None:
                continue
            protocol = _common(results["protocol"], r.row, spec)
            first = first or protocol
            changed = [f"{key}: {first.get(key)} and {protocol.get(key)}" for key in sorted({*first, *protocol})
                       if first.get(key) != protocol.get(key)]  # fmt: skip
            if changed:
                lines.append(f"{r.row.title}, seed {r.seed}, evaluation {name!r}: {'; '.join(changed)}")
    return lines


def _common(protocol: Mapping[str, Any], row: Row, spec: Spec) -> dict[str, Any]:
    """The part of a protocol that no row changes on purpose."""
    meant = {item.lstrip("+~").split("=", 1)[0].split(".")[0] for row in spec.rows for item in row.evaluate}
    meant |= {"steps", "guidance"} if "sampler" in meant else set()
    meant |= {"items_digest"} if "data" in meant else set()
    return {key: value for key, value in protocol.items() if key not in meant}


# ------------------------------------------------------------------ the numbers


@dataclass(frozen=True)
class Difference:
    """A row minus the reference: mean over n training seeds, Student's interval over them, bootstrap over items."""

    mean: float
    n: int
    by_seed: tuple[float, float]
    by_item: tuple[float, float]


@dataclass(frozen=True)
class Cell:
    """One number: mean and sample standard deviation over the n training seeds that have one, of `expected`."""

    mean: float
    std: float
    n: int
    expected: int
    values: dict[int, float]
    difference: Difference | None = None
    best: bool = False
    ceiling: float | None = None  # of this row's own; where all rows share one it has a line of its own


@dataclass(frozen=True)
class Line:
    """A row of the finished table. Bounds (base, ceiling, real) have no spread over training seeds."""

    title: str
    cells: tuple[Cell | None, ...]
    bound: bool = False


BOUNDS = {"base": "base, no control", "ceiling": "ceiling: real images through the autoencoder", "real": "real images"}


def lines(spec: Spec, found: Sequence[Record]) -> list[Line]:
    """The rows of the table, then what bounds them."""
    by_row = {row.title: [r for r in found if r.row.title == row.title] for row in spec.rows}
    columns = [_column(spec, column, by_row) for column in spec.columns]
    made = [Line(row.title, tuple(cells[row.title] for cells in columns)) for row in spec.rows]
    return made + [line for kind, title in BOUNDS.items() for line in [_bound(spec, kind, title, by_row)] if line]


def _column(spec: Spec, column: Column, by_row: Mapping[str, Sequence[Record]]) -> dict[str, Cell]:
    values = {
        title: {r.seed: v for r in mine if (v := r.value(column)) is not None and np.isfinite(v)}
        for title, mine in by_row.items()
    }
    best = _best(column, values)
    ceilings = {title: bound(mine[0], column, "ceiling") for title, mine in by_row.items()}
    shared = len({*ceilings.values()}) == 1
    cells = {}
    for title, mine in values.items():
        mean, std = mean_and_std([*mine.values()]) if mine else (float("nan"), float("nan"))
        difference = None if title == spec.reference else _difference(column, by_row[title], by_row[spec.reference])
        cells[title] = Cell(mean, std, len(mine), len(spec.seeds), mine, difference, title == best,
                            None if shared else ceilings[title])  # fmt: skip
    return cells


def _best(column: Column, values: Mapping[str, Mapping[int, float]]) -> str | None:
    """The row that is better than every other beyond Student's interval of the differences paired by seed.

    None where a row lacks the value of a seed that another has: a method that reached nothing there must not win.
    """
    if column.better is None or len(values) < 2 or not all(values.values()):
        return None
    if len({frozenset(by_seed) for by_seed in values.values()}) > 1:
        return None
    sign = 1 if column.better == "higher" else -1
    best = max(values, key=lambda title: sign * float(np.mean([*values[title].values()])))
    for title, others in values.items():
        low, _ = t_interval([sign * (values[best][seed] - other) for seed, other in others.items()])
        if title != best and not low > 0:  # nan is not
            return None
    return best


def _difference(column: Column, mine: Sequence[Record], reference: Sequence[Record]) -> Difference | None:
    pairs = [(a, b) for a in mine for b in reference if a.seed == b.seed]
    pairs = [(a, b) for a, b in pairs if a.value(column) is not None and b.value(column) is not None]
    if not pairs:
        return None
    differences = [a.value(column) - b.value(column) for a, b in pairs]  # type: ignore[operator]
    by_item = (float("nan"), float("nan"))
    if column.source != RUN:
        keys, values = [], []
        for a, b in pairs:
            x, y = a.items(column), b.items(column)
            keys += [item for item, noise in x if (item, noise) in y]
            values += [x[key] - y[key] for key in x if key in y]
        by_item = bootstrap_interval(means_by(np.array(keys), np.array(values, dtype=float)))
    return Difference(mean_and_std(differences)[0], len(pairs), t_interval(differences), by_item)


def _bound(spec: Spec, kind: str, title: str, by_row: Mapping[str, Sequence[Record]]) -> Line | None:
    """Base, ceiling or real images, where they are the same for all rows; else they are shown in each row's cells."""
    cells = []
    for column in spec.columns:
        values = {v for mine in by_row.values() for r in mine if (v := bound(r, column, kind)) is not None}
        only = next(iter(values)) if len(values) == 1 else None
        cells.append(None if only is None else Cell(only, float("nan"), 1, 1, {}))
    return Line(title, tuple(cells), True) if any(cells) else None


def bound(record: Record, column: Column, kind: str) -> float | None:
    """What bounds the score of a record: by the base without control, the autoencoder, or the real images."""
    if column.source == RUN:
        return None
    found = (record.evaluated[column.source] or {}).get(kind) or {}
    found = found.get(column.setting, {}) if kind == "base" else found
    value = found.get(column.metric)
    return None if value is None else round(float(value), 6)
