"""How long a worker has been busy, and how long it has waited for work. Pure, with an injected clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Activity:
    """Counts the seconds in which at least one piece of work is in progress. Any thread may ask.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._counted_to = clock()
        self._running = 0
        self._busy = self._waiting = 0.0

    @contextmanager
    def busy(self) -> Iterator[None]:
        """A piece of work, which others may overlap."""
        self._count(+1)
        try:
            yield
        finally:
            self._count(-1)

    def as_metrics(self) -> dict[str, float]:
        """Seconds since the worker began; busy and waiting together are all of them."""
        self._count(0)
        with self._lock:
            return {"worker_busy_seconds_total": self._busy, "worker_waiting_seconds_total": self._waiting}

    def _count(self, change: int) -> None:
        with self._lock:
            now = self._clock()
            passed, self._counted_to = now - self._counted_to, now
            if self._running:
                self._busy += passed
            else:
                self._waiting += passed
            self._running += change
