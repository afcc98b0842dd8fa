"""Promises of commands side by side: a failed one stops no other and shows its last words; a stop ends all."""

import signal
import subprocess
import sys
import time

import pytest

from cldm.runs.checkout import REPOSITORY
from cldm.runs.parallel import Task, run_all


def python(title, code, folder):
    return Task(title, (sys.executable, "-c", code), folder / "logs" / f"{title}.log")


def test_a_failed_command_stops_no_other_and_is_named(tmp_path, capfd):
    tasks = [
        python("bad", "raise SystemExit('no such thing')", tmp_path),
        *(python(f"good{i}", f"open({str(tmp_path / str(i))!r}, 'w')", tmp_path) for i in range(3)),
    ]
    assert run_all(tasks, 2) == ["bad"]
    assert all((tmp_path / str(i)).exists() for i in range(3))
    told = capfd.readouterr().out
    assert "no such thing" in told
    assert "bad: failed with exit code 1" in told
    assert told.count(": done") == 3


def test_cores_are_shared_between_jobs(tmp_path):
    code = f"import os; open({str(tmp_path / 'threads')!r}, 'w').write(os.environ['OMP_NUM_THREADS'])"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OMP_NUM_THREADS", raising=False)
        patch.setattr("cldm.runs.parallel.cores", lambda: 8)
        run_all([python("one", code, tmp_path)], 4)
    assert (tmp_path / "threads").read_text() == "2"


def test_stopping_the_parent_stops_what_it_started(tmp_path):
    child = f"import time; open({str(tmp_path / 'up')!r}, 'w'); time.sleep(100); open({str(tmp_path / 'end')!r}, 'w')"
    parent = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(REPOSITORY)!r})
from cldm.runs.parallel import Task, run_all
run_all([Task(str(i), (sys.executable, "-c", {child!r}), Path({str(tmp_path)!r}) / str(i)) for i in range(4)], 2)
"""
    process = subprocess.Popen([sys.executable, "-c", parent])
    until = time.time() + 60
    while not (tmp_path / "up").exists() and time.time() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143  # well before the children's 100 s
    assert not (tmp_path / "end").exists()


def test_no_job_at_a_time_is_refused():
    with pytest.raises(ValueError, match="--jobs must be at least 1"):
        run_all([], 0)
