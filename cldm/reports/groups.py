"""Runs of one configuration, whatever their seed, are a group: a line of each plot, a row of each table."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cldm.runs.folder import INPUTS
from cldm.runs.listing import RunFolder, differing, load, read, run_folders

LONGEST = 60  # characters of a group's name
VALUE = 36  # and of a value: of a path its end tells more


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds alone."""

    name: str
    runs: tuple[RunFolder, ...]

    @property
    def key(self) -> str:
        """Of its configuration."""
        return digest(self.runs[0])


def digest(run: RunFolder) -> str:
    """16 hex digits of a run's configuration without its seed, and of those that it was trained under before."""
    told = {**run.telling, **({"switches": run.switches} if run.switches else {})}
    text = json.dumps(told, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def found_below(places: Sequence[Path]) -> list[RunFolder]:
    """Every run folder in these folders, once; ValueError where one is no folder or holds no run."""
    found: dict[Path, RunFolder] = {}
    for place in places:
        if not place.is_dir():
            raise ValueError(f"{place} is no folder; a report takes run folders, or folders that hold them")
        below = run_folders(place)
        if not below:
            raise ValueError(f"{place} holds no run folder (no config.yaml, no attempts.jsonl)")
        found |= {path.resolve(): read(path) for path in below if path.resolve() not in found}
    return [*found.values()]


def one_for_each_seed(runs: Sequence[RunFolder]) -> tuple[list[RunFolder], list[dict[str, str]]]:
    """(runs, [{run, reason}] of those left out): a run that was made twice is no further seed.

    Of the same configuration and seed the finished one stands for all, and of several the newest.
    """
    keys = {run: (digest(run), run.config.get("seed")) for run in runs if run.config}
    newest = {keys[run]: run for run in sorted(keys, key=lambda run: (run.state == "done", run.begun))}
    kept: list[RunFolder] = []
    left_out: list[dict[str, str]] = []
    for run in runs:
        other = newest[keys[run]] if run in keys else run
        if other is run:
            kept.append(run)
        else:
            reason = f"left out: the configuration and seed of {other.folder}, made again"
            left_out.append({"run": str(run.folder), "reason": reason})
    return kept, left_out


def grouped(runs: Sequence[RunFolder]) -> list[Group]:
    """Groups of the runs that have a configuration, each under a name of its own that says what is different in it."""
    members: dict[str, list[RunFolder]] = {}
    for run in runs:
        if run.config:
            members.setdefault(digest(run), []).append(run)
    names = _names([own[0] for own in members.values()])
    return [Group(name, tuple(own)) for name, own in zip(names, members.values(), strict=True)]


def unlike_inputs(group: Group) -> dict[str, str] | None:
    """What the runs of a group have read under one name with different contents; None where all is alike."""
    held = [load(run.folder / INPUTS)[0] or {} for run in group.runs]
    names = sorted({name for one in held for name in one})
    if changed := [name for name in names if len({str(one[name]) for one in held if name in one}) > 1]:
        return {"run": group.name, "reason": f"its runs have read other contents under the same {', '.join(changed)}"}
    return None


def switched(run: RunFolder) -> dict[str, str] | None:
    """Where a run went on under another configuration, and under which; None for one that did not."""
    told = [f"{_at(step)}: {'; '.join(changed)}" for step, changed in run.switches]
    return (
        {"run": str(run.folder), "reason": f"went on under another configuration {', then '.join(told)}"}
        if told
        else None
    )


def _at(step: int | None) -> str:
    """Where a configuration changed; attempts before December 2026 did not note it."""
    return "later" if step is None else f"from step {step}"


def _suffix(run: RunFolder) -> str:
    """What the name of a run's group says of its switches."""
    told = []
    for step, (first, *more) in run.switches:
        (key, _, values) = first.partition(": ")
        told.append(f", {_at(step)} {key.split('.')[-1]} {values}" + (f" and {len(more)} more" if more else ""))
    return "".join(told)


def _names(runs: Sequence[RunFolder]) -> list[str]:
    """What was typed for these runs and not for all of them; where that is not enough, or too long, the values that
    tell them apart."""
    if len(runs) == 1:
        return [str(runs[0].config.get("name") or runs[0].folder.name) + _suffix(runs[0])]
    shared = set.intersection(*({*run.overrides} for run in runs)) if runs else set()
    names = [_short([item for item in run.overrides if item not in shared]) for run in runs]
    suffixes = [_suffix(run) for run in runs]
    if len({*zip(names, suffixes, strict=True)}) < len(names) or any(len(name) > LONGEST for name in names):
        keys = _telling(runs)
        names = [
            _short([f"{key}={written(run.says(key))}" for key in keys if run.says(key) is not None]) for run in runs
        ]
    plain = [(name or "default") + suffix for name, suffix in zip(names, suffixes, strict=True)]
    return [name if plain.count(name) == 1 else f"{name} ({digest(run)[:6]})"
            for name, run in zip(plain, runs, strict=True)]  # fmt: skip


def _telling(runs: Sequence[RunFolder]) -> list[str]:
    """A few of the keys in which runs differ, with which all can be told apart: those with the most values first."""
    keys = differing(runs)
    values = {key: [written(run.says(key)) for run in runs] for key in keys}
    chosen: list[str] = []
    apart = 1

    def told(key: str) -> int:
        return len({*zip(*(values[one] for one in (*chosen, key)), strict=True)})

    while apart < len(runs) and (best := max(keys, key=told, default=None)) is not None and told(best) > apart:
        apart = told(best)
        chosen.append(best)
    return [key for key in keys if key in chosen]


def _short(items: Sequence[str]) -> str:
    """Overrides in one line, of their keys the last names; more where two of them end alike."""
    pairs = [item.lstrip("+~").partition("=") for item in items]
    ends = [key.split(".")[-1] for key, _, _ in pairs]
    keys = [
        end if ends.count(end) == 1 else ".".join(pair[0].split(".")[-2:])
        for end, pair in zip(ends, pairs, strict=True)
    ]
    return ", ".join(f"{key}={value}" for key, (_, _, value) in zip(keys, pairs, strict=True))


def settings(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """What differs: for each key of the configuration in which groups differ its value in each of them."""
    keys = differing([group.runs[0] for group in groups])
    return [{"key": key, "values": [written(group.runs[0].says(key)) for group in groups]} for key in keys]


def written(value: Any) -> str:
    """A value in a few characters; of a long text its end."""
    text = "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    if len(text) <= VALUE:
        return text
    return f"{len(value)} values" if isinstance(value, list) else f"…{text[1 - VALUE :]}"
