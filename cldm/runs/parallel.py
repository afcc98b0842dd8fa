"""Commands side by side: a failed one stops no other, stopping this process stops them all."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ldm.cores import cores

TAIL = 12  # lines of a failed command's output that are shown


@dataclass(frozen=True)
class Task:
    """A command, what it is called in messages, and the file that takes its output where several run at a time."""

    title: str
    command: tuple[str, ...]
    log: Path


def run_all(tasks: Sequence[Task], at_once: int) -> list[str]:
    """Run the tasks, `at_once` at a time with an equal share of the processor's cores each; the titles of failed ones.

    One at a time, they write to the terminal; several, each to its log.
    """
    if at_once < 1:
        raise ValueError(f"--jobs must be at least 1, got {at_once}")
    began, failed = time.time(), []
    with ThreadPoolExecutor(at_once) as pool, _stoppable() as running:
        started = {pool.submit(_run, task, at_once, running): task for task in tasks}
        for i, future in enumerate(as_completed(started), start=1):
            task, code = started[future], future.result()
            print(
                f"[{i}/{len(tasks)}, {(time.time() - began) / 60:.1f} min] {task.title}: {_outcome(code)}", flush=True
            )
            if code:
                failed.append(task.title)
                if at_once > 1:
                    print("\n".join(f"    {line}" for line in _tail(task.log)), f"    {task.log}", sep="\n", flush=True)
    return failed


def _outcome(code: int) -> str:
    return "done" if code == 0 else f"failed with exit code {code}"


def _tail(log: Path) -> list[str]:
    return log.read_text(errors="replace").replace("\r", "\n").splitlines()[-TAIL:]


def _run(task: Task, at_once: int, running: "_Running") -> int:
    if running.stopped:
        return 143
    if at_once == 1:
        print(f"\n== {task.title} ==", flush=True)
        return running.wait(subprocess.Popen(task.command))
    threads = str(max(1, cores() // at_once))
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with open(task.log, "w") as log:
        return running.wait(subprocess.Popen(task.command, stdout=log, stderr=subprocess.STDOUT, env=environment))


class _Running:
    """The processes that are alive."""

    def __init__(self) -> None:
        self.lock, self.stopped = threading.Lock(), False
        self.processes: set[subprocess.Popen[bytes]] = set()

    def wait(self, process: "subprocess.Popen[bytes]") -> int:
        with self.lock:
            self.processes.add(process)
            if self.stopped:
                process.terminate()
        code = process.wait()
        with self.lock:
            self.processes.discard(process)
        return code

    def stop(self) -> None:
        with self.lock:
            self.stopped = True
            for process in self.processes:
                process.terminate()


@contextmanager
def _stoppable() -> Iterator[_Running]:
    running = _Running()

    def told(*_: object) -> None:
        raise SystemExit(143)

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, told) if main else None
    try:
        yield running
    except BaseException:
        running.stop()
        raise
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
