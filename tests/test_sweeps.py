"""Promises of sweeps: a failed job stops no other, the same command again runs what is missing and nothing else."""

import csv
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

import train
from cldm.commands.batch import of_run, of_sweep
from cldm.commands.cli import main
from cldm.runs.checkout import REPOSITORY
from cldm.runs.folder import attempts
from cldm.worlds.dataset import WorldDataset
from ldm.files import read_lines
from tests import processes

EXPERIMENTS = sorted(path.stem for path in (REPOSITORY / "configs" / "experiment").glob("*.yaml"))
LAUNCHERS = sorted(path.stem for path in (REPOSITORY / "configs" / "launcher").glob("*.yaml"))
RESOURCES = sorted(path.stem for path in (REPOSITORY / "configs" / "resources").glob("*.yaml"))
SWEEPS = sorted(path.stem for path in (REPOSITORY / "configs" / "sweep").glob("*.yaml"))


QUICK = ["steps=2", "stage.report_items=0", "trainer.callbacks.watch.count=1"]


@pytest.fixture(scope="module")
def small(small: list[str], narrow: list[str]) -> list[str]:
    return [*small, *narrow]


def command(*arguments: str, cwd: Path, fork: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPOSITORY), **environment}
    typed = [sys.executable, str(REPOSITORY / "train.py"), *arguments]
    if fork:
        return processes.run(typed, cwd, environment)
    return subprocess.run(typed, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900)


def swept(params: DictConfig, key: str) -> list[str]:
    """The values that a sweep gives to a key, as they are typed."""
    override = OverridesParser.create().parse_override(f"{key}={params[key]}")
    return [*override.sweep_string_iterator()]


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
        for key in params:
            for value in swept(params, key):
                compose("train", overrides=[f"sweep={name}", f"{key}={value}"])  # an unknown key or file fails


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEPS)
def test_every_job_of_a_sweep_trains(composed, small, tmp_path, monkeypatch, name):
    """All values; one seed, the last, since nothing but the random numbers depends on it. Measured once, at the end.

    Of thousands of pictures a data set draws its first ones over and over, which is nothing to its training.
    """
    draw, drawn = WorldDataset._draw_chunk, {}

    def repeated(self, truths):
        known = (self, len(truths))
        drawn[known] = drawn.get(known) or draw(self, truths)
        return drawn[known]

    monkeypatch.setattr(WorldDataset, "_draw_chunk", repeated)
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        sweep = compose("train", overrides=[f"sweep={name}"], return_hydra_config=True)
    params = sweep.hydra.sweeper.params
    values = [[f"{key}={value}" for value in swept(params, key)] for key in params if key != "seed"]
    seed = f"seed={swept(params, 'seed')[-1]}"
    for number, job in enumerate(itertools.product(*values)):
        folder = tmp_path / str(number)
        train.train(composed(*small, *QUICK, f"sweep={name}", f"run_dir={folder}", seed, *job))
        assert json.loads((folder / "DONE.json").read_text())["steps"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_trains(composed, small, tmp_path, name):
    cfg = composed(*small, f"experiment={name}", "steps=2", f"run_dir={tmp_path}")
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        train.train_chain(cfg) if cfg.chain else train.train(cfg)
    done = [json.loads(path.read_text())["steps"] for path in tmp_path.rglob("DONE.json")]
    assert done == [2] * (len(cfg.chain) if cfg.chain else 1)


JOBS = {None: ("-1,1e-3", "0,1"), "joblib": ("-1,1e-3", "0"), "submitit_local": ("-1,1e-3", "0")}
"""Learning rates, of which -1 fails before the others begin, and seeds. A launcher starts a process for each job, so it
gets few."""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", JOBS)
def test_failed_jobs_stop_no_other_and_are_told_and_tried_again(small, tmp_path, launcher):
    rates, seeds = JOBS[launcher]
    count, bad = len(rates.split(",")) * len(seeds.split(",")), len(seeds.split(","))
    chosen = [f"launcher={launcher}"] if launcher else []
    quick = [*small, *QUICK, "steps=1", "threads=1", "data.cache=cache"]
    sweep = ["-m", *quick, *chosen, f"optimizer.lr={rates}", f"seed={seeds}"]
    first = command(*sweep, cwd=tmp_path, fork=not launcher)  # what joblib starts waits for the end of a real process
    assert first.returncode == 1, first.stderr
    assert len([*(tmp_path / "runs").rglob("DONE.json")]) == count - bad
    failed = [json.loads(path.read_text())["reason"] for path in (tmp_path / "runs").rglob("FAILED.json")]
    assert len(failed) == bad
    assert all(re.fullmatch("Refused: optimizer=.*: Invalid learning rate: -1", reason) for reason in failed)
    told = first.stdout[first.stdout.index(f"{bad} job{'s' * (bad > 1)} failed") :]
    assert told.count("Invalid learning rate: -1") == bad
    assert "optimizer.lr=-1" in told
    assert set(starts(tmp_path).values()) == {1}
    if launcher:  # what the same command does again does not depend on who starts its jobs
        return

    second = command(*sweep, cwd=tmp_path, fork=True)
    assert second.returncode == 1, second.stderr
    again = starts(tmp_path)
    assert len(again) == count
    refused = {str(path.parent.relative_to(tmp_path / "runs")) for path in (tmp_path / "runs").rglob("FAILED.json")}
    assert {name for name, times in again.items() if times == 2} == refused
    assert sorted(again.values()) == [1] * (count - bad) + [2] * bad
    assert {name.split("/")[1] for name in again} == {"seed-0", "seed-1"}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launcher_starts_sweeps_and_leaves_the_run_folders_where_they_are(composed, name):
    pytest.importorskip(f"hydra_plugins.hydra_{'submitit' if name == 'slurm' else name.split('_')[0]}_launcher")
    assert composed("model=tiny", f"launcher={name}").run_dir == composed("model=tiny").run_dir
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        hydra = compose("train", overrides=["model=tiny", f"launcher={name}"], return_hydra_config=True).hydra
    assert str(hydra.mode).endswith("MULTIRUN")
    assert hydra.launcher._target_.startswith("hydra_plugins.")


# ------------------------------------------------------------------ Slurm, of which only the commands are here


def on_path(folder: Path, **scripts: str) -> dict[str, str]:
    """Environment in which the commands are these shell scripts."""
    folder.mkdir()
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_slurm_is_asked_for_time_a_warning_and_requeueing(small, tmp_path, monkeypatch):
    fakes = on_path(tmp_path / "bin", srun="", sbatch=f'cp "$1" {tmp_path / "script"}; exit 1')
    command(*small, "launcher=slurm", "steps=1", "seed=0,1", "hydra.launcher.partition=gpu", cwd=tmp_path, **fakes)
    asked = {line.removeprefix("#SBATCH --") for line in (tmp_path / "script").read_text().splitlines()}
    wanted = ["time=240", "signal=USR2@120", "requeue", "partition=gpu", "nodes=1", "ntasks-per-node=1", "array=0-1%2"]
    assert not {*wanted} - asked
    assert not (tmp_path / "runs" / "cache").exists()  # nothing has run here

    chosen = ["launcher=slurm", "steps=1", "seed=0,1", "hydra.launcher.partition=gpu"]
    monkeypatch.chdir(tmp_path)
    assert of_sweep([*small, *chosen]) == (tmp_path / "script").read_text()
    assert "--array" not in of_sweep([*small, "launcher=slurm", "seed=0"])  # as submitit submits a single job


def test_the_file_of_a_run_asks_for_what_resources_say(capsys):
    assert of_run([]) == (REPOSITORY / "cluster" / "train.sbatch").read_text()
    script = of_run(["resources=node", "trainer=ddp", "resources.nodes=2", "condition=depth"])
    wanted = ["nodes=2", "ntasks-per-node=8", "gpus-per-node=8", "cpus-per-task=8", "mem=480G", "time=24:00:00"]
    assert not {f"#SBATCH --{line}" for line in wanted} - {*script.splitlines()}
    assert 'set -- +resources=node trainer=ddp resources.nodes=2 condition=depth "$@"' in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert of_run(["+resources=node", "trainer=ddp"]) == of_run(["resources=node", "trainer=ddp"])
    assert main(["batch", "trainer=ddp", "steps=3"]) == 0
    assert 'set -- +resources=gpu trainer=ddp steps=3 "$@"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        *((f"resources.minutes={given}", "resources.minutes must be a whole number from 1 on")
          for given in ("90.0", "-5", "0", "null")),
        ("resources.memory=1.5", "resources.memory must be a whole number from 1 on"),
        ("launcher=slurm resources.memory=1.5", "resources.memory must be a whole number from 1 on"),
        ("resources.gpus=null", "resources.gpus must be a whole number from 0 on"),
        ("steps=abc", "steps must be a number"),
        ("sweep=locking", "a sweep is submitted by launcher=slurm"),
        ("-m optimizer.lr=1e-3,1e-4", "a sweep is submitted by launcher=slurm"),
        ("optimizer.lr=1e-3,1e-4", "a sweep is submitted by launcher=slurm"),
        ("trainer=gpu resources=cpu", "needs a GPU for each process: resources.tasks=1, but resources.gpus=0"),
        ("trainer=gpu resources.tasks=2", "needs a GPU for each process: resources.tasks=2, but resources.gpus=1"),
        ("trainer=gpu launcher=slurm resources.tasks=2", "needs a GPU for each process"),
        ("trainer=ddp resources=node trainer.devices=4", "trainer.devices=4 is not what the cluster is asked for"),
    ],
)  # fmt: skip
def test_a_file_that_makes_no_sense_is_not_printed(capsys, typed, said):
    assert main(["batch", *typed.split()]) == 1
    told = capsys.readouterr()
    assert said in told.err
    assert "#SBATCH" not in told.out


@pytest.mark.parametrize("memory", [[], ["hydra.launcher.mem_gb=null"]])
def test_the_file_of_a_sweep_has_a_job_for_each_run(capsys, memory):
    main(["batch", "-m", "optimizer.lr=1e-3,1e-4", "launcher=slurm", *memory])
    printed = capsys.readouterr().out
    assert "#SBATCH --array=0-1" in printed
    assert ("--mem=" in printed) != bool(memory)


@pytest.mark.parametrize("name", RESOURCES)
def test_the_trainer_takes_what_the_cluster_gives(name):
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        cfg = compose("train", overrides=[f"+resources={name}", "trainer=ddp", "resources.nodes=3", "model=tiny"])
    assert (cfg.trainer.devices, cfg.trainer.num_nodes) == (cfg.resources.tasks, 3)


@pytest.mark.slow
def test_a_job_of_the_example_script_is_queued_again_and_goes_on(small, tmp_path):
    script = """
        "$@" & child=$!
        if mkdir warned 2>/dev/null; then
          until [ -e run/previews/manifest.jsonl ]; do sleep 0.1; done
          kill -USR1 $child  # as Slurm does before the time is up
        fi
        wait $child"""
    fakes = on_path(
        tmp_path / "bin",
        srun=script,
        scontrol='echo "$@" >> scontrol.log',
        python=f'exec {sys.executable} {REPOSITORY}/"$@"',
    )
    slurm = {"JOB_ID": "77", "JOB_NAME": "controlnet", "SUBMIT_DIR": str(tmp_path), "NTASKS": "1", "PROCID": "0",
             "NTASKS_PER_NODE": "1", "LOCALID": "0", "NODEID": "0", "NNODES": "1", "NODELIST": "localhost"}  # fmt: skip
    environment = {**os.environ, **fakes, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPOSITORY)}
    environment |= {f"SLURM_{name}": value for name, value in slurm.items()}

    def job() -> subprocess.CompletedProcess[str]:
        batch = ["bash", str(REPOSITORY / "cluster" / "train.sbatch"), *small, "steps=60", "run_dir=run"]
        return subprocess.run(batch, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)

    first = job()
    assert first.returncode == 143, first.stderr
    assert (tmp_path / "scontrol.log").read_text() == "requeue 77\n"
    second = job()
    assert second.returncode == 0, second.stderr
    assert (tmp_path / "scontrol.log").read_text() == "requeue 77\n"
    assert [line["resumed"] for line in attempts(tmp_path / "run") if line["event"] == "start"] == [False, True]
    assert (tmp_path / "run" / "DONE.json").exists()


@pytest.mark.slow
def test_a_preempted_job_of_a_launcher_is_saved_queued_again_and_goes_on(small, tmp_path):
    pytest.importorskip("submitit")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPOSITORY)}
    arguments = [*small, "launcher=submitit_local", "steps=60", "stage.report_items=0", "threads=1", "run_dir=run",
                 "trainer.callbacks.watch.every=10"]  # fmt: skip
    sweep = subprocess.Popen([sys.executable, str(REPOSITORY / "train.py"), *arguments], cwd=tmp_path, env=environment,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
    run = tmp_path / "run"
    while len(read_lines(run / "previews" / "manifest.jsonl")) < 2:  # it has looked at step 10
        assert sweep.poll() is None, sweep.communicate()[0]
        time.sleep(0.1)
    os.kill(attempts(run)[0]["pid"], signal.SIGUSR2)  # as the cluster does before it takes the node back
    told, _ = sweep.communicate(timeout=600)
    assert sweep.returncode == 0, told
    events = attempts(run)
    assert [line["event"] for line in events] == ["start", "stopped", "start", "done"]
    assert events[1]["reason"] == "queued again"
    assert [line["resumed"] for line in events if line["event"] == "start"] == [False, True]
    steps = sorted({int(row["step"]) for path in run.glob("metrics*.csv") for row in csv.DictReader(path.open())
                    if row["train/loss"]})  # fmt: skip
    assert steps == [*range(10, 61, 10)]  # none is missing, and the second attempt began where the first had ended
    first, second = ({int(r["step"]) for r in csv.DictReader((run / name).open()) if r["train/loss"]}
                     for name in ("metrics.1.csv", "metrics.csv"))  # fmt: skip
    assert first.isdisjoint(second)
    assert not (run / "FAILED.json").exists()


@pytest.mark.slow
def test_a_run_is_reproduced_beside_the_old_one(small, tmp_path):
    done = command(*small, "steps=1", "data.cache=cache", "run_dir=runs/one", cwd=tmp_path, fork=True)
    assert done.returncode == 0, done.stderr
    again = command("reproduce=runs/one", cwd=tmp_path, fork=True)
    assert again.returncode == 0, again.stderr
    assert "runs/one again, with the same configuration" in again.stdout
    results = [json.loads((tmp_path / "runs" / name / "results.json").read_text()) for name in ("one", "one-again")]
    assert results[0]["fidelity"] == results[1]["fidelity"]
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"one", "one-again"}
    other = command("reproduce=runs/one", "steps=2", "run_dir=runs/two", cwd=tmp_path, fork=True)
    assert "steps: 1 -> 2" in other.stdout
