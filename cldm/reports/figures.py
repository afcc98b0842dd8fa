"""The figures of evaluations as tables: one for each protocol, never mixed; means, intervals, differences."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cldm.reports.protocols import Measured, Protocol
from cldm.reports.spec import SCORES
from cldm.runs.evaluations import KEYS, Evaluation
from cldm.runs.listing import RunFolder
from cldm.tables.statistics import bootstrap_intervals, clearly_best, mean_and_std, t_interval

LOWER = ("error", "rmse", "absrel", "angle", "fid", "kid", "loss", "hint_color", "distance")
"""Parts of the names of scores of which less is better."""

NEITHER = ("nearest_training", "diversity")
"""Parts of the names of scores of which neither less nor more is better."""

ARROWS = {True: " ↓", False: " ↑", None: ""}
"""Which way is better, by `lower_is_better`."""

SHOWN = 12  # scores of a table


def lower_is_better(score: str) -> bool | None:
    """Whether less of a score is better; None where neither less nor more is."""
    if any(part in score for part in NEITHER):
        return None
    return any(part in score for part in LOWER)


def table(protocol: Protocol, scores: Sequence[str], reference: int) -> dict[str, Any]:
    """The table of one protocol: by prompt setting a row for each group; bounds below; see `_cells`."""
    chosen = protocol.measured
    metrics = [one.evaluation.results["metrics"] for one in chosen]
    settings = [*dict.fromkeys(setting for told in metrics for setting in told)]
    # runs of other conditions have other scores
    known = dict.fromkeys(name for told in metrics for means in told.values() for name in means)
    columns = [*scores] or [name for name in SCORES if name in known][:SHOWN] or [*known][:SHOWN]
    numbers = sorted({one.group for one in chosen})
    base = reference if reference in numbers else numbers[0]
    members = {number: [one for one in chosen if one.group == number] for number in numbers}
    rows = {
        setting: [{"group": number, "n": len(members[number]),
                   "cells": _cells(members[number], members[base] if number != base else [], setting, columns)}
                  for number in numbers]
        for setting in settings
    }  # fmt: skip
    scores_told = [{"name": name, "lower": lower_is_better(name)} for name in columns]
    best = {setting: [_best(members, setting, name) for name in columns] for setting in settings}
    return {"label": protocol.label, "labels": protocol.labels, "hash": protocol.hash, "protocol": protocol.heading,
            "settings": settings, "scores": scores_told, "reference": base, "rows": rows, "best": best,
            "bounds": {setting: _bounds(members, setting, columns) for setting in settings}}  # fmt: skip


def _cells(
    own: Sequence[Measured], other: Sequence[Measured], setting: str, scores: Sequence[str]
) -> list[dict[str, Any] | None]:
    """A cell for each score: mean over the group's runs, interval, and the difference from the reference, of the runs
    that share a seed (how many: "pairs")."""
    seeds = {one.run.config.get("seed"): one for one in own}
    others = {one.run.config.get("seed"): one for one in other}
    pairs = [(one, others[seed]) for seed, one in seeds.items() if seed in others]
    items = _item_intervals([by_item(one.evaluation, setting, scores) for one in own])
    by_item_apart = [_difference(a, b, setting, scores) for a, b in pairs]
    apart = _item_intervals(by_item_apart)
    found: list[dict[str, Any] | None] = []
    for i, score in enumerate(scores):
        values = [value for one in own if (value := _value(one, setting, score)) is not None]
        if not values:
            found.append(None)
            continue
        cell = {"mean": mean_and_std(values)[0], "values": values, "n": len(values), "seeds": _span(t_interval(values)),
                "items": _span(items[:, i])}  # fmt: skip
        differences = [d for (one, two), items in zip(pairs, by_item_apart, strict=True)
                       if (d := _apart(one, two, items, setting, score, i)) is not None]  # fmt: skip
        if differences:
            cell |= {"difference": mean_and_std(differences)[0], "difference_seeds": _span(t_interval(differences)),
                     "difference_items": _span(apart[:, i]), "pairs": len(differences)}  # fmt: skip
        found.append(cell)
    return found


def _best(members: Mapping[int, Sequence[Measured]], setting: str, score: str) -> int | None:
    """The number of the group to print in bold, see `clearly_best`; of a score without a direction none is."""
    if (lower := lower_is_better(score)) is None:
        return None
    values = {
        number: {
            int(one.run.config.get("seed", 0)): value
            for one in own
            if (value := _value(one, setting, score)) is not None
        }
        for number, own in members.items()
    }
    return clearly_best({number: found for number, found in values.items() if found}, lower)


def _value(one: Measured, setting: str, score: str) -> float | None:
    value = (one.evaluation.results["metrics"].get(setting) or {}).get(score)
    return None if value is None or not np.isfinite(value) else float(value)


def _apart(
    one: Measured, two: Measured, items: Mapping[int, np.ndarray], setting: str, score: str, column: int
) -> float | None:
    """The difference of two runs over the items that both have the score of; the plain one of a score of a set."""
    a, b = (_value(run, setting, score) for run in (one, two))
    shared = [row[column] for row in items.values() if np.isfinite(row[column])]
    if shared:
        return float(np.mean(shared))
    return None if a is None or b is None else a - b


def by_item(evaluation: Evaluation, setting: str, scores: Sequence[str]) -> dict[int, np.ndarray]:
    """{item: mean of each score over the item's images}: images of one item are not independent of each other."""
    rows = evaluation.scores
    chosen = rows["setting"] == setting
    found = {}
    for item in np.unique(rows["item"][chosen]).tolist():
        own = chosen & (rows["item"] == item)
        found[item] = np.array([_mean(rows[score][own]) if score in rows else np.nan for score in scores])
    return found


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _difference(a: Measured, b: Measured, setting: str, scores: Sequence[str]) -> dict[int, np.ndarray]:
    x, y = (by_item(one.evaluation, setting, scores) for one in (a, b))
    return {item: x[item] - y[item] for item in x if item in y}


def _item_intervals(runs: Sequence[Mapping[int, np.ndarray]]) -> np.ndarray:
    """Bootstrap over items of the mean over the runs that have a value: (2, scores)."""
    items = sorted({item for one in runs for item in one})
    rows = [[one[item] for one in runs if item in one] for item in items]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # an item that no run has a value of
        means = [np.nanmean(row, axis=0) for row in rows]
    return bootstrap_intervals(np.array(means)) if means else np.empty((2, 0))


def _span(interval: Any) -> list[float] | None:
    low, high = map(float, interval)
    return [low, high] if np.isfinite(low) else None


BOUNDS = {
    "base": "base, no control",
    "ceiling": "ceiling: real images through the autoencoder",
    "real": "real images",
}


def _bounds(members: Mapping[int, Sequence[Measured]], setting: str, scores: Sequence[str]) -> list[dict[str, Any]]:
    """What bounds the scores: a row for all groups where it is the same for them, as on one base and with one
    condition, else one for each value, with the numbers of its groups."""
    rows = []
    for kind, title in BOUNDS.items():
        by_cells: dict[tuple[float | None, ...], list[int]] = {}
        for number, own in members.items():
            found = own[0].evaluation.results.get(kind) or {}
            found = (found.get(setting) or {}) if kind == "base" else found
            if found:
                by_cells.setdefault(tuple(_rounded(found.get(score)) for score in scores), []).append(number)
        rows += [{"title": title, "cells": [*cells], "groups": numbers if len(by_cells) > 1 else None}
                 for cells, numbers in by_cells.items()]  # fmt: skip
    return rows


def _rounded(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), 6)


OF_A_RUN = ("hint", "image", "hint_of_image")
"""Pictures of a sample that are a run's own: runs of other conditions have other hints."""


def samples(
    protocol: Protocol,
    shown: Sequence[tuple[int, RunFolder]],
    scores: Sequence[str],
    most: int,
    album: Any,
) -> dict[str, Any] | None:
    """The list of samples of one protocol: the first `most` items, for runs with room for pictures; None without."""
    there = [one for one in protocol.measured if (one.group, one.run) in shown and one.evaluation.has_samples]
    # a distance of sets, such as FID, is no score of an image
    own_scores = [
        name for name in scores if any(np.isfinite(one.evaluation.scores.get(name, np.nan)).any() for one in there)
    ]
    rows: dict[tuple[int, str, int], dict[str, Any]] = {}
    for number, one in enumerate(there):
        for line in one.evaluation.samples():
            if line["item"] >= most:
                continue
            key = (line["item"], line["setting"], line["noise"])
            if key not in rows:
                rows[key] = {name: line[name] for name in (*KEYS, "caption", "prompt")}
                rows[key] |= {"real": album.add_file(line.get("real")), "runs": {}}
            pictures = [album.add_file(line.get(name)) for name in OF_A_RUN]
            rows[key]["runs"][str(number)] = [*pictures, *(_rounded(line["scores"].get(name)) for name in own_scores)]
    if not rows:
        return None
    items = there[0].evaluation.results["protocol"].get("items")
    return {"label": protocol.label, "hash": protocol.hash, "items": items, "most": most,
            "scores": [{"name": name, "lower": lower_is_better(name)} for name in own_scores],
            "runs": [{"group": one.group, "seed": one.run.config.get("seed")} for one in there],
            "rows": [rows[key] for key in sorted(rows)]}  # fmt: skip
