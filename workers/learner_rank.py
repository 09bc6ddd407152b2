"""A learner rank: an actor round one trainer, which learns its share of each optimizer batch beside the other ranks (rule 12).

Rank 0 (`workers/learner.py`) leads: it alone talks to the controller and the queue and publishes versions, and it has the others, which are of
the class here, do what it does itself. A rank that fails leaves the group, so that none waits for it; rank 0 forms a new group when a version
begins, out of the ranks that are up then, all at the newest committed version (rule 11).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from learner.config import TrainerConfig
from learner.ranks import OneRank
from learner.records import Module, ScoredGroup
from learner.rendered import RenderedPrompt, refuse_difference_from_transformers
from workers import cluster, logs, process_tree
from workers.cluster import Link
from workers.errors import WorkerUnavailable
from workers.leased import LeasedWorker
from workers.models import require_folder, require_policy

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    from learner.distributed import DistributedRanks
    from learner.trainer import Trainer

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True)
class LearnerSetup:
    """What a learner rank needs to know.

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


class TrainerActor(LeasedWorker):
    """What all ranks have: a trainer, and a place in the group."""

    def __init__(self, setup: LearnerSetup, lease_seconds: float) -> None:
        process_tree.guard()
        super().__init__(lease_seconds)
        self.log = logs.write_to(setup.logs, setup.name)
        self.setup = setup
        self.store = Link(setup.versions)
        self.trainer: Trainer | None = None
        self._group: DistributedRanks | None = None
        self._at_work = asyncio.Lock()  # a call that is left over from a rank 0 that died ends before the next begins

    async def stop(self) -> None:
        """Nothing to close: everything worth keeping was published."""

    async def _load(self) -> None:
        if self.trainer is None:
            self.trainer = await asyncio.to_thread(self._build)

    async def _alone(
        self, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Do this in a thread, one thing at a time; what fails ends the rank's part in the group."""
        async with self._at_work:
            try:
                with self.activity.busy():
                    return await asyncio.to_thread(work, *args, **kwargs)
            except Exception:
                self._leave()
                raise

    def _enter(self, store: TCPStore, rank: int, size: int) -> None:
        """Meet the other ranks."""
        from learner.distributed import DistributedRanks

        self._leave()
        trainer, learner = self._ready(), self.setup.trainer.learner
        device = trainer.policy.device
        self._group = DistributedRanks(
            store,
            rank,
            size,
            address=cluster.node_address(),
            device=device,
            backend="nccl" if device.type == "cuda" and learner.gpus >= 1 else "gloo",
            timeout_seconds=learner.rank_timeout_seconds,
        )
        trainer.join(self._group)

    def _leave(self) -> None:
        """Learn alone from here on."""
        if self._group is not None:
            self._group.leave()
            self._group = None
            self._ready().join(OneRank())

    def _build(self) -> Trainer:
        from learner.trainer import Trainer

        policy = self.setup.trainer.policy
        require_policy(policy.model, revision=policy.revision)
        if policy.adapter is not None:
            require_folder("policy.adapter", policy.adapter)
        if self.setup.rendered:
            refuse_difference_from_transformers(policy.model, self.setup.rendered, revision=policy.revision)
        return Trainer(self.setup.trainer, self._fetch_adapter)

    def _fetch_adapter(self, module: Module, version: int) -> Mapping[str, bytes]:
        files: Mapping[str, bytes] = self.store.call_blocking("adapter_files", module, version)
        return files

    def _ready(self) -> Trainer:
        if self.trainer is None:
            raise RuntimeError(f"{self.setup.name} was asked to learn before it had started")
        return self.trainer


class LearnerRank(TrainerActor):
    """One of the ranks beside rank 0, which calls its methods."""

    async def start(self) -> None:
        """Load the policy. Where it stands is told it by :meth:`settle`.

        Raises:
            InputError: the policy cannot be loaded, or transformers renders its prompts to other token ids.
        """
        await self._load()

    async def settle(self, version: int, digests: tuple[str, ...] | None) -> None:
        """Stand at a committed version: take its files, unless the adapters are the same already.

        Ranks make the same step of the same gradient; but processors that round differently may drift apart by a last bit.

        Args:
            version: the newest.
            digests: of its adapters; None to take the files in any case.
        """
        trainer = self._ready()
        if digests is not None:
            if await self._alone(trainer.digests) == digests:
                return
            self.log.info("version %d came out differently here; its files are taken instead", version)
        files = [await self.store.call("files", module, version) for module in trainer.modules]
        await self._alone(trainer.restore, *files)

    async def join(self, rank: int, size: int, address: str, port: int) -> None:
        """Become one of a new group of ranks, which all stand at the same version.

        Args:
            rank: its number.
            size: how many there are.
            address: where rank 0 waits.
            port: likewise.

        Raises:
            RankLost: not all of them came in time.
        """
        from learner.distributed import find_store

        timeout = self.setup.trainer.learner.rank_timeout_seconds
        store = await asyncio.to_thread(find_store, address, port, size, timeout)
        await self._alone(self._enter, store, rank, size)

    async def begin_version(self, round: int, version: int, domain: str | None) -> None:
        """As rank 0 does.

        Raises:
            WorkerUnavailable: it is in no group, since it was started again.
        """
        await self._alone(self._in_group().begin_version, round, version, domain)

    async def learn(self, groups: Sequence[ScoredGroup], newest_version: int) -> None:
        """Make an optimizer step with the other ranks.

        Raises:
            RankLost: another rank is gone or silent.
            WorkerUnavailable: it is in no group, since it was started again.
        """
        await self._alone(self._in_group().step, groups, newest_version)

    def _in_group(self) -> Trainer:
        """The trainer; alone it would learn the whole batch, and the others would wait for it."""
        if self._group is None:
            raise WorkerUnavailable(f"{self.setup.name} has not met the other learner ranks since it was started")
        return self._ready()
