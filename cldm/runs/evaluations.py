"""Evaluations read back: what evaluate.py has left in a folder, sample by sample."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ldm.files import read_lines

SAMPLES = "samples.jsonl"
"""One line for each image: item, prompt setting, noise seed, caption, prompt, and its files."""

PICTURES = ("hint", "image", "real", "hint_of_image")
"""What a line of SAMPLES may name: files below the folder of the evaluation."""

KEYS = ("item", "setting", "noise")


@dataclass(frozen=True)
class Evaluation:
    """The folder of an evaluation."""

    folder: Path

    @cached_property
    def results(self) -> dict[str, Any]:
        """results.json."""
        return json.loads((self.folder / "results.json").read_text())

    @property
    def label(self) -> str:
        """What tells it from others of its run, wherever that lies: its folder's name there, else protocol and hash."""
        if self.folder.resolve().parent.name == "evaluation":
            return self.folder.name
        return f"{self.results['protocol']['name']}-{self.results['protocol_hash']}"

    def check(self) -> None:
        """ValueError for an evaluation that another version, or half a write, has left in another form."""
        told, protocol = self.results, self.results.get("protocol")
        if not isinstance(told.get("metrics"), dict) or not any(told["metrics"].values()):
            raise ValueError("results.json has no metrics")
        tables = [*told["metrics"].values(), *(told.get("base") or {}).values(), told.get("ceiling"), told.get("real")]
        if not all(isinstance(table, dict) and all(map(_is_figure, table.values())) for table in tables if table):
            raise ValueError("results.json has figures that are no numbers")
        if not _is_figure(told.get("steps")):
            raise ValueError("results.json has a step that is no number")
        if not isinstance(protocol, dict) or "protocol_hash" not in told:
            raise ValueError("results.json has no protocol")
        lengths = {len(column) for column in self.scores.values()}
        if not {*KEYS} <= self.scores.keys() or len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"per_sample.npz lacks rows, or one of {', '.join(KEYS)}")
        if any(column.dtype.kind not in "fiub" for name, column in self.scores.items() if name not in KEYS):
            raise ValueError("per_sample.npz has scores that are no numbers")

    def outdated(self, steps: float | None) -> str | None:
        """Why it says nothing of a run that is at step `steps`; None where it does, or either is not known."""
        measured = self.results.get("steps")
        if measured is None or steps is None or measured == steps:
            return None
        return f"left out: an evaluation of step {measured}, and the run is at step {steps}; run evaluate.py again"

    @property
    def has_samples(self) -> bool:
        """Whether it says what stands behind its figures."""
        return (self.folder / SAMPLES).is_file()

    def figures(self) -> dict[str, float]:
        """Means by "<setting>/<score>"; bounds as "base/<setting>/<score>", "ceiling/<score>", "real/<score>"."""
        found = flattened(self.results["metrics"]) | flattened(
            {name: self.results[name] for name in ("base", "ceiling", "real") if name in self.results}
        )
        return {name: float(value) for name, value in found.items() if value is not None}

    @cached_property
    def scores(self) -> dict[str, np.ndarray]:
        """Columns (n,) of per_sample.npz: KEYS, and a float64 for each score."""
        with np.load(self.folder / "per_sample.npz") as rows:
            return {name: rows[name] for name in rows}

    def samples(self) -> Iterator[dict[str, Any]]:
        """For each image its line of SAMPLES with "scores" by name; pictures that were not kept are left out."""
        columns = self.scores
        names = [name for name in columns if name not in KEYS]
        keys = zip(*(columns[key].tolist() for key in KEYS), strict=True)
        rows = {key: {name: float(columns[name][i]) for name in names} for i, key in enumerate(keys)}
        for line in read_lines(self.folder / SAMPLES):
            key = tuple(map(line.get, KEYS)) if isinstance(line, dict) else ()
            if not all(isinstance(part, int | str) for part in key) or key not in rows:
                continue
            if not all(isinstance(line.get(name), str) for name in ("caption", "prompt")):
                continue
            kept = {name: self.folder / line[name] for name in PICTURES if isinstance(line.get(name), str)}
            there = {name: path for name, path in kept.items() if path.is_file()}
            told = {name: value for name, value in line.items() if name not in PICTURES}
            yield {**told, **there, "scores": rows[key]}


def evaluations(run: Path) -> list[Evaluation]:
    """The finished evaluations in a run folder."""
    return [Evaluation(path.parent) for path in sorted(run.glob("evaluation/*/results.json"))]


def _is_figure(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def flattened(tree: dict[str, Any], above: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a/b": 1}."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flattened(value, f"{above}{key}/") if isinstance(value, dict) else {f"{above}{key}": value}
    return found
