"""Promises of sweeps: a failed job stops no other, the same command again runs what is missing and nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from cldm.tracking import REPOSITORY

SWEEPS = sorted(path.stem for path in (REPOSITORY / "configs" / "sweep").glob("*.yaml"))


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "train.py"), *arguments],
        cwd=cwd, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip


def starts(cwd: Path) -> dict[str, int]:
    """How often each run folder was started."""
    found = {}
    for path in (cwd / "runs").rglob("attempts.jsonl"):
        events = [json.loads(line)["event"] for line in path.read_text().splitlines()]
        found[str(path.parent.relative_to(cwd / "runs"))] = events.count("start")
    return found


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_file_names_its_group_and_sweeps_keys_that_exist(name):
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        sweep = compose("train", overrides=[f"sweep={name}"], return_hydra_config=True)
        assert sweep.group == name
        assert str(sweep.hydra.mode).endswith("MULTIRUN")
        params = sweep.hydra.sweeper.params
        assert "seed" in params
        for key, values in params.items():
            for value in str(values).split(","):
                compose("train", overrides=[f"sweep={name}", f"{key}={value}"])  # an unknown key or file fails


def test_six_jobs_of_which_two_fail(small, tmp_path):
    sweep = ["-m", *small, "steps=1", "data.cache=cache", "optimizer.lr=1e-3,1e-4,-1", "seed=0,1"]
    first = command(*sweep, cwd=tmp_path)
    assert first.returncode == 1
    assert len([*(tmp_path / "runs").rglob("DONE.json")]) == 4
    failed = [json.loads(path.read_text())["reason"] for path in (tmp_path / "runs").rglob("FAILED.json")]
    assert failed == ["ValueError: Invalid learning rate: -1"] * 2
    told = first.stdout[first.stdout.index("2 jobs failed") :]
    assert told.count("Invalid learning rate: -1") == 2
    assert "optimizer.lr=-1" in told
    assert "seed=1" in told
    assert set(starts(tmp_path).values()) == {1}

    second = command(*sweep, cwd=tmp_path)
    assert second.returncode == 1
    assert second.stdout.count("already done") == 4
    again = starts(tmp_path)
    assert len(again) == 6
    assert {name for name, count in again.items() if count == 2} == {name for name in again if "lr--1" in name}
    assert sorted(again.values()) == [1, 1, 1, 1, 2, 2]
    assert {name.split("/")[1] for name in again} == {"seed-0", "seed-1"}


def test_a_run_is_reproduced_beside_the_old_one(small, tmp_path):
    done = command(*small, "steps=1", "data.cache=cache", "run_dir=runs/one", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    again = command("reproduce=runs/one", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "runs/one again, with the same configuration" in again.stdout
    results = [json.loads((tmp_path / "runs" / name / "results.json").read_text()) for name in ("one", "one-again")]
    assert results[0]["fidelity"] == results[1]["fidelity"]
    other = command("reproduce=runs/one", "steps=2", "run_dir=runs/two", cwd=tmp_path)
    assert "steps: 1 -> 2" in other.stdout
