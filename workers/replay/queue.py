"""The replay queue: the ledger with waiting. Producers wait at the bound, the learner waits for a whole batch (rules 3 and 9).

Everything happens on one event loop, and the ledger is called there directly: its transactions take milliseconds, and what cannot be
interrupted half way cannot lose a group. Groups that arrive while one is being written share the next transaction.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from learner.errors import InputError
from learner.records import AnswerSource, GroupState, ScoredGroup, SkipReason, Stage, Ticket
from workers.replay.ledger import ReplayLedger
from workers.replay.rows import GroupRow, LedgerCounts, LedgerError, PutResult, policy_version

PUT_SETTING = "resources.queue.put_timeout_seconds"


@dataclass
class _Arrival:
    group: ScoredGroup
    skip: SkipReason | None
    sampled_at: float | None
    result: asyncio.Future[PutResult]


class _Signal:
    """Something that happens again and again. ``count`` says how often; a wait names the count it has seen, so nothing is missed."""

    def __init__(self) -> None:
        self.count = 0
        self._next = asyncio.Event()

    def happened(self) -> None:
        self.count += 1
        self._next.set()
        self._next = asyncio.Event()

    async def change(self, seen: int, seconds: float) -> None:
        """Wait until it has happened since ``seen``, at most so long."""
        if self.count != seen:
            return
        try:
            await asyncio.wait_for(self._next.wait(), seconds)
        except TimeoutError:
            return


class ReplayQueue:
    """A ledger that is waited on. Use it from one event loop.

    Args:
        ledger: what it keeps its groups in.
        put_timeout_seconds: longest wait of a producer at the bound.
        clock: monotonic seconds.
    """

    def __init__(
        self, ledger: ReplayLedger, put_timeout_seconds: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.ledger = ledger
        self._put_timeout_seconds = put_timeout_seconds
        self._clock = clock
        self._arrivals: list[_Arrival] = []
        self._arrived = _Signal()
        self._room = _Signal()
        self._releases = 0
        self._waits_total = 0
        self._wait_seconds_total = 0.0
        self._waiting = 0
        self._staleness: list[int] = []
        self._staleness_version = -1

    async def admit(self, tickets: Sequence[Ticket]) -> int:
        """See :meth:`ReplayLedger.admit`."""
        return self.ledger.admit(tickets)

    async def put(
        self, group: ScoredGroup, skip: SkipReason | None = None, sampled_at: float | None = None
    ) -> PutResult:
        """Store a group, waiting while the queue is full. Returns when it is on disk; never ``FULL``.

        ``sampled_at``: when its answers were complete, in seconds since the epoch.

        Raises:
            TimeoutError: the queue was full for longer than ``resources.queue.put_timeout_seconds``.
            InputError: the group alone is larger than ``resources.queue.max_bytes``.
            LedgerError: the group was never admitted.
        """
        seen = self._room.count
        result = await self._arrive(group, skip, sampled_at)
        if result is not PutResult.FULL:
            return result
        began = self._clock()
        self._waits_total += 1
        self._waiting += 1
        try:
            while result is PutResult.FULL:
                left = began + self._put_timeout_seconds - self._clock()
                if left <= 0:
                    groups, size = self.ledger.held()
                    raise TimeoutError(
                        f"{group.group_id} waited {self._put_timeout_seconds:g} s for room in the replay queue, which holds {groups} of "
                        f"{self.ledger.max_groups} groups and {size} of {self.ledger.max_bytes} bytes; raise {PUT_SETTING} if the "
                        "learner is only slow, or resources.queue.max_groups or max_bytes"
                    )
                await self._room.change(seen, left)
                seen = self._room.count
                result = await self._arrive(group, skip, sampled_at)
        finally:
            self._waiting -= 1
            self._wait_seconds_total += self._clock() - began
        return result

    async def lease(
        self,
        *,
        count: int,
        newest_version: int,
        max_staleness: int,
        pass_number: int = 0,
        round: int | None = None,
        minimum: int | None = None,
        wait_seconds: float = 0.0,
        setting: str | None = None,
    ) -> list[ScoredGroup]:
        """Hand out a batch as :meth:`ReplayLedger.lease` does, waiting for it up to ``wait_seconds``.

        A wait ends empty-handed when leases are released meanwhile: whoever asked belongs to the time before.

        Raises:
            TimeoutError: ``setting`` is given, which sets ``wait_seconds``, and there was no batch in time. Without it: an empty list.
        """
        limit, releases = self._clock() + wait_seconds, self._releases
        while True:
            seen, held = self._arrived.count, self.ledger.held()
            groups = self.ledger.lease(
                count=count,
                newest_version=newest_version,
                max_staleness=max_staleness,
                pass_number=pass_number,
                round=round,
                minimum=minimum,
            )
            if self.ledger.held() != held:  # some expired, so that there is room
                self._room.happened()
            if groups:
                self._note_staleness(groups, newest_version, pass_number)
                return groups
            left = limit - self._clock()
            if left <= 0:
                break
            await self._arrived.change(seen, left)
            if self._releases != releases:
                return []
        if setting is None:
            return []
        counts = self.ledger.counts()
        raise TimeoutError(
            f"no batch of {count if minimum is None else minimum} groups within {wait_seconds:g} s: {counts.ready} are ready, "
            f"{counts.granted} being written; raise {setting} if sampling is only slow"
        )

    async def commit(self, version: int, learner_step: int, *, groups: int | None = None) -> int:
        """See :meth:`ReplayLedger.commit`."""
        consumed = self.ledger.commit(version, learner_step, groups=groups)
        self._room.happened()
        return consumed

    async def release(self) -> int:
        """See :meth:`ReplayLedger.release`. Leases that are being waited for end empty-handed."""
        self._releases += 1
        released = self.ledger.release()
        self._arrived.happened()
        return released

    async def fail(self, group_id: str, stage: Stage, reason: str) -> bool:
        """See :meth:`ReplayLedger.fail`."""
        return self.ledger.fail(group_id, stage, reason)

    async def committed_version(self) -> int | None:
        """The newest committed version; None before the first."""
        return self.ledger.committed_version()

    async def granted(self) -> list[Ticket]:
        """Tickets whose groups have not arrived."""
        return self.ledger.granted()

    async def counts(self) -> LedgerCounts:
        """The whole job's account, from rows."""
        return self.ledger.counts()

    async def round_counts(self, round: int, last: int | None = None) -> LedgerCounts:
        """One round's account, from rows."""
        return self.ledger.round_counts(round, last)

    async def source_counts(self, source: AnswerSource) -> LedgerCounts:
        """The account of one source's groups, from rows."""
        return self.ledger.source_counts(source)

    async def produced(self, version: int, source: AnswerSource) -> int:
        """See :meth:`LedgerView.produced`."""
        return self.ledger.produced(version, source)

    async def known(self, group_ids: Sequence[str]) -> list[str]:
        """See :meth:`LedgerView.known`."""
        return self.ledger.known(group_ids)

    async def groups(
        self,
        *,
        state: GroupState | None = None,
        version: int | None = None,
        round: int | None = None,
        produced_version: int | None = None,
        limit: int,
        after: tuple[int, int] | None = None,
    ) -> list[GroupRow]:
        """See :meth:`LedgerView.groups`."""
        return self.ledger.groups(
            state=state, version=version, round=round, produced_version=produced_version, limit=limit, after=after
        )

    async def metrics(self) -> dict[str, float]:
        """What the queue holds, how long producers waited, and how stale the groups leased for the newest version were."""
        counts = self.ledger.counts()
        staleness = self._staleness or [0]
        return {
            "queue_ready_groups": float(counts.ready),
            "queue_leased_groups": float(counts.leased),
            "queue_granted_groups": float(counts.granted),
            "queue_bytes": float(self.ledger.held()[1]),
            "queue_waiting_producers": float(self._waiting),
            "queue_waits_total": float(self._waits_total),
            "queue_wait_seconds_total": self._wait_seconds_total,
            "queue_duplicates_total": float(counts.duplicates),
            "staleness_mean": sum(staleness) / len(staleness),
            "staleness_max": float(max(staleness)),
        }

    async def _arrive(self, group: ScoredGroup, skip: SkipReason | None, sampled_at: float | None) -> PutResult:
        arrival = _Arrival(group, skip, sampled_at, asyncio.get_running_loop().create_future())
        self._arrivals.append(arrival)
        if len(self._arrivals) == 1:
            asyncio.get_running_loop().call_soon(self._store)
        return await arrival.result

    def _store(self) -> None:
        """Write down everything that has arrived, in one transaction."""
        arrivals, self._arrivals = self._arrivals, []
        try:
            results = self.ledger.put_many(
                [(arrival.group, arrival.skip) for arrival in arrivals],
                {arrival.group.group_id: arrival.sampled_at for arrival in arrivals},
            )
        except (InputError, LedgerError):
            # one of them is at fault, and nothing was stored: each for itself finds out which
            self._store_singly(arrivals)
            self._arrived.happened()
        except Exception as error:  # such as a full disk: every producer must hear of it
            for arrival in arrivals:
                _settle(arrival, error)
        else:
            for arrival, result in zip(arrivals, results, strict=True):
                _settle(arrival, result)
            if PutResult.STORED in results:
                self._arrived.happened()

    def _store_singly(self, arrivals: Sequence[_Arrival]) -> None:
        for arrival in arrivals:
            try:
                _settle(arrival, self.ledger.put(arrival.group, arrival.skip, arrival.sampled_at))
            except Exception as error:  # handed to the producer whose group it is
                _settle(arrival, error)

    def _note_staleness(self, groups: Sequence[ScoredGroup], newest_version: int, pass_number: int) -> None:
        if pass_number > 0:
            return
        if newest_version != self._staleness_version:
            self._staleness_version, self._staleness = newest_version, []
        versions = [policy_version(group) for group in groups]
        self._staleness += [newest_version - version for version in versions if version is not None]


def _settle(arrival: _Arrival, outcome: PutResult | Exception) -> None:
    if arrival.result.done():  # the producer has gone; its group is in the ledger all the same
        return
    if isinstance(outcome, Exception):
        arrival.result.set_exception(outcome)
    else:
        arrival.result.set_result(outcome)
