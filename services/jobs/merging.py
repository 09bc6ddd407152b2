"""How long series of metrics are kept small: old points that follow each other become one. Pure: no store, no clock.

The newest points stay as they are. Of the others, neighbours of one version are merged into their mean, lowest and highest, each of about
as many points as the others, so that a series has the same resolution everywhere. Neighbours of different versions are never merged: what
a version has only once, like its win rate, stays for ever, and going back to a version drops whole rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

NEWEST = 500
"""Points of a series that are never merged, the newest ones."""

OLDER = 500
"""About as many rows are left of all others: at most two times as many, and one more for each version."""


@dataclass(frozen=True)
class Point:
    """One row of a series. ``number`` orders rows; ``low`` and ``high`` are absent where they are the value itself."""

    number: int
    version: int | None
    learner_step: int | None
    time: datetime
    value: float | None
    points: int = 1
    low: float | None = None
    high: float | None = None


def merge_older(series: Sequence[Point], newest: int = NEWEST, older: int = OLDER) -> list[Point]:
    """A whole series, oldest first, with all but its newest points merged. What has been merged before is merged further when needed.

    A merged row has the number, step and time of the last point in it.
    """
    cut = max(0, len(series) - newest)
    total = sum(point.points for point in series[:cut])
    # a power of two, so that rows of one merging are whole parts of those of the next
    most = 1 << max(0, (total - 1) // older).bit_length()
    return [*_merged(series[:cut], most), *series[cut:]]


def _merged(series: Sequence[Point], most: int) -> Iterator[Point]:
    """Neighbours that belong together, each row of at most so many points."""
    held: Point | None = None
    for point in series:
        if held is None:
            held = point
        elif _belong_together(held, point) and held.points + point.points <= most:
            held = _one(held, point)
        else:
            yield held
            held = point
    if held is not None:
        yield held


def _belong_together(first: Point, second: Point) -> bool:
    # what was not a finite number has no mean with others
    return first.version == second.version and (first.value is None) == (second.value is None)


def _one(first: Point, second: Point) -> Point:
    points = first.points + second.points
    if first.value is None or second.value is None:
        return replace(second, points=points)
    mean = first.value + (second.value - first.value) * (second.points / points)
    lows = [point.value if point.low is None else point.low for point in (first, second)]
    highs = [point.value if point.high is None else point.high for point in (first, second)]
    low, high = min(each for each in lows if each is not None), max(each for each in highs if each is not None)
    # rounding must not put the mean outside; differences of huge values may not be finite
    return replace(second, points=points, value=min(max(mean, low), high), low=low, high=high)
