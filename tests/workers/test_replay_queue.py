"""Waiting at the bound and for a batch."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from replay_samples import group, ticket

from learner.errors import InputError
from learner.records import SkipReason
from workers.replay.ledger import ReplayLedger
from workers.replay.queue import ReplayQueue
from workers.replay.rows import LedgerError, PutResult


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[ReplayLedger]:
    with ReplayLedger(tmp_path / "replay.sqlite", 4, 1 << 20) as opened:
        yield opened


def lease(queue: ReplayQueue, count: int, **options: Any) -> Any:
    return queue.lease(count=count, **{"newest_version": 0, "max_staleness": 0, **options})


async def test_producers_wait_at_the_bound_and_go_on_when_there_is_room(ledger: ReplayLedger) -> None:
    now = [0.0]
    queue = ReplayQueue(ledger, put_timeout_seconds=30, clock=lambda: now[0])
    await queue.admit([ticket(i) for i in range(8)])
    producers = [asyncio.create_task(queue.put(group(ticket(i)))) for i in range(8)]
    async with asyncio.timeout(30):
        while (await queue.metrics())["queue_waiting_producers"] < 4:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    assert sum(task.done() for task in producers) == 4 and ledger.held()[0] == 4
    now[0] += 0.1
    for version in (1, 2):
        batch = await lease(queue, 4, wait_seconds=10)
        assert len(batch) == 4
        await queue.commit(version, version, groups=4)
    assert {await task for task in producers} == {PutResult.STORED}
    metrics = await queue.metrics()
    assert metrics["queue_waits_total"] == 4 and metrics["queue_wait_seconds_total"] == pytest.approx(0.4)
    assert metrics["queue_waiting_producers"] == 0 and (await queue.counts()).consumed == 8


async def test_expiry_makes_room(ledger: ReplayLedger) -> None:
    queue = ReplayQueue(ledger, put_timeout_seconds=30)
    await queue.admit([ticket(i, version=i // 4 * 5) for i in range(5)])
    for i in range(4):
        await queue.put(group(ticket(i)))
    producer = asyncio.create_task(queue.put(group(ticket(4, version=5))))
    await asyncio.sleep(0.05)
    batch = await lease(queue, 1, newest_version=5, max_staleness=1, wait_seconds=10)
    assert [one.index for one in batch] == [4] and await producer is PutResult.STORED
    assert (await queue.metrics())["staleness_max"] == 0


async def test_a_producer_that_waited_too_long_is_told_which_setting_to_change(ledger: ReplayLedger) -> None:
    queue = ReplayQueue(ledger, put_timeout_seconds=0.1)
    await queue.admit([ticket(i) for i in range(5)])
    for i in range(4):
        await queue.put(group(ticket(i)))
    with pytest.raises(TimeoutError, match=r"4 of 4 groups.*resources\.queue\.put_timeout_seconds"):
        await queue.put(group(ticket(4)))
    assert (await queue.counts()).granted == 1 and (await queue.metrics())["queue_wait_seconds_total"] > 0.05


async def test_the_learner_waits_for_a_whole_batch(ledger: ReplayLedger) -> None:
    queue = ReplayQueue(ledger, put_timeout_seconds=1)
    await queue.admit([ticket(i) for i in range(3)])
    waiting = asyncio.create_task(lease(queue, 3, wait_seconds=10))
    for i in (2, 1, 0):
        assert not waiting.done()
        await queue.put(group(ticket(i)))
    assert [one.index for one in await waiting] == [0, 1, 2]
    assert await lease(queue, 1, wait_seconds=0.05) == []
    with pytest.raises(
        TimeoutError, match=r"no batch of 2 groups within 0\.05 s: 0 are ready, 0 being written; raise some\.setting"
    ):
        await lease(queue, 2, wait_seconds=0.05, setting="some.setting")


async def test_a_lease_that_is_waited_for_ends_empty_handed_when_leases_are_released(ledger: ReplayLedger) -> None:
    queue = ReplayQueue(ledger, put_timeout_seconds=1)
    await queue.admit([ticket(0)])
    orphan = asyncio.create_task(lease(queue, 1, wait_seconds=10))
    await asyncio.sleep(0.02)
    await queue.release()  # a restarted learner begins
    await queue.put(group(ticket(0)))
    assert await orphan == []
    assert len(await lease(queue, 1)) == 1


async def test_groups_that_arrive_together_share_a_transaction(
    ledger: ReplayLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    put_many = ledger.put_many
    monkeypatch.setattr(ledger, "put_many", lambda items, times: sizes.append(len(items)) or put_many(items, times))
    queue = ReplayQueue(ledger, put_timeout_seconds=1)
    await queue.admit([ticket(i) for i in range(4)])
    await asyncio.gather(*(queue.put(group(ticket(i)), SkipReason.TIE) for i in range(4)))
    assert sizes == [4]


async def test_one_bad_group_does_not_harm_those_that_arrive_with_it(ledger: ReplayLedger) -> None:
    ledger.max_bytes = 2000
    queue = ReplayQueue(ledger, put_timeout_seconds=1)
    await queue.admit([ticket(i) for i in range(3)])
    results = await asyncio.gather(
        queue.put(group(ticket(0))),
        queue.put(group(ticket(1), tokens=2000)),
        queue.put(group(ticket(9))),
        queue.put(group(ticket(2))),
        queue.put(group(ticket(0))),
        return_exceptions=True,
    )
    assert [results[0], results[3], results[4]] == [PutResult.STORED, PutResult.STORED, PutResult.DUPLICATE]
    assert isinstance(results[1], InputError) and isinstance(results[2], LedgerError)


async def test_staleness_is_that_of_the_groups_leased_for_the_newest_version(ledger: ReplayLedger) -> None:
    queue = ReplayQueue(ledger, put_timeout_seconds=1)
    await queue.admit([ticket(i) for i in range(4)])
    for i in range(4):
        await queue.put(group(ticket(i, version=i)))
    await lease(queue, 2, newest_version=1, max_staleness=9)
    assert (await queue.metrics())["staleness_mean"] == 0.5
    await queue.commit(4, 1)
    await lease(queue, 2, newest_version=4, max_staleness=9)
    assert (await queue.metrics())["staleness_mean"] == 1.5 and (await queue.metrics())["staleness_max"] == 2
