"""Curves of groups: the mean over seeds in a band from the lowest to the highest, and the moments of convergence."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np

from cldm.reports.groups import Group
from cldm.runs.listing import RunFolder
from cldm.runs.metrics import Curve, curves
from cldm.tables.convergence import JUMPS, Moment, moment

AXES = ("steps", "samples", "seconds")
POINTS = 120  # of a line

Logged = Mapping[RunFolder, Mapping[str, Curve]]
"""The curves of each run by name."""

WATCHED = {name: f"watch/{name}" for name in JUMPS if name != "hint_use"} | {"hint_use": "hint_use"}
"""What convergence is dated by, and its name in metrics.csv."""


def read_curves(runs: Sequence[RunFolder], names: Sequence[str]) -> dict[RunFolder, dict[str, Curve]]:
    """The curves of these names, and what convergence is dated by. A run without metrics has none."""
    return {run: curves(run.folder, {*names, *WATCHED.values()}) for run in runs}


def panel(name: str, groups: Sequence[Group], logged: Logged) -> dict[str, Any]:
    """One plot: for each axis the line of each group that has the curve, by the group's number."""
    axes: dict[str, dict[str, Any]] = {}
    for axis in AXES:
        lines = {}
        for i, group in enumerate(groups):
            found = [line for run in group.runs if (line := _line(logged[run].get(name), axis)) is not None]
            if found:
                lines[str(i)] = band(found)
        axes[axis] = lines
    return {"name": name, "log": "loss" in name, "axes": axes}


def _line(curve: Curve | None, axis: str) -> tuple[np.ndarray, np.ndarray] | None:
    found = curve.against(axis) if curve else None
    if found is None:
        return None
    x, y = (np.asarray(values, dtype=float) for values in found)
    known = np.isfinite(y)
    return (x[known], y[known]) if known.any() else None


def band(lines: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Mean, lowest and highest of curves wherever any of them is, and `n`, how many are there.

    A curve counts between its own ends, which differ where a run failed or is slower. Of more than POINTS places
    evenly chosen ones are kept.
    """
    x = np.unique(np.concatenate([own for own, _ in lines]))
    if len(x) > POINTS:
        x = x[np.linspace(0, len(x) - 1, POINTS).round().astype(int)]
    y = np.stack([np.interp(x, own, values, left=np.nan, right=np.nan) for own, values in lines])
    parts = {"x": x, "mean": np.nanmean(y, 0)}
    parts |= {"low": np.nanmin(y, 0), "high": np.nanmax(y, 0)} if len(lines) > 1 else {}
    return {name: rounded(values) for name, values in parts.items()} | {"n": np.isfinite(y).sum(0).tolist()}


def rounded(values: np.ndarray) -> list[float]:
    """Five digits of each: a page need not carry more."""
    return [float(f"{value:.5g}") for value in values.tolist()]


def moments(groups: Sequence[Group], logged: Logged) -> list[dict[str, Any]]:
    """For each run with hints whether and when it began to follow its own (cldm.tables.convergence)."""
    found = []
    for i, group in enumerate(groups):
        for run in group.runs if group.runs[0].choices.get("stage", "control") == "control" else ():
            own = logged[run]
            watched = {name: own[column] for name, column in WATCHED.items() if column in own}
            one = moment({name: (curve.steps, curve.values) for name, curve in watched.items()})
            if one is not None:
                curve = watched[one.measure]
                told = {"group": i, "seed": run.config.get("seed"), "text": _moment_told(one, curve, run.state)}
                told |= {"measure": one.measure, "step": one.step, "resolution": one.resolution, "early": one.early}
                found.append(told | {"end": _end(curve), "at": _places(curve, one.step)})
    return found


ENDS = {
    "failed": "where it failed",
    "stopped": "where it was stopped",
    "cut off": "where it was cut off",
    "running": "where it is now",
}
"""How to speak of the last step of a run that is not done, by the first words of its state."""


def _moment_told(one: Moment, curve: Curve, state: str) -> str:
    """A moment in words; of a run that is not done, and has none yet, up to which step."""
    end = ENDS.get(state.partition(":")[0])
    return str(one) if one.step is not None or end is None else f"not by step {_end(curve)}, {end} ({one.measure})"


def _end(curve: Curve) -> int:
    """The last step of which a curve has a number."""
    return max((step for step, value in zip(curve.steps, curve.values, strict=True) if isfinite(value)), default=0)


def _places(curve: Curve, step: int | None) -> dict[str, float | None]:
    """Where a step lies on each axis."""
    if step is None:
        return {}
    i = curve.steps.index(step)
    return {"steps": step, "samples": curve.samples[i], "seconds": curve.seconds[i]}
