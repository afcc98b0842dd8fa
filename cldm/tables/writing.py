"""The numbers of a table: means over training seeds, paired differences, and what bounds them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cldm.tables.records import Record
from cldm.tables.spec import RUN, Column, Spec
from cldm.tables.statistics import bootstrap_interval, clearly_best, mean_and_std, means_by, t_interval


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
    """The row to print in bold, see `clearly_best`."""
    return None if column.better is None else clearly_best(values, column.better == "lower")


def _difference(column: Column, mine: Sequence[Record], reference: Sequence[Record]) -> Difference | None:
    pairs = [(a, b) for a in mine for b in reference if a.seed == b.seed]
    pairs = [(a, b) for a, b in pairs if a.value(column) is not None and b.value(column) is not None]
    if not pairs:
        return None
    differences: list[float] = []
    keys: list[int] = []
    values: list[float] = []
    for a, b in pairs:
        x, y = (record.items(column) if column.source != RUN else {} for record in (a, b))
        both = [key for key in x if key in y and np.isfinite([x[key], y[key]]).all()]
        apart = [x[key] - y[key] for key in both]
        # of what both have, so that the mean belongs to its interval; a score of a set has no images
        differences.append(float(np.mean(apart)) if apart else a.value(column) - b.value(column))  # type: ignore[operator]
        keys += [item for item, _ in both]
        values += apart
    by_item = bootstrap_interval(means_by(np.array(keys), np.array(values, dtype=float)))
    return Difference(mean_and_std(differences)[0], len(pairs), t_interval(differences), by_item)


def _bound(spec: Spec, kind: str, title: str, by_row: Mapping[str, Sequence[Record]]) -> Line | None:
    """Ceiling or real images, where they are the same for all rows; else they are shown in each row's cells. Of bases
    the reference's own: a row that trains its base from nothing has another."""
    records = [r for mine in by_row.values() for r in mine]
    if kind == "base" and len({base for r in records for base in r.bases}) > 1:
        records, title = [*by_row[spec.reference]], f"base of {spec.reference}, no control"
    cells = []
    for column in spec.columns:
        values = {v for r in records if (v := bound(r, column, kind)) is not None}
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
