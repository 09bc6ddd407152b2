"""The states of a job and the moves between them. Pure: no store, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from learner.errors import InputError


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    """Accepted, and waiting for a controller."""
    VALIDATING = "validating"
    """A controller has it and reads its models, prompts and machine."""
    RUNNING = "running"
    """The loop turns."""
    PAUSED = "paused"
    """Held by a person; its newest version is kept."""
    SUCCEEDED = "succeeded"
    """Ran to its end."""
    FAILED = "failed"
    """Stopped with an error. Can be resumed."""
    CANCELLED = "cancelled"
    """Stopped by a person. Can be resumed."""

    @property
    def terminal(self) -> bool:
        """Whether nothing moves any more, unless a person resumes the job."""
        return self in TERMINAL

    @property
    def active(self) -> bool:
        """Whether a controller is at work on the job."""
        return self in ACTIVE


class RequestedAction(StrEnum):
    """What a person asks of a job's controller."""

    CANCEL = "cancel"
    PAUSE = "pause"
    CONTINUE = "continue"


TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
ACTIVE = frozenset({JobState.VALIDATING, JobState.RUNNING, JobState.PAUSED})
RESUMABLE = frozenset({JobState.FAILED, JobState.CANCELLED})

_STOPPED = frozenset({JobState.FAILED, JobState.CANCELLED})

TRANSITIONS: Mapping[JobState, frozenset[JobState]] = MappingProxyType(
    {
        JobState.QUEUED: frozenset({JobState.VALIDATING}) | _STOPPED,
        JobState.VALIDATING: frozenset({JobState.RUNNING, JobState.QUEUED}) | _STOPPED,
        JobState.RUNNING: frozenset({JobState.PAUSED, JobState.SUCCEEDED, JobState.QUEUED}) | _STOPPED,
        JobState.PAUSED: frozenset({JobState.RUNNING, JobState.SUCCEEDED, JobState.QUEUED}) | _STOPPED,
        JobState.SUCCEEDED: frozenset(),
        JobState.FAILED: frozenset({JobState.QUEUED}),
        JobState.CANCELLED: frozenset({JobState.QUEUED}),
    }
)
"""The moves that are allowed. One to ``queued`` begins a new attempt, which goes on from the newest version (rule 11); a job that was paused
over its last work succeeds, since nothing is left to hold."""


class StateConflict(InputError):
    """A move or a request that the job's state does not allow."""


def check_transition(job_id: str, old: JobState, new: JobState) -> None:
    """Refuse a move that is not allowed.

    Raises:
        StateConflict: the move is not in ``TRANSITIONS``.
    """
    if new not in TRANSITIONS[old]:
        allowed = ", ".join(sorted(TRANSITIONS[old])) or "nothing else"
        raise StateConflict(f"job {job_id} is {old} and cannot become {new}; from {old} it can become {allowed}")


def attempt_after(attempt: int, new: JobState) -> int:
    """The attempt's number after a move: every return to ``queued`` begins the next."""
    return attempt + 1 if new is JobState.QUEUED else attempt


def check_resume(job_id: str, state: JobState) -> None:
    """Refuse to queue a job again that did not stop early.

    Raises:
        StateConflict: the job is neither failed nor cancelled.
    """
    if state not in RESUMABLE:
        raise StateConflict(f"job {job_id} is {state}; only a paused, failed or cancelled job can be resumed")


def check_delete(job_id: str, state: JobState) -> None:
    """Refuse to delete a job that has not ended.

    Raises:
        StateConflict: the job waits or is at work.
    """
    if not state.terminal:
        raise StateConflict(f"job {job_id} is {state}; only a job that has ended can be deleted: cancel it first")


def check_request(job_id: str, state: JobState, action: RequestedAction) -> None:
    """Refuse a request that makes no sense in the job's state.

    Raises:
        StateConflict: the job has ended, or is not in the state that the action starts from.
    """
    if state.terminal:
        raise StateConflict(f"job {job_id} is already {state}; there is nothing left to {action}")
    wanted = {
        RequestedAction.PAUSE: {JobState.RUNNING, JobState.VALIDATING},
        RequestedAction.CONTINUE: {JobState.PAUSED},
    }
    if action in wanted and state not in wanted[action]:
        raise StateConflict(
            f"job {job_id} is {state}; {action} needs a job that is {' or '.join(sorted(wanted[action]))}"
        )
