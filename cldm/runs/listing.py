"""Run folders read back side by side: their states, figures and settings. Nothing that lies in them is an error."""

import json
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from cldm.data.text import from_yaml
from cldm.runs.metrics import ATTEMPTS, last_step
from cldm.runs.naming import VOLATILE
from ldm.files import InUse, locked, read_lines

METADATA = "trainer.callbacks.export.metadata"
CHOICES = {
    **{name: (f"{METADATA}.{name}",) for name in ("stage", "model", "control", "condition")},
    "data": ("data.world", "data._target_"),
}
"""Groups of configs from which a file is chosen, and the keys that record which."""

DERIVED = ("name", "trainer.max_steps", METADATA)
"""Keys of a configuration that only repeat what others say."""

EVALUATED = "eval/"
"""How the names begin of figures of evaluations, here and in W&B."""

SEEDED = ("data.order", "stage.module.seed")
"""Keys that have the run's seed, unless something else is typed. Other seeds, `data.seed` or that of a condition, make
other examples and so another method."""


@dataclass(frozen=True, eq=False)
class RunFolder:
    """What a run folder says: its state with the reason, its flat configuration, and its figures."""

    folder: Path
    state: str
    config: dict[str, Any]
    figures: dict[str, Any]

    def value(self, column: str) -> Any:
        """The state, a figure, one of `evaluated`, a choice, or a key of the configuration; None where it has none."""
        if column == "state":
            return self.state
        if column == "run":
            return str(self.folder)
        if column.startswith(EVALUATED):
            return self.evaluated.get(column)
        return self.figures.get(column, self.choices.get(column, self.config.get(column)))

    def says(self, key: str) -> Any:
        """A choice, or a key of `telling`; None where the run has none."""
        return self.choices.get(key, self.telling.get(key))

    @cached_property
    def evaluated(self) -> dict[str, float | None]:
        """Figures of its evaluations, as eval/<folder>/<setting>/<score>; None for those of weights of another step."""
        from cldm.runs.evaluations import evaluations

        found: dict[str, float | None] = {}
        for one in evaluations(self.folder):
            with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):  # broken, or of another version
                is_old = one.outdated(self.figures.get("steps")) is not None
                found |= {f"{EVALUATED}{one.label}/{k}": None if is_old else v for k, v in one.figures().items()}
        return found

    @cached_property
    def choices(self) -> dict[str, Any]:
        """What was chosen of the groups of configs, as far as the run recorded it."""
        told = {name: self.config.get(keys[0]) for name, keys in CHOICES.items()}
        source = str(self.config.get("data._target_", "")).split(".")
        told["data"] = told["data"] or (source[-2] if len(source) > 1 else None)
        return {name: value for name, value in told.items() if value is not None}

    @cached_property
    def telling(self) -> dict[str, Any]:
        """The configuration without seeds, places, and what changes no result: alike in runs of one method."""
        place = str(self.config.get("run_dir") or self.folder)
        seed = self.config.get("seed")
        seeded = {key for key in SEEDED if self.config.get(key) == seed}
        kept = [key for key in self.config if not _is_untelling(key) and key not in seeded]
        return {key: _placeless(self.config[key], place) for key in kept}

    @cached_property
    def overrides(self) -> list[str]:
        """What was typed, without seeds and what changes no result."""
        found, _ = load(self.folder / "overrides.yaml", list)
        return [item for item in map(str, found or ()) if not _is_untelling(item.lstrip("+~").split("=", 1)[0])]

    @cached_property
    def _starts(self) -> list[dict[str, Any]]:
        return [line for line in _attempts(self.folder) if line.get("event") == "start"]

    @cached_property
    def switches(self) -> list[tuple[int | None, tuple[str, ...]]]:
        """Where it went on under another configuration: the step, None if that was not noted, and what changed, as
        `key: old -> new`. More steps, what changes no result, and a change under which nothing was trained are none.
        """
        lines = _attempts(self.folder)
        undone = {i for i, (_, end) in enumerate(pairwise(lines)) if end.get("undone")}
        found = [(line.get("step"), _telling_changes(line.get("changed"))) for i, line in enumerate(lines)
                 if i not in undone]  # fmt: skip
        return [(step if isinstance(step, int) else None, changed) for step, changed in found if changed]

    @cached_property
    def commits(self) -> list[str]:
        """Of the code that its attempts ran, the last one's last; of a run without attempts what its results say."""
        results, _ = load(self.folder / "results.json")
        told = results or {}
        recorded = told.get("commits") or [told.get("commit")]
        started = [line.get("commit") for line in self._starts]
        found = started or (recorded if isinstance(recorded, list) else [])
        return [*dict.fromkeys(str(commit) for commit in found if commit)] or ["unknown"]

    @property
    def begun(self) -> str:
        """When its last attempt began, in words that sort by time; "" where it does not say."""
        return str(self._starts[-1].get("when", "")) if self._starts else ""


def _is_untelling(key: str) -> bool:
    return key == "seed" or any(f"{key}.".startswith(f"{name}.") for name in (*VOLATILE, *DERIVED))


def _telling_changes(changed: Any) -> tuple[str, ...]:
    told = [str(line).partition(": ") for line in changed] if isinstance(changed, list) else []
    kept = [(key, values) for key, _, values in told if key != "steps" and not _is_untelling(key)]
    return tuple(f"{key}: {values}" for key, values in kept if not _is_place(values))


def _is_place(values: str) -> bool:
    """Whether a change is of how the run folder was written, which attempts before December 2026 noted."""
    old, _, new = values.partition(" -> ")
    return new.startswith("/") and old.endswith(new)


def _placeless(value: Any, place: str) -> Any:
    return value.replace(place, "<run>") if isinstance(value, str) else value


def run_folders(folder: Path) -> list[Path]:
    """Folders below `folder`, or itself, that hold or should hold a run: they have a configuration or attempts."""
    marks = {path.parent for name in ("config.yaml", ATTEMPTS) for path in folder.rglob(name)}
    return sorted(path for path in marks if "wandb" not in path.relative_to(folder).parts)


def read(folder: Path) -> RunFolder:
    """What a run folder says. Never raises."""
    config, trouble = load(folder / "config.yaml")
    if config and not isinstance(config.get("seed", 0), int):
        config, trouble = None, "config.yaml has no number as its seed"
    results, more = load(folder / "results.json")
    failed, _ = load(folder / "FAILED.json")
    done = (folder / "DONE.json").exists()
    state = "done" if done else f"failed: {failed.get('reason')}" if failed else _unfinished(folder)
    if trouble or (done and more):
        state = f"unreadable: {trouble or more}"
    figures = _figures(results) if results else {"steps": _reached(folder)}  # else `steps` would be those asked for
    return RunFolder(folder, state, flat(config or {}), figures)


def _reached(folder: Path) -> int:
    try:
        return last_step(folder) or 0
    except OSError:
        return 0


def load(path: Path, kind: type = dict) -> tuple[Any, str]:
    """The content of a YAML or JSON file, or None and why."""
    try:
        text = path.read_text()
        loaded = json.loads(text) if path.suffix == ".json" else from_yaml(text)
        json.dumps(loaded, default=str, skipkeys=True)  # a ValueError for what contains itself
    except FileNotFoundError:
        return None, f"no {path.name}"
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None, f"{path.name} is broken"
    return (loaded, "") if isinstance(loaded, kind) else (None, f"{path.name} is broken")


def _attempts(folder: Path) -> list[dict[str, Any]]:
    return [line for line in read_lines(folder / ATTEMPTS) if isinstance(line, dict)]


def _unfinished(folder: Path) -> str:
    try:
        with locked(folder):
            last = (_attempts(folder) or [{}])[-1]
            return f"stopped: {last.get('reason')}" if last.get("event") == "stopped" else "cut off"
    except InUse:
        return "running"
    except OSError as error:
        return f"unreadable: {error}"


def _figures(results: dict[str, Any]) -> dict[str, Any]:
    """The numbers of results.json; of those with bounds, the one with control."""
    found = results.get("fidelity")
    fidelity = found if isinstance(found, dict) else {}
    own = {name: value.get("control") if isinstance(value, dict) else value for name, value in fidelity.items()}
    kept = {name: results.get(name) for name in ("steps", "convergence_step", "train_seconds")}
    return {name: value for name, value in (kept | own).items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def flat(config: dict[str, Any], above: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return found


def refuse_unknown(name: str, known: Collection[str], where: str = "") -> None:
    """ValueError, with near names, for a name that no run has; where nothing is known every name is taken.

    where: the key or option that asks for it, with a colon.
    """
    if known and name not in known:
        near = get_close_matches(name, known, n=2)
        raise ValueError(f"{where}no run has {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else ""))


def figures(found: Sequence[RunFolder]) -> list[str]:
    """Names of the figures that any run has."""
    return [*dict.fromkeys(name for one in found for name in one.figures)]


def differing(found: Sequence[RunFolder]) -> list[str]:
    """Choices, then keys of the configuration, in which runs differ, where it tells something of them.

    Where choices differ, keys follow from them: of these only those that were typed, and those that differ in runs of
    the same choices.
    """
    told = [one for one in found if one.config]
    chosen = _unlike([one.choices for one in told])
    if not chosen:
        return sorted(_unlike([one.telling for one in told]))
    alike: dict[str, list[dict[str, Any]]] = {}
    for one in told:
        alike.setdefault(json.dumps(one.choices, sort_keys=True), []).append(one.telling)
    typed = {item.lstrip("+~").split("=", 1)[0] for one in told for item in one.overrides}
    keys = {key for runs in alike.values() for key in _unlike(runs)}
    return [*chosen, *sorted(keys | (typed & {*_unlike([one.telling for one in told])}))]


def _unlike(values: Sequence[dict[str, Any]]) -> list[str]:
    """Keys under which these are not all the same."""
    keys = dict.fromkeys(key for one in values for key in one)
    return [key for key in keys if any(one.get(key) != values[0].get(key) for one in values)]
