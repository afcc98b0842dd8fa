"""Sudden convergence (paper, section 3.3 and figure 4): the step at which a model begins to follow its hint."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

JUMPS = {"hint_use": 0.05, "edge_f1_1px": 0.1}
"""Curves that convergence is dated by, the densest first, and the rise that counts as one."""


@dataclass(frozen=True)
class Moment:
    """When a curve jumped: after `step` - `resolution` and by `step`; `step` is None if it never did.

    early: the curve was up at its first look already, at `step`; nothing is known of how long before.
    """

    measure: str
    step: int | None
    resolution: int | None = None
    early: bool = False

    def __str__(self) -> str:
        if self.step is None:
            return f"no sudden convergence ({self.measure})"
        if self.early:
            return f"converged before the first look, at step {self.step} ({self.measure})"
        return f"sudden convergence: steps {self.step - (self.resolution or 0)} to {self.step} ({self.measure})"


def moment(curves: dict[str, tuple[Sequence[int], Sequence[float]]]) -> Moment | None:
    """The moment of convergence by the densest of the curves (steps, values) that JUMPS names; None without any."""
    for measure, jump in JUMPS.items():
        if measure in curves and len(curves[measure][0]) > 1:
            return dated(measure, *curves[measure], jump)
    return None


def recorded(run: Path) -> Moment | None:
    """The moment that the results of a run tell; None for a run that is not finished, or of another stage."""
    path = run / "results.json"
    told = json.loads(path.read_text()).get("convergence") if path.is_file() else None
    return Moment(**told) if told else None


def dated(measure: str, steps: Sequence[int], values: Sequence[float], jump: float) -> Moment:
    """The moment of one curve."""
    step = convergence_step(steps, values, jump)
    if step is not None:
        before = max(s for s, v in zip(steps, values, strict=True) if s < step and np.isfinite(v))
        return Moment(measure, step, step - before)
    level = np.nanmedian(np.asarray(values, dtype=float))
    first = next((s for s, v in zip(steps, values, strict=True) if np.isfinite(v)), None)
    return Moment(measure, first, None, early=True) if level >= EARLY[measure] else Moment(measure, None)


EARLY = {"hint_use": 0.1, "edge_f1_1px": 0.4}
"""Levels that only a model that follows its hint has: of a curve without a jump they mean "before the first look"."""


def convergence_step(steps: Sequence[int], fidelity: Sequence[float], jump: float = 0.1) -> int | None:
    """The first step after the change point of a fidelity curve, or None if it never rises by `jump`.

    The change point splits the curve into two constant levels with the least squared error.
    """
    values = np.asarray(fidelity, dtype=float)
    steps, values = np.asarray(steps)[np.isfinite(values)].tolist(), values[np.isfinite(values)]
    splits = range(1, len(values))
    errors = [values[:k].var() * k + values[k:].var() * (len(values) - k) for k in splits]
    if not errors:
        return None
    best = splits[int(np.argmin(errors))]
    return steps[best] if values[best:].mean() - values[:best].mean() >= jump else None
