"""Long series of metrics in the job store, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from job_world import running_job
from sqlalchemy import Float, cast, func, insert, literal, select

from services.jobs import metrics
from services.jobs.merging import NEWEST, OLDER
from services.jobs.store import JobStore
from services.jobs.tables import MetricRow

MOST_ROWS = NEWEST + 2 * OLDER + 1


@pytest.fixture
def store(database_url: str) -> Iterator[JobStore]:
    store = JobStore(database_url)
    yield store
    store.close()


def count_rows(store: JobStore, job_id: str) -> int:
    with store._read() as session:
        return session.scalar(select(func.count()).where(MetricRow.job_id == job_id)) or 0


def test_a_long_series_is_merged_as_it_grows(store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MERGE_EVERY", 20)
    monkeypatch.setattr(metrics, "LONG", 30)
    merge = metrics.merge_older
    monkeypatch.setattr(metrics, "merge_older", lambda series: merge(series, 10, 20))
    job_id = running_job(store, tmp_path)
    for step in range(200):
        values = {"loss": float(step), **({"win_rate": step / 200} if step % 10 == 0 else {})}
        store.add_metrics(job_id, values, version=step // 10, learner_step=step)
    series = store.series(job_id)
    assert [point.value for point in series["win_rate"]] == [step / 200 for step in range(0, 200, 10)]
    loss = series["loss"]
    assert sum(point.points for point in loss) == 200 and len(loss) < 80
    assert [point.learner_step for point in loss[-10:]] == list(range(190, 200))
    assert (loss[0].points, loss[0].value, loss[0].low, loss[0].high) == (10, 4.5, 0.0, 9.0)
    assert store.newest_metrics(job_id)["loss"].value == 199.0


def test_a_rewind_drops_whole_rows_of_what_came_later(store: JobStore, tmp_path: Path) -> None:
    job_id = running_job(store, tmp_path)
    now = datetime.now(UTC)
    with store._write() as session:
        session.execute(
            insert(MetricRow),
            [
                {
                    "job_id": job_id,
                    "name": "loss",
                    "value": 1.0,
                    "version": step // 1000,
                    "learner_step": step + 1,
                    "time": now,
                }
                for step in range(4000)
            ],
        )
    store.merge_metrics(job_id)
    store.rewind(job_id, learner_step=2000)  # where version 2 was published
    kept = store.series(job_id, max_points=10_000)["loss"]
    assert sum(point.points for point in kept) == 2000
    assert {point.version for point in kept} == {0, 1}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_million_points_are_kept_in_few_rows_and_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "sparring.sqlite"
    store = JobStore(f"sqlite:///{file}")
    job_id = running_job(store, tmp_path)
    now, chunk = datetime.now(UTC), 20_000
    for start in range(0, 1_000_000, chunk):
        steps = select(literal(start).label("step")).cte(
            recursive=True
        )  # rows that the database makes by itself: sooner than Python
        steps = steps.union_all(select(steps.c.step + 1).where(steps.c.step < start + chunk - 1))
        row = {
            "job_id": literal(job_id),
            "name": literal("loss"),
            "value": cast(steps.c.step, Float),
            "version": literal(0),
        }
        row |= {"learner_step": steps.c.step, "time": literal(now)}
        with store._write() as session:
            session.execute(insert(MetricRow).from_select(list(row), select(*row.values())))
        store.merge_metrics(job_id)
    assert count_rows(store, job_id) <= MOST_ROWS
    assert file.stat().st_size < 20e6
    loss = store.series(job_id, ["loss"], max_points=300)["loss"]
    assert len(loss) <= 300 and loss[-1].value == 999_999.0
    everything = store.series(job_id, max_points=MOST_ROWS)["loss"]
    assert sum(point.points for point in everything) == 1_000_000
    assert min(point.value if point.low is None else point.low for point in everything) == 0.0  # type: ignore[type-var]
    assert store.newest_metrics(job_id)["loss"].learner_step == 999_999
    store.close()
