"""What happened in a job: its append-only events and its published versions.

What is acknowledged is on disk (rule 11), and writing the same thing twice changes nothing (rule 10).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from learner.records import Module
from services.jobs.metrics import MetricStore
from services.jobs.records import JobEvent, NewEvent, VersionRecord
from services.jobs.rows import job_row
from services.jobs.tables import EventRow, VersionRow
from services.secrets import mask_json


class History(MetricStore):
    """Events and versions of jobs, beside their metrics. Every method is one transaction."""

    # --- events

    def append_event(self, job_id: str, kind: str, message: str, data: Mapping[str, Any] | None = None) -> JobEvent:
        """Write one event. It is on disk when this returns."""
        return self.append_events(job_id, [NewEvent(kind=kind, message=message, data=dict(data or {}))])[0]

    def append_events(self, job_id: str, events: Sequence[NewEvent]) -> list[JobEvent]:
        """Write several events in one transaction, in order."""
        with self._write() as session:
            job_row(session, job_id, for_update=True)
            return self._append(session, job_id, events)

    def events_after(self, job_id: str, seq: int = 0, limit: int = 500) -> list[JobEvent]:
        """The events that follow number ``seq``, oldest first.

        Raises:
            UnknownJob: there is none of that id.
        """
        query = (
            select(EventRow).where(EventRow.job_id == job_id, EventRow.seq > seq).order_by(EventRow.seq).limit(limit)
        )
        with self._read() as session:
            job_row(session, job_id)
            return [_event(row) for row in session.scalars(query)]

    # --- versions

    def add_version(
        self,
        job_id: str,
        version: int,
        *,
        digest: str,
        learner_step: int,
        module: Module = "fast",
        metrics: Mapping[str, float] | None = None,
    ) -> VersionRecord:
        """Write that a version was published, and make it the job's current one. Doing it again changes nothing.

        Raises:
            ValueError: the version was published with another digest; versions are never overwritten (rule 5).
        """
        with self._write() as session:
            job = job_row(session, job_id, for_update=True)
            row = session.get(VersionRow, (job_id, module, version))
            if row is not None and row.digest != digest:
                raise ValueError(
                    f"{job_id}/{module}/v{version} has digest {row.digest}, and cannot be published again as {digest}"
                )
            if row is None:
                row = VersionRow(
                    job_id=job_id,
                    module=module,
                    version=version,
                    digest=digest,
                    learner_step=learner_step,
                    created_at=self._clock(),
                    metrics=_finite(metrics or {}),
                    best=False,
                )
                session.add(row)
                job.restarts = 0  # which bounds deaths without progress: a long job outlives many a planned restart
            job.current_version = max(version, job.current_version or 0)
            return _version(row)

    def set_version_metrics(
        self, job_id: str, version: int, metrics: Mapping[str, float], module: Module = "fast"
    ) -> None:
        """Add what an evaluation said about a version that is already there.

        Raises:
            ValueError: there is no such version.
        """
        with self._write() as session:
            row = _version_row(session, job_id, module, version, for_update=True)
            row.metrics = {**row.metrics, **_finite(metrics)}

    def mark_best(self, job_id: str, version: int, module: Module = "fast") -> None:
        """Make a version the job's best one, in place of any other.

        Raises:
            ValueError: there is no such version.
        """
        with self._write() as session:
            job = job_row(session, job_id, for_update=True)
            row = _version_row(session, job_id, module, version)
            session.execute(
                update(VersionRow).where(VersionRow.job_id == job_id, VersionRow.module == module).values(best=False)
            )
            row.best = True
            job.best_version = version

    def versions(self, job_id: str) -> list[VersionRecord]:
        """The job's versions, oldest first."""
        query = select(VersionRow).where(VersionRow.job_id == job_id).order_by(VersionRow.version, VersionRow.module)
        with self._read() as session:
            job_row(session, job_id)
            return [_version(row) for row in session.scalars(query)]

    def _append(self, session: Session, job_id: str, events: Sequence[NewEvent]) -> list[JobEvent]:
        return append(session, job_id, events, self._clock())


def _version_row(
    session: Session, job_id: str, module: Module, version: int, *, for_update: bool = False
) -> VersionRow:
    row = session.get(VersionRow, (job_id, module, version), with_for_update=for_update)
    if row is None:
        raise ValueError(f"{job_id}/{module}/v{version} was not published")
    return row


def append(session: Session, job_id: str, events: Sequence[NewEvent], now: datetime) -> list[JobEvent]:
    """Number events and add them, within a transaction that writes."""
    last = session.scalar(select(func.max(EventRow.seq)).where(EventRow.job_id == job_id)) or 0
    rows = [
        EventRow(job_id=job_id, seq=last + place, time=now, **mask_json(_finite_json(new.model_dump(mode="json"))))
        for place, new in enumerate(events, start=1)
    ]
    session.add_all(rows)
    return [_event(row) for row in rows]


def _finite_json(value: Any) -> Any:
    """The same with null for NaN and the infinities, which JSON does not know and PostgreSQL refuses."""
    if isinstance(value, dict):
        return {key: _finite_json(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite_json(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}


def _event(row: EventRow) -> JobEvent:
    return JobEvent(job_id=row.job_id, seq=row.seq, time=row.time, kind=row.kind, message=row.message, data=row.data)


def _version(row: VersionRow) -> VersionRecord:
    names = ("job_id", "module", "version", "digest", "learner_step", "created_at", "metrics", "best")
    return VersionRecord.model_validate({name: getattr(row, name) for name in names})
