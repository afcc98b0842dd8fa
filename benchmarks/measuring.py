"""What the benchmarks share: clocks, peak memory, the machine they ran on."""

import platform
import time
from pathlib import Path

import torch
from torch import nn

from cldm.runs.checkout import commit


def quiet(module: nn.Module, seed: int) -> None:
    """Weights of trained size, drawn quickly: a residual network at its usual initial scale, nothing zero."""
    torch.manual_seed(seed)
    for p in module.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.01)


def now(device: str) -> tuple[float, float]:
    """Seconds, and seconds of CPU time."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def since(began: tuple[float, float], device: str) -> tuple[float, float]:
    """Seconds, and seconds of CPU time, since `began`."""
    seconds, busy = now(device)
    return seconds - began[0], busy - began[1]


def reset_peak(device: str) -> float:
    """Forget the highest use of memory so far; returns the use now, in GiB."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**30
    if platform.system() == "Linux":
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    return resident("VmRSS")


def peak_gib(device: str) -> float:
    """The most memory since `reset_peak`, in GiB: of the GPU, or of the process."""
    return torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else resident("VmHWM")


def resident(name: str) -> float:
    """Resident memory of this process now (VmRSS) or at its highest (VmHWM), in GiB; NaN where the system hides it."""
    if platform.system() != "Linux":
        return float("nan")
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) / 2**20


def machine(device: str) -> str:
    """What it ran on, for the head of a table."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU"
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, commit {commit()[:7]}{commit()[40:]}"
