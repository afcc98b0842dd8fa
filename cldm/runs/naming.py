"""What a run is called: runs/<name>-<overrides>-<hash>/seed-<seed>.

The hash is of the resolved configuration, so that the same command names the same folder on any day, and another
configuration another one. What does not change a run's result is not hashed.
"""

import hashlib
import itertools
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cldm.runs.checkout import REPOSITORY

VOLATILE = (
    "hydra", "sweep", "launcher", "runs", "run_dir", "resume", "reproduce", "seed", "logger", "group", "tags",
    "threads", "data.cache", "data.workers", "trainer.default_root_dir", "trainer.callbacks.progress",
    "trainer.callbacks.pace", "trainer.callbacks.requeue", "trainer.log_every_n_steps", "trainer.plugins", "resources",
)  # fmt: skip
"""Keys that do not change what a run computes; the seed is a folder of its own."""

LONGEST = 80  # characters of a folder's readable part
SHOWN = 128  # characters that W&B takes as a name


def stable(cfg: DictConfig, **replaced: Any) -> dict[str, Any]:
    """The resolved configuration without VOLATILE keys, the same wherever the repository and the run folder lie.

    replaced: values of top-level keys to resolve it with.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=False)
    folder = str(plain.get("run_dir") or "")
    kept = {key: value for key, value in plain.items() if key not in VOLATILE}
    # other values are written in terms of these; a folder that is still to be named leaves a gap
    used = {key: plain.get(key) for key in ("seed", "threads", "group", "tags", "resume", "resources")}
    root = OmegaConf.create(_without_gaps({**kept, **used, "runs": "", "run_dir": "", **replaced}))
    resolved: Any = OmegaConf.to_container(root, resolve=True)
    for key in VOLATILE:
        *parents, last = key.split(".")
        node = resolved
        for parent in parents:
            node = node.get(parent) or {}
        node.pop(last, None)
    return _without_places(resolved, "" if "${" in folder else folder)


def _without_places(value: Any, folder: str) -> Any:
    """`value` with paths below the repository and the run folder told from there on."""
    if isinstance(value, dict):
        return {name: _without_places(item, folder) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_places(item, folder) for item in value]
    if not isinstance(value, str):
        return value
    if folder:  # first: it may lie in the repository
        value = re.sub(rf"(?<![\w.-]){re.escape(folder)}(?![\w.-])", "", value)
    return value.replace(f"{REPOSITORY}/", "")


def _without_gaps(value: Any) -> Any:
    """Mandatory values that nobody has set become null: the entry point complains of them, not the folder's name."""
    if isinstance(value, dict):
        return {name: _without_gaps(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_gaps(item) for item in value]
    return None if value == "???" else value


def run_id(cfg: DictConfig, overrides: Sequence[str]) -> str:
    """Where the run lives below `runs`: <name>-<overrides>-<hash>/seed-<seed>."""
    text = json.dumps(stable(cfg, seed=0), sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    return "-".join(part for part in (cfg.name, slug(overrides), digest) if part) + f"/seed-{cfg.seed}"


def shown_name(run_dir: str) -> str:
    """What loggers call a run: the folder that says what it is, and all below it: seed-0, or seed-0/control."""
    parts = Path(os.path.abspath(run_dir)).parts
    seeds = [i for i, part in enumerate(parts) if re.fullmatch(r"seed-\d+(-again)*", part)]
    name = "/".join(parts[seeds[-1] - 1 :] if seeds else parts[-2:])
    return name if len(name) <= SHOWN else f"…{name[1 - SHOWN :]}"


def slug(overrides: Sequence[str]) -> str:
    """Overrides as a readable piece of a path: the last name of each key with its value, VOLATILE keys left out."""
    pairs = [item.lstrip("+~").split("=", 1) for item in sorted(overrides)]
    kept = [
        f"{key.split('.')[-1].split('/')[-1]}-{value}"
        for key, value in (pair for pair in pairs if len(pair) == 2)
        if key not in VOLATILE and not key.startswith(tuple(f"{name}." for name in VOLATILE))
    ]
    pieces = [re.sub(r"[^\w.-]+", "_", piece)[:LONGEST].strip("_-.") for piece in kept]
    ends = itertools.accumulate(len(piece) + 1 for piece in pieces)  # half a number would mislead: whole pieces only
    return "-".join(piece for piece, end in zip(pieces, ends, strict=True) if end <= LONGEST + 1)


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """`key: old -> new` for every leaf in which two containers differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted({*old, *new})
        return [
            line
            for name in names
            for line in differences(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
        ]
    return [] if old == new else [f"{key}: {old} -> {new}"]
