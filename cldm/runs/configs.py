"""Configurations of configs/: mistakes in them, refused early; and composed, for the commands of `python -m cldm`."""

import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from math import inf, isfinite
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, ListConfig, Node, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue

from cldm.runs.building import allow
from cldm.runs.checkout import REPOSITORY
from cldm.runs.folder import Refused, overrides_of
from cldm.runs.naming import run_id, shown_name

POSITIVE = ("steps", "size", "batch_size", "items", "count", "reference", "trainer.accumulate_grad_batches",
            "data.bucket_step", "trainer.callbacks.watch.every", "trainer.callbacks.watch.count",
            "trainer.callbacks.hint_use.every", "trainer.callbacks.hint_use.count")  # fmt: skip
"""Keys, of whichever entry point, that hold whole numbers from 1 on, or null."""

WHOLE = ("seed", "stage.report_items", "data.train_count", "data.val_count", "data.held_out", "data.workers",
         "stage.module.warmup_steps")  # fmt: skip
"""Keys that hold whole numbers from 0 to MOST, or null."""
MOST = 2**32 - 1  # that numpy's generators take as a seed

PATHS = ("run_dir", "runs", "resume", "reproduce", "init_from")
"""Keys that hold a path, or null."""

TEXTS = ("prompt", "negative")
"""Keys that hold what a model reads, not paths."""


def register_resolvers() -> None:
    """What the files of configs/ may ask for besides their own values."""
    resolvers: dict[str, Any] = {
        "repository": lambda path: str(REPOSITORY / path),
        "run_id": _run_id,
        "shown_name": shown_name,
        "label_classes": _label_classes,
        "else": lambda value, default: value or default,
    }
    for name, resolver in resolvers.items():
        if not OmegaConf.has_resolver(name):
            OmegaConf.register_new_resolver(name, resolver)


def _label_classes(world: str | None) -> ListConfig:
    """How many classes each label map of a world has; none for pictures without labels."""
    if world is None:
        return OmegaConf.create([])
    from cldm.worlds import get_world  # and with it torch, which --help need not wait for

    return OmegaConf.create([*get_world(world).label_classes])


def _run_id(*, _root_: DictConfig) -> str:
    return run_id(_root_, HydraConfig.get().overrides.task if HydraConfig.initialized() else [])


def refuse_mistakes(cfg: DictConfig) -> None:
    """SystemExit for what Hydra lets pass of the command's overrides, but nothing can work with.

    That is `+key=value` of a key that nothing reads (Hydra's answer to a misspelt key invites it), words where a
    number or true and false are due, numbers that do not exist (nan), and values that POSITIVE, WHOLE, PATHS and
    `resources` do not take.
    """
    typed = HydraConfig.get().overrides.task
    allow(typed)
    for item in typed:
        key = item.lstrip("+").split("=")[0]
        if item.startswith("+") and "." not in key and not (REPOSITORY / "configs" / key.split("/")[0]).is_dir():
            near = get_close_matches(key, [str(name) for name in cfg if name != key], n=1)
            raise SystemExit(f"there is no key {key}" + (f"; did you mean {near[0]}?" if near else ""))
        if not item.startswith(("+", "~", "trainer.")) and isinstance(OmegaConf.select(cfg, key), str):
            others = [other for other in typed if other != item]
            due = OmegaConf.select(compose(HydraConfig.get().job.config_name, overrides=others), key)
            if isinstance(due, int | float):
                wanted = "true or false" if isinstance(due, bool) else "a number"
                raise SystemExit(f"{key} must be {wanted}, got {item.split('=', 1)[1]!r}")
    plain: Any = OmegaConf.to_container(cfg, resolve=False)
    refuse_numbers(cfg)
    for name, value in (cfg.get("resources") or {}).items():
        least = 0 if name == "gpus" else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise SystemExit(f"resources.{name} must be a whole number from {least} on, got {value}")
    _refuse_unlike_resources(cfg)
    for key in PATHS:
        value = plain.get(key)
        if isinstance(value, int | float):
            raise SystemExit(f"{key} must be a path, got the number {value}; in quotes it is one: '{key}=\"{value}\"'")


def _refuse_unlike_resources(cfg: DictConfig) -> None:
    """SystemExit for a job whose trainer needs other devices than it asks the cluster for: it would wait, then fail."""
    if (wanted := cfg.get("resources")) is None:
        return
    if cfg.trainer.accelerator == "gpu" and wanted.gpus < wanted.tasks:
        raise SystemExit(f"trainer.accelerator=gpu needs a GPU for each process: resources.tasks={wanted.tasks}, but "
                         f"resources.gpus={wanted.gpus} (resources=cpu is for trainer=cpu)")  # fmt: skip
    for key, name in (("devices", "tasks"), ("num_nodes", "nodes")):
        if cfg.trainer[key] != wanted[name]:
            raise SystemExit(f"trainer.{key}={cfg.trainer[key]} is not what the cluster is asked for, resources.{name}="
                             f"{wanted[name]}: leave it out, it follows")  # fmt: skip


def refuse_numbers(cfg: DictConfig) -> None:
    """SystemExit for numbers that do not exist, and those that POSITIVE and WHOLE do not take."""
    _refuse_not_finite(OmegaConf.to_container(cfg, resolve=False))
    for key in POSITIVE:
        value = None if OmegaConf.is_missing(cfg, key) else OmegaConf.select(cfg, key)
        numbers = value if isinstance(value, ListConfig) else [value]
        if any(isinstance(number, int | float) and (number < 1 or number != int(number)) for number in numbers):
            raise SystemExit(f"{key} must be whole and at least 1, got {value}")
    for key in WHOLE:
        value = None if OmegaConf.is_missing(cfg, key) else OmegaConf.select(cfg, key)
        if isinstance(value, int | float) and (value != int(value) or not 0 <= value <= MOST):
            raise SystemExit(f"{key} must be a whole number from 0 to {MOST}, got {value}")


@contextmanager
def keys_suggested(name: str) -> Iterator[None]:
    """Where Hydra ends the program NAME over a key that does not exist, which are like it; to stderr."""
    try:
        yield
    except SystemExit as error:
        overrides = [item for item in sys.argv[1:] if "=" in item and not item.startswith(("+", "~", "-"))]
        for key, near in _like_keys(overrides, name).items() if error.code == 1 else ():
            print(f"there is no key {key}; did you mean {' or '.join(near)}?", file=sys.stderr)
        for choice, like in _like_choices(overrides).items() if error.code == 1 else ():
            print(f"there is no {choice}; did you mean {like}?", file=sys.stderr)
        raise


def _like_choices(overrides: Sequence[str]) -> dict[str, str]:
    """{choice of a group that does not exist: one that is like it}."""
    found = {}
    for item in overrides:
        group, _, choice = item.partition("=")
        known = [path.stem for path in (REPOSITORY / "configs" / group).glob("*.yaml")]
        for one in choice.split(",") if known else ():
            if one not in known and (near := get_close_matches(one, known, n=1)):
                found[f"{group}={one}"] = f"{group}={near[0]}"
    return found


def _like_keys(overrides: Sequence[str], name: str) -> dict[str, list[str]]:
    """{typed key that the program does not have with the typed groups: at most two keys that are like it}."""
    groups = {path.name for path in (REPOSITORY / "configs").iterdir() if path.is_dir()}
    typed = {item.partition("=")[0]: item for item in overrides}
    chosen = [item.split(",")[0] for key, item in typed.items() if key in groups]  # a sweep's first choice
    try:
        with configs_at_hand():
            cfg = compose(name, overrides=chosen, return_hydra_config=True)
    except HydraException:  # of a choice that does not exist, which Hydra has told
        return {}
    known = [*_paths(OmegaConf.to_container(cfg, resolve=False))]
    last = {key.rsplit(".", 1)[-1]: key for key in reversed(known) if not key.startswith("hydra.")}
    found = {}
    for key in typed:
        if key not in known and re.split("[/@]", key)[0] not in groups | {"hydra"}:
            near = get_close_matches(key, known, n=2, cutoff=0.75)
            found[key] = near or [last[one] for one in get_close_matches(key, last, n=1, cutoff=0.75)]
    return {key: near for key, near in found.items() if near}


def _paths(value: Any, key: str = "") -> Iterator[str]:
    if key:
        yield key
    for name, item in value.items() if isinstance(value, dict) else ():
        yield from _paths(item, f"{key}.{name}" if key else str(name))


def home_typed(overrides: Sequence[str]) -> list[str]:
    """Overrides with KEY=~/... written out: a shell leaves it as it is, and Hydra's grammar has no such value."""
    return [re.sub(r"^([\w.+/@]+=)~/", lambda found: f"{found[1]}{Path.home()}/", item) for item in overrides]


def with_choices(overrides: Sequence[str]) -> list[str]:
    """The overrides of a command, behind the config groups that the run of its resume= or reproduce= chose (stage,
    data, ...): otherwise Hydra would refuse a typed key that is not in the default stage."""
    typed = {item.partition("=")[0]: item.partition("=")[2] for item in overrides}
    run = typed.get("resume") or typed.get("reproduce")
    recorded = overrides_of(Path(run.strip("'\"")).expanduser()) if run else []
    groups = {path.name for path in (REPOSITORY / "configs").iterdir() if path.is_dir()}
    keys = {item: item.partition("=")[0] for item in recorded}
    flags = next((i for i, item in enumerate(overrides) if "=" in item and not item.startswith("-")), 0)
    chosen = [item for item, key in keys.items() if key in groups and key not in typed]
    return [*overrides[:flags], *chosen, *overrides[flags:]]  # argparse wants all overrides in one piece


def expand_home(cfg: DictConfig | ListConfig) -> None:
    """Replace "~/..." by the user's folder wherever a value is a path: in all of the configuration but TEXTS."""
    container: Any = cfg
    for key in cfg if isinstance(cfg, DictConfig) else range(len(cfg)):
        node: Any = container._get_node(key)
        if isinstance(node, DictConfig | ListConfig) and not node._is_none() and not node._is_missing():
            expand_home(node)
        elif key not in TEXTS and isinstance(node, Node) and str(node._value()).startswith("~/"):
            container[key] = str(Path(node._value()).expanduser())


def _refuse_not_finite(value: Any, key: str = "") -> None:
    """SystemExit for a number that does not exist; limits of the trainer may be infinite."""
    if isinstance(value, dict):
        for name, item in value.items():
            _refuse_not_finite(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for item in value:
            _refuse_not_finite(item, key)
    elif isinstance(value, float) and not (isfinite(value) or (value == inf and key.startswith("trainer."))):
        raise SystemExit(f"{key} must be a finite number, got {value}")


@contextmanager
def mistakes_refused() -> Iterator[None]:
    """What goes wrong while things are built as a configuration says is its mistake: Refused, in one sentence."""
    try:
        yield
    except MissingMandatoryValue as error:
        raise Refused(f"{error.full_key} must be given; its file in configs/ says what it is") from error
    except OSError as error:
        named = error.filename and error.strerror
        raise Refused(f"{error.filename}: {error.strerror}" if named else str(error)) from error
    except ValueError as error:
        raise Refused(str(error)) from error
    except InstantiationException as error:
        if not isinstance(error.__cause__, ValueError | OSError):
            raise
        raise Refused(str(error.__cause__)) from error
    except Exception as error:
        if type(error).__name__ != "MisconfigurationException":  # Lightning's, which may not have been loaded
            raise
        raise Refused(f"the trainer of trainer=... cannot be made here: {error}") from error


def notes_told_once() -> None:
    """Let the rest of the process tell each warning once, as a note. Python's own memory of what it has told is lost
    whenever a library changes its filters, which training does in every step."""
    told: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in told:
            told.add(str(message))
            clear = "\r\x1b[K" if sys.stderr.isatty() else ""  # of a progress bar, which draws itself again
            print(f"{clear}note: {message}", file=sys.stderr)

    warnings.showwarning = show


@contextmanager
def configs_at_hand() -> Iterator[None]:
    """Hydra's `compose` works in this block, and with it what reads checkpoints, in programs without hydra.main."""
    register_resolvers()
    with initialize_config_dir(str(REPOSITORY / "configs"), job_name="train", version_base="1.3"):
        yield


def composed(overrides: Sequence[str], name: str = "train") -> DictConfig:
    """The configuration that `python train.py OVERRIDES` would get. ValueError for what it would refuse."""
    try:
        with configs_at_hand():
            cfg = compose(name, overrides=home_typed(overrides))
    except HydraException as error:
        raise ValueError(" ".join(str(error).split())) from error
    expand_home(cfg)
    return cfg


def with_hydra(overrides: Sequence[str]) -> DictConfig:
    """The configuration of train.py and, under `hydra`, of its launcher and sweep."""
    try:
        with configs_at_hand():
            cfg = compose("train", overrides=home_typed(overrides), return_hydra_config=True)
    except HydraException as error:
        raise ValueError(" ".join(str(error).split())) from error
    HydraConfig.instance().set_config(cfg)  # its interpolations and the run_id resolver ask for it
    return cfg


def planned(overrides: Sequence[str]) -> DictConfig:
    """As `composed` for train.py, with the values that name the chosen groups: its run_dir is that of the command."""
    cfg = with_hydra(overrides)
    with open_dict(cfg):
        del cfg["hydra"]
    expand_home(cfg)
    return cfg
