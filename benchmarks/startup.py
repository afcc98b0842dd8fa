"""How long a command takes before it works, as ratios to importing torch: `python -m benchmarks.startup`.

Wall-clock seconds from the start of the process, medians over --rounds, every side once a round: `--help`; sample.py on
its example to the first sampling step; train.py, caches warm, to its first optimizer step. The run that these need is
trained first, with one step.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TORCH, LIGHTNING = "import torch", "import torch, pytorch_lightning"


def seconds(command: list[str], until: str | None = None) -> float:
    """Until the command ends, or until it prints what matches, after which it is stopped."""
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = b""
    assert process.stdout is not None
    while piece := process.stdout.read1(4096):
        said += piece
        if until and re.search(until.encode(), said):
            took = time.monotonic() - began
            process.kill()
            process.wait()
            return took
    if process.wait() or until:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode} before it did what was measured:\n"
                         f"{said.decode(errors='replace')[-2000:]}")  # fmt: skip
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as runs:
        measure(runs, args.rounds)


def measure(runs: str, rounds: int) -> None:
    quick = ["train.py", "logger=csv", "stage.report_items=0", "trainer.callbacks.watch.count=1", f"runs={runs}"]
    subprocess.run([sys.executable, *quick, "steps=1", f"run_dir={runs}/first"], cwd=ROOT, check=True)
    sides: dict[str, tuple[list[str], str | None, str]] = {
        TORCH: (["-c", TORCH], None, TORCH),
        LIGHTNING: (["-c", LIGHTNING], None, LIGHTNING),
        "train.py --help": (["train.py", "--help"], None, TORCH),
        "sample.py --help": (["sample.py", "--help"], None, TORCH),
        "evaluate.py --help": (["evaluate.py", "--help"], None, TORCH),
        "python -m cldm --help": (["-m", "cldm", "--help"], None, TORCH),
        "sample.py, first step": (["sample.py", f"checkpoint={runs}/first"], r"drawing .* [1-9]\d*/\d+ \[", TORCH),
        "train.py, first step": (quick, r"training: .* [1-9]\d*/\d+ \[", LIGHTNING),
    }
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, (command, until, _) in sides.items():
            own = [f"run_dir={runs}/{number}"] if command is quick else []
            taken[name].append(seconds([*command, *own], until))
    found = {name: statistics.median(values) for name, values in taken.items()}
    print("\n| | s (median, min to max) | ratio to |\n| --- | ---: | --- |")
    for name, (_, _, reference) in sides.items():
        spread = f"{found[name]:.2f} ({min(taken[name]):.2f} to {max(taken[name]):.2f})"
        print(f"| {name} | {spread} | {found[name] / found[reference]:.2f} x `{reference}` |")


if __name__ == "__main__":
    main()
