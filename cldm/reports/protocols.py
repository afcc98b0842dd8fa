"""Which evaluations may be compared: those of one protocol. How protocols are told apart, and what else is alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zipfile import BadZipFile

from cldm.reports.groups import Group, written
from cldm.runs.evaluations import Evaluation, evaluations
from cldm.runs.listing import RunFolder

BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, BadZipFile)
"""What reading files raises that were cut short, or written by another version."""


@dataclass(frozen=True)
class Measured:
    """The evaluation of a run, with the number of the run's group."""

    group: int
    run: RunFolder
    evaluation: Evaluation


@dataclass(frozen=True)
class Protocol:
    """Evaluations of one protocol. heading: the protocol in a line."""

    heading: str
    hash: str
    measured: tuple[Measured, ...]

    @property
    def labels(self) -> list[str]:
        """The names of their folders, each once."""
        return [*dict.fromkeys(one.evaluation.label for one in self.measured)]

    @property
    def label(self) -> str:
        """The names of their folders in a line."""
        return ", ".join(self.labels)


def by_protocol(groups: Sequence[Group]) -> tuple[list[Protocol], list[dict[str, str]]]:
    """(protocols, [{run, reason}] of evaluations that cannot be read). A folder's name divides evaluations of the same
    protocol only where a run has several of them."""
    found: dict[str, list[Measured]] = {}
    trouble = []
    for i, group in enumerate(groups):
        for run in group.runs:
            for one in evaluations(run.folder):
                if reason := _unusable(one, run):
                    trouble.append({"run": str(one.folder), "reason": reason})
                else:
                    found.setdefault(str(one.results["protocol_hash"]), []).append(Measured(i, run, one))
    chosen = [(hash_, part) for hash_, every in found.items() for part in _apart(every)]
    headings = _headings([part[0].evaluation.results for _, part in chosen])
    return [
        Protocol(heading, hash_, tuple(part)) for (hash_, part), heading in zip(chosen, headings, strict=True)
    ], trouble


def _apart(every: Sequence[Measured]) -> list[list[Measured]]:
    """Evaluations of one protocol so that no part has two of a run."""
    if len({one.run for one in every}) == len(every):
        return [[*every]]
    labels = dict.fromkeys(one.evaluation.label for one in every)
    return [[one for one in every if one.evaluation.label == label] for label in labels]


def _unusable(evaluation: Evaluation, run: RunFolder) -> str | None:
    """Why an evaluation says nothing of its run as it is; None where it does."""
    try:
        evaluation.check()
        told(evaluation.results)
        return evaluation.outdated(run.figures.get("steps"))
    except BROKEN as error:
        return f"an evaluation that cannot be read: {type(error).__name__}: {error}"


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


def _headings(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each protocol in a line; of those that read alike also all in which they differ."""
    plain = [told(one) for one in results]
    every = [_flat(one["protocol"]) for one in results]
    found = []
    for text, own in zip(plain, every, strict=True):
        alike = [other for line, other in zip(plain, every, strict=True) if line == text]
        keys = sorted(key for key in {key for other in alike for key in other}
                      if any(other.get(key) != own.get(key) for other in alike))  # fmt: skip
        found.append(text + "".join(f"; {key} {written(own.get(key))}" for key in keys))
    return found


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """A protocol by dotted keys; of lists of branches each by its number. What is empty stays as it is."""
    below = value.items() if isinstance(value, dict) else enumerate(value) if _is_of_parts(value) else ()
    return {k: v for name, item in below for k, v in _flat(item, f"{key}.{name}" if key else str(name)).items()} or {
        key: value
    }


def _is_of_parts(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


ALIKE = {"evaluated_at_commit": "made by different code", "base_sha256": "made on different bases"}
"""What the evaluations of a table should share beside their protocol, and what to say where they do not."""


def unlike(protocol: Protocol, groups: Sequence[Group]) -> list[dict[str, str]]:
    """[{run, reason}] of what the evaluations of a protocol do not share, with the groups of each value."""
    found = []
    for key, reason in ALIKE.items():
        values: dict[str, list[Measured]] = {}
        for one in protocol.measured:
            if one.evaluation.results.get(key):
                values.setdefault(str(one.evaluation.results[key]), []).append(one)
        if len(values) > 1:
            who = "; ".join(f"{value[:12]} for {_who(own, protocol, groups)}" for value, own in values.items())
            found.append({"run": f"figures of {protocol.label} ({protocol.hash})", "reason": f"{reason}: {who}"})
    return found


def _who(own: Sequence[Measured], protocol: Protocol, groups: Sequence[Group]) -> str:
    """The groups of evaluations, with their seeds where these are not all of a group."""
    told = []
    for number in dict.fromkeys(one.group for one in own):
        seeds = [str(one.run.config.get("seed")) for one in own if one.group == number]
        whole = len(seeds) == sum(one.group == number for one in protocol.measured)
        told.append(groups[number].name + ("" if whole else f" seed {', '.join(seeds)}"))
    return ", ".join(told)
