"""Starts queued jobs, and notices those whose controller died.

Part of the service process. It knows nothing of Ray: a `Launcher` starts controllers and says whether they live.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Protocol

from services.jobs.foreground import fail_abandoned
from services.jobs.records import JobError, JobRecord, JobSummary
from services.jobs.state import ACTIVE, JobState, RequestedAction, StateConflict
from services.jobs.store import JobStore

MISSES = 3
"""Looks in a row at which a controller must be gone: a busy machine can make a living one late to answer."""

logger = logging.getLogger(__name__)


class Launcher(Protocol):
    """What starts controllers. Every method may take a while and keeps its own time-outs (rule 9)."""

    def start(self, job_id: str) -> None:
        """Start the job's controller, or adopt the one that runs. Returns when `alive` says yes."""

    def alive(self, job_id: str) -> bool:
        """Whether the job's controller lives."""

    def wait_gone(self, job_id: str) -> None:
        """Wait until the controller of a job that has ended is gone, its workers before it; end it when it is not."""

    def close(self) -> None:
        """Leave. Where this process started Ray: end controllers first, then their workers, then Ray."""


class Dispatcher:
    """Takes queued jobs, the highest priority first and then the oldest, and keeps at most so many at work.

    Args:
        store: where jobs are.
        launcher: starts their controllers.
        max_running: jobs at work at a time.
        max_restarts: how often a job whose controller died begins again from its newest version.
        requeue_on_stop: whether the launcher's end ends its controllers too (a Ray of our own). Their jobs then go back
            to ``queued``, and go on from their newest version when the service starts again. With a Ray from elsewhere
            controllers live on, and the next service finds them by name.
        poll_seconds: time between looks.
    """

    def __init__(
        self,
        store: JobStore,
        launcher: Launcher,
        *,
        max_running: int = 1,
        max_restarts: int = 2,
        requeue_on_stop: bool = True,
        poll_seconds: float = 1.0,
    ) -> None:
        self._store = store
        self._launcher = launcher
        self._max_running = max_running
        self._max_restarts = max_restarts
        self._requeue_on_stop = requeue_on_stop
        self._poll_seconds = poll_seconds
        self._problem: Exception | None = None
        self._misses: Counter[str] = Counter()
        self._started: set[str] = set()

    def tick(self) -> None:
        """One look: see off what has ended, put back or fail what died, then start what fits."""
        fail_abandoned(self._store)
        active = self._active()
        for job_id in self._started - {job.id for job in active}:
            self._launcher.wait_gone(job_id)  # its share of the machine is free only then
            self._started.discard(job_id)
        running = sum(self._lives(job.id) for job in active)
        while running < self._max_running and (queued := self._store.next_queued()) is not None:
            running += self._start(queued)

    async def run(self, stop: asyncio.Event) -> None:
        """Look again and again until ``stop`` is set. What goes wrong in one look is logged, and tried again."""
        while not stop.is_set():
            try:
                await asyncio.to_thread(self.tick)
                self._problem = None
            except Exception as error:
                if self._problem is None:
                    logger.exception("the dispatcher could not look after the jobs; it tries again")
                self._problem = error
            try:
                await asyncio.wait_for(stop.wait(), self._poll_seconds)
            except TimeoutError:
                continue

    def check(self) -> None:
        """Raise what the last look ran into."""
        if self._problem is not None:
            raise RuntimeError("the dispatcher cannot look after the jobs") from self._problem

    def stop(self) -> None:
        """Close the launcher; put the jobs back whose controllers ended with it."""
        self._launcher.close()
        if self._requeue_on_stop:
            for job in self._active():
                self._put_back(job, "the service stopped; the job goes on when it starts again", restart=False)

    def _active(self) -> list[JobSummary]:
        return list(self._store.list(states=ACTIVE, runner="service", limit=10_000))

    def _lives(self, job_id: str) -> bool:
        if self._launcher.alive(job_id):
            self._misses.pop(job_id, None)
            self._started.add(job_id)  # also one that an earlier service started
            return True
        self._misses[job_id] += 1
        if self._misses[job_id] < MISSES:
            return True
        self._misses.pop(job_id)
        self._started.discard(job_id)
        self._lost(job_id)
        return False

    def _start(self, job: JobRecord) -> bool:
        try:
            self._store.transition(job.id, JobState.VALIDATING)
        except StateConflict:  # cancelled since it was read
            return False
        try:
            self._launcher.start(job.id)
        except Exception as error:  # whatever it is, it is this job's end and not the service's
            logger.exception("the controller of %s did not start", job.id)
            message = f"the job's controller did not start: {error}"
            self._end(job.id, JobState.FAILED, JobError(code="launch_failed", message=message))
            return False
        self._started.add(job.id)
        return True

    def _lost(self, job_id: str) -> None:
        job = self._store.get(job_id)  # again: a controller that ends well writes its last state first and leaves then
        if not job.state.active:
            return
        if job.requested is RequestedAction.CANCEL:
            self._end(job_id, JobState.CANCELLED, None)
        elif job.restarts < self._max_restarts:
            self._put_back(job, "the job's controller died; the job goes on from its newest version", restart=True)
        else:
            error = JobError(
                code="controller_lost",
                message=(
                    f"the job's controller died {job.restarts + 1} times; its logs say why. `sparring resume {job_id}` "
                    "goes on from its newest version; SPARRING_MAX_JOB_RESTARTS bounds the restarts"
                ),
            )
            self._end(job_id, JobState.FAILED, error)

    def _put_back(self, job: JobSummary, message: str, *, restart: bool) -> None:
        try:
            self._store.requeue(job.id, message=message, restart=restart)
        except StateConflict:
            logger.info("%s ended by itself meanwhile", job.id)

    def _end(self, job_id: str, state: JobState, error: JobError | None) -> None:
        try:
            self._store.transition(job_id, state, error=error)
        except StateConflict:
            logger.info("%s ended by itself meanwhile", job_id)
