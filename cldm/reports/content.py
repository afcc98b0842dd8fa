"""All that a page says, as plain data."""

import sys
import time
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from cldm.reports.bands import Logged, moments, panel, read_curves
from cldm.reports.figures import samples, table
from cldm.reports.groups import Group, found_below, grouped, one_for_each_seed, settings, switched, unlike_inputs
from cldm.reports.pictures import Album, grid, pictured
from cldm.reports.protocols import Protocol, by_protocol, unlike
from cldm.reports.spec import CURVES, ReportSpec
from cldm.reports.words import words
from cldm.runs.checkout import commit
from cldm.runs.listing import RunFolder, differing, refuse_unknown
from cldm.runs.metrics import curves


def content(places: Sequence[Path], spec: ReportSpec) -> dict[str, Any]:
    """What a page says of the runs in these folders."""
    runs = found_below(places)
    once, repeated = one_for_each_seed(runs)
    groups = ordered(grouped(once), spec)
    logged = read_curves([run for group in groups for run in group.runs], spec.curves or CURVES)
    names = [name for name in spec.curves or CURVES if any(name in own for own in logged.values())]
    shown, album = pictured(groups, spec.lines), Album()
    measured, trouble = by_protocol(groups)
    _refuse_unknown_names(spec, logged, measured)
    tables = [table(protocol, spec.scores, 0) for protocol in measured]
    lists = [
        samples(protocol, shown, [score["name"] for score in made["scores"]], spec.samples, album)
        for protocol, made in zip(measured, tables, strict=True)
    ]
    parts = ["family"] if any(", family " in made["protocol"] for made in tables) else []
    worlds = {str(protocol.measured[0].evaluation.results["protocol"].get("world")) for protocol in measured}
    return {
        "title": spec.title,
        "question": spec.question,
        "lines": spec.lines,
        "made": {"when": time.strftime("%Y-%m-%d %H:%M"), "command": " ".join(["python -m cldm", *sys.argv[1:]]),
                 "commit": commit()},
        "groups": [described(group) for group in groups],
        "settings": settings(groups),
        "trouble": [*(told for run in runs if (told := complaint(run))), *repeated, *trouble,
                    *silent(groups, logged, measured),
                    *(told for protocol in measured for told in unlike(protocol, groups)),
                    *(told for run in once if (told := switched(run))),
                    *(told for group in groups if (told := unlike_inputs(group)))],
        "curves": [panel(name, groups, logged) for name in names],
        "moments": moments(groups, logged),
        "grid": grid(shown, spec.items, spec.looks, album),
        "tables": tables,
        "samples": [one for one in lists if one],
        "words": words([*names, *(score["name"] for made in tables for score in made["scores"]), *parts], worlds),
        "pictures": album.pictures,
    }  # fmt: skip


def _refuse_unknown_names(spec: ReportSpec, logged: Logged, measured: Sequence[Protocol]) -> None:
    """ValueError for a curve that no run has logged, or a score that no evaluation has."""
    if not {*spec.curves} <= {name for own in logged.values() for name in own}:
        every = {name for run in logged for name in curves(run.folder)}
        for name in spec.curves:
            refuse_unknown(name, every, "curves: ")
    results = [one.evaluation.results["metrics"] for protocol in measured for one in protocol.measured]
    scores = {score for metrics in results for means in metrics.values() for score in means}
    for name in spec.scores:
        refuse_unknown(name, scores, "scores: ")


def ordered(groups: Sequence[Group], spec: ReportSpec) -> list[Group]:
    """The reference first, then by what differs, numbers by size; ValueError if `reference` is in no group's name."""
    if not groups:
        raise ValueError(
            "none of these run folders has a configuration that can be read; `python -m cldm runs` says why"
        )
    keys = differing([group.runs[0] for group in groups])
    groups = sorted(groups, key=lambda group: [*(_order(group.runs[0].says(key)) for key in keys),
                                               _order(len(group.runs[0].switches))])  # fmt: skip
    first = next((group for group in groups if spec.reference in group.name), None)
    if first is None:
        names = "; ".join(group.name for group in groups)
        raise ValueError(f"reference={spec.reference!r} is in the name of no group; there are: {names}")
    return [first, *(group for group in groups if group is not first)]


def _order(value: Any) -> tuple[int, float, str]:
    return (0, float(value), "") if isinstance(value, int | float) else (1, 0.0, str(value))


def described(group: Group) -> dict[str, Any]:
    """Name, seeds, folders, states and commits of a group."""
    return {
        "name": group.name,
        "seeds": [run.config.get("seed") for run in group.runs],
        "runs": [str(run.folder) for run in group.runs],
        "states": [run.state for run in group.runs],
        "steps": [run.figures.get("steps") for run in group.runs],
        "commits": [*dict.fromkeys(_told(commit) for run in group.runs for commit in run.commits)],
    }


def _told(commit: str) -> str:
    return commit[:12] + ("+changes" if "+" in commit else "")


def silent(groups: Sequence[Group], logged: Logged, measured: Sequence[Protocol]) -> list[dict[str, str]]:
    """[{run, reason}] of what the sections of a page leave out: runs without curves, losses that are no numbers, groups
    without figures where others have some."""
    found = []
    for run in (run for group in groups for run in group.runs):
        if not logged[run]:
            found.append({"run": str(run.folder), "reason": "no curves: metrics.csv has none of those shown here"})
        for name, curve in logged[run].items():
            broken = [step for step, value in zip(curve.steps, curve.values, strict=True) if not isfinite(value)]
            if "loss" in name and broken:
                told = (
                    f"{name} is no finite number at {len(broken)} of its {len(curve.steps)} steps, first at {broken[0]}"
                )
                found.append({"run": str(run.folder), "reason": told})
    evaluated = {one.group for protocol in measured for one in protocol.measured}
    found += [{"run": group.name, "reason": "no figures: not evaluated (evaluate.py)"}
              for i, group in enumerate(groups) if evaluated and i not in evaluated]  # fmt: skip
    return found


def complaint(run: RunFolder) -> dict[str, str] | None:
    """Why a run tells less than others; None where it is finished."""
    return None if run.state == "done" else {"run": str(run.folder), "reason": run.state}
