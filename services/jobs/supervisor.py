"""Keeps the workers alive and the samplers proven: heartbeats, leases, restarts, loads and proofs (rules 4, 9 and 10).

Only the supervisor restarts a worker. Whoever needs one that is being restarted waits for ``ready``.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

from learner import canary
from learner.config import LEAST_ROBUST_RANKS
from learner.errors import InputError
from learner.records import PolicyVersion, VersionManifest
from services.jobs.crew import Crew, Member
from services.jobs.errors import JobFailure
from services.jobs.journal import Journal
from services.jobs.log_collector import LogCollector
from services.jobs.spec import JobSpec
from workers import cluster
from workers.cluster import Link
from workers.errors import CallTimeout, WorkerDied, WorkerError, WorkerUnavailable
from workers.fleet import Action, Fleet
from workers.messages import LoadProof, SamplerStatus

PING_TIMEOUT_SECONDS = 20.0
"""A worker may be busy starting threads or reading files; one that is silent longer than its lease is taken for dead."""

RENEWALS_A_LEASE = 8
"""So many may be lost before a worker ends."""

ROOM_SECONDS = 5
"""Between two looks at whether the cluster has room."""

NOISE_PER_TOKEN = {"float32": 2e-5, "bfloat16": 5e-2, "float16": 1e-2}
"""What two implementations of one model differ by, in nats a token, by type of the weights."""


class Supervisor:
    """The watch over one job's workers.

    Args:
        crew: the workers.
        fleet: the samplers' states.
        journal: where deaths, proofs and fences are told.
        spec: the job.
        sampler_died: called with a sampler's name when its work must go to others.
    """

    def __init__(
        self,
        crew: Crew,
        fleet: Fleet,
        journal: Journal,
        spec: JobSpec,
        sampler_died: Callable[[str], Awaitable[None]],
    ) -> None:
        self.crew, self.fleet, self.journal, self.spec = crew, fleet, journal, spec
        self.sampler_died = sampler_died
        self.newest: PolicyVersion | None = None
        self.restarts: Counter[str] = Counter()
        self.given_up: set[str] = set()
        self.silent_since: dict[str, float] = {}
        self.activities: dict[str, dict[str, float]] = {}
        self.up = {member.name: asyncio.Event() for member in crew.members}
        self.starting: set[str] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.logs = LogCollector(crew.paths.logs)
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        dtype = spec.policy.dtype
        on_cpu = spec.resources.sampler.gpus == 0
        self.noise = NOISE_PER_TOKEN[("float32" if on_cpu else "bfloat16") if dtype == "auto" else dtype]

    async def start(self) -> None:
        """Bring every worker up: the data first, then the engines side by side. One that dies on the way is started again.

        Raises:
            JobFailure: the cluster has no room for the engines in time.
        """
        data = (self.crew.queue, self.crew.versions)
        for member in data:
            self.crew.spawn(member)
            await self._bring_up(member)
        await self._find_room()  # which the queue gives back when this controller dies
        engines = [member for member in self.crew.members if member not in data]
        for member in engines:
            self.crew.spawn(member)
        await asyncio.gather(*(self._bring_up(member) for member in engines))

    async def _find_room(self) -> None:
        """Wait until the cluster has set room aside for all engines: none starts that would wait for others (rule 9)."""
        self.crew.reserve()  # in no thread, which a cancel would outrun
        limit, told = self.spec.resources.placement.timeout_seconds, False
        began = time.monotonic()
        while not await asyncio.to_thread(self.crew.has_room, ROOM_SECONDS):
            if not told:
                self.journal.event("waits_for_room", f"the cluster has no room yet for {self.crew.asks_for()}")
                self.journal.progress(0.0, "waiting for room on the cluster")
                told = True
            if time.monotonic() - began > limit:
                raise JobFailure(
                    "no_room",
                    f"the cluster had no room within {limit:g} s for {self.crew.asks_for()}; end what holds it (`ray status` shows what is in "
                    "use), add machines, or raise resources.placement.timeout_seconds",
                    "resources.placement.timeout_seconds",
                )

    async def ready(self, name: str) -> Link:
        """The worker, once it is up.

        Raises:
            JobFailure: it does not come up.
        """
        member = self.crew.member(name)
        tries = 1 + self.spec.resources.fleet.max_worker_restarts  # the last of which fails the job by itself
        limit = tries * (member.start_timeout_seconds + PING_TIMEOUT_SECONDS)
        try:
            async with asyncio.timeout(limit):
                await self.up[name].wait()
        except TimeoutError as error:
            raise JobFailure(
                "worker_start_timeout",
                f"{name} did not come up within {limit:g} s"
                + (f" ({member.start_setting}: {member.start_timeout_seconds:g})" if member.start_setting else "")
                + "; see its log",
                member.start_setting,
            ) from error
        return member.link

    async def ready_ranks(self) -> tuple[str, ...]:
        """Names of the learner's other ranks that are up. One that has died is waited for, but no longer than ranks wait for each other.

        Raises:
            JobFailure: too few are left for the gradient reducer.
        """
        learner, ranks = self.spec.resources.learner, self.crew.ranks
        if not ranks:
            return ()
        await asyncio.gather(
            *(
                self._beat(member, self.spec.resources.fleet.lease_seconds)
                for member in ranks
                if self.up[member.name].is_set()
            )
        )
        expected = [self.up[member.name].wait() for member in ranks if member.name not in self.given_up]
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*expected), learner.rank_timeout_seconds)
        names = tuple(member.name for member in ranks if self.up[member.name].is_set())
        if learner.gradient_reducer != "mean" and len(names) + 1 < LEAST_ROBUST_RANKS:
            raise JobFailure(
                "too_few_learner_ranks",
                f"{len(names) + 1} of {learner.ranks} learner ranks are left, and resources.learner.gradient_reducer: "
                f"{learner.gradient_reducer} needs {LEAST_ROBUST_RANKS}; see the logs of those that died",
                "resources.learner.gradient_reducer",
            )
        return names

    async def renew_leases(self) -> None:
        """Renew every worker's lease for ever, whatever the heartbeat waits for: an answer, the queue, a sampler that takes tickets."""
        lease = self.spec.resources.fleet.lease_seconds
        while True:
            # a large model takes longer to load than a lease lasts; of a worker that is dead, others tell
            for name in {*self.starting, *(name for name, up in self.up.items() if up.is_set())}:
                try:
                    self.crew.member(name).link.begin("renew_lease", lease)
                except WorkerUnavailable as error:
                    self.journal.log.debug("the lease of %s was not renewed: %s", name, error)
            await asyncio.sleep(lease / RENEWALS_A_LEASE)

    async def look(self) -> list[SamplerStatus]:
        """One heartbeat: renew every lease, restart the dead, and return the samplers' statuses."""
        lease = self.spec.resources.fleet.lease_seconds
        up = [member for member in self.crew.members if self.up[member.name].is_set()]
        results = await asyncio.gather(*(self._beat(member, lease) for member in up))
        return [status for status in results if status is not None]

    def sync(self) -> None:
        """Have every sampler that lacks the newest version load and prove it, while it goes on writing (rule 6)."""
        if self.newest is None:
            return
        for name in self.fleet.to_load(self.newest.version):
            if self.up[name].is_set():
                self.fleet.loading(name, self.newest.version)
                self._background(self._load(name, self.newest))

    async def stop(self) -> None:
        """End the workers: ask, wait a little, then kill."""
        for task in self.tasks:
            task.cancel()
        limit = self.spec.resources.fleet.shutdown_timeout_seconds
        running = [member for member in self.crew.members if self.up[member.name].is_set()]
        await asyncio.gather(*(self.logs.collect(member.link, limit) for member in running), return_exceptions=True)
        await asyncio.gather(
            *(member.link.call("stop", timeout_seconds=limit) for member in running), return_exceptions=True
        )
        self.crew.dismiss()

    # ---- heartbeats ---------------------------------------------------------------------------------------------

    async def _beat(self, member: Member, lease: float) -> SamplerStatus | None:
        try:
            self.activities[member.name] = await member.link.call(
                "renew_lease", lease, timeout_seconds=PING_TIMEOUT_SECONDS
            )
            self.silent_since.pop(member.name, None)
            await self.logs.collect(member.link, PING_TIMEOUT_SECONDS)
            if member.role == "sampler":
                status: SamplerStatus = await member.link.call("status", timeout_seconds=PING_TIMEOUT_SECONDS)
                return status
        except WorkerDied as error:
            await self._died(member, str(error))
        except (WorkerUnavailable, CallTimeout) as error:
            if cluster.find(member.name) is None:
                await self._died(member, "nobody has its name")
                return None
            now = time.monotonic()
            silent = now - self.silent_since.setdefault(member.name, now)
            if silent > lease:
                await self._died(member, f"silent for {silent:.0f} s: {error}")
        return None

    async def _died(self, member: Member, reason: str) -> None:
        if self.up[member.name].is_set():
            self.up[member.name].clear()
            await self._lost(member, reason)

    async def _lost(self, member: Member, reason: str) -> None:
        """Tell of a worker's death, and start it again while it may be."""
        self.journal.event("worker_died", f"{member.name} died: {reason}", worker=member.name, role=member.role)
        if member.role == "sampler":
            action = self.fleet.died(member.name)
            if action is Action.GIVE_UP and not self.fleet.alive():
                self.fail(JobFailure("no_samplers", f"the last sampler, {member.name}, is gone: {reason}"))
            if action is Action.GIVE_UP:
                return
        else:
            self.restarts[member.name] += 1
            if self.restarts[member.name] > self.spec.resources.fleet.max_worker_restarts:
                if member.role == "learner-rank":
                    self.given_up.add(member.name)
                    self.journal.event(
                        "learner_rank_given_up",
                        f"{member.name} is not started again; the other ranks learn without it",
                        worker=member.name,
                    )
                    return
                self.fail(
                    JobFailure(
                        "worker_restarts",
                        f"{member.name} died {self.restarts[member.name]} times, more than "
                        f"resources.fleet.max_worker_restarts: {self.spec.resources.fleet.max_worker_restarts}; last: {reason}",
                        "resources.fleet.max_worker_restarts",
                    )
                )
                return
        self._background(self._restart(member))

    async def _restart(self, member: Member) -> None:
        self.crew.dismiss_one(member)
        self.crew.spawn(member)
        self.logs.started(member.name)
        if member.role == "sampler":
            await self._hand_over(member.name)
        await self._bring_up(member)
        if not self.up[member.name].is_set():
            return
        self.journal.event("worker_restarted", f"{member.name} is up again", worker=member.name, role=member.role)

    async def _bring_up(self, member: Member) -> None:
        try:
            await self._start(member)
        except InputError:  # a model that is not there will not be there the next time either
            raise
        except Exception as error:
            # whatever kept it from starting, it may start the next time, or others do without it
            self.journal.log.exception("%s did not start", member.name)
            await self._lost(
                member, str(error) if isinstance(error, WorkerError) else f"{type(error).__name__}: {error}"
            )

    async def _start(self, member: Member) -> None:
        is_data = member in (self.crew.queue, self.crew.versions)  # these are up when they answer
        self.starting.add(member.name)
        try:
            await member.link.call(
                "ping" if is_data else "start",
                timeout_seconds=member.start_timeout_seconds + PING_TIMEOUT_SECONDS,
                setting=member.start_setting,
            )
        finally:
            self.starting.discard(member.name)
        if member.role == "sampler":
            self.fleet.started(member.name)
        self.up[member.name].set()

    # ---- proofs -------------------------------------------------------------------------------------------------

    async def _load(self, name: str, newest: PolicyVersion) -> None:
        """Have a sampler load and prove a version, every adapter of it; before it the opponent's, where it has not proved that since it
        started."""
        opponent = self.spec.sampling.opponent_of(newest.version)
        if opponent is not None and not self.fleet.knows(name, opponent):
            try:
                older: VersionManifest = await self.crew.versions.link.call("manifest", "fast", opponent)
            except (WorkerDied, WorkerUnavailable, CallTimeout) as error:
                self.journal.log.warning("%s cannot load its opponent yet: %s", name, error)
                self.fleet.samplers[name].loading = None
                return
            certain = await self._prove(name, older)
            if certain is None:
                return
            self.fleet.proved_opponent(name, opponent, certain=certain)
        outcomes = []
        for manifest in newest.manifests:
            certain = await self._prove(name, manifest)
            if certain is None:
                return
            outcomes.append(certain)
        self.fleet.proved(name, newest.version, certain=all(outcomes))

    async def _prove(self, name: str, manifest: VersionManifest) -> bool | None:
        """Whether the canary was certain that a sampler runs a version, or could not tell; None where it is not proved, which has been
        dealt with."""
        version = manifest.version
        what = (
            f"version {version}" if manifest.module == "fast" else f"version {version} of the {manifest.module} adapter"
        )
        try:
            proof: LoadProof = await self.crew.member(name).link.call("load", version, manifest.module)
        except (WorkerDied, WorkerUnavailable, CallTimeout) as error:
            self.journal.log.warning("%s did not load %s: %s", name, what, error)
            self.fleet.samplers[name].loading = None  # the heartbeat finds out whether it lives
            return None
        except Exception as error:  # wrong bytes, a refused adapter: whatever it is, this version is not proved
            await self._unproved(name, manifest, f"{type(error).__name__}: {error}", {})
            return None
        if proof.digest != manifest.digest:
            reason = f"it loaded an adapter with digest {proof.digest}, the manifest says {manifest.digest}"
            await self._unproved(name, manifest, reason, {})
            return None
        verdict = canary.judge(manifest, proof.measured, self.noise)
        if verdict.outcome is canary.CanaryOutcome.FAILED:
            await self._unproved(name, manifest, verdict.reason, verdict.as_metrics())
            return None
        certain = verdict.outcome is canary.CanaryOutcome.PASSED
        if not certain and self.spec.resources.fleet.canary_on_cannot_tell == "stop":
            self.fail(JobFailure("canary_cannot_tell", verdict.reason, "resources.fleet.canary_on_cannot_tell"))
            return None
        self.journal.event(
            "version_proved",
            f"{name} proved {what}" if certain else f"{name} has {what} by digest; {verdict.reason}",
            sampler=name,
            module=manifest.module,
            version=version,
            digest=proof.digest,
            canary=verdict.outcome,
            seconds=round(proof.seconds, 4),
            **verdict.as_metrics(),
        )
        return certain

    async def _unproved(self, name: str, manifest: VersionManifest, reason: str, numbers: dict[str, float]) -> None:
        action = self.fleet.failed_proof(name)
        message = f"{name} could not prove version {manifest.version}: {reason}"
        self.journal.event("proof_failed", message, sampler=name, version=manifest.version, action=action, **numbers)
        link = self.crew.member(name).link
        try:
            if action is Action.RELOAD:
                await link.call("forget", manifest.version, manifest.module)
            else:
                await link.call("abandon")
        except Exception as error:  # dead, as the heartbeat will say, or somebody chats with that version: it is measured again as it is
            self.journal.log.warning("%s forgot nothing: %s", name, error)
        if action is Action.RELOAD:
            return
        self.up[name].clear()
        self.crew.dismiss_one(self.crew.member(name))
        self.journal.event("sampler_fenced", f"{name} is fenced: {reason}", sampler=name, version=manifest.version)
        if action is Action.STOP:
            self.fail(JobFailure("version_not_proved", message))
        else:
            await self._hand_over(name)

    async def _hand_over(self, name: str) -> None:
        """Give a sampler's groups to others; while the queue is down too, its groups are found as orphans when it is back."""
        try:
            await self.sampler_died(name)
        except (WorkerError, CallTimeout) as error:
            self.journal.log.warning("the groups of %s wait for the queue: %s", name, error)

    # ---- tasks --------------------------------------------------------------------------------------------------

    def fail(self, failure: JobFailure) -> None:
        """End the job with this failure; the first one counts."""
        if not self.failure.done():
            self.failure.set_exception(failure)

    def _background(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        task.add_done_callback(self.watch)

    def watch(self, task: asyncio.Future[None]) -> None:
        """End the job when a task that ran beside it has failed; for ``add_done_callback``."""
        if not task.cancelled() and task.exception() is not None and not self.failure.done():
            self.failure.set_exception(task.exception())  # type: ignore[arg-type]
