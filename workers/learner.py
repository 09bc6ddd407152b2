"""The learner's rank 0 as a Ray actor: leases optimizer batches from the replay queue, steps, and publishes versions.

Publishing is the checkpoint (rule 11): the version's files are in the store first, then one transaction of the queue consumes the groups
that made it. That commit is what makes a version exist; a version in the store without it is a leftover of a crash and is discarded.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from learner.digests import sha256
from learner.records import FileEntry, Module, PolicyVersion, Record, ScoredGroup, VersionManifest
from workers import cluster
from workers.cluster import Link
from workers.learner_rank import LearnerSetup, Result, TrainerActor
from workers.learner_team import together

if TYPE_CHECKING:
    from learner.trainer import Snapshot


class LearnerStanding(Record):
    """Where the learner is: its newest version, its optimizer steps, and how many ranks make the next ones."""

    version: int
    learner_step: int
    ranks: int = 1


class StepResult(Record):
    """One optimizer step: its groups, and its metrics under stable names."""

    groups: int
    learner_step: int
    metrics: dict[str, float]


P = ParamSpec("P")
T = TypeVar("T")


def in_turn(
    method: Callable[Concatenate[LearnerWorker, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[LearnerWorker, P], Coroutine[Any, Any, T]]:
    """One such call after the other: that of a caller who was cut off may still be at work when the next one comes."""

    @functools.wraps(method)
    async def waiting(self: LearnerWorker, /, *args: P.args, **kwargs: P.kwargs) -> T:
        async with self.turn:
            return await method(self, *args, **kwargs)

    return waiting


class LearnerWorker(TrainerActor):
    """The learner's rank 0 in an actor of its own. The controller says when; the groups come straight from the queue."""

    def __init__(self, setup: LearnerSetup, lease_seconds: float) -> None:
        super().__init__(setup, lease_seconds)
        self.queue = Link(setup.queue)
        self.turn = asyncio.Lock()
        self.others: tuple[Link, ...] = ()
        self.version = -1
        self.published: PolicyVersion | None = None
        self.learned: set[str] = set()

    async def start(self) -> LearnerStanding:
        """Load the policy, and take up the newest committed version, or publish version 0.

        Raises:
            InputError: the policy cannot be loaded, or transformers renders its prompts to other token ids.
        """
        await self._load()
        return await self.go_back()

    @in_turn
    async def go_back(self) -> LearnerStanding:
        """Go back to the newest committed version; what was leased since is released, and what was not committed is discarded (rule 11)."""
        trainer = self._ready()
        await self._part()
        committed: int | None = await self.queue.call("committed_version")
        for module in trainer.modules:
            await self.store.call("discard_after", module, -1 if committed is None else committed)
        await self.queue.call("release")
        self.learned.clear()
        if committed is None:
            trainer.add_canary_candidates(self.setup.canary_prompts)
            await self._publish(0)
        else:
            manifests = [await self.store.call("manifest", module, committed) for module in trainer.modules]
            files = [await self.store.call("files", module, committed) for module in trainer.modules]
            await self._alone(trainer.restore, *files)
            self.version, self.published = committed, PolicyVersion(manifests=tuple(manifests))
        self.log.info("the learner stands at version %d, step %d", self.version, trainer.learner_step)
        return self._standing()

    async def newest(self) -> PolicyVersion:
        """The version that it stands at."""
        if self.published is None:
            raise RuntimeError(f"{self.setup.name} was asked for its version before it had started")
        return self.published

    @in_turn
    async def begin_version(
        self, round: int, version: int, domain: str | None = None, ranks: Sequence[str] = ()
    ) -> LearnerStanding:
        """Learn from here on towards the version after ``version``, with the policy as it stands as the reference `round`.

        Args:
            round: number of the round.
            version: that it stands at.
            domain: of the prompts; None where they are mixed.
            ranks: names of the other ranks that are up, which learn with it.

        Raises:
            WorkerDied: another rank died.
            WorkerUnavailable: another rank cannot be reached.
        """
        if version != self.version:
            raise RuntimeError(f"{self.setup.name} stands at version {self.version}, and cannot go on from {version}")
        if tuple(other.name for other in self.others) != tuple(ranks):
            await self._meet(tuple(Link(name) for name in ranks))
        await self._all("begin_version", self._ready().begin_version, round, version, domain)
        return self._standing()

    @in_turn
    async def step(self, count: int, *, minimum: int | None, pass_number: int, round: int | None) -> StepResult | None:
        """One optimizer step on ``count`` groups, or on at least ``minimum``; None when the queue has no such batch now.

        Raises:
            WorkerDied: another rank died.
            WorkerUnavailable: another rank cannot be reached.
        """
        began = time.monotonic()
        groups: list[ScoredGroup] = await self.queue.call(
            "lease",
            count=count,
            newest_version=self.version,
            max_staleness=self.setup.max_staleness,
            pass_number=pass_number,
            round=round,
            minimum=minimum,
        )
        if not groups:
            return None
        leased = time.monotonic()
        self.learned |= {group.group_id for group in groups}
        report = await self._all("learn", self._ready().step, groups, self.version)
        return StepResult(
            groups=len(groups),
            learner_step=report.learner_step,
            metrics={
                **report.metrics,
                "lease_seconds": leased - began,
                "step_seconds": time.monotonic() - leased,
            },
        )

    @in_turn
    async def combine(self, version: int) -> dict[str, float]:
        """End a domain, and publish the combination of the policies so far as ``version``; its weights, as metrics.

        Calling it again for the version that it stands at changes nothing, and gives no metrics.
        """
        if version == self.version:
            return {}
        metrics = await self._alone(self._ready().combine)
        await self._publish(version)
        # a search for weights is not made twice, nor in two places
        await self._others("settle", version, None)
        return metrics

    @in_turn
    async def publish(self, version: int) -> PolicyVersion:
        """Write the policy as it stands as ``version``, then commit. Calling it again for the version that it stands at changes nothing."""
        return await self._publish(version)

    async def _publish(self, version: int) -> PolicyVersion:
        if version == self.version and self.published is not None:
            return self.published
        if version != self.version + 1:
            raise RuntimeError(f"{self.setup.name} stands at version {self.version}, and cannot publish {version}")
        fast = await self._alone(self._ready().snapshot, version)
        parts: list[tuple[Module, Snapshot]] = [("fast", fast)]
        if fast.slow is not None:
            parts.append(("slow", fast.slow))
        created = datetime.now(UTC)
        published = PolicyVersion(
            manifests=tuple(self._manifest(module, version, part, created) for module, part in parts)
        )
        for manifest, (_, part) in zip(published.manifests, parts, strict=True):
            await self.store.call("publish", manifest, part.files)
        await self.queue.call("commit", version, fast.learner_step, len(self.learned))
        self.learned.clear()
        self.version, self.published = version, published
        self.log.info("version %d is published, at step %d", version, fast.learner_step)
        await self._others("settle", version, tuple(part.digest for _, part in parts))
        return published

    # ---- the other ranks ----------------------------------------------------------------------------------------

    async def _meet(self, others: tuple[Link, ...]) -> None:
        """Learn from here on together with these ranks, all at the version that it stands at; without others, alone."""
        from learner.distributed import open_store

        await self._part()
        if not others:
            return
        self.others, size = others, len(others) + 1
        # what takes long, and fails rather, comes before all wait for each other
        await self._others("settle", self.version, None)
        address, patience = cluster.node_address(), self.setup.trainer.learner.rank_timeout_seconds
        store = await asyncio.to_thread(open_store, address, size, patience)
        joining = [
            self._begin(other, "join", number, size, address, store.port) for number, other in enumerate(others, 1)
        ]
        await self._together(self._alone(self._enter, store, 0, size), joining)

    async def _part(self) -> None:
        """Learn alone from here on."""
        self.others = ()
        await self._alone(self._leave)

    async def _all(self, method: str, own: Callable[..., Result], *args: Any) -> Result:
        """Do something here, and have the other ranks do the same by their ``method``."""
        return await self._together(
            self._alone(own, *args), [self._begin(other, method, *args) for other in self.others]
        )

    async def _others(self, method: str, *args: Any) -> None:
        """Have the other ranks do something."""
        await self._together(asyncio.sleep(0), [self._begin(other, method, *args) for other in self.others])

    def _begin(self, other: Link, method: str, *args: Any) -> Awaitable[Any]:
        patience = self.setup.trainer.learner.step_timeout_seconds
        return other.call(method, *args, timeout_seconds=patience, setting="resources.learner.step_timeout_seconds")

    async def _together(self, own: Awaitable[Result], calls: Sequence[Awaitable[Any]]) -> Result:
        try:
            return await together(own, dict(zip((other.name for other in self.others), calls, strict=True)))
        except Exception:
            self.others = ()  # so that the next version begins with a new group
            raise

    def _manifest(self, module: Module, version: int, part: Snapshot, created: datetime) -> VersionManifest:
        return VersionManifest(
            job_id=self.setup.job_id,
            module=module,
            version=version,
            learner_step=part.learner_step,
            digest=part.digest,
            files={name: _entry(data) for name, data in sorted(part.files.items())},
            base_model=self.setup.trainer.policy.model,
            rank=part.rank,
            canary=part.canary,
            created_at=created,
        )

    def _standing(self) -> LearnerStanding:
        return LearnerStanding(
            version=self.version, learner_step=self._ready().learner_step, ranks=len(self.others) + 1
        )


def _entry(data: bytes) -> FileEntry:
    return FileEntry(sha256=sha256(data), bytes=len(data))


def prompts_for_canary(prompts: Sequence[Sequence[int]], count: int = 8) -> tuple[tuple[int, ...], ...]:
    """The first prompts long enough to measure, as version 0's canary texts."""
    return tuple(tuple(prompt) for prompt in prompts if len(prompt) >= 2)[:count]
