"""Curves of a run, read back from metrics.csv over all its attempts."""

import csv
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from ldm.files import read_lines

ATTEMPTS = "attempts.jsonl"

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
    """The curves of these names that a run has logged, or all; of steps that were done again the last attempt counts.

    What came after the checkpoint that an attempt went on from was given up; of an attempt that did not note its step
    (attempts.jsonl), what came after its own first row. Lines that a kill cut short are left out.
    """
    began = _began(folder)
    rows: dict[str, dict[int, tuple[float | None, ...]]] = {}
    wanted = None if names is None else {*names}
    for number, path in enumerate(attempts(folder)):
        logged = [*_logged(path, wanted)]
        last = began.get(number, min((step for step, *_ in logged), default=None))
        for name, found in rows.items():
            rows[name] = {step: row for step, row in found.items() if last is None or step <= last}
        for step, places, values in logged:
            for name, value in values.items():
                rows.setdefault(name, {})[step] = (value, *places)
    return {name: _curve(found) for name, found in rows.items() if found}


def _began(folder: Path) -> dict[int, int]:
    """{number of a file of metrics, from 0: the step of the checkpoint from which it was begun}.

    Several attempts may have meant to write a file; the earliest checkpoint counts.
    """
    found: dict[int, int] = {}
    for line in read_lines(folder / ATTEMPTS):
        number, step = (line.get(name) if isinstance(line, dict) else None for name in ("metrics", "step"))
        if isinstance(number, int) and isinstance(step, int):
            found[number] = min(step, found.get(number, step))
    return found


def _curve(found: dict[int, tuple[float | None, ...]]) -> Curve:
    steps = sorted(found)
    return Curve(steps, *([found[step][i] for step in steps] for i in range(3)))  # type: ignore[arg-type]


def attempts(folder: Path) -> list[Path]:
    """Files of metrics, oldest first."""
    numbered = [path for path in folder.glob("metrics.*.csv") if path.suffixes[0][1:].isdecimal()]
    earlier = sorted(numbered, key=lambda path: int(path.suffixes[0][1:]))
    return [path for path in [*earlier, folder / "metrics.csv"] if path.is_file()]


def last_step(folder: Path) -> int | None:
    """The last optimizer step that a run has logged; None for a run that has logged nothing."""
    for path in reversed(attempts(folder)):
        with open(path, "rb") as file:
            head = file.readline().decode(errors="replace").strip().split(",")
            file.seek(max(path.stat().st_size - TAIL, file.tell()))
            rows = file.read().decode(errors="replace").splitlines()
        cells = [row.split(",") for row in rows if "step" in head and row.count(",") == len(head) - 1]
        steps = [step for row in cells if (step := _step(row[head.index("step")])) is not None]
        if steps:
            return steps[-1]
    return None


def _logged(path: Path, wanted: set[str] | None) -> Iterator[tuple[int, tuple[float | None, ...], dict[str, float]]]:
    """(step, samples and seconds, numbers by name) of each row of a file, up to where it can no longer be read."""
    with open(path, newline="", errors="replace") as file:
        reader = _rows(file)
        head = next(reader, [])
        if "step" not in head:
            return
        at, places = head.index("step"), [head.index(name) if name in head else None for name in AXES.values()]
        chosen = [(i, name) for i, name in enumerate(head) if name not in ("step", "epoch") and _is(name, wanted)]
        for row in reader:
            if len(row) == len(head) and (step := _step(row[at])) is not None:
                told = tuple(None if place is None else _number(row[place]) for place in places)
                yield step, told, {name: value for i, name in chosen if (value := _number(row[i])) is not None}


def _rows(file: Iterable[str]) -> Iterator[list[str]]:
    with suppress(csv.Error):  # a crash of the machine may leave a file with an end of zeros
        yield from csv.reader(file)


def _is(name: str, wanted: set[str] | None) -> bool:
    return wanted is None or name in wanted


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _step(text: str) -> int | None:
    found = _number(text)
    return int(found) if found is not None and isfinite(found) else None
