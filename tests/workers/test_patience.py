"""What stands in line is not late; what nobody works on is."""

from __future__ import annotations

import asyncio

import pytest

from workers.patience import Patience


async def test_work_that_waits_behind_other_work_is_not_late() -> None:
    now = [0.0]
    patience, turn = Patience(10, "tests.patience", clock=lambda: now[0]), asyncio.Lock()

    async def work(number: int) -> int:
        async with turn:
            await asyncio.sleep(0)
            now[0] += 4
        return number

    assert await asyncio.gather(*(patience.wait(work(number)) for number in range(20))) == list(range(20))


async def test_work_is_late_once_nothing_gets_done() -> None:
    patience, cancelled = Patience(0.05, "tests.patience"), list[int]()

    async def work(number: int) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(number)
            raise

    found = await asyncio.gather(*(patience.wait(work(number)) for number in range(3)), return_exceptions=True)
    assert [str(error) for error in found if isinstance(error, TimeoutError)] == [
        "nothing was finished within 0.05 s (tests.patience)"
    ] * 3
    assert sorted(cancelled) == [0, 1, 2], "nothing runs on"


async def test_a_failure_is_told_and_is_no_progress() -> None:
    now = [0.0]
    patience = Patience(10, "tests.patience", clock=lambda: now[0])

    async def fail() -> None:
        now[0] = 8.0
        raise ValueError("no")

    async def hang() -> None:
        await asyncio.Event().wait()

    waiting = asyncio.create_task(patience.wait(hang()))
    await asyncio.sleep(0)
    with pytest.raises(ValueError, match="no"):
        await patience.wait(fail())
    assert patience._finished_at == 0.0
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
