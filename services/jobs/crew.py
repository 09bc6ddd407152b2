"""The workers of one job: their names, what each is told, and how each is brought up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from learner.config import TrainerConfig
from learner.rendered import RenderedPrompt
from services.jobs.layout import JobPaths
from services.jobs.placement import demands, plan
from services.jobs.spec import JobSpec
from workers import cluster, reservations
from workers.chat import MAX_ANSWERS
from workers.cluster import Link
from workers.learner import LearnerWorker, prompts_for_canary
from workers.learner_rank import LearnerRank, LearnerSetup
from workers.replay.actor import ReplaySetup, ReplayWorker
from workers.roles import Role
from workers.sampler.actor import SamplerSetup, SamplerWorker
from workers.sampler.engine import EngineConfig
from workers.scorers.actor import ScorerSetup, ScorerWorker
from workers.versions.actor import CONCURRENCY, VersionsSetup, VersionsWorker

SMALL = 0.01
"""CPU share of an actor that hardly computes: the queue and the version store."""


@dataclass(frozen=True)
class Member:
    """One worker: its actor class, its arguments and its resources."""

    name: str
    role: Literal["queue", "versions", "scorer", "learner-rank", "learner", "sampler"]
    actor: type
    arguments: tuple[Any, ...]
    cpus: float
    gpus: float = 0.0
    threads: int = 1
    start_timeout_seconds: float = 300.0
    start_setting: str | None = None
    max_concurrency: int | None = None

    @property
    def place(self) -> Role:
        """What a machine must carry to have it."""
        if self.role == "learner-rank":
            return "learner"
        return self.role if self.role in ("sampler", "scorer", "learner") else "data"

    @cached_property
    def link(self) -> Link:
        """How to call it."""
        return Link(self.name)


class Crew:
    """Every worker of a job, made from its specification. Offline jobs without evaluation have neither samplers nor scorers.

    Args:
        job_id: prefix of all names.
        spec: the job, as validation resolved it.
        paths: where its files lie.
        prompts: token ids of prompts, for version 0's canary.
        uncompared: prompts whose rendering the learner compares with transformers' own.
        worker_extension: vLLM's worker extension, where the operator replaced it.
    """

    def __init__(
        self,
        job_id: str,
        spec: JobSpec,
        paths: JobPaths,
        *,
        prompts: Sequence[Sequence[int]],
        uncompared: tuple[RenderedPrompt, ...] = (),
        worker_extension: str | None = None,
    ) -> None:
        self.job_id, self.spec, self.paths = job_id, spec, paths
        self.reservation = self._name("room")
        lease = spec.resources.fleet.lease_seconds
        self.queue = self._queue(lease)
        self.versions = self._versions(lease)
        self.scorers = self._scorers(lease) if spec.samples else ()
        self.learner, *others = self._learners(lease, prompts, uncompared)
        self.ranks = tuple(others)
        self.samplers = self._samplers(lease, worker_extension) if spec.samples else ()
        self.bundles = plan(
            spec.resources,
            samplers=[member.name for member in self.samplers],
            scorers=[member.name for member in self.scorers],
            learners=[self.learner.name, *(member.name for member in self.ranks)],
        )
        self._bundle_of = {name: number for number, bundle in enumerate(self.bundles) for name in bundle.workers}

    @property
    def members(self) -> tuple[Member, ...]:
        """All of them, those that others need first."""
        return (self.queue, self.versions, *self.scorers, *self.ranks, self.learner, *self.samplers)

    def member(self, name: str) -> Member:
        """The worker of that name."""
        return next(member for member in self.members if member.name == name)

    def reserve(self) -> None:
        """Ask for the engines' room, for all or none, unless it is reserved already."""
        bundles = [bundle.demand.resources() for bundle in self.bundles]
        reservations.reserve(self.reservation, bundles, self.spec.resources.placement.strategy)

    def has_room(self, timeout_seconds: int) -> bool:
        """Whether the engines' room is reserved, waited for so long."""
        return reservations.reserved(self.reservation, timeout_seconds)

    def asks_for(self) -> str:
        """What the engines need room for, as part of a sentence."""
        return ", ".join(
            f"{demand.count} x {demand.setting} ({demand.cpus:g} cpus, {demand.gpus:g} gpus)"
            for demand in demands(self.bundles)
        )

    def spawn(self, member: Member) -> None:
        """Bring a worker's process up, or find it where it runs already (rule 10). An engine goes into its bundle."""
        bundle = self._bundle_of.get(member.name)
        if bundle is not None:
            self.reserve()  # the queue gives it back when the controller has been silent for too long
        cluster.spawn(
            member.actor,
            member.name,
            cpus=member.cpus,
            gpus=member.gpus,
            threads=member.threads,
            args=member.arguments,
            max_concurrency=member.max_concurrency,
            role=member.place,
            bundle=None if bundle is None else (self.reservation, bundle),
        )

    def dismiss_one(self, member: Member) -> None:
        """End a worker's process, if it still runs."""
        cluster.kill(member.name)

    def dismiss(self) -> None:
        """End every worker's process, and give their room back."""
        for member in reversed(self.members):
            self.dismiss_one(member)
        reservations.release(self.reservation)

    def _name(self, role: str) -> str:
        return f"{self.job_id}-{role}"

    def _queue(self, lease: float) -> Member:
        setup = ReplaySetup(
            name=self._name("queue"),
            reservation=self.reservation,
            logs=self.paths.logs,
            database=self.paths.replay_database,
            queue=self.spec.resources.queue,
            keep_samples=self.spec.output.keep_samples,
        )
        return Member(setup.name, "queue", ReplayWorker, (setup, lease), cpus=SMALL)

    def _versions(self, lease: float) -> Member:
        setup = VersionsSetup(
            name=self._name("versions"), job_id=self.job_id, logs=self.paths.logs, root=self.paths.versions
        )
        return Member(setup.name, "versions", VersionsWorker, (setup, lease), cpus=SMALL, max_concurrency=CONCURRENCY)

    def _scorers(self, lease: float) -> tuple[Member, ...]:
        spec, resources = self.spec, self.spec.resources.scorer
        setup = ScorerSetup(
            name=self._name("scorer-0"),
            logs=self.paths.logs,
            scorer=spec.scorer,
            resources=resources,
            gold=spec.evaluation.gold,
            pairing=spec.pairing,
            truncated=spec.sampling.truncated,
            queue=self.queue.name,
            put_timeout_seconds=spec.resources.queue.put_timeout_seconds,
            alone=spec.schedule.mode != "online",
            tie_margin=spec.evaluation.tie_margin,
        )
        return (
            Member(
                setup.name,
                "scorer",
                ScorerWorker,
                (setup, lease),
                resources.cpus,
                resources.gpus,
                resources.threads,
                resources.start_timeout_seconds,
                "resources.scorer.start_timeout_seconds",
            ),
        )

    def _learners(
        self, lease: float, prompts: Sequence[Sequence[int]], uncompared: tuple[RenderedPrompt, ...]
    ) -> list[Member]:
        """Rank 0, and the ranks beside it."""
        spec, resources = self.spec, self.spec.resources.learner
        setup = LearnerSetup(
            name=self._name("learner"),
            job_id=self.job_id,
            logs=self.paths.logs,
            trainer=TrainerConfig(
                job_id=self.job_id,
                policy=spec.policy,
                adapters=spec.adapters,
                objective=spec.objective,
                optimizer=spec.optimizer,
                pairing=spec.pairing,
                schedule=spec.schedule,
                learner=resources,
                truncated=spec.sampling.truncated,
                temperature=spec.scorer.temperature,
                opponent=spec.opponent,
                seed=spec.seed,
            ),
            queue=self.queue.name,
            versions=self.versions.name,
            canary_prompts=prompts_for_canary(prompts),
            rendered=uncompared,
            max_staleness=spec.schedule.max_staleness,
        )
        size = (resources.cpus, resources.gpus, resources.threads)
        start = (resources.start_timeout_seconds, "resources.learner.start_timeout_seconds")
        members = [Member(setup.name, "learner", LearnerWorker, (setup, lease), *size, *start)]
        for number in range(1, resources.ranks):
            own = replace(setup, name=self._name(f"learner-{number}"))
            members.append(Member(own.name, "learner-rank", LearnerRank, (own, lease), *size, *start))
        return members

    def _samplers(self, lease: float, worker_extension: str | None) -> tuple[Member, ...]:
        spec, resources = self.spec, self.spec.resources.sampler
        slots = resources.lora_slots or spec.live_adapters
        engine = engine_config(
            spec,
            self.paths,
            lora_slots=slots,
            cpu_lora_slots=resources.cpu_lora_slots or 2 * slots,
            running_requests=resources.max_running_requests + spec.chat_slots * MAX_ANSWERS,
            deterministic=spec.schedule.mode != "online",
            worker_extension=worker_extension,
        )
        return tuple(
            Member(
                name=self._name(f"sampler-{number}"),
                role="sampler",
                actor=SamplerWorker,
                arguments=(
                    SamplerSetup(
                        name=self._name(f"sampler-{number}"),
                        job_id=self.job_id,
                        logs=self.paths.logs,
                        cache=self.paths.home / "cache" / "versions",
                        engine=engine,
                        sampling=spec.sampling,
                        scorers=tuple(member.name for member in self.scorers),
                        versions=self.versions.name,
                        in_order=spec.schedule.mode != "online",
                        keep_versions=spec.schedule.max_staleness + 1,
                        start_timeout_seconds=resources.start_timeout_seconds,
                        request_timeout_seconds=resources.request_timeout_seconds,
                        chat_slots=spec.chat_slots,
                    ),
                    lease,
                ),
                cpus=resources.cpus,
                gpus=resources.gpus,
                threads=resources.threads,
                start_timeout_seconds=resources.start_timeout_seconds,
                start_setting="resources.sampler.start_timeout_seconds",
            )
            for number in range(resources.count)
        )


def engine_config(
    spec: JobSpec,
    paths: JobPaths,
    *,
    lora_slots: int,
    cpu_lora_slots: int,
    running_requests: int,
    deterministic: bool,
    worker_extension: str | None,
) -> EngineConfig:
    """What an engine that serves a job's versions is started with.

    Args:
        spec: the job, as validation resolved it.
        paths: where its files lie.
        lora_slots: adapters in one step.
        cpu_lora_slots: adapters in memory.
        running_requests: answers at a time.
        deterministic: compute every prompt from its beginning.
        worker_extension: vLLM's worker extension, where the operator replaced it.
    """
    resources = spec.resources.sampler
    extension = {} if worker_extension is None else {"worker_extension": worker_extension}
    return EngineConfig(
        model=spec.policy.model,
        revision=spec.policy.revision,
        dtype=spec.policy.dtype,
        max_model_len=spec.policy.max_context_tokens,
        lora_rank=spec.most_rank,
        lora_slots=lora_slots,
        cpu_lora_slots=cpu_lora_slots,
        max_running_requests=running_requests,
        threads=resources.threads,
        kv_cache_gib=resources.kv_cache_gib,
        gpu_memory_utilization=resources.gpu_memory_utilization,
        tensor_parallel_size=resources.tensor_parallel_size,
        enforce_eager=resources.enforce_eager,
        seed=spec.seed,
        cache_dir=Path(paths.home) / "cache",
        deterministic=deterministic,
        gpus=resources.gpus,
        **extension,
    )
