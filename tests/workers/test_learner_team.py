"""Ranks at the same work: which one was to blame when it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from learner.errors import InputError
from learner.ranks import RankLost
from workers import learner_team
from workers.errors import CallTimeout, WorkerDied, WorkerUnavailable
from workers.learner_team import together


async def found(result: Any, seconds: float = 0) -> Any:
    await asyncio.sleep(seconds)
    if isinstance(result, BaseException):
        raise result
    return result


LOST = RankLost("learner rank 0 of 3 lost another rank")


async def test_rank_0s_result_is_given_once_all_are_done() -> None:
    done: list[str] = []

    async def other() -> None:
        await asyncio.sleep(0.02)
        done.append("other")

    assert await together(found(7), {"job-learner-1": other()}) == 7
    assert done == ["other"]
    assert await together(found(8), {}) == 8


@pytest.mark.parametrize(
    ("own", "others", "kind", "message"),
    [
        (LOST, [LOST, WorkerDied("killed")], WorkerDied, r"learner rank 2 of 3 \(job-learner-2\) died: killed"),
        (LOST, [InputError("group 7: a fault"), LOST], InputError, "^group 7: a fault$"),
        (ValueError("not finite"), [LOST, LOST], ValueError, "^not finite$"),
        (LOST, [WorkerUnavailable("no worker"), LOST], WorkerUnavailable, r"rank 1 of 3 \(job-learner-1\) cannot be"),
        (None, [None, CallTimeout("no answer")], WorkerUnavailable, r"rank 2 of 3 \(job-learner-2\) cannot be reached"),
        (LOST, [LOST, LOST], WorkerUnavailable, "^learner rank 0 of 3 lost another rank$"),
    ],
)
async def test_the_rank_to_blame_is_named_whoever_told_first(
    own: Any, others: list[Any], kind: type[Exception], message: str
) -> None:
    for delays in ((0, 0.01, 0.02), (0.02, 0.01, 0)):
        calls: dict[str, Awaitable[Any]] = {
            f"job-learner-{number}": found(other, delay)
            for number, (other, delay) in enumerate(zip(others, delays[1:], strict=True), 1)
        }
        with pytest.raises(kind, match=message):
            await together(found(own, delays[0]), calls)


async def test_a_rank_that_stays_silent_after_the_others_failed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner_team, "AFTERMATH_SECONDS", 0.05)
    with pytest.raises(WorkerUnavailable, match=r"rank 2 of 3 \(b\) cannot be reached: it was silent for 0.05 s"):
        await together(found(LOST), {"a": found(LOST), "b": found(None, 60)})
