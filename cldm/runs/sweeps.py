"""What a sweep adds to single runs: a failed job does not stop the others, and all failures are told at the end."""

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from ldm.files import write_json

SWEEP = "CLDM_SWEEP"  # environment: the folder in which the jobs of this sweep report failures; launchers pass it on


def in_sweep() -> bool:
    """Whether this process runs a job of `python train.py -m`."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def note_failure(cfg: DictConfig, error: BaseException, traced: bool = True) -> None:
    """Print what is wrong, with its traceback or in one sentence, and leave a note for the summary."""
    traceback.print_exc() if traced else print(error, file=sys.stderr)
    job = HydraConfig.get().job
    note = {"folder": cfg.run_dir, "overrides": job.override_dirname, "reason": f"{type(error).__name__}: {error}"}
    write_json(Path(os.environ[SWEEP]) / f"{job.num}.json", note)


class SweepSummary(Callback):
    """Hydra callback: after the last job, a table of the failed ones, and exit code 1 if there are any."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        folder = Path(config.hydra.sweep.dir) / ".sweeps" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        os.environ[SWEEP] = str(folder.resolve())

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        notes = sorted(Path(os.environ.pop(SWEEP)).glob("*.json"), key=lambda path: int(path.stem))
        if not notes:
            return
        jobs = "1 job" if len(notes) == 1 else f"{len(notes)} jobs"
        print(f"\n{jobs} failed; the same command runs what failed again and nothing else:")
        for note in (json.loads(path.read_text()) for path in notes):
            print(f"  {note['overrides'] or '(no overrides)'}\n    {note['reason']}\n    {note['folder']}")
        raise SystemExit(1)
