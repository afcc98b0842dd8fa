"""The figures of evaluations as tables: one for each protocol, never mixed; means, intervals, differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zipfile import BadZipFile

import numpy as np

from cldm.reports.groups import Group
from cldm.reports.spec import SCORES
from cldm.runs.evaluations import KEYS, Evaluation
from cldm.runs.listing import RunFolder
from cldm.tables.statistics import bootstrap_intervals, mean_and_std, t_interval

LOWER = ("error", "rmse", "absrel", "angle", "fid", "kid", "loss", "hint_color", "distance")
"""Parts of the names of scores of which less is better."""

SHOWN = 8  # scores of a table

BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, BadZipFile)
"""What reading files raises that were cut short, or written by another version."""


@dataclass(frozen=True)
class Measured:
    """The evaluation of a run, with the number of the run's group."""

    group: int
    run: RunFolder
    evaluation: Evaluation


def lower_is_better(score: str) -> bool:
    """Whether less of a score is better."""
    return any(part in score for part in LOWER)


def by_protocol(groups: Sequence[Group]) -> tuple[dict[tuple[str, str], list[Measured]], list[dict[str, str]]]:
    """({(label, protocol hash): evaluations}, [{run, reason}] of those that cannot be read)."""
    found: dict[tuple[str, str], list[Measured]] = {}
    trouble = []
    for i, group in enumerate(groups):
        for run in group.runs:
            for path in sorted(run.folder.glob("evaluation/*/results.json")):
                one = Evaluation(path.parent)
                try:
                    key = (one.label, str(one.results["protocol_hash"]))
                    one.figures(), one.scores
                except BROKEN as error:
                    reason = f"an evaluation that cannot be read: {type(error).__name__}: {error}"
                    trouble.append({"run": str(path.parent), "reason": reason})
                    continue
                found.setdefault(key, []).append(Measured(i, run, one))
    return found, trouble


def table(label: str, chosen: Sequence[Measured], scores: Sequence[str], reference: int) -> dict[str, Any]:
    """The table of one protocol: by prompt setting a row for each group; bounds below; see `_cell`."""
    results = chosen[0].evaluation.results
    settings = [*results["metrics"]]
    columns = [*scores] or [name for name in SCORES if name in results["metrics"][settings[-1]]][:SHOWN]
    columns = columns or [*results["metrics"][settings[-1]]][:SHOWN]
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
    return {"label": label, "hash": results["protocol_hash"], "protocol": told(results), "settings": settings,
            "scores": scores_told, "reference": base, "rows": rows,
            "bounds": {setting: _bounds(results, setting, columns) for setting in settings}}  # fmt: skip


USUAL = {"start": 0.0, "end": 1.0, "mode": "balanced", "weighting": None, "negative": ""}
"""Values of a protocol that need no word."""


def told(results: Mapping[str, Any]) -> str:
    """A protocol in a line: of the usual values only those that are not."""
    p = results["protocol"]
    sampler = str((p.get("sampler") or {}).get("sampler", {}).get("_target_", "")).rsplit(".", 1)[-1]
    data = {name: (p.get("data") or {}).get(name) for name in ("family", "path")}
    own = {**data, **{name: p.get(name, usual) for name, usual in USUAL.items() if p.get(name, usual) != usual}}
    rest = "".join(f", {name} {value}" for name, value in own.items() if value is not None)
    return (f"{p.get('items')} items × noise seeds {', '.join(map(str, p.get('noise_seeds', ())))}; {sampler} "
            f"{p.get('steps')} steps, guidance {p.get('guidance')}, scale {p.get('scale')}{rest}")  # fmt: skip


def _cells(
    own: Sequence[Measured], other: Sequence[Measured], setting: str, scores: Sequence[str]
) -> list[dict[str, Any] | None]:
    """A cell for each score: mean over the group's runs, interval, and the difference from the reference."""
    seeds = {one.run.config.get("seed"): one for one in own}
    others = {one.run.config.get("seed"): one for one in other}
    pairs = [(one, others[seed]) for seed, one in seeds.items() if seed in others]
    items = _item_intervals([by_item(one.evaluation, setting, scores) for one in own])
    apart = _item_intervals([_difference(a, b, setting, scores) for a, b in pairs]) if pairs else None
    found: list[dict[str, Any] | None] = []
    for i, score in enumerate(scores):
        values = [value for one in own if (value := _value(one, setting, score)) is not None]
        if not values:
            found.append(None)
            continue
        cell = {"mean": mean_and_std(values)[0], "values": values, "seeds": _span(t_interval(values)),
                "items": _span(items[:, i])}  # fmt: skip
        differences = [a - b for one, two in pairs
                       if (a := _value(one, setting, score)) is not None
                       and (b := _value(two, setting, score)) is not None]  # fmt: skip
        if differences:
            cell |= {"difference": mean_and_std(differences)[0], "difference_seeds": _span(t_interval(differences)),
                     "difference_items": _span(apart[:, i]) if apart is not None else None}  # fmt: skip
        found.append(cell)
    return found


def _value(one: Measured, setting: str, score: str) -> float | None:
    value = (one.evaluation.results["metrics"].get(setting) or {}).get(score)
    return None if value is None or not np.isfinite(value) else float(value)


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
    """Bootstrap over items of the mean over runs: (2, scores)."""
    shared = sorted(set.intersection(*({*one} for one in runs)))
    with np.errstate(all="ignore"):
        return bootstrap_intervals(np.array([np.mean([one[item] for one in runs], axis=0) for item in shared]))


def _span(interval: Any) -> list[float] | None:
    low, high = map(float, interval)
    return [low, high] if np.isfinite(low) else None


def _bounds(results: Mapping[str, Any], setting: str, scores: Sequence[str]) -> list[dict[str, Any]]:
    """What bounds the scores: the base without control, real images through the autoencoder, real images."""
    kinds = {"base, no control": (results.get("base") or {}).get(setting),
             "ceiling: real images through the autoencoder": results.get("ceiling"),
             "real images": results.get("real")}  # fmt: skip
    return [
        {"title": title, "cells": [found.get(score) for score in scores]} for title, found in kinds.items() if found
    ]


def samples(
    label: str,
    chosen: Sequence[Measured],
    shown: Sequence[tuple[int, RunFolder]],
    scores: Sequence[str],
    most: int,
    album: Any,
) -> dict[str, Any] | None:
    """The list of samples of one protocol: the first `most` items, for runs with room for pictures; None without."""
    there = [one for one in chosen if (one.group, one.run) in shown and one.evaluation.has_samples]
    rows: dict[tuple[int, str, int], dict[str, Any]] = {}
    for number, one in enumerate(there):
        for line in one.evaluation.samples():
            if line["item"] >= most:
                continue
            key = (line["item"], line["setting"], line["noise"])
            if key not in rows:
                rows[key] = {name: line[name] for name in (*KEYS, "caption", "prompt")}
                rows[key] |= {name: album.add_file(line.get(name)) for name in ("hint", "real")} | {"runs": {}}
            pictures = [album.add_file(line.get(name)) for name in ("image", "hint_of_image")]
            rows[key]["runs"][str(number)] = [*pictures, *(line["scores"].get(score) for score in scores)]
    if not rows:
        return None
    items = there[0].evaluation.results["protocol"].get("items")
    return {"label": label, "hash": there[0].evaluation.results["protocol_hash"], "items": items, "most": most,
            "runs": [{"group": one.group, "seed": one.run.config.get("seed")} for one in there],
            "rows": [rows[key] for key in sorted(rows)]}  # fmt: skip
