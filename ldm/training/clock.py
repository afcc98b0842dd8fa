"""How long training has taken, and nothing else."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds of optimizer steps, over all attempts at a run: it stands still before training and while `paused`."""

    def __init__(self) -> None:
        self.before = 0.0  # seconds until it was last started
        self.first: float | None = None  # the moment at which this attempt began to train, by time.monotonic
        self.started: float | None = None

    @property
    def seconds(self) -> float:
        """Of training so far."""
        return self.before + (0.0 if self.started is None else time.monotonic() - self.started)

    def start(self) -> None:
        """Go on."""
        self.before, self.started = self.seconds, time.monotonic()
        self.first = self.first or self.started

    def stop(self) -> None:
        """Stand still."""
        self.before, self.started = self.seconds, None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done within the context is no training."""
        running = self.started is not None
        self.stop()
        try:
            yield
        finally:
            if running:
                self.start()
