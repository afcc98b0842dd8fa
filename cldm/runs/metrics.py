"""Curves of a run, read back from metrics.csv over all its attempts."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

AXES = {"samples": "samples_seen", "seconds": "train_seconds"}
"""What a curve may be drawn against beside steps, and the column that says it."""


TAIL = 1 << 14
"""Bytes from the end of a file of metrics in which its last rows lie."""


@dataclass
class Curve:
    """Values of a figure by optimizer step, with the samples seen and seconds trained by then, None if not logged."""

    steps: list[int]
    values: list[float]
    samples: list[float | None]
    seconds: list[float | None]

    def against(self, axis: str) -> tuple[list[float], list[float]] | None:
        """(places, values) on the axis "steps", "samples" or "seconds"; None where the run did not log it."""
        if axis == "steps":
            return [float(step) for step in self.steps], self.values
        places = self.samples if axis == "samples" else self.seconds
        known = [place for place in places if place is not None]
        return (known, self.values) if len(known) == len(places) else None


def curves(folder: Path, names: Iterable[str] | None = None) -> dict[str, Curve]:
    """The curves of these names that a run has logged, or all; of a step that was done again the last value counts.

    Lines that a kill cut short are left out.
    """
    rows: dict[str, dict[int, tuple[float | None, ...]]] = {}
    wanted = None if names is None else {*names}
    for path in attempts(folder):
        for step, places, name, value in _cells(path, wanted):
            rows.setdefault(name, {})[step] = (value, *places)
    return {name: _curve(found) for name, found in rows.items()}


def _curve(found: dict[int, tuple[float | None, ...]]) -> Curve:
    steps = sorted(found)
    return Curve(steps, *([found[step][i] for step in steps] for i in range(3)))  # type: ignore[arg-type]


def attempts(folder: Path) -> list[Path]:
    """Files of metrics, oldest first."""
    numbered = [path for path in folder.glob("metrics.*.csv") if path.suffixes[0][1:].isdecimal()]
    earlier = sorted(numbered, key=lambda path: int(path.suffixes[0][1:]))
    return [path for path in [*earlier, folder / "metrics.csv"] if path.exists()]


def last_step(folder: Path) -> int | None:
    """The last optimizer step that a run has logged; None for a run that has logged nothing."""
    for path in reversed(attempts(folder)):
        with open(path, "rb") as file:
            head = file.readline().decode(errors="replace").strip().split(",")
            file.seek(max(path.stat().st_size - TAIL, file.tell()))
            rows = file.read().decode(errors="replace").splitlines()
        cells = [row.split(",") for row in rows if "step" in head and row.count(",") == len(head) - 1]
        steps = [step for row in cells if (step := _number(row[head.index("step")])) is not None]
        if steps:
            return int(steps[-1])
    return None


def _cells(path: Path, wanted: set[str] | None) -> Iterator[tuple[int, tuple[float | None, ...], str, float]]:
    """(step, samples and seconds, name, value) of each number in a file."""
    with open(path, newline="", errors="replace") as file:
        reader = csv.reader(file)
        head = next(reader, [])
        if "step" not in head:
            return
        at, places = head.index("step"), [head.index(name) if name in head else None for name in AXES.values()]
        chosen = [(i, name) for i, name in enumerate(head) if name not in ("step", "epoch") and _is(name, wanted)]
        for row in reader:
            if len(row) == len(head) and (step := _number(row[at])) is not None:
                told = tuple(None if place is None else _number(row[place]) for place in places)
                for i, name in chosen:
                    if row[i] and (value := _number(row[i])) is not None:
                        yield int(step), told, name, value


def _is(name: str, wanted: set[str] | None) -> bool:
    return wanted is None or name in wanted


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
