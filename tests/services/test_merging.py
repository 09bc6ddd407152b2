"""How old points of a series are merged."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.jobs.merging import Point, merge_older

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def points(values: list[float | None], versions: list[int] | None = None) -> list[Point]:
    """A series of single points."""
    return [
        Point(place, (versions or [0] * len(values))[place], place, BEGAN + timedelta(seconds=place), value)
        for place, value in enumerate(values)
    ]


numbers = st.one_of(st.none(), st.floats(-1e300, 1e300))


@given(st.lists(st.tuples(numbers, st.integers(0, 3)), max_size=200), st.integers(0, 20), st.integers(1, 10))
def test_nothing_is_lost_or_invented(series: list[tuple[float | None, int]], newest: int, older: int) -> None:
    versions = sorted(version for _, version in series)
    before = points([value for value, _ in series], versions)
    after = merge_older(before, newest, older)
    assert sum(point.points for point in after) == len(before)
    assert after[len(after) - min(newest, len(after)) :] == before[len(before) - min(newest, len(before)) :]
    assert [point.number for point in after] == sorted({point.number for point in after})
    start = 0
    for row in after:
        part = before[start : start + row.points]
        start += row.points
        assert {point.version for point in part} == {row.version}
        assert (part[-1].number, part[-1].learner_step, part[-1].time) == (row.number, row.learner_step, row.time)
        known = [point.value for point in part if point.value is not None]
        if not known:
            assert row.value is None
            continue
        assert len(known) == len(part) and row.value is not None
        low, high = (row.value, row.value) if row.low is None or row.high is None else (row.low, row.high)
        assert (low, high) == (min(known), max(known)) and low <= row.value <= high


@given(st.integers(1, 400), st.integers(1, 7), st.integers(1, 5))
def test_a_series_stays_bounded_however_often_it_is_merged(arrivals: int, batch: int, older: int) -> None:
    kept: list[Point] = []
    for number in range(arrivals):
        kept.append(Point(number, 0, number, BEGAN, float(number)))
        if number % batch == 0:
            kept = merge_older(kept, 3, older)
    kept = merge_older(kept, 3, older)
    assert len(kept) <= 3 + 2 * older + 1
    assert sum(point.points for point in kept) == arrivals
    # the mean over everything survives every order of merging
    total = sum(point.points * (point.value or 0.0) for point in kept)
    assert total == pytest.approx(arrivals * (arrivals - 1) / 2)


def test_what_a_version_has_once_stays_for_ever() -> None:
    series = points([0.5 + place / 1000 for place in range(300)], list(range(300)))
    assert merge_older(series, 10, 5) == series


def test_old_points_have_the_same_resolution_everywhere() -> None:
    after = merge_older(points([float(place) for place in range(1000)]), 100, 50)
    assert {point.points for point in after[:-101]} == {32}
    assert (after[0].value, after[0].low, after[0].high) == (15.5, 0.0, 31.0)
