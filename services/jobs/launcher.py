"""Starts controllers on a Ray cluster: one that is there, or one that this process brings up on this machine."""

from __future__ import annotations

import time

from services.jobs.controller import JobController, controller_name
from services.settings import Settings
from workers import cluster
from workers.cluster import Link
from workers.errors import CallTimeout, WorkerError

CONTROLLER_CPUS = 0.01
"""The controller waits and writes; it hardly computes."""

PING_SECONDS = 10.0


class Launcher:
    """Starts and finds the controllers of jobs.

    Args:
        settings: the operator's: home, database, Ray's address.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.local = settings.ray_address is None
        self._silent_since: dict[str, float] = {}
        cluster.connect(settings.ray_address, home=settings.home)

    def start(self, job_id: str) -> None:
        """Start a job's controller and let it run. Where it runs already, nothing changes."""
        self._silent_since.pop(job_id, None)  # the silence of one before it
        settings = self.settings
        cluster.spawn(
            JobController,
            controller_name(job_id),
            cpus=CONTROLLER_CPUS,
            threads=1,
            args=(job_id, settings.store_url, settings.home, settings.worker_extension),
            role="data",
        )
        Link(controller_name(job_id)).begin("run")

    def alive(self, job_id: str) -> bool:
        """Whether the job's controller is there. One that is too busy to answer is, until it has been silent for too long."""
        try:
            Link(controller_name(job_id)).call_blocking("ping", timeout_seconds=PING_SECONDS)
        except CallTimeout:
            since = self._silent_since.setdefault(job_id, time.monotonic() - PING_SECONDS)
            if time.monotonic() - since < self.settings.start_timeout_seconds:
                return True
            self._end(job_id)
            return False
        except WorkerError:
            self._silent_since.pop(job_id, None)
            return False
        self._silent_since.pop(job_id, None)
        return True

    def wait_gone(self, job_id: str) -> None:
        """Wait until a controller whose job has ended has left, its workers before it; end it when it does not."""
        limit = time.monotonic() + self.settings.start_timeout_seconds
        while self.alive(job_id) and time.monotonic() < limit:
            time.sleep(0.1)
        self._end(job_id)

    def close(self) -> None:
        """Leave the cluster, and end it where this process brought it up."""
        cluster.disconnect()

    def _end(self, job_id: str) -> None:
        self._silent_since.pop(job_id, None)  # of no meaning for the controller that comes after
        cluster.kill(controller_name(job_id))
