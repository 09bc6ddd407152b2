"""The row of a job, which everything about the job begins with."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from learner.errors import InputError
from services.jobs.tables import JobRow


class UnknownJob(InputError):
    """No job has this id."""


def job_row(session: Session, job_id: str, *, for_update: bool = False) -> JobRow:
    """The row of a job.

    Args:
        for_update: lock it, so that of several transactions that go by it one waits for the other. SQLite's are one after another anyway.

    Raises:
        UnknownJob: there is none of that id.
    """
    query = select(JobRow).where(JobRow.id == job_id)
    row = session.scalars(query.with_for_update() if for_update else query).one_or_none()
    if row is None:
        raise UnknownJob(f"there is no job {job_id!r}; `sparring list` shows those that there are")
    return row
