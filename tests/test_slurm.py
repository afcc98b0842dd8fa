"""On a machine from which jobs can be submitted to Slurm (elsewhere skipped): what is promised of clusters, there.

`python -m pytest tests/test_slurm.py` needs a partition without GPUs, and minutes, since Slurm waits before it starts
a job again.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cldm.commands.batch import of_run
from cldm.runs.checkout import REPOSITORY
from cldm.runs.folder import attempts

CPU = ["resources=cpu", "resources.cpus=1", "resources.memory=4", "trainer=cpu", "threads=1"]


def answers(*command: str) -> bool:
    return shutil.which(command[0]) is not None and subprocess.run(command, capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not answers("sinfo", "--noheader"), reason="no Slurm controller answers `sinfo`"),
]


def environment() -> dict[str, str]:
    """As after `source venv/bin/activate`."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}


def submitted(overrides: list[str], log: Path, *options: str) -> str:
    """The job's number."""
    command = ["sbatch", "--parsable", f"--output={log}", *options]
    done = subprocess.run(
        command, input=of_run(overrides), cwd=REPOSITORY, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().split(";")[0]


def wait_for(happened: Callable[[], object], log: Path, seconds: int = 900) -> None:
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until, log.read_text() if log.exists() else "the job has not begun"
        time.sleep(0.5)


def test_a_job_that_is_warned_is_queued_again_and_goes_on(small, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    job = submitted([*CPU, *small, "steps=60", f"run_dir={run}", f"data.cache={tmp_path}"], log)
    wait_for((run / "previews" / "manifest.jsonl").exists, log)
    subprocess.run(["scancel", "--signal=USR1", job], check=True)  # as Slurm does before the time is up
    wait_for((run / "DONE.json").exists, log)
    assert [(line["event"], line.get("resumed")) for line in attempts(run)] == [
        ("start", False), ("stopped", None), ("start", True), ("done", None),
    ]  # fmt: skip


def test_two_tasks_of_a_job_train_together(small, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    overrides = [*CPU, *small, "resources.tasks=2", "trainer.strategy=ddp", "steps=2", f"run_dir={run}"]
    submitted([*overrides, f"data.cache={tmp_path}"], log)
    wait_for((run / "DONE.json").exists, log)
    assert "MEMBER: 2/2" in log.read_text()


def test_a_sweep_is_a_job_for_each_run(small, tmp_path):
    arguments = [*CPU, *small, "launcher=slurm", "steps=1", "seed=0,1", f"data.cache={tmp_path / 'cache'}"]
    command = [sys.executable, str(REPOSITORY / "train.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len([*(tmp_path / "runs").rglob("DONE.json")]) == 2
