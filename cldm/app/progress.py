"""The steps of a drawing: told, and ended between two of them."""

import threading
from collections.abc import Callable

Report = Callable[[int, int], None]
"""Hears of each step: how many are done, of how many."""


class Stopped(Exception):
    """The drawing was asked to end."""


class Steps:
    """A progress bar in tqdm's way, which tells a function, and ends the drawing where `stop` is set."""

    def __init__(self, report: Report, stop: threading.Event, total: int):
        self.report, self.stop, self.total, self.done = report, stop, total, 0

    def update(self, steps: int) -> None:
        """So many more steps are done. Raises Stopped."""
        if self.stop.is_set():
            raise Stopped
        self.done += steps
        self.report(self.done, self.total)

    def __enter__(self) -> "Steps":
        self.update(0)
        return self

    def __exit__(self, *_: object) -> None:
        pass
