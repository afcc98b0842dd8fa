"""Sudden convergence (paper, section 3.3 and figure 4): the step at which a model begins to follow its hint."""

from collections.abc import Sequence

import numpy as np


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
