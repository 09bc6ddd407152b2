"""Metrics of jobs, in the job store: on disk before they are acknowledged (rule 11), and kept small however long a job runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row, bindparam, delete, func, insert, literal, or_, select, update
from sqlalchemy.orm import Session

from services.jobs.database import Database
from services.jobs.merging import NEWEST, OLDER, Point, merge_older
from services.jobs.records import MetricPoint
from services.jobs.rows import job_row
from services.jobs.tables import MetricRow

LONG = NEWEST + OLDER
"""Rows above which a series is merged."""

MERGE_EVERY = 250
"""Writes of a job's metrics between two mergings."""


_SAID = ("value", "version", "learner_step", "time", "points", "low", "high")
_POINT = (MetricRow.number, MetricRow.name, *(getattr(MetricRow, name) for name in _SAID))
"""What is read of a row: columns, since whole objects take several times as long and there are many."""


def _now() -> datetime:
    return datetime.now(UTC)


class MetricStore(Database):
    """Metrics of jobs. Every method is one transaction.

    Args:
        url: an SQLAlchemy database URL.
        clock: gives the time, with its zone.
    """

    def __init__(self, url: str, clock: Callable[[], datetime] = _now) -> None:
        super().__init__(url)
        self._clock = clock
        self._written: Counter[str] = Counter()

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
        if not rows:
            return
        with self._write() as session:
            session.execute(insert(MetricRow), rows)
        self._written[job_id] += 1
        if self._written[job_id] % MERGE_EVERY == 0:
            self.merge_metrics(job_id)

    def merge_metrics(self, job_id: str) -> None:
        """Merge the old points of a job's long series; see :mod:`services.jobs.merging`. `add_metrics` does it now and then.

        Raises:
            UnknownJob: there is none of that id.
        """
        count = func.count()
        long = select(MetricRow.name).where(MetricRow.job_id == job_id).group_by(MetricRow.name).having(count > LONG)
        with self._write() as session:
            job_row(session, job_id, for_update=True)  # one merging at a time
            for name in session.scalars(long).all():
                _merge(session, job_id, name)

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
            select(*_POINT)
            .join(ranked, ranked.c.number == MetricRow.number)
            .where(or_(ranked.c.count <= max_points, ranked.c.place % stride == 0))
            .order_by(MetricRow.number)
        )
        result: dict[str, list[MetricPoint]] = {}
        with self._read() as session:
            job_row(session, job_id)
            for row in session.execute(query):
                result.setdefault(row.name, []).append(_point(row))
        return result

    def metrics_mark(self) -> int:
        """The number of the newest point of all jobs, to ask after for what follows; 0 before the first."""
        with self._read() as session:
            return session.scalar(select(func.max(MetricRow.number))) or 0

    def metrics_after(self, job_id: str, number: int, limit: int = 5000) -> tuple[dict[str, list[MetricPoint]], int]:
        """A job's points that follow a number, oldest first and at most ``limit``, by name; and the number to ask after next time."""
        query = (
            select(*_POINT)
            .where(MetricRow.job_id == job_id, MetricRow.number > number)
            .order_by(MetricRow.number)
            .limit(limit)
        )
        result: dict[str, list[MetricPoint]] = {}
        with self._read() as session:
            for row in session.execute(query):
                result.setdefault(row.name, []).append(_point(row))
                number = row.number
        return result, number

    def newest_metrics(self, job_id: str) -> dict[str, MetricPoint]:
        """The newest point of every metric.

        Raises:
            UnknownJob: there is none of that id.
        """
        newest = select(func.max(MetricRow.number)).where(MetricRow.job_id == job_id).group_by(MetricRow.name)
        with self._read() as session:
            job_row(session, job_id)
            rows = session.execute(select(*_POINT).where(MetricRow.number.in_(newest)).order_by(MetricRow.number))
            return {row.name: _point(row) for row in rows}

    def rewind(self, job_id: str, *, learner_step: int) -> None:
        """On a restart from a version: drop the metrics of later optimizer steps, which will be made again."""
        with self._write() as session:
            session.execute(delete(MetricRow).where(MetricRow.job_id == job_id, MetricRow.learner_step > learner_step))


def _merge(session: Session, job_id: str, name: str) -> None:
    """Write one series again, merged."""
    query = select(
        MetricRow.number,
        MetricRow.version,
        MetricRow.learner_step,
        MetricRow.time,
        MetricRow.value,
        MetricRow.points,
        MetricRow.low,
        MetricRow.high,
    ).where(MetricRow.job_id == job_id, MetricRow.name == name)
    before = {row.number: Point(*row) for row in session.execute(query.order_by(MetricRow.number))}
    after = merge_older(list(before.values()))
    changed = [point for point in after if point != before[point.number]]
    gone = before.keys() - {point.number for point in after}
    rows = session.connection()
    if changed:
        table = MetricRow.__table__
        new: dict[str, Any] = {column: bindparam(f"new_{column}") for column in ("value", "points", "low", "high")}
        values = [
            {
                "row": each.number,
                "new_value": each.value,
                "new_points": each.points,
                "new_low": each.low,
                "new_high": each.high,
            }
            for each in changed
        ]
        rows.execute(update(table).where(table.c.number == bindparam("row")).values(new), values)  # type: ignore[arg-type]
    if gone:
        table = MetricRow.__table__
        rows.execute(delete(table).where(table.c.number == bindparam("row")), [{"row": number} for number in gone])  # type: ignore[arg-type]


def _point(row: Row[Any]) -> MetricPoint:
    return MetricPoint.model_validate(dict(zip(_SAID, row[2:], strict=True)))
