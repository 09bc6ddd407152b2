"""The replay queue's Ray actor. It runs on the node that carries the data (rule 13).

Start it through ``workers.cluster.spawn`` with enough concurrency for every producer that may wait at the bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learner.records import AnswerSource, ScoredGroup, SkipReason, Stage, Ticket
from workers import logs, process_tree, reservations
from workers.config import QueueConfig
from workers.leased import LeasedWorker
from workers.replay.ledger import ReplayLedger
from workers.replay.queue import ReplayQueue
from workers.replay.rows import GroupRow, LedgerCounts


@dataclass(frozen=True)
class ReplaySetup:
    """What the queue needs to know.

    Attributes:
        reservation: room of the job's engines on the cluster (`workers.reservations.reserve`), given back when the lease lapses.
        database: the ledger's file.
        keep_samples: keep the content of groups that are done with.
    """

    name: str
    reservation: str
    logs: Path
    database: Path
    queue: QueueConfig
    keep_samples: bool = True


class ReplayWorker(LeasedWorker):
    """One job's replay queue in an actor of its own; its methods are those of :class:`ReplayQueue`."""

    def __init__(self, setup: ReplaySetup, lease_seconds: float) -> None:
        process_tree.guard()
        super().__init__(lease_seconds)
        self.log = logs.write_to(setup.logs, setup.name)
        self._reservation = setup.reservation
        self.ledger = ReplayLedger(
            setup.database, setup.queue.max_groups, setup.queue.max_bytes, keep_samples=setup.keep_samples
        )
        self.queue = ReplayQueue(self.ledger, setup.queue.put_timeout_seconds)
        self.log.info("the ledger stands at %r", self.ledger.counts())

    def lease_lapsed(self) -> None:
        """The controller is gone, and was next to this worker: nobody else can give its engines' room back."""
        reservations.release(self._reservation)

    async def admit(self, tickets: Sequence[Ticket]) -> int:
        """Write granted tickets down."""
        return await self.queue.admit(tickets)

    async def put(self, group: ScoredGroup, skip: SkipReason | None = None, sampled_at: float | None = None) -> str:
        """Store a group, waiting at the bound. Returns a ``PutResult``."""
        return await self.queue.put(group, skip, sampled_at)

    async def lease(self, **wanted: Any) -> list[ScoredGroup]:
        """Hand out a batch; the arguments are those of :meth:`ReplayQueue.lease`."""
        return await self.queue.lease(**wanted)

    async def commit(self, version: int, learner_step: int, groups: int | None = None) -> int:
        """Make a version exist."""
        consumed = await self.queue.commit(version, learner_step, groups=groups)
        self.log.info("version %d was committed with %d groups at step %d", version, consumed, learner_step)
        return consumed

    async def release(self) -> int:
        """Take back what is leased and not committed."""
        released = await self.queue.release()
        self.log.info("%d leased groups were released", released)
        return released

    async def fail(self, group_id: str, stage: Stage, reason: str) -> bool:
        """Give a granted group up."""
        failed = await self.queue.fail(group_id, stage, reason)
        self.log.warning(
            "group %s failed (%s): %s%s",
            group_id,
            stage,
            reason,
            "" if failed else "; but it had arrived",
            extra={"group_id": group_id},
        )
        return failed

    async def committed_version(self) -> int | None:
        """The newest committed version."""
        return await self.queue.committed_version()

    async def granted(self) -> list[Ticket]:
        """Tickets whose groups have not arrived."""
        return await self.queue.granted()

    async def counts(self) -> LedgerCounts:
        """The whole job's account."""
        return await self.queue.counts()

    async def round_counts(self, round: int, last: int | None = None) -> LedgerCounts:
        """One round's account."""
        return await self.queue.round_counts(round, last)

    async def source_counts(self, source: AnswerSource) -> LedgerCounts:
        """The account of one source's groups."""
        return await self.queue.source_counts(source)

    async def produced(self, version: int, source: AnswerSource) -> int:
        """How many groups of one source a version was learned from."""
        return await self.queue.produced(version, source)

    async def known(self, group_ids: Sequence[str]) -> list[str]:
        """Those of the ids that were admitted."""
        return await self.queue.known(group_ids)

    async def groups(self, **wanted: Any) -> list[GroupRow]:
        """Rows for inspection; the arguments are those of :meth:`ReplayQueue.groups`."""
        return await self.queue.groups(**wanted)

    async def metrics(self) -> dict[str, float]:
        """The queue's metrics."""
        return await self.queue.metrics()

    async def stop(self) -> None:
        """Close the ledger, so that another queue may have it."""
        self.ledger.close()
