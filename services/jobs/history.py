"""What happened in a job: its append-only events, its metrics and its published versions.

What is acknowledged is on disk (rule 11), and writing the same thing twice changes nothing (rule 10).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, func, insert, literal, or_, select, update
from sqlalchemy.orm import Session

from learner.errors import InputError
from learner.records import Module
from services.jobs.database import Database
from services.jobs.records import JobEvent, MetricPoint, NewEvent, VersionRecord
from services.jobs.tables import EventRow, JobRow, MetricRow, VersionRow


class UnknownJob(InputError):
    """No job has this id."""


def _now() -> datetime:
    return datetime.now(UTC)


class History(Database):
    """Events, metrics and versions of jobs. Every method is one transaction.

    Args:
        url: an SQLAlchemy database URL.
        clock: gives the time, with its zone.
    """

    def __init__(self, url: str, clock: Callable[[], datetime] = _now) -> None:
        super().__init__(url)
        self._clock = clock

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

    # --- metrics

    def add_metrics(
        self, job_id: str, values: Mapping[str, float], *, version: int | None = None, learner_step: int | None = None
    ) -> None:
        """Write one value of each metric, in one transaction."""
        now = self._clock()
        rows = [
            {
                "job_id": job_id,
                "name": name,
                "value": float(value) if math.isfinite(value) else None,  # neither SQLite nor JSON keeps NaN
                "version": version,
                "learner_step": learner_step,
                "time": now,
            }
            for name, value in values.items()
        ]
        if rows:
            with self._write() as session:
                session.execute(insert(MetricRow), rows)

    def series(
        self, job_id: str, names: Sequence[str] | None = None, max_points: int = 500
    ) -> dict[str, list[MetricPoint]]:
        """Metrics over time, oldest first: every name or those asked for.

        A series longer than ``max_points`` is thinned evenly; its newest point is always there.
        """
        where = [MetricRow.job_id == job_id]
        if names is not None:
            where.append(MetricRow.name.in_(list(names)))
        place = func.row_number().over(partition_by=MetricRow.name, order_by=MetricRow.number.desc()) - 1
        count = func.count().over(partition_by=MetricRow.name)
        ranked = select(MetricRow.number, place.label("place"), count.label("count")).where(*where).subquery()
        stride = (ranked.c.count + literal(max_points - 1)) // literal(max_points)
        query = (
            select(MetricRow)
            .join(ranked, ranked.c.number == MetricRow.number)
            .where(or_(ranked.c.count <= max_points, ranked.c.place % stride == 0))
            .order_by(MetricRow.number)
        )
        result: dict[str, list[MetricPoint]] = {}
        with self._read() as session:
            job_row(session, job_id)
            for row in session.scalars(query):
                point = MetricPoint(value=row.value, version=row.version, learner_step=row.learner_step, time=row.time)
                result.setdefault(row.name, []).append(point)
        return result

    def metrics_mark(self) -> int:
        """The number of the newest point of all jobs, to ask after for what follows; 0 before the first."""
        with self._read() as session:
            return session.scalar(select(func.max(MetricRow.number))) or 0

    def metrics_after(self, job_id: str, number: int, limit: int = 5000) -> tuple[dict[str, list[MetricPoint]], int]:
        """A job's points that follow a number, oldest first and at most ``limit``, by name; and the number to ask after next time."""
        query = (
            select(MetricRow)
            .where(MetricRow.job_id == job_id, MetricRow.number > number)
            .order_by(MetricRow.number)
            .limit(limit)
        )
        result: dict[str, list[MetricPoint]] = {}
        with self._read() as session:
            for row in session.scalars(query):
                point = MetricPoint(value=row.value, version=row.version, learner_step=row.learner_step, time=row.time)
                result.setdefault(row.name, []).append(point)
                number = row.number
        return result, number

    def newest_metrics(self, job_id: str) -> dict[str, MetricPoint]:
        """The newest point of every metric."""
        return {name: points[-1] for name, points in self.series(job_id, max_points=1).items()}

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
            row = _version_row(session, job_id, module, version)
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

    def rewind(self, job_id: str, *, learner_step: int) -> None:
        """On a restart from a version: drop the metrics of later optimizer steps, which will be made again."""
        with self._write() as session:
            session.execute(delete(MetricRow).where(MetricRow.job_id == job_id, MetricRow.learner_step > learner_step))

    def _append(self, session: Session, job_id: str, events: Sequence[NewEvent]) -> list[JobEvent]:
        return append(session, job_id, events, self._clock())


def job_row(session: Session, job_id: str, *, for_update: bool = False) -> JobRow:
    """The row of a job.

    Raises:
        UnknownJob: there is none of that id.
    """
    query = select(JobRow).where(JobRow.id == job_id)
    row = session.scalars(query.with_for_update() if for_update else query).one_or_none()
    if row is None:
        raise UnknownJob(f"there is no job {job_id!r}; `sparring list` shows those that there are")
    return row


def _version_row(session: Session, job_id: str, module: Module, version: int) -> VersionRow:
    row = session.get(VersionRow, (job_id, module, version))
    if row is None:
        raise ValueError(f"{job_id}/{module}/v{version} was not published")
    return row


def append(session: Session, job_id: str, events: Sequence[NewEvent], now: datetime) -> list[JobEvent]:
    """Number events and add them, within a transaction that writes."""
    last = session.scalar(select(func.max(EventRow.seq)).where(EventRow.job_id == job_id)) or 0
    rows = [
        EventRow(job_id=job_id, seq=last + place, time=now, **new.model_dump(mode="json"))
        for place, new in enumerate(events, start=1)
    ]
    session.add_all(rows)
    return [_event(row) for row in rows]


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}


def _event(row: EventRow) -> JobEvent:
    return JobEvent(job_id=row.job_id, seq=row.seq, time=row.time, kind=row.kind, message=row.message, data=row.data)


def _version(row: VersionRow) -> VersionRecord:
    names = ("job_id", "module", "version", "digest", "learner_step", "created_at", "metrics", "best")
    return VersionRecord.model_validate({name: getattr(row, name) for name in names})
