"""Spread and intervals of scores. The unit is the training run: its images say nothing of other runs."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TypeVar

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (divisor n - 1; nan for a single value)."""
    x = np.asarray(values, dtype=float)
    return float(x.mean()), float(x.std(ddof=1)) if len(x) > 1 else float("nan")


def t_interval(differences: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Student's interval for the mean of paired differences; (nan, nan) for fewer than two."""
    mean, std = mean_and_std(differences)
    n = len(differences)
    if n < 2:
        return float("nan"), float("nan")
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * std / n**0.5
    return mean - half, mean + half


Name = TypeVar("Name")


def clearly_best(values: Mapping[Name, Mapping[int, float]], lower: bool) -> Name | None:
    """The name whose values by seed are better than every other's beyond Student's interval of the differences paired
    by seed. lower: whether less is better.

    None where a name lacks the value of a seed that another has: a method that reached nothing there must not win.
    """
    if len(values) < 2 or not all(values.values()) or len({frozenset(by_seed) for by_seed in values.values()}) > 1:
        return None
    sign = -1 if lower else 1
    best = max(values, key=lambda name: sign * float(np.mean([*values[name].values()])))
    for name, others in values.items():
        low, _ = t_interval([sign * (values[best][seed] - other) for seed, other in others.items()])
        if name != best and not low > 0:  # nan is not
            return None
    return best


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, confidence: float = CONFIDENCE, resamples: int = 9999, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap of the mean of independent values; (nan, nan) for fewer than two."""
    x = np.asarray(values, dtype=float)
    if len(x) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = [x[rng.integers(0, len(x), (min(1000, resamples - done), len(x)))].mean(1)
             for done in range(0, resamples, 1000)]  # fmt: skip
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def bootstrap_intervals(
    values: np.ndarray, confidence: float = CONFIDENCE, resamples: int = 1999, seed: int = 0
) -> np.ndarray:
    """Percentile bootstrap of the mean of each column of values (n, k), all resampled by the same rows: (2, k).

    nan is left out; (nan, nan) for columns with fewer than two values.
    """
    known = np.isfinite(values)
    draws = _draws(len(values), resamples, seed) if len(values) else np.zeros((resamples, 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (draws @ np.where(known, values, 0.0)) / (draws @ known)
    found = np.nanquantile(np.where(known.sum(0) > 1, means, 0.0), [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return np.where(known.sum(0) > 1, found, np.nan)


@cache
def _draws(n: int, resamples: int, seed: int) -> np.ndarray:
    """How often each of n rows is drawn in each resample: (resamples, n)."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples).astype(float)


def means_by(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The mean of the values of each group, nan left out; groups without a value are left out too.

    Images of one item are not independent of each other: resample items, not images.
    """
    found = [values[groups == group] for group in np.unique(groups)]
    return np.array([x[np.isfinite(x)].mean() for x in found if np.isfinite(x).any()])
