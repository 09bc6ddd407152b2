"""Jobs that a command runs in the foreground. While it lives it holds a lock on the job's folder, which the kernel gives back however it ends."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from learner.errors import InputError
from services.jobs.layout import JobPaths
from services.jobs.records import JobError
from services.jobs.state import ACTIVE, JobState, StateConflict
from services.jobs.store import JobStore

MOST_JOBS = 10_000

LOOK_SECONDS = 0.5
"""Who looks whether a job is abandoned holds its lock for a moment."""


@contextmanager
def held(paths: JobPaths) -> Iterator[None]:
    """Hold the job's lock.

    Raises:
        InputError: another command holds it.
    """
    paths.root.mkdir(parents=True, exist_ok=True)
    limit = time.monotonic() + LOOK_SECONDS
    with paths.command_lock.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > limit:
                    raise InputError(
                        f"another command runs {paths.job_id} at this moment; wait for its end, or end it"
                    ) from None
            time.sleep(0.02)
        yield


def fail_abandoned(store: JobStore) -> None:
    """Fail the jobs whose command was killed before it could say how they ended, so that they can be resumed."""
    for job in store.list(states=(JobState.QUEUED, *ACTIVE), runner="command", limit=MOST_JOBS):
        paths = JobPaths(Path(store.get(job.id).home), job.id)
        if not _is_abandoned(paths):
            continue
        message = f"the command that ran the job was killed; `sparring resume {job.id}` goes on from its newest version"
        with suppress(StateConflict):  # it was resumed in this moment
            store.transition(job.id, JobState.FAILED, error=JobError(code="command_killed", message=message))


def _is_abandoned(paths: JobPaths) -> bool:
    """Whether there is a lock and nobody holds it. There is none before a command begins, and where the job is a cluster's."""
    try:
        with paths.command_lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
