"""Promises of the record: offline without a key, JSON for every reader, a commit that tells the truth."""

import json
import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cldm.runs import checkout
from cldm.runs.checkout import REPOSITORY as ROOT
from cldm.runs.checkout import commit, commit_of
from cldm.runs.evaluations import Evaluation
from cldm.runs.loggers.evaluation import log_evaluation
from cldm.runs.loggers.tensorboard import tensorboard_logger
from cldm.runs.loggers.wandb import has_wandb_key, wandb_logger, wandb_run
from cldm.runs.naming import shown_name
from cldm.runs.tracking import csv_logger
from tests.run_folders import evaluation, run_folder
from tests.wandb_records import finished_records


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """A user without any W&B key or setting; returns the home folder."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_SILENT", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, "")  # so that what the logger sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_wandb_is_offline_without_a_key(nobody, tmp_path):
    assert not has_wandb_key()
    assert wandb_logger(str(tmp_path / "run"), project="p")._offline


def test_a_key_in_the_environment_or_in_netrc_takes_it_online(nobody, tmp_path, monkeypatch):
    (nobody / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password " + "0" * 40 + "\n")
    (nobody / ".netrc").chmod(0o600)
    assert has_wandb_key()
    assert not wandb_logger(str(tmp_path / "run"), project="p")._offline
    (nobody / ".netrc").write_text("machine example.org\n  login user\n  password x\n")
    assert not has_wandb_key()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert has_wandb_key()


def test_an_unreadable_netrc_is_no_key(nobody):
    (nobody / ".netrc").write_text("no such format\n")
    assert not has_wandb_key()


@pytest.mark.parametrize(("mode", "offline"), [("online", False), ("offline", True), ("disabled", True)])
def test_the_mode_of_the_environment_decides(nobody, tmp_path, monkeypatch, mode, offline):
    monkeypatch.setenv("WANDB_MODE", mode)
    assert wandb_logger(str(tmp_path / "run"), project="p")._offline is offline


def test_a_resumed_run_keeps_its_wandb_id_and_another_run_has_another(nobody, tmp_path):
    first, again, other = (wandb_logger(str(tmp_path / run), project="p")._id for run in ("a", "a", "b"))
    assert first == again
    assert first != other
    assert (tmp_path / "a" / "wandb_id").read_text() == first


@pytest.mark.slow
def test_every_file_that_waits_for_an_offline_runs_upload_lies_in_the_run_folder(nobody, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = run_folder(tmp_path / "method" / "seed-0", steps=20, pictures=False,
                     config={"logger": {"wandb": {"project": "p", "name": "method/seed-0"}}})  # fmt: skip
    (run / "control.safetensors").write_bytes(b"weights")
    with wandb_run(run):
        logger = wandb_logger(str(run), project="p", log_model=True)
        logger.log_weights(run, json.loads((run / "results.json").read_text()))
    log_evaluation(run, Evaluation(evaluation(run, 0.8, items=1)))
    assert "WANDB_DATA_DIR" not in os.environ  # the next job of a sweep has a folder of its own
    recorded = [record.artifact for file in run.glob("wandb/offline-run-*/*.wandb")
                for record in finished_records(file) if record.HasField("artifact")]  # fmt: skip
    entries = [entry for one in recorded for entry in one.manifest.contents]
    assert {"model", "run_table"} <= {one.type for one in recorded}
    assert len([entry for entry in entries if entry.path.endswith(".png")]) >= 4
    paths = [Path(entry.local_path) for entry in entries]
    assert [path for path in paths if not (path.is_file() and path.is_relative_to(run))] == []
    assert not [*nobody.rglob("staging")]


def test_wandbs_own_folder_for_files_that_wait_is_kept_where_it_is_set(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "mine"))
    with wandb_run(tmp_path / "run"):
        assert os.environ["WANDB_DATA_DIR"] == str(tmp_path / "mine")
    assert os.environ["WANDB_DATA_DIR"] == str(tmp_path / "mine")


def test_figures_of_an_evaluation_are_logged_where_w_and_b_has_no_weights_of_the_run(tmp_path, monkeypatch, capsys):
    import wandb

    run = run_folder(tmp_path / "run", steps=20, pictures=False, config={"logger": {"wandb": {"log_model": True}}})
    (run / "wandb_id").write_text("id")
    did: list[object] = []

    def use_artifact(name: str) -> None:
        raise ValueError(f"artifact {name} not found")

    online = SimpleNamespace(
        offline=False, id="id", config={}, define_metric=lambda *_, **__: None, log=did.append,
        use_artifact=use_artifact, finish=did.append,
    )  # fmt: skip
    monkeypatch.setattr(wandb, "init", lambda **_: online)
    monkeypatch.setattr(wandb, "run", online)
    monkeypatch.setattr(wandb, "finish", lambda exit_code: did.append(exit_code))
    log_evaluation(run, Evaluation(evaluation(run, 0.8, items=1)))
    row, exit_code = did
    assert row["eval/scenes/perfect/edge_f1_1px"] > 0
    assert exit_code == 0
    (told,) = capsys.readouterr().out.splitlines()
    assert told.startswith(
        "note: the evaluation names no weights in W&B, its figures are there: no artifact control-id"
    )
    assert (run / "evaluation" / "scenes" / "wandb_row").is_file()


def test_every_run_has_a_name_of_its_own_in_loggers(composed, tmp_path):
    names = set()
    for typed in (["seed=0"], ["seed=1"], ["seed=0", "steps=30"]):
        cfg = composed("model=tiny", "logger=wandb", f"runs={tmp_path}", *typed)
        assert str(cfg.run_dir) == f"{tmp_path}/{cfg.logger.wandb.name}"
        names.add(cfg.logger.wandb.name)
    assert len(names) == 3
    chain = shown_name("runs/stickers-1234/seed-2/autoencoder")
    assert (chain, shown_name("runs/a-1234/seed-2-again")) == (
        "stickers-1234/seed-2/autoencoder",
        "a-1234/seed-2-again",
    )
    assert shown_name(str(tmp_path / "mine")) == f"{tmp_path.name}/mine"
    assert len(shown_name(f"runs/{'x' * 200}/seed-0")) == 128


def test_tensorboard_shows_once_what_a_resumed_run_logs_again(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (tmp_path / "checkpoints").mkdir()
    for first, last in ((1, 10), (9, 12)):  # killed at step 10, gone on with from the checkpoint of step 8
        logger = tensorboard_logger(str(tmp_path))
        logger.log_hyperparams({"seed": 0})
        for step in range(first, last):
            logger.log_metrics({"train/loss": 1.0 / step}, step)
        logger.finalize("success")
        torch.save({"global_step": 8}, tmp_path / "checkpoints" / "last.ckpt")
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [*range(1, 12)]


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_metrics_lie_in_the_run_folder_and_earlier_ones_are_kept(tmp_path):
    for value in (1.0, 2.0, 3.0):
        logger = csv_logger(str(tmp_path))
        logger.log_metrics({"loss": value}, step=0)
        logger.save()
    found = {path.name: path.read_text() for path in tmp_path.glob("metrics*.csv")}
    assert found.keys() == {"metrics.csv", "metrics.1.csv", "metrics.2.csv"}
    assert [found[name].split()[1].split(",")[0] for name in sorted(found)] == ["1.0", "2.0", "3.0"]


# ------------------------------------------------------------------ commit


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_says_whether_files_differ_from_it(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit_of(tmp_path) == "unknown"
    git(tmp_path, "init", "-q")
    assert commit_of(tmp_path) == "unknown"  # no commit yet
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-qm", "first")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert re.fullmatch(r"[0-9a-f]{40}", head)
    assert commit_of(tmp_path) == head
    (tmp_path / "untracked").write_text("1")
    assert commit_of(tmp_path) == head
    (tmp_path / "ldm" / "samplers").mkdir(parents=True)
    assert commit_of(tmp_path / "ldm") == "unknown"  # a copy of the code within something else
    (tmp_path / "ldm" / "samplers" / "mine.py").write_text("1")
    assert commit_of(tmp_path) == head + "+changes"  # code that runs and is in no commit
    (tmp_path / "ldm" / "samplers" / "mine.py").unlink()
    (tmp_path / "a").write_text("2")
    assert commit_of(tmp_path) == head + "+changes"


def test_without_git_the_commit_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit_of(ROOT) == "unknown"


def test_what_is_committed_while_a_process_runs_is_not_its_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(checkout, "REPOSITORY", tmp_path)
    commit.cache_clear()
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-qm", "first", "--allow-empty")
    before = commit()
    git(tmp_path, "commit", "-qm", "second", "--allow-empty")
    now = commit()
    commit.cache_clear()
    assert now == before != commit_of(tmp_path)
