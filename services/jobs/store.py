"""The job store: jobs and the moves between their states, with their history.

Used by the API, the controllers and the command line at the same time, each in its own process.
"""

from __future__ import annotations

import base64
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import delete, func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, defer

from services.jobs import state as states
from services.jobs.estimate import estimated_finish
from services.jobs.layout import JobPaths
from services.jobs.preferences import PreferenceStore
from services.jobs.records import JobError, JobRecord, JobSummary, NewEvent, Runner
from services.jobs.requests import IdempotencyConflict, fingerprint, first_time
from services.jobs.rows import UnknownJob, job_row
from services.jobs.spec import JobSpec
from services.jobs.state import JobState, RequestedAction, StateConflict
from services.jobs.tables import EventRow, JobRow, LabelRow, MetricRow, PreferenceRow, VersionRow
from services.secrets import mask

__all__ = ["IdempotencyConflict", "JobStore", "StateConflict", "UnknownJob"]


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
        asked = fingerprint(content)
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
            fingerprint=asked,
            created_at=now,
            queued_at=now,
            attempt=1,
            restarts=0,
            progress=0.0,
            priority=spec.priority,
        )
        try:
            with self._write() as session:
                session.add(row)
                session.flush()
                if labels := [
                    {"name": name, "value": value, "job_number": row.number} for name, value in spec.metadata.items()
                ]:
                    session.execute(insert(LabelRow), labels)
                self._append(
                    session, row.id, [NewEvent(kind="state", message="queued", data={"state": "queued", "attempt": 1})]
                )
                return self._job(row)
        except IntegrityError:
            if idempotency_key is None:
                raise
        with self._read() as session:
            earlier = session.scalars(select(JobRow).where(JobRow.idempotency_key == idempotency_key)).one()
            if earlier.fingerprint != asked:
                raise IdempotencyConflict(
                    f"Idempotency-Key: {idempotency_key!r} made job {earlier.id} from another specification; "
                    "send a new key"
                )
            return self._job(earlier)

    def get(self, job_id: str) -> JobRecord:
        """The job as it stands.

        Raises:
            UnknownJob: there is none of that id.
        """
        with self._read() as session:
            return self._job(job_row(session, job_id))

    def list(
        self,
        *,
        states: Iterable[JobState] | None = None,
        labels: Mapping[str, str] | None = None,
        limit: int = 50,
        after: str | None = None,
        runner: Runner | None = None,
    ) -> Sequence[JobSummary]:
        """Jobs, newest first, without their specifications.

        Args:
            states: only jobs in one of these.
            labels: only jobs whose metadata has all of these.
            limit: at most so many.
            after: the id of the last job already seen.
            runner: only jobs that run so.

        Raises:
            UnknownJob: ``after`` names no job.
        """
        query = select(JobRow).options(defer(JobRow.spec, raiseload=True)).order_by(JobRow.number.desc()).limit(limit)
        if states is not None:
            query = query.where(JobRow.state.in_(list(states)))
        for name, value in (labels or {}).items():
            found = select(LabelRow.job_number).where(LabelRow.name == name, LabelRow.value == value)
            query = query.where(JobRow.number.in_(found))
        if runner is not None:
            query = query.where(JobRow.runner == runner)
        with self._read() as session:
            if after is not None:
                query = query.where(JobRow.number < job_row(session, after).number)
            return [self._summary(row) for row in session.scalars(query)]

    def next_queued(self) -> JobRecord | None:
        """The service's job that comes next: of those with the highest priority the one that has been queued for longest."""
        query = (
            select(JobRow.number)
            .where(JobRow.state == JobState.QUEUED, JobRow.runner == "service")
            .order_by(JobRow.priority.desc(), JobRow.queued_at, JobRow.number)
            .limit(1)
        )
        with self._read() as session:
            number = session.scalar(query)  # alone, so that the index answers: rows are long
            return None if number is None else self._job(session.get_one(JobRow, number))

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
            return self._job(row)

    def resume(self, job_id: str, runner: Runner = "service", *, idempotency_key: str | None = None) -> JobRecord:
        """Let a job go on: a paused one where it stands, a failed or cancelled one as a new attempt from its newest version.

        A pause that was asked for and has not begun is taken back.

        Raises:
            UnknownJob: there is none of that id.
            StateConflict: the job is neither paused nor failed nor cancelled.
            IdempotencyConflict: the key came with another request.
        """
        with self._write() as session:
            row = job_row(session, job_id, for_update=True)
            if not first_time(session, idempotency_key, f"resume {job_id}", self._clock()):
                return self._job(row)
            if row.requested == RequestedAction.PAUSE:
                row.requested = None
                self._append(session, row.id, [NewEvent(kind="request", message="the pause is taken back")])
            elif row.state == JobState.PAUSED:
                self._request(session, row, RequestedAction.CONTINUE)
            else:
                states.check_resume(job_id, JobState(row.state))
                self._move(session, row, JobState.QUEUED, message="resumed")
                row.restarts, row.runner, row.queued_at = 0, runner, self._clock()
            return self._job(row)

    def requeue(self, job_id: str, *, message: str, restart: bool) -> JobRecord:
        """Put a job back whose controller is gone. It keeps its place; ``restart`` counts it as an automatic restart.

        A paused job stays so: its next controller is asked to pause, unless somebody had asked for it to go on.

        Raises:
            StateConflict: the job is not being worked on.
        """
        with self._write() as session:
            row = job_row(session, job_id, for_update=True)
            if not JobState(row.state).active:
                raise StateConflict(f"job {job_id} is {row.state}; only a job that is being worked on can be put back")
            if row.state == JobState.PAUSED and row.requested != RequestedAction.CANCEL:
                goes_on = row.requested == RequestedAction.CONTINUE
                row.requested = None if goes_on else RequestedAction.PAUSE
            self._move(session, row, JobState.QUEUED, message=message)
            row.restarts += int(restart)
            return self._job(row)

    def request(self, job_id: str, action: RequestedAction, *, idempotency_key: str | None = None) -> JobRecord:
        """Ask the job's controller for something. A queued job has none yet, and is cancelled at once.

        Raises:
            UnknownJob: there is none of that id.
            StateConflict: the action makes no sense in the job's state.
            IdempotencyConflict: the key came with another request.
        """
        with self._write() as session:
            row = job_row(session, job_id, for_update=True)
            if first_time(session, idempotency_key, f"{action} {job_id}", self._clock()):
                self._request(session, row, action)
            return self._job(row)

    def take_request(self, job_id: str) -> RequestedAction | None:
        """What was asked for, once. A cancel stays until the job has ended: a restarted controller finds it too.

        A pause waits until the job runs: before that there is nothing to hold.
        """
        with self._write() as session:
            row = job_row(session, job_id, for_update=True)
            if row.requested is None:
                return None
            action = RequestedAction(row.requested)
            if action is RequestedAction.PAUSE and row.state == JobState.VALIDATING:
                return None
            if action is not RequestedAction.CANCEL:
                row.requested = None
            return action

    def set_progress(self, job_id: str, fraction: float, stage: str | None = None) -> None:
        """How far the job is, as a share of its work in 0..1, and what it is doing."""
        with self._write() as session:
            row = session.scalar(
                select(JobRow).options(defer(JobRow.spec)).where(JobRow.id == job_id).with_for_update()
            )
            if row is None:
                return
            row.progress = min(max(fraction, 0.0), 1.0)
            row.stage = row.stage if stage is None else stage
            if row.state == JobState.RUNNING and row.running_from is None:
                row.running_since, row.running_from = self._clock(), row.progress

    def delete(self, job_id: str, *, idempotency_key: str | None = None) -> None:
        """Delete a job that has ended: its record, history and preferences, and its folder with everything in it.

        Raises:
            UnknownJob: there is none of that id, or no more.
            StateConflict: the job has not ended.
            IdempotencyConflict: the key came with another request.
        """
        with self._write() as session:
            if not first_time(session, idempotency_key, f"delete {job_id}", self._clock()):
                return
            row = job_row(session, job_id, for_update=True)
            states.check_delete(job_id, JobState(row.state))
            paths = JobPaths(Path(row.home), job_id)
            # under another name first, which is done at once: what is left of a broken attempt is no job any more
            if paths.root.is_dir():
                paths.root.replace(paths.deleted)
            for table in (EventRow, MetricRow, PreferenceRow, VersionRow):
                session.execute(delete(table).where(table.job_id == job_id))
            session.execute(delete(LabelRow).where(LabelRow.job_number == row.number))
            session.delete(row)
        if paths.deleted.is_dir():
            shutil.rmtree(paths.deleted)

    def _request(self, session: Session, row: JobRow, action: RequestedAction) -> None:
        states.check_request(row.id, JobState(row.state), action)
        if action is RequestedAction.CANCEL and row.state == JobState.QUEUED:
            self._move(session, row, JobState.CANCELLED, message="cancelled before it started")
        elif row.requested not in (action, RequestedAction.CANCEL):  # a cancel is not taken back
            row.requested = action
            self._append(session, row.id, [NewEvent(kind="request", message=f"{action} requested")])

    def _move(
        self, session: Session, row: JobRow, new: JobState, *, message: str | None = None, error: JobError | None = None
    ) -> None:
        states.check_transition(row.id, JobState(row.state), new)
        now = self._clock()
        row.state, row.attempt = new, states.attempt_after(row.attempt, new)
        row.finished_at = now if new.terminal else None
        row.started_at = row.started_at or (now if new is JobState.VALIDATING else None)
        row.error_code, row.error_message, row.error_param = (
            (error.code, mask(error.message), error.param) if error else (None, None, None)
        )
        row.running_since = row.running_from = None  # its speed is measured anew once it runs
        if new.terminal:
            row.requested = None
        data: dict[str, Any] = {"state": new, "attempt": row.attempt} | ({"error": error.model_dump()} if error else {})
        text = message or (error.message if error else new)
        self._append(session, row.id, [NewEvent(kind="state", message=text, data=data)])

    def _job(self, row: JobRow) -> JobRecord:
        return JobRecord.model_validate({**self._values(row), "spec": row.spec})

    def _summary(self, row: JobRow) -> JobSummary:
        return JobSummary.model_validate(self._values(row))

    def _values(self, row: JobRow) -> dict[str, Any]:
        error = None
        if row.error_code is not None:
            error = JobError(code=row.error_code, message=row.error_message or "", param=row.error_param)
        same = ("id", "name", "home", "created_at", "started_at", "finished_at", "attempt", "restarts", "priority")
        more = ("state", "runner", "requested", "progress", "stage", "current_version", "best_version")
        values = {name: getattr(row, name) for name in same + more}
        finish = estimated_finish(row.progress, row.running_since, row.running_from, self._clock())
        return {**values, "metadata": row.labels, "error": error, "estimated_finish_at": finish}
