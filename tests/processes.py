"""Programs of this repository in processes of their own, forked from one that has imported torch and Lightning: what
they do takes a second, importing takes five."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["cldm.training.fitting", "cldm.evaluation.measuring", "cldm.training.callbacks"])


class Forked:
    """As subprocess.Popen of [python, a script of this repository, its arguments]."""

    def __init__(
        self,
        command: Sequence[str],
        stdout: object = None,
        stderr: object = None,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
    ):
        """stdout, stderr: open files that take the output, None for none."""
        names = [
            getattr(file, "name", os.devnull) for file in (stdout, stdout if stderr == subprocess.STDOUT else stderr)
        ]
        environment = dict(os.environ if env is None else env)
        self.process = _FORKS.Process(target=_work, args=(command[1:], str(cwd or Path.cwd()), environment, *names))
        self.process.start()

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("a forked process", timeout or 0.0)
        return self.process.exitcode

    def terminate(self) -> None:
        self.process.terminate()


def _work(arguments: Sequence[str], cwd: str, environment: dict[str, str], out: str, err: str) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for name, number in ((os.devnull, 0), (out, 1), (err, 2)):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
    tqdm.set_lock(threading.RLock())  # the default one is shared with siblings, and lost when its holder is killed
    script = Path(arguments[0])
    sys.argv = [*arguments]
    sys.path[:0] = [str(script.parent), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    runpy.run_path(str(script), run_name="__main__")


def run(
    command: Sequence[str], cwd: Path, env: Mapping[str, str], timeout: float = 900
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run with the output captured as text."""
    with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
        process = Forked(command, out, err, env, cwd)
        try:
            code = process.wait(timeout)
        except BaseException:
            process.terminate()
            raise
        return subprocess.CompletedProcess([*command], code, out.read(), err.read())
