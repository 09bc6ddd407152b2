"""The learner's calls follow each other, also where a caller gave one up."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from workers.learner import in_turn


async def test_a_call_waits_for_the_one_that_is_still_at_work() -> None:
    events: list[str] = []
    go = asyncio.Event()

    async def publish(worker: Any, version: int) -> int:
        events.append("publishing")
        await go.wait()
        events.append("committed")
        return version

    async def go_back(worker: Any) -> None:
        events.append("going back")

    worker: Any = SimpleNamespace(turn=asyncio.Lock())
    publishing = asyncio.create_task(in_turn(publish)(worker, 4))
    await asyncio.sleep(0)
    going = asyncio.create_task(in_turn(go_back)(worker))
    await asyncio.sleep(0.01)
    assert events == ["publishing"]
    go.set()
    await going
    assert await publishing == 4 and events == ["publishing", "committed", "going back"]
