"""Workers that end when nobody cares for them any more (rule 10): what every actor of a job is."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping

import ray

from learner.records import Record
from workers import logs
from workers.activity import Activity
from workers.cluster import LEASE_GROUP, node_address
from workers.errors import WorkerUnavailable

LAST_SECONDS = 10.0
"""What a worker whose lease has lapsed has for its last duty."""


class WorkerPulse(Record):
    """A sign of life."""

    pid: int
    uptime_seconds: float
    lease_left_seconds: float


class LeasedWorker:
    """A worker that ends itself when nobody has renewed its lease: a controller that is gone leaves no workers behind (rule 10)."""

    def __init__(self, lease_seconds: float) -> None:
        self._born = time.monotonic()
        self._lease_seconds = lease_seconds
        self._lease_ends = self._born + lease_seconds
        self._lapsed = False
        self.activity = Activity()
        threading.Thread(target=self._watch_lease, name="lease", daemon=True).start()

    @ray.method(concurrency_group=LEASE_GROUP)
    def renew_lease(self, seconds: float | None = None) -> dict[str, float]:
        """Live at least so many seconds from now (default: as many as at the start). Never shortens the lease.

        Returns how long the worker has been busy and how long it has waited, as metrics.

        Raises:
            WorkerUnavailable: it has lapsed, and the worker is about to end.
        """
        self._refuse_once_lapsed()
        self._lease_seconds = self._lease_seconds if seconds is None else seconds
        self._lease_ends = max(self._lease_ends, time.monotonic() + self._lease_seconds)
        return self.activity.as_metrics()

    @ray.method(concurrency_group=LEASE_GROUP)
    def ping(self) -> WorkerPulse:
        """Show that the process answers, also while it works on something else.

        Raises:
            WorkerUnavailable: its lease has lapsed, and it is about to end.
        """
        self._refuse_once_lapsed()
        now = time.monotonic()
        return WorkerPulse(
            pid=os.getpid(), uptime_seconds=now - self._born, lease_left_seconds=max(0.0, self._lease_ends - now)
        )

    @ray.method(concurrency_group=LEASE_GROUP)
    def unread_log(self, mark: str, sizes: Mapping[str, int]) -> dict[str, tuple[int, bytes]] | None:
        """What the worker has written on its machine and the job's folder has not (`workers.logs.unread`)."""
        return logs.unread(mark, node_address(), sizes)

    def lease_lapsed(self) -> None:
        """What else ends with the lease, in the few seconds before the process does. Here: nothing."""

    def _refuse_once_lapsed(self) -> None:
        if self._lapsed:
            raise WorkerUnavailable(f"{type(self).__name__} ends: nobody renewed its lease in time")

    def _watch_lease(self) -> None:
        while (left := self._lease_ends - time.monotonic()) > 0:
            time.sleep(min(left, 1.0))
        self._lapsed = True
        print(
            f"the lease of {self._lease_seconds:g} s (resources.fleet.lease_seconds) was not renewed: this worker ends",
            file=sys.stderr,
            flush=True,
        )
        last = threading.Thread(target=self.lease_lapsed, daemon=True)
        last.start()
        last.join(LAST_SECONDS)  # a cluster that does not answer must not keep it alive
        os._exit(3)
