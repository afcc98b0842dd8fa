"""Promises of the record: offline without a key, JSON for every reader, a commit that tells the truth."""

import re
import subprocess
from pathlib import Path

import pytest

from cldm.runs import checkout
from cldm.runs.checkout import REPOSITORY as ROOT
from cldm.runs.checkout import commit, commit_of
from cldm.runs.loggers.wandb import has_wandb_key, wandb_logger
from cldm.runs.tracking import csv_logger


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """A user without any W&B key or setting; returns the home folder."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_SILENT"):
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
