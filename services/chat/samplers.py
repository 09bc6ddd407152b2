"""Who writes the answers of chat: samplers of running jobs, and samplers, scorers and version stores that run for chat alone.

Those for chat alone are the workers of :mod:`services.jobs.crew` under names of their own. They hold leases that this process renews, end
when they are idle, and with them their whole process trees (rule 10); a restarted service finds them by name.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal, cast

from learner.errors import InputError
from learner.records import Prompt
from services.chat.desk import ChatJob
from services.chat.errors import ChatUnavailable
from services.chat.names import UnknownModel
from services.chat.places import Places, Stay
from services.jobs.crew import SMALL, engine_config
from services.jobs.state import JobState
from services.jobs.store import JobStore, UnknownJob
from services.settings import Settings
from workers import cluster
from workers.capacity import Demand, check_capacity
from workers.chat import MAX_ANSWERS, ChatBegun, ChatPiece, ChatRequest, Verdict
from workers.cluster import Link
from workers.errors import CallTimeout, WorkerDied, WorkerError, WorkerUnavailable
from workers.sampler.actor import SamplerSetup, SamplerWorker
from workers.sampler.errors import ChatBusy
from workers.scorers.actor import ScorerSetup, ScorerWorker
from workers.versions.actor import CONCURRENCY, VersionsSetup, VersionsWorker
from workers.versions.integrity import MissingVersionError

Role = Literal["sampler", "scorer"]

logger = logging.getLogger(__name__)

LEASE_SECONDS = 60.0
"""A worker for chat alone ends when the service has been silent for so long."""

LOOK_SECONDS = 2.0
STOP_SECONDS = 15.0
ROOM_SECONDS = 10.0


@dataclass
class _Team:
    """The workers for chat alone of one job, and the starts of those that somebody asked for."""

    job: ChatJob
    starts: dict[Role, asyncio.Task[Link]] = field(default_factory=dict)


class RaySamplers:
    """Chat's workers on a Ray cluster. All coroutines run on one event loop.

    Args:
        settings: how many places there are, and for how long.
        store: says which jobs begin, and need the machine themselves.
    """

    def __init__(self, settings: Settings, store: JobStore) -> None:
        self._settings, self._store = settings, store
        self._places = Places(settings.chat_places, settings.chat_idle_seconds)
        self._teams: dict[str, _Team] = {}
        self._turn = itertools.count()
        self._ending = asyncio.Lock()

    async def run(self, stop: asyncio.Event) -> None:
        """Renew leases and end what is idle, until ``stop`` is set; then end everything."""
        while not stop.is_set():
            try:
                await self._look()
            except Exception:  # it must not end the watch, whatever it is; leases bound what it costs
                logger.exception("chat's workers could not be looked after; it is tried again")
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), LOOK_SECONDS)
        for job_id in list(self._teams):
            try:
                await self._end(job_id)
            except Exception:  # the others are to end too
                logger.exception("chat's workers for %s were not ended; their leases end them", job_id)

    async def stream(self, job: ChatJob, request: ChatRequest) -> AsyncGenerator[ChatBegun | ChatPiece]:
        """Answer a request: first that a sampler has begun, then the answers piece by piece.

        Raises:
            ChatUnavailable: nobody can, now.
            InputError: the request itself is at fault.
            WorkerError, CallTimeout: a worker died or was silent.
        """
        busy: ChatBusy | None = None
        for link in self._samplers_of(job):
            begun = False
            try:
                async with aclosing(_written(job, link, request)) as pieces:
                    async for piece in pieces:
                        begun = True
                        yield piece
                return
            except ChatBusy as error:
                busy = error
            except (WorkerDied, WorkerUnavailable):
                if begun:
                    raise
                logger.info("%s has no sampler %s now", job.id, link.name)
        if busy is not None:
            raise ChatUnavailable(str(busy), retry_seconds=1)
        async with self._place(job) as team:
            sampler = await self._started(team, "sampler")
            try:
                async with aclosing(_written(job, sampler, request)) as pieces:
                    async for piece in pieces:
                        yield piece
            except ChatBusy as error:
                raise ChatUnavailable(str(error), retry_seconds=1) from None
            except WorkerDied:
                await self._end(job.id)
                raise

    async def compare(self, job: ChatJob, prompt: Prompt, answers: tuple[str, str]) -> Verdict:
        """What the job's scorer says of two answers. It is the running one, or one for chat alone.

        Raises:
            As ``stream``.
        """
        limit = job.spec.resources.sampler.request_timeout_seconds
        setting = "resources.sampler.request_timeout_seconds"
        if job.record.state.active:
            try:
                running = Link(f"{job.id}-scorer-0")
                return cast(
                    Verdict, await running.call("compare", prompt, answers, timeout_seconds=limit, setting=setting)
                )
            except (WorkerDied, WorkerUnavailable):
                logger.info("%s has no scorer now; one is started for this comparison", job.id)
        async with self._place(job) as team:
            scorer = await self._started(team, "scorer")
            try:
                return cast(
                    Verdict, await scorer.call("compare", prompt, answers, timeout_seconds=limit, setting=setting)
                )
            except WorkerDied:
                await self._end(job.id)
                raise

    # ---- samplers of jobs -------------------------------------------------------------------------------------------

    def _samplers_of(self, job: ChatJob) -> list[Link]:
        """The job's own samplers in turn, where they take chat: those of a deterministic job never do (rule 8)."""
        if not job.record.state.active or not job.spec.chat_slots:
            return []
        count = job.spec.resources.sampler.count
        first = next(self._turn)
        return [Link(f"{job.id}-sampler-{(first + number) % count}") for number in range(count)]

    # ---- workers for chat alone -------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _place(self, job: ChatJob) -> AsyncIterator[_Team]:
        """The job's place for the length of a use; whoever has to give way has gone when it is there."""
        if await asyncio.to_thread(self._a_job_begins):
            raise ChatUnavailable("a job is starting and comes first; try again when it runs", retry_seconds=10)
        stay: Stay = self._places.enter(job.id)
        try:
            if stay.gone is not None:
                await self._end_unused(stay.gone)
            async with self._ending:  # what is being ended under this name must be gone
                team = self._teams.setdefault(job.id, _Team(job))
            yield team
        finally:
            self._places.leave(stay)

    async def _started(self, team: _Team, role: Role) -> Link:
        """A worker of the place, once it is up. Whoever waits for it may leave; it goes on starting.

        Raises:
            ChatUnavailable: the cluster has no room for it, or it did not start.
        """
        start = team.starts.get(role)
        if start is None or (start.done() and (start.cancelled() or start.exception() is not None)):
            describe = self._sampler if role == "sampler" else self._scorer
            start = team.starts[role] = asyncio.create_task(self._bring_up(describe(team.job)))
        try:
            return await asyncio.shield(start)
        except asyncio.CancelledError:
            if not start.cancelled():
                raise
            raise ChatUnavailable(f"the {role} for chat with {team.job.id} was ended while it started") from None
        except InputError as error:
            raise ChatUnavailable(f"there is no room for chat with {team.job.id} now: {error}") from None
        except Exception as error:  # whatever kept it from starting, the next request may try again
            logger.exception("the %s for chat with %s did not start", role, team.job.id)
            await self._end(team.job.id)
            raise ChatUnavailable(f"the {role} for chat with {team.job.id} did not start: {error}") from None

    async def _bring_up(self, start: _Start) -> Link:
        link = Link(start.name)
        if await asyncio.to_thread(cluster.find, start.name) is None:
            await self._room(start.demand)
            await asyncio.to_thread(start.spawn)
        await link.call(
            "start",
            timeout_seconds=start.timeout_seconds,
            setting="resources.sampler.start_timeout_seconds",
        )
        return link

    async def _room(self, demand: Demand) -> None:
        """Wait a little for what is just ending to give its share back.

        Raises:
            InputError: there is no room.
        """
        limit = time.monotonic() + ROOM_SECONDS
        while True:
            try:
                check_capacity([demand], await asyncio.to_thread(cluster.free))
                return
            except InputError:
                if time.monotonic() > limit:
                    raise
            await asyncio.sleep(0.5)

    def _sampler(self, job: ChatJob) -> _Start:
        spec, paths, resources = job.spec, job.paths, job.spec.resources.sampler
        name, versions = _name(job.id, "sampler"), _name(job.id, "versions")
        slots = self._settings.chat_slots
        setup = SamplerSetup(
            name=name,
            job_id=job.id,
            logs=paths.logs,
            cache=paths.home / "cache" / "versions",
            engine=engine_config(
                spec,
                paths,
                lora_slots=slots,
                cpu_lora_slots=slots,
                running_requests=slots * MAX_ANSWERS,
                deterministic=False,
                worker_extension=self._settings.worker_extension,
            ),
            sampling=spec.sampling,
            scorers=(),
            versions=versions,
            in_order=False,
            keep_versions=slots,
            start_timeout_seconds=resources.start_timeout_seconds,
            request_timeout_seconds=resources.request_timeout_seconds,
            chat_slots=slots,
        )

        def spawn() -> None:
            stored = VersionsSetup(name=versions, job_id=job.id, logs=paths.logs, root=paths.versions)
            cluster.spawn(
                VersionsWorker,
                versions,
                cpus=SMALL,
                args=(stored, LEASE_SECONDS),
                max_concurrency=CONCURRENCY,
                role="data",
            )
            cluster.spawn(
                SamplerWorker,
                name,
                cpus=resources.cpus,
                gpus=resources.gpus,
                threads=resources.threads,
                args=(setup, LEASE_SECONDS),
                role="sampler",
            )

        demand = Demand("resources.sampler", resources.cpus + SMALL, resources.gpus, roles=("sampler",))
        return _Start(name, demand, resources.start_timeout_seconds, spawn)

    def _scorer(self, job: ChatJob) -> _Start:
        spec, resources, name = job.spec, job.spec.resources.scorer, _name(job.id, "scorer")
        setup = ScorerSetup(
            name=name,
            logs=job.paths.logs,
            scorer=spec.scorer,
            resources=resources,
            gold=None,
            pairing=spec.pairing,
            truncated=spec.sampling.truncated,
            queue=_name(job.id, "queue"),  # nothing is put there: comparisons are answered
            put_timeout_seconds=spec.resources.queue.put_timeout_seconds,
            alone=True,
            tie_margin=spec.evaluation.tie_margin,
        )

        def spawn() -> None:
            cluster.spawn(
                ScorerWorker,
                name,
                cpus=resources.cpus,
                gpus=resources.gpus,
                threads=resources.threads,
                args=(setup, LEASE_SECONDS),
                role="scorer",
            )

        demand = Demand("resources.scorer", resources.cpus, resources.gpus, roles=("scorer",))
        return _Start(name, demand, spec.resources.sampler.start_timeout_seconds, spawn)

    async def _look(self) -> None:
        begins = await asyncio.to_thread(self._a_job_begins) if self._teams else False
        gone = [job_id for job_id in list(self._teams) if await asyncio.to_thread(self._deleted, job_id)]
        for job_id in gone:
            self._places.drop(job_id)
        for job_id in {*gone, *self._places.due(all_unused=begins)}:
            await self._end_unused(job_id)
        for job_id in list(self._teams):
            for role in ("versions", "sampler", "scorer"):
                with suppress(WorkerUnavailable):
                    Link(_name(job_id, role)).begin("renew_lease", LEASE_SECONDS)

    async def _end(self, job_id: str) -> None:
        """End a job's workers for chat alone: ask, then kill."""
        async with self._ending:
            await self._end_workers(job_id)

    async def _end_unused(self, job_id: str) -> None:
        """End the workers of a place that was taken away, unless somebody came back to it meanwhile."""
        async with self._ending:
            if job_id not in self._places:
                await self._end_workers(job_id)

    async def _end_workers(self, job_id: str) -> None:
        self._places.drop(job_id)
        team = self._teams.pop(job_id, None)
        for start in team.starts.values() if team is not None else ():
            start.cancel()
        for role in ("sampler", "scorer", "versions"):
            with suppress(WorkerError, CallTimeout):
                await Link(_name(job_id, role)).call("stop", timeout_seconds=STOP_SECONDS)
            try:
                await asyncio.to_thread(cluster.kill, _name(job_id, role))
            except CallTimeout as error:  # what comes after it is ended all the same
                logger.warning("%s; its lease ends it", error)

    def _a_job_begins(self) -> bool:
        return bool(self._store.list(states=[JobState.VALIDATING], limit=1))

    def _deleted(self, job_id: str) -> bool:
        try:
            self._store.get(job_id)
        except UnknownJob:
            return True
        return False


@dataclass(frozen=True)
class _Start:
    """How a worker for chat alone is started."""

    name: str
    demand: Demand
    timeout_seconds: float
    spawn: Callable[[], None]


async def _written(job: ChatJob, link: Link, request: ChatRequest) -> AsyncGenerator[ChatBegun | ChatPiece]:
    """What one sampler writes."""
    limit = job.spec.resources.sampler.request_timeout_seconds
    pieces = link.stream("chat", request, timeout_seconds=limit, setting="resources.sampler.request_timeout_seconds")
    try:
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece
    except MissingVersionError as error:  # it was there when the request was read
        raise UnknownModel(f"model: {error}") from None


def _name(job_id: str, role: str) -> str:
    return f"{job_id}-chat-{role}"
