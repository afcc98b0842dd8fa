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
            key = (line["item"], line["setting"], line["noise"])
            if key not in rows:
                continue
            kept = {name: self.folder / line[name] for name in PICTURES if line.get(name)}
            there = {name: path for name, path in kept.items() if path.is_file()}
            told = {name: value for name, value in line.items() if name not in PICTURES}
            yield {**told, **there, "scores": rows[key]}


def evaluations(run: Path) -> list[Evaluation]:
    """The finished evaluations in a run folder."""
    return [Evaluation(path.parent) for path in sorted(run.glob("evaluation/*/results.json"))]


def flattened(tree: dict[str, Any], above: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a/b": 1}."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flattened(value, f"{above}{key}/") if isinstance(value, dict) else {f"{above}{key}": value}
    return found
