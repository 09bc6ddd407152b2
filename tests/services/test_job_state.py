"""The states of a job."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.jobs.state import (
    ACTIVE,
    TERMINAL,
    TRANSITIONS,
    JobState,
    RequestedAction,
    StateConflict,
    attempt_after,
    check_request,
    check_resume,
    check_transition,
)

walks = st.lists(st.sampled_from(JobState), max_size=30)


def moves(walk: list[JobState]) -> list[JobState]:
    """The states that a job passes through when it is asked for ``walk`` and refuses what is not allowed."""
    path = [JobState.QUEUED]
    for new in walk:
        try:
            check_transition("j", path[-1], new)
        except StateConflict:
            continue
        path.append(new)
    return path


@given(walks)
def test_a_job_that_succeeded_stays_so(walk: list[JobState]) -> None:
    path = moves(walk)
    if JobState.SUCCEEDED in path:
        assert path.index(JobState.SUCCEEDED) == len(path) - 1


@given(walks)
def test_nothing_runs_that_was_not_validated_in_its_attempt(walk: list[JobState]) -> None:
    path = moves(walk)
    for place, state in enumerate(path):
        if state is JobState.RUNNING:
            queued = len(path[:place]) - path[:place][::-1].index(JobState.QUEUED)
            assert JobState.VALIDATING in path[queued:place]


@given(walks)
def test_attempts_count_the_returns_to_queued(walk: list[JobState]) -> None:
    attempt = 1
    path = moves(walk)
    for state in path[1:]:
        attempt = attempt_after(attempt, state)
    assert attempt == path.count(JobState.QUEUED)


def test_every_state_is_queued_active_or_terminal_and_only_one_of_them() -> None:
    for state in JobState:
        assert [state is JobState.QUEUED, state in ACTIVE, state in TERMINAL].count(True) == 1
        assert state in TRANSITIONS


@pytest.mark.parametrize("state", [state for state in JobState if not state.terminal])
def test_whatever_has_not_ended_can_be_cancelled_and_can_fail(state: JobState) -> None:
    check_transition("j", state, JobState.CANCELLED)
    check_transition("j", state, JobState.FAILED)
    check_request("j", state, RequestedAction.CANCEL)


def test_a_job_that_was_paused_over_its_last_work_succeeds() -> None:
    check_transition("j", JobState.PAUSED, JobState.SUCCEEDED)


def test_only_failed_and_cancelled_jobs_resume() -> None:
    resumable = []
    for state in JobState:
        try:
            check_resume("j", state)
        except StateConflict as error:
            assert state in str(error)
        else:
            resumable.append(state)
    assert resumable == [JobState.FAILED, JobState.CANCELLED]


def test_pause_needs_a_job_at_work_and_continue_a_paused_one() -> None:
    check_request("j", JobState.RUNNING, RequestedAction.PAUSE)
    check_request("j", JobState.PAUSED, RequestedAction.CONTINUE)
    with pytest.raises(StateConflict, match="queued; pause needs"):
        check_request("j", JobState.QUEUED, RequestedAction.PAUSE)
    with pytest.raises(StateConflict, match="running; continue needs"):
        check_request("j", JobState.RUNNING, RequestedAction.CONTINUE)
    with pytest.raises(StateConflict, match="already succeeded"):
        check_request("j", JobState.SUCCEEDED, RequestedAction.CANCEL)
