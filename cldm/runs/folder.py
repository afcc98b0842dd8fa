"""Run folders: self-describing, started again without harm. What they are called: cldm/runs/naming.py."""

import json
import os
import platform
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cldm.runs import metrics
from cldm.runs.checkout import commit
from cldm.runs.inputs import inputs
from cldm.runs.naming import differences, stable
from cldm.runs.sweeps import in_sweep
from ldm.files import (
    InUse,
    append_line,
    locked,
    read_lines,
    remove_partial,
    write_json,
    write_text,
)

BASE_FILE = "base.safetensors"
"""Beside a branch that was trained with an unlocked base: that base, complete."""

INPUTS = "inputs.json"
ASKED = {"SIGTERMException": "asked to end", "Preempted": "queued again", "KeyboardInterrupt": "Ctrl-C"}
"""Ends of an attempt that are no failures, by the exception: the same command goes on."""


class Refused(ValueError):
    """A run folder that cannot be used like this; nothing was changed."""


class ChangedConfig(Refused):
    """The folder holds a run of another configuration."""


@dataclass(frozen=True)
class Run:
    """The folder of an attempt, and the checkpoint that it goes on from."""

    folder: Path
    last_checkpoint: str | None


def results_of(cfg: DictConfig) -> dict[str, Any] | None:
    """The results of this very run if it has been finished before, else None. Refused where its files have changed."""
    folder = Path(cfg.run_dir)
    if not (folder / "DONE.json").exists() or changes(cfg):
        return None
    _refuse_other_inputs(folder, inputs(cfg))
    return json.loads((folder / "results.json").read_text())


def _refuse_other_inputs(folder: Path, now: dict[str, str]) -> None:
    path = folder / INPUTS
    there = json.loads(path.read_text()) if path.exists() else now
    # pictures that only one of them knows: the run has drawn them itself, they are gone, or an early run did not ask
    once = {name for name in {*there} ^ {*now} if name.startswith("data.")}
    there, now = ({name: value for name, value in one.items() if name not in once} for one in (there, now))
    if changed := [name for name in {**there, **now} if there.get(name) != now.get(name)]:
        raise ChangedConfig(
            f"{folder} holds a run with another content of what {', '.join(changed)} name{'s' * (len(changed) == 1)}; "
            "choose another run_dir, or delete the folder"
        )


def changes(cfg: DictConfig) -> list[str]:
    """How cfg differs from the configuration of the run that its folder holds; nothing if it holds none."""
    path = Path(cfg.run_dir) / "config.yaml"
    return differences(stable(OmegaConf.load(path)), stable(cfg)) if path.exists() else []  # type: ignore[arg-type]


@contextmanager
def attempt(cfg: DictConfig, overrides: Sequence[str] = ()) -> Iterator[Run]:
    """One attempt at a run: locks its folder, makes it self-describing, notes how the attempt ended.

    overrides: those of the command. Another configuration in the folder is a ChangedConfig, unless `resume` asks for
    the change; a folder in use is Refused. Where a change ends in an error before anything was trained, the folder
    is again what it was; a folder that was made for an attempt that is Refused is removed.
    """
    folder = Path(cfg.run_dir)
    last = folder / "checkpoints" / "last.ckpt"
    if folder.is_file():
        raise Refused(f"run_dir={folder} is a file, a run needs a folder of its own")
    if cfg.resume and not last.exists():
        raise Refused(f"resume={cfg.resume}: no checkpoint at {last}")
    run = Run(folder, str(last) if last.exists() else None)
    if _rank():  # of several processes the first one keeps the folder
        yield run
        return
    changed = changes(cfg)
    _refuse_changes(cfg, folder, changed)
    made = [path for path in (folder, folder.parent) if not path.exists()]
    with _locked(folder):
        remove_partial(folder, last.parent, folder / "previews")
        now = inputs(cfg)
        if not cfg.resume:
            _refuse_other_inputs(folder, now)
        before, trained = _record(folder), _written(last)
        for name in ("DONE.json", "FAILED.json"):
            (folder / name).unlink(missing_ok=True)
        write_json(folder / INPUTS, now)
        write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        kept = [item for item in overrides if not item.startswith(("run_dir=", "resume=", "reproduce="))]
        write_text(folder / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(kept)))
        if run.last_checkpoint:
            print("\n  ".join([f"going on from {last}" + (", with a difference:" if changed else ""), *changed]))
        told = {"resumed": bool(run.last_checkpoint), "step": step_saved(last), "changed": changed}
        _note(folder, {"event": "start", **provenance(), **told, "metrics": len(metrics.attempts(folder))})
        try:
            yield run
        except BaseException as error:
            untrained = _written(last) == trained
            if untrained:
                for name, content in before.items():
                    write_text(folder / name, content)
            _tell_end(folder, last, error, bool(changed) and untrained)
            if isinstance(error, Refused) and folder in made and not in_sweep():  # a sweep's summary names the folder
                shutil.rmtree(folder, ignore_errors=True)
                if folder.parent in made:
                    with suppress(OSError):  # other seeds may have begun in it
                        folder.parent.rmdir()
            raise
        _note(folder, {"event": "done"})


def _refuse_changes(cfg: DictConfig, folder: Path, changed: Sequence[str]) -> None:
    """ChangedConfig, or Refused, for a configuration that the run in the folder cannot go on under."""
    if changed and not cfg.resume:
        raise ChangedConfig(
            f"{folder} holds a run with another configuration ({'; '.join(changed)}). Choose another run_dir, delete "
            f"the folder, or go on from its last checkpoint under the new configuration with resume={folder}"
        )
    if other := [line for line in changed if line.startswith("condition._target_: ") or _of_the_model(line)]:
        raise Refused(
            f"{folder} holds a run of another {'model' if _of_the_model(other[0]) else 'condition'} ({other[0]}): "
            "resume= goes on with the same one; start a new run from its weights with init_from="
        )
    recorded = folder / "config.yaml"
    if recorded.is_file() and (seed := OmegaConf.select(OmegaConf.load(recorded), "seed")) != cfg.seed:
        raise Refused(f"{folder} holds a run of seed {seed}, not {cfg.seed}: another seed is a run of its own")
    if changed and (folder / "DONE.json").exists() and cfg.steps <= (done := _steps_done(folder)):
        raise Refused(
            f"{folder} is finished at step {done}: under another configuration ({'; '.join(changed)}) nothing would be "
            "trained; ask for more steps, or start a new run from its weights with init_from="
        )


def _of_the_model(change: str) -> bool:
    """Whether a changed key decides what the model computes; its attention backend computes the same."""
    name = change.partition(": ")[0]
    return name.startswith(("model.", "control.")) and not name.endswith(".backend")


def _steps_done(folder: Path) -> int:
    return json.loads((folder / "results.json").read_text())["steps"]


def _tell_end(folder: Path, last: Path, error: BaseException, undone: bool) -> None:
    """Note why an attempt ended, and whether its change was undone; FAILED.json, unless it was asked to."""
    asked = ASKED.get(type(error).__name__)
    reason = asked or f"{type(error).__name__}: {error}"
    _note(folder, {"event": "stopped", "reason": reason, **({"undone": True} if undone else {})})
    if asked:
        print(f"{asked}: {last if last.exists() else 'nothing'} is saved; the same command goes on", flush=True)
    elif not (folder / "DONE.json").exists():
        trace = traceback.format_exception(error)
        write_json(folder / "FAILED.json", {"reason": reason, "when": _now(), "trace": trace})


def _rank() -> int:
    """Which of several processes this one is, as Lightning tells; 0 where it has not been loaded."""
    lightning = sys.modules.get("pytorch_lightning.utilities.rank_zero")
    return getattr(lightning.rank_zero_only, "rank", None) or 0 if lightning else 0


def _record(folder: Path) -> dict[str, str]:
    """What the folder says of its run, by file."""
    paths = [folder / name for name in ("config.yaml", "overrides.yaml", INPUTS, "DONE.json")]
    return {path.name: path.read_text() for path in paths if path.exists()}


def _written(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def step_saved(checkpoint: Path) -> int | None:
    """The optimizer step at which a checkpoint was saved: 0 where there is none, None for one that cannot be read."""
    import torch  # a refusal need not wait for it

    if not checkpoint.is_file():
        return 0
    try:
        return int(torch.load(checkpoint, "cpu", weights_only=True, mmap=True)["global_step"])
    except (OSError, RuntimeError, LookupError, EOFError, TypeError, ValueError, UnpicklingError):
        return None  # whoever goes on from it says why


def overrides_of(folder: Path) -> list[str]:
    """The overrides that the run in the folder was started with."""
    path = folder / "overrides.yaml"
    return [str(item) for item in OmegaConf.load(path)] if path.exists() else []


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder))
        except InUse:
            last = [line for line in attempts(folder) if line["event"] == "start"][-1:]
            holder = f" (process {last[0]['pid']} on {last[0]['host']})" if last else ""
            raise Refused(f"{folder} is in use by another job{holder}; wait for it, or stop it first") from None
        yield


def attempts(folder: Path) -> list[dict[str, Any]]:
    """Every start and end of the run, oldest first (attempts.jsonl)."""
    return read_lines(folder / metrics.ATTEMPTS)


def _note(folder: Path, line: dict[str, Any]) -> None:
    append_line(folder / metrics.ATTEMPTS, {"when": _now(), **line})


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def provenance() -> dict[str, Any]:
    """Who runs what: command, commit, versions, host."""
    return {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }


def finish(run: Run, results: dict[str, Any]) -> dict[str, Any]:
    """Write results.json and, last of all, DONE.json."""
    began = [line["commit"] for line in attempts(run.folder) if line["event"] == "start"]
    results = {**results, "commit": commit(), "commits": [*dict.fromkeys(began)]}
    write_json(run.folder / "results.json", results)
    write_json(run.folder / "DONE.json", {"steps": results["steps"], "finished": _now()})
    print(f"\nrun folder: {run.folder}")
    return results
