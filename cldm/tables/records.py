"""What the run folders of a table hold: runs, evaluations, and why they must not be mixed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cldm.data.text import from_yaml
from cldm.tables.spec import RUN, Column, Row, Spec, evaluation_folder
from ldm.files import content

WEIGHTS = "weights.json"
"""In a run folder that was published without its weights: their contents, by file name."""


@dataclass(frozen=True)
class Record:
    """The training run of a row for a seed (and those of further branches), and its evaluations by name.

    What does not exist is None.
    """

    row: Row
    seed: int
    runs: tuple[Path, ...]
    evaluations: dict[str, Path]

    @property
    def run(self) -> Path:
        """The folder of the row's own run, in which its evaluations lie."""
        return self.runs[0]

    @cached_property
    def trained(self) -> list[dict[str, Any] | None]:
        """results.json of each run that is finished."""
        return [_json(run / "results.json") if (run / "DONE.json").exists() else None for run in self.runs]

    @property
    def results(self) -> dict[str, Any] | None:
        """results.json of the row's own run."""
        return self.trained[0]

    @cached_property
    def evaluated(self) -> dict[str, dict[str, Any] | None]:
        """results.json of each evaluation of the weights that the run now holds."""
        return {name: self._current(_json(folder / "results.json")) for name, folder in self.evaluations.items()}

    def _current(self, found: dict[str, Any] | None) -> dict[str, Any] | None:
        if found is None:
            return None
        measured = [found["checkpoint_sha256"], *(branch["checkpoint_sha256"] for branch in found.get("more", ()))]
        base = found.get("base_sha256")
        own = any(item.startswith("base=") for item in self.row.evaluate) or base in (self._base or base, None)
        return found if measured == self._weights and own else None

    @property
    def bases(self) -> tuple[str | None, ...]:
        """The content of the base that each of its evaluations was made with; of finished evaluations."""
        return tuple(found.get("base_sha256") for found in self.evaluated.values() if found)

    @cached_property
    def _base(self) -> str | None:
        """The content of the base that the row's own run was trained on, or has trained; None if it does not say."""
        return _content(self.run, "base.safetensors") or (_json(self.run / "inputs.json") or {}).get("base")

    @cached_property
    def _weights(self) -> list[str | None]:
        return [_content(run, "control.safetensors") for run in self.runs]

    def value(self, column: Column) -> float | None:
        """The score of a column; None if it was not measured, or does not exist (a model that never converged)."""
        if column.reaches is not None:
            found = first_reached((self.results or {}).get("looks", {}), column.metric, column.reaches)
        elif column.source == RUN:
            found = (self.results or {}).get(column.metric)
        else:
            found = ((self.evaluated[column.source] or {}).get("metrics") or {}).get(column.setting, {})
            found = found.get(column.metric)
        return None if found is None else float(found)

    def items(self, column: Column) -> dict[tuple[int, int], float]:
        """{(item, noise seed): score} of single images."""
        path = self.evaluations[column.source] / "per_sample.npz"
        with np.load(path) as rows:
            if column.metric not in rows:
                return {}
            chosen = rows["setting"] == column.setting
            keys = zip(rows["item"][chosen].tolist(), rows["noise"][chosen].tolist(), strict=True)
            return dict(zip(keys, rows[column.metric][chosen].tolist(), strict=True))


def first_reached(looks: Mapping[str, Sequence[float | None]], metric: str, level: float) -> float | None:
    """The step of the first look at which a score was at least `level`; None if none was."""
    scores = looks.get(metric, ())
    return next((step for step, score in zip(looks.get("step", ()), scores, strict=False)
                 if score is not None and score >= level), None)  # fmt: skip


def _content(run: Path, name: str) -> str | None:
    """The content of a file of weights, which a published run names; None if there is neither."""
    return content(run / name) if (run / name).is_file() else (_json(run / WEIGHTS) or {}).get(name)


def _json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None


def records(spec: Spec, runs: Mapping[tuple[str, int], Sequence[Path]]) -> list[Record]:
    """The records of a table whose runs lie in these folders, by (row title, seed): of the row, of what is added."""
    found = []
    for row in spec.rows:
        for seed in spec.seeds:
            folders = tuple(runs[row.title, seed])
            evaluations = {
                name: evaluation_folder(folders[0], (*overrides, *row.evaluation))
                for name, overrides in spec.evaluations.items()
            }
            found.append(Record(row, seed, folders, evaluations))
    return found


# ------------------------------------------------------------------ what must not be mixed


def problems(spec: Spec, found: Sequence[Record]) -> dict[str, list[str]]:
    """Why these records make no table unless it is told to allow it: kind -> reasons."""
    return {
        "missing": _missing(found),
        "commits": _commits(found),
        "protocols": _protocols(spec, found),
        "inputs": _inputs(found),
    }


def refuse_unknown_scores(spec: Spec, found: Sequence[Record]) -> None:
    """ValueError for a column whose evaluation, or training, has been made, but has no such score or setting."""
    for column in spec.columns:
        if column.source == RUN:
            trained = [record.results for record in found if record.results]
            looks = {name for results in trained for name in results.get("looks", ())}
            if column.reaches is None and trained:
                known = {name for results in trained for name in results}
                _refuse_unknown(column, "results.json has", column.metric, known)
            elif looks:
                _refuse_unknown(column, "the looks of training have", column.metric, looks)
            continue
        made = [results for record in found if (results := record.evaluated[column.source])]
        if not made:
            continue
        settings = {name for results in made for name in results.get("metrics") or {}}
        where = f"evaluation {column.source!r} has"
        if column.setting not in settings:
            told = f"{where} no setting {column.setting!r}; it has {', '.join(sorted(settings))}"
            raise ValueError(f"column {column.title!r}: {told}")
        known = {score for results in made for score in (results.get("metrics") or {}).get(column.setting, ())}
        _refuse_unknown(column, where, column.metric, known)


def _refuse_unknown(column: Column, where: str, score: str, known: set[str]) -> None:
    if score not in known:
        near = get_close_matches(score, known, n=2)
        told = f"did you mean {' or '.join(near)}?" if near else f"there is {', '.join(sorted(known))}"
        raise ValueError(f"column {column.title!r}: {where} no score {score!r}; {told}")


def _missing(found: Sequence[Record]) -> list[str]:
    lines = [
        f"{r.row.title}, seed {r.seed}: not trained ({run})"
        for r in found
        for run, results in zip(r.runs, r.trained, strict=True)
        if results is None
    ]
    for r in found:
        if all(r.trained):
            gone = [name for name, results in r.evaluated.items() if results is None]
            lines += [f"{r.row.title}, seed {r.seed}: no evaluation {name!r} ({r.evaluations[name]})" for name in gone]
    return lines


def commits(found: Sequence[Record]) -> dict[str, list[str]]:
    """{commit: what was made with it}."""
    by_commit: dict[str, list[str]] = {}
    for r in found:
        who = f"{r.row.title} seed {r.seed}"
        for trained in filter(None, r.trained):
            for commit in trained.get("commits") or [trained["commit"]]:  # of all attempts at the run
                by_commit.setdefault(str(commit), []).append(f"{who} trained")
        for name, results in r.evaluated.items():
            if results is not None:
                by_commit.setdefault(str(results["evaluated_at_commit"]), []).append(f"{who} evaluated ({name})")
    return by_commit


def _commits(found: Sequence[Record]) -> list[str]:
    by_commit = commits(found)
    lines = [f"{_short(commit)}: {'; '.join(who)}" for commit, who in by_commit.items()] if len(by_commit) > 1 else []
    return lines + [
        f"{commit[:12]} with changes that are in no commit" for commit in by_commit if commit.endswith("+changes")
    ]


def _inputs(found: Sequence[Record]) -> list[str]:
    """What different runs have read under one name (weights, pictures) with different contents."""
    held: dict[tuple[str, str], dict[str, list[str]]] = {}
    for r in found:
        for run in r.runs:
            told = _json(run / "inputs.json") or {}
            config = from_yaml((run / "config.yaml").read_text()) if told else {}
            for name, digest in told.items():
                place = str(_at(config, name.partition(" ")[0]))
                held.setdefault((name, place), {}).setdefault(digest, []).append(f"{r.row.title} seed {r.seed}")
    return [
        f"{name}={place}: " + "; ".join(f"{digest[:12]} for {', '.join(who)}" for digest, who in contents.items())
        for (name, place), contents in held.items()
        if len(contents) > 1
    ]


def _at(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = config.get(name) if isinstance(config, dict) else None
    return config


def _short(commit: str) -> str:
    sha, plus, changes = commit.partition("+")
    return sha[:12] + plus + changes


def _protocols(spec: Spec, found: Sequence[Record]) -> list[str]:
    lines = []
    for name in spec.evaluations:
        first: dict[str, Any] | None = None
        for r in found:
            results = r.evaluated[name]
            if results is None:
                continue
            protocol = _common(results["protocol"], r.row, spec)
            first = first or protocol
            changed = [f"{key}: {first.get(key)} and {protocol.get(key)}" for key in sorted({*first, *protocol})
                       if first.get(key) != protocol.get(key)]  # fmt: skip
            if changed:
                lines.append(f"{r.row.title}, seed {r.seed}, evaluation {name!r}: {'; '.join(changed)}")
    return lines


def _common(protocol: Mapping[str, Any], row: Row, spec: Spec) -> dict[str, Any]:
    """The part of a protocol that no row changes on purpose."""
    meant = {item.lstrip("+~").split("=", 1)[0].split(".")[0] for row in spec.rows for item in row.evaluate}
    meant |= {"more"} if any(row.more for row in spec.rows) else set()
    meant |= {"steps", "guidance"} if "sampler" in meant else set()
    meant |= {"items_digest"} if "data" in meant else set()
    return {key: value for key, value in protocol.items() if key not in meant}
