"""How many processor cores there are to work on."""

import os


def cores() -> int:
    """Cores that this process may use, which on a cluster or in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
