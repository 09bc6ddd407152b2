"""The learner's Ray actor: leases optimizer batches from the replay queue, steps, and publishes versions.

Publishing is the checkpoint (rule 11): the version's files are in the store first, then one transaction of the queue consumes the groups
that made it. That commit is what makes a version exist; a version in the store without it is a leftover of a crash and is discarded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from learner.config import TrainerConfig
from learner.digests import sha256
from learner.records import FileEntry, Module, PolicyVersion, Record, ScoredGroup, VersionManifest
from learner.rendered import RenderedPrompt, refuse_difference_from_transformers
from workers import logs, process_tree
from workers.cluster import LeasedWorker, Link
from workers.models import require_folder, require_policy

if TYPE_CHECKING:
    from learner.trainer import Snapshot, Trainer


@dataclass(frozen=True)
class LearnerSetup:
    """What the learner needs to know.

    Attributes:
        queue: name of the replay queue's actor.
        versions: name of the version store's actor.
        canary_prompts: token ids of texts that version 0's canary is measured on.
        rendered: prompts that transformers must render to the same token ids (rule 2).
    """

    name: str
    job_id: str
    logs: Path
    trainer: TrainerConfig
    queue: str
    versions: str
    canary_prompts: tuple[tuple[int, ...], ...]
    max_staleness: int
    rendered: tuple[RenderedPrompt, ...] = ()


class LearnerStanding(Record):
    """Where the learner is: its newest version, and its optimizer steps."""

    version: int
    learner_step: int


class StepResult(Record):
    """One optimizer step: its groups, and its metrics under stable names."""

    groups: int
    learner_step: int
    metrics: dict[str, float]


class LearnerWorker(LeasedWorker):
    """One learner rank in an actor of its own. The controller says when; the groups come straight from the queue."""

    def __init__(self, setup: LearnerSetup, lease_seconds: float) -> None:
        process_tree.guard()
        super().__init__(lease_seconds)
        self.log = logs.write_to(setup.logs, setup.name)
        self.setup = setup
        self.queue = Link(setup.queue)
        self.store = Link(setup.versions)
        self.trainer: Trainer | None = None
        self.version = -1
        self.published: PolicyVersion | None = None
        self.learned: set[str] = set()

    async def start(self) -> LearnerStanding:
        """Load the policy, and take up the newest committed version, or publish version 0.

        Raises:
            InputError: the policy cannot be loaded, or transformers renders its prompts to other token ids.
        """
        if self.trainer is None:
            self.trainer = await asyncio.to_thread(self._build)
        return await self.go_back()

    async def go_back(self) -> LearnerStanding:
        """Go back to the newest committed version; what was leased since is released, and what was not committed is discarded (rule 11)."""
        trainer = self._ready()
        committed: int | None = await self.queue.call("committed_version")
        for module in trainer.modules:
            await self.store.call("discard_after", module, -1 if committed is None else committed)
        await self.queue.call("release")
        self.learned.clear()
        if committed is None:
            trainer.add_canary_candidates(self.setup.canary_prompts)
            await self.publish(0)
        else:
            manifests = [await self.store.call("manifest", module, committed) for module in trainer.modules]
            files = [await self.store.call("files", module, committed) for module in trainer.modules]
            await asyncio.to_thread(trainer.restore, *files)
            self.version, self.published = committed, PolicyVersion(manifests=tuple(manifests))
        return self._standing()

    async def newest(self) -> PolicyVersion:
        """The version that it stands at."""
        if self.published is None:
            raise RuntimeError(f"{self.setup.name} was asked for its version before it had started")
        return self.published

    async def begin_version(self, round: int, version: int, domain: str | None = None) -> LearnerStanding:
        """Learn from here on towards the version after ``version``, with the policy as it stands as the reference `round`.

        ``domain``: of the prompts; None where they are mixed.
        """
        if version != self.version:
            raise RuntimeError(f"{self.setup.name} stands at version {self.version}, and cannot go on from {version}")
        with self.activity.busy():
            await asyncio.to_thread(self._ready().begin_version, round, version, domain)
        return self._standing()

    async def step(self, count: int, *, minimum: int | None, pass_number: int, round: int | None) -> StepResult | None:
        """One optimizer step on ``count`` groups, or on at least ``minimum``; None when the queue has no such batch now."""
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
        with self.activity.busy():
            report = await asyncio.to_thread(self._ready().step, groups, self.version)
        return StepResult(
            groups=len(groups),
            learner_step=report.learner_step,
            metrics={
                **report.metrics,
                "lease_seconds": leased - began,
                "step_seconds": time.monotonic() - leased,
            },
        )

    async def combine(self, version: int) -> dict[str, float]:
        """End a domain, and publish the combination of the policies so far as ``version``; its weights, as metrics.

        Calling it again for the version that it stands at changes nothing, and gives no metrics.
        """
        if version == self.version:
            return {}
        with self.activity.busy():
            metrics = await asyncio.to_thread(self._ready().combine)
        await self.publish(version)
        return metrics

    async def publish(self, version: int) -> PolicyVersion:
        """Write the policy as it stands as ``version``, then commit. Calling it again for the version that it stands at changes nothing."""
        if version == self.version and self.published is not None:
            return self.published
        if version != self.version + 1:
            raise RuntimeError(f"{self.setup.name} stands at version {self.version}, and cannot publish {version}")
        with self.activity.busy():
            fast = await asyncio.to_thread(self._ready().snapshot, version)
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
        return published

    async def stop(self) -> None:
        """Nothing to close: everything worth keeping was published."""

    def _build(self) -> Trainer:
        from learner.trainer import Trainer

        policy = self.setup.trainer.policy
        require_policy(policy.model, revision=policy.revision)
        if policy.adapter is not None:
            require_folder("policy.adapter", policy.adapter)
        if self.setup.rendered:
            refuse_difference_from_transformers(policy.model, self.setup.rendered, revision=policy.revision)
        return Trainer(self.setup.trainer, self._fetch_adapter)

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

    def _fetch_adapter(self, module: Module, version: int) -> Mapping[str, bytes]:
        files: Mapping[str, bytes] = self.store.call_blocking("adapter_files", module, version)
        return files

    def _ready(self) -> Trainer:
        if self.trainer is None:
            raise RuntimeError(f"{self.setup.name} was asked to learn before it had started")
        return self.trainer

    def _standing(self) -> LearnerStanding:
        return LearnerStanding(version=self.version, learner_step=self._ready().learner_step)


def _entry(data: bytes) -> FileEntry:
    return FileEntry(sha256=sha256(data), bytes=len(data))


def prompts_for_canary(prompts: Sequence[Sequence[int]], count: int = 8) -> tuple[tuple[int, ...], ...]:
    """The first prompts long enough to measure, as version 0's canary texts."""
    return tuple(tuple(prompt) for prompt in prompts if len(prompt) >= 2)[:count]
