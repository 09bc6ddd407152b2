"""The job store: jobs and the moves between their states, with their history.

Used by the API, the controllers and the command line at the same time, each in its own process.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from learner.errors import InputError
from services.jobs import state as states
from services.jobs.history import UnknownJob, job_row
from services.jobs.preferences import PreferenceStore
from services.jobs.records import JobError, JobRecord, NewEvent, Runner
from services.jobs.spec import JobSpec
from services.jobs.state import JobState, RequestedAction, StateConflict
from services.jobs.tables import JobRow

__all__ = ["IdempotencyConflict", "JobStore", "StateConflict", "UnknownJob"]


class IdempotencyConflict(InputError):
    """An idempotency key came again with another specification."""


class JobStore(PreferenceStore):
    """Jobs on disk, with their history and the preferences that people sent. Every method is one transaction."""

    # --- jobs

    def create(
        self, spec: JobSpec, *, home: Path, runner: Runner = "service", idempotency_key: str | None = None
    ) -> JobRecord:
        """A new job in state ``queued``.

        With an idempotency key that was used before, the job that it made then is returned.

        Raises:
            IdempotencyConflict: the key was used with another specification.
        """
        content = spec.model_dump(mode="json")
        fingerprint = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        now = self._clock()
        row = JobRow(
            id=f"{spec.name}-{base64.b32encode(secrets.token_bytes(5)).decode().lower()[:6]}",
            name=spec.name,
            state=JobState.QUEUED,
            spec=content,
            labels=dict(spec.metadata),
            runner=runner,
            home=str(home),
            idempotency_key=idempotency_key,
            fingerprint=fingerprint,
            created_at=now,
            queued_at=now,
            attempt=1,
            restarts=0,
            progress=0.0,
        )
        try:
            with self._write() as session:
                session.add(row)
                session.flush()
                self._append(
                    session, row.id, [NewEvent(kind="state", message="queued", data={"state": "queued", "attempt": 1})]
                )
                return _job(row)
        except IntegrityError:
            if idempotency_key is None:
                raise
        with self._read() as session:
            earlier = session.scalars(select(JobRow).where(JobRow.idempotency_key == idempotency_key)).one()
            if earlier.fingerprint != fingerprint:
                raise IdempotencyConflict(
                    f"Idempotency-Key: {idempotency_key!r} made job {earlier.id} from another specification; "
                    "send a new key"
                )
            return _job(earlier)

    def get(self, job_id: str) -> JobRecord:
        """The job as it stands.

        Raises:
            UnknownJob: there is none of that id.
        """
        with self._read() as session:
            return _job(job_row(session, job_id))

    def list(
        self,
        *,
        states: Iterable[JobState] | None = None,
        limit: int = 50,
        after: str | None = None,
        runner: Runner | None = None,
    ) -> Sequence[JobRecord]:
        """Jobs, newest first; ``after`` is the id of the last job already seen.

        Raises:
            UnknownJob: ``after`` names no job.
        """
        query = select(JobRow).order_by(JobRow.number.desc()).limit(limit)
        if states is not None:
            query = query.where(JobRow.state.in_(list(states)))
        if runner is not None:
            query = query.where(JobRow.runner == runner)
        with self._read() as session:
            if after is not None:
                query = query.where(JobRow.number < job_row(session, after).number)
            return [_job(row) for row in session.scalars(query)]

    def next_queued(self) -> JobRecord | None:
        """The service's job that has been queued for longest."""
        query = select(JobRow).where(JobRow.state == JobState.QUEUED, JobRow.runner == "service")
        with self._read() as session:
            row = session.scalars(query.order_by(JobRow.queued_at, JobRow.number).limit(1)).first()
            return None if row is None else _job(row)

    def counts_by_state(self) -> dict[JobState, int]:
        """How many jobs are in each state; every state is there."""
        with self._read() as session:
            rows = session.execute(select(JobRow.state, func.count()).group_by(JobRow.state))
            found = {state: count for state, count in rows}
        return {state: found.get(state, 0) for state in JobState}

    # --- moves

    def transition(
        self, job_id: str, new: JobState, *, message: str | None = None, error: JobError | None = None
    ) -> JobRecord:
        """Move a job to another state, and write that to its events. A move to the state it is in changes nothing.

        Raises:
            UnknownJob: there is none of that id.
            StateConflict: the move is not allowed.
        """
        with self._write() as session:
            row = job_row(session, job_id, for_update=True)
            if JobState(row.state) is not new:
                self._move(session, row, new, message=message, error=error)
            return _job(row)

    def resume(self, job_id: str, runner: Runner = "service") -> JobRecord:
        """Queue a failed or cancelled job again, as a new attempt that goes on from its newest version.

        Raises:
            UnknownJob: there is none of that id.
            StateConflict: the job is neither failed nor cancelled.
        """
        with self._write() as session:
            row = job_row(session, job_id, for_update=True)
            states.check_resume(job_id, JobState(row.state))
            self._move(session, row, JobState.QUEUED, message="resumed")
            row.restarts, row.runner, row.queued_at = 0, runner, self._clock()
            return _job(row)

    def requeue(self, job_id: str, *, message: str, restart: bool) -> JobRecord:
        """Put a job back whose controller is gone. It keeps its place; ``restart`` counts it as an automatic restart.

        Raises:
            StateConflict: the job is not being worked on.
        """
        with self._write() as session:
            row = job_row(session, job_id, for_update=True)
            if not JobState(row.state).active:
                raise StateConflict(f"job {job_id} is {row.state}; only a job that is being worked on can be put back")
            self._move(session, row, JobState.QUEUED, message=message)
            row.restarts += int(restart)
            return _job(row)

    def request(self, job_id: str, action: RequestedAction) -> JobRecord:
        """Ask the job's controller for something. A queued job has none yet, and is cancelled at once.

        Raises:
            UnknownJob: there is none of that id.
            StateConflict: the action makes no sense in the job's state.
        """
        with self._write() as session:
            row = job_row(session, job_id, for_update=True)
            states.check_request(job_id, JobState(row.state), action)
            if action is RequestedAction.CANCEL and row.state == JobState.QUEUED:
                self._move(session, row, JobState.CANCELLED, message="cancelled before it started")
            elif row.requested not in (action, RequestedAction.CANCEL):  # a cancel is not taken back
                row.requested = action
                self._append(session, row.id, [NewEvent(kind="request", message=f"{action} requested")])
            return _job(row)

    def take_request(self, job_id: str) -> RequestedAction | None:
        """What was asked for, once. A cancel stays until the job has ended: a restarted controller finds it too."""
        with self._write() as session:
            row = job_row(session, job_id, for_update=True)
            if row.requested is None:
                return None
            action = RequestedAction(row.requested)
            if action is not RequestedAction.CANCEL:
                row.requested = None
            return action

    def set_progress(self, job_id: str, fraction: float, stage: str | None = None) -> None:
        """How far the job is, as a share of its work in 0..1, and what it is doing."""
        values: dict[str, Any] = {"progress": min(max(fraction, 0.0), 1.0)} | (
            {} if stage is None else {"stage": stage}
        )
        with self._write() as session:
            session.execute(update(JobRow).where(JobRow.id == job_id).values(values))

    def _move(
        self, session: Session, row: JobRow, new: JobState, *, message: str | None = None, error: JobError | None = None
    ) -> None:
        states.check_transition(row.id, JobState(row.state), new)
        now = self._clock()
        row.state, row.attempt = new, states.attempt_after(row.attempt, new)
        row.finished_at = now if new.terminal else None
        row.started_at = row.started_at or (now if new is JobState.VALIDATING else None)
        row.error_code, row.error_message, row.error_param = (
            (error.code, error.message, error.param) if error else (None, None, None)
        )
        if new.terminal:
            row.requested = None
        data: dict[str, Any] = {"state": new, "attempt": row.attempt} | ({"error": error.model_dump()} if error else {})
        text = message or (error.message if error else new)
        self._append(session, row.id, [NewEvent(kind="state", message=text, data=data)])


def _job(row: JobRow) -> JobRecord:
    error = None
    if row.error_code is not None:
        error = JobError(code=row.error_code, message=row.error_message or "", param=row.error_param)
    same = ("id", "name", "spec", "home", "created_at", "started_at", "finished_at", "attempt", "restarts")
    more = ("state", "runner", "requested", "progress", "stage", "current_version", "best_version")
    values = {name: getattr(row, name) for name in same + more}
    return JobRecord.model_validate({**values, "metadata": row.labels, "error": error})
