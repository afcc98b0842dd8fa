"""Table files: a file in git names rows, columns, seeds and protocol; its numbers come from run folders.

configs/table/NAME.yaml:

    title: text above the table
    about: what it asks, and of which claim of the paper
    train: [override, ...]              of train.py, for every row
    seeds: [0, 1, 2]                    of training
    rows: {NAME: {train: [override, ...], evaluate: [override, ...]}}     of train.py and of evaluate.py
                                        more: [{train: [...], scale: 1.0}, ...] adds branches, as evaluate.py does
    reference: NAME                     the row that the others are compared with
    evaluations: {NAME: [override, ...]}                                  of evaluate.py
    columns:
      - {title: T, from: EVALUATION, metric: edge_f1_1px, setting: perfect, better: higher, digits: 3}
      - {title: T, from: run, metric: convergence_step, better: lower}    of the run's own results.json
      - {title: T, from: run, metric: circle_iou, reaches: 0.8}           the step of its first look that reaches this
    figure: {layout: sheet, ...}        see cldm.tables.sheets
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

RUN = "run"  # the source of columns that a run's own results.json fills


@dataclass(frozen=True)
class Column:
    """One score. better: "higher", "lower", or None where no row is better than another.

    reaches: not the score, but the step at which training has first seen it so high.
    """

    title: str
    source: str
    metric: str
    setting: str | None = None
    better: str | None = None
    digits: int = 3
    reaches: float | None = None


@dataclass(frozen=True)
class Added:
    """A further branch that acts with a row's own: overrides of train.py that make it, and how it is applied."""

    train: tuple[str, ...]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One method: overrides of train.py, those of evaluate.py that are its own, and branches that add up with it."""

    title: str
    train: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ()
    more: tuple[Added, ...] = ()

    @property
    def trainings(self) -> tuple[tuple[str, ...], ...]:
        """Overrides of train.py of each of its branches."""
        return (self.train, *(added.train for added in self.more))

    @property
    def evaluation(self) -> tuple[str, ...]:
        """What tells its evaluations from those of other rows of the same run."""
        return (*self.evaluate, *(f"more={added}" for added in self.more))


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
    path: Path | None = None


def read_spec(path: Path) -> Spec:
    """The table in a file; ValueError names what is wrong with it."""
    if not path.is_file():
        raise ValueError(f"there is no table file {path}")
    given: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    try:
        return replace(_spec(path.stem, given), path=path)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: {reason} (cldm/tables/spec.py shows the layout)") from error


def _spec(name: str, given: dict[str, Any]) -> Spec:
    known = {"title", "about", "train", "seeds", "rows", "reference", "evaluations", "columns", "figure"}
    _refuse_unknown(given, known, "the table")
    common = tuple(given.get("train") or ())
    rows = [_row(str(title), row or {}, common) for title, row in given["rows"].items()]
    evaluations = {key: tuple(overrides) for key, overrides in (given.get("evaluations") or {}).items()}
    columns = [_column(dict(column), {RUN, *evaluations}) for column in given["columns"]]
    reference = str(given.get("reference", rows[0].title))
    if reference not in [row.title for row in rows]:
        raise ValueError(f"reference {reference!r} is none of the rows")
    seeds = tuple(int(seed) for seed in given["seeds"])
    if not seeds or len({*seeds}) < len(seeds):
        raise ValueError(f"seeds must be different numbers, at least one, got {[*seeds]}")
    return Spec(name, given["title"], given.get("about", ""), seeds, tuple(rows), reference, evaluations,
                tuple(columns), given.get("figure") or {})  # fmt: skip


def _row(title: str, given: dict[str, Any], common: tuple[str, ...]) -> Row:
    _refuse_unknown(given, {"train", "evaluate", "more"}, f"row {title!r}")
    more = []
    for entry in given.get("more", ()):
        settings = dict(entry)
        more.append(Added((*common, *settings.pop("train")), settings))
    return Row(title, (*common, *given.get("train", ())), tuple(given.get("evaluate", ())), tuple(more))


def _column(given: dict[str, Any], sources: set[str]) -> Column:
    column = Column(source=given.pop("from"), **given)
    if column.source not in sources:
        raise ValueError(f"column {column.title!r} is from {column.source!r}, which is no evaluation")
    if column.better not in (None, "higher", "lower"):
        raise ValueError(f"column {column.title!r}: better must be higher or lower")
    if column.source == RUN and column.setting is not None:
        raise ValueError(f"column {column.title!r}: setting is of an evaluation, and {RUN} is none")
    if column.reaches is not None and column.source != RUN:
        raise ValueError(f"column {column.title!r}: reaches is of the looks of training, from: {RUN}")
    if column.reaches is not None and (isinstance(column.reaches, bool) or not isinstance(column.reaches, int | float)):
        raise ValueError(f"column {column.title!r}: reaches must be a number, got {column.reaches!r}")
    return column


def _refuse_unknown(given: Mapping[str, Any], known: set[str], what: str) -> None:
    if unknown := {*given} - known:
        raise ValueError(f"{what} has unknown keys: {', '.join(sorted(map(str, unknown)))}")


def evaluation_folder(run: Path, overrides: Sequence[str]) -> Path:
    """Where the results of evaluate.py with these overrides lie in a run: the same overrides, the same folder."""
    protocol = next((item.split("=", 1)[1] for item in overrides if item.startswith("protocol=")), "stickers")
    digest = hashlib.blake2b(json.dumps(sorted(overrides)).encode(), digest_size=4).hexdigest()
    return run / "evaluation" / f"{protocol}-{digest}"
