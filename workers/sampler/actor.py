"""The sampler's Ray actor: tickets in, groups of answers out to the scorer, versions pulled from the store.

A group stays in flight until the replay queue has stored it, so that whatever dies in between, the controller still knows of it (rule 3).
Requests in flight finish under the version that they name while a new one loads (rule 6).
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Iterable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import NoReturn, TypeVar

from learner.records import (
    ADAPTER_FILES,
    Answer,
    AnswerSource,
    Module,
    ResponseGroup,
    SamplingParameters,
    Share,
    Stage,
    Ticket,
    VersionManifest,
)
from workers import logs, process_tree
from workers.chat import ChatBegun, ChatPiece, ChatRequest
from workers.cluster import Link, WorkerDied, WorkerUnavailable
from workers.config import SamplingConfig
from workers.leased import LeasedWorker
from workers.messages import EvaluationAnswer, EvaluationItem, GroupFailure, LoadProof, SamplerStatus
from workers.models import require_policy
from workers.patience import Patience
from workers.sampler.engine import EngineConfig, GeneratedAnswer, SamplerEngine
from workers.sampler.errors import ChatBusy, EngineDied, NoPlaceLeft, VersionInUse
from workers.sampler.guests import Adapter, Guests
from workers.versions.cache import VersionCache

T = TypeVar("T")

PATIENCE = "resources.sampler.request_timeout_seconds"

PLACE_SECONDS, PLACE_PAUSE_SECONDS = 120.0, 0.5
"""Longest wait for an adapter place, and the pause between two tries."""

DELIVERY_PAUSE_SECONDS = 0.5
"""Between two tries to hand a group to a scorer that is being restarted."""


@dataclass(frozen=True)
class SamplerSetup:
    """What one sampler needs to know.

    Attributes:
        scorers: names of the scorer actors; a group goes to one of them by its index.
        versions: name of the version store's actor.
        cache: folder on this machine that versions' bytes are kept in.
        in_order: enqueue each batch of tickets in order while the scheduler is held (rule 8).
        keep_versions: newest versions that stay loaded, besides the opponent and those that running requests name.
        chat_slots: requests of chat at a time, and versions that are loaded for chat alone.
    """

    name: str
    job_id: str
    logs: Path
    cache: Path
    engine: EngineConfig
    sampling: SamplingConfig
    scorers: tuple[str, ...]
    versions: str
    in_order: bool
    keep_versions: int
    start_timeout_seconds: float
    request_timeout_seconds: float
    chat_slots: int = 0


class SamplerWorker(LeasedWorker):
    """One vLLM engine in an actor of its own. When the engine dies, the actor dies (rule 10)."""

    def __init__(self, setup: SamplerSetup, lease_seconds: float) -> None:
        process_tree.guard()
        super().__init__(lease_seconds)
        self.log = logs.write_to(setup.logs, setup.name)
        self.setup = setup
        self.engine = SamplerEngine(setup.engine)
        self.parameters = SamplingParameters(
            temperature=setup.sampling.temperature,
            top_p=setup.sampling.top_p,
            top_k=setup.sampling.top_k,
            max_tokens=setup.sampling.max_tokens,
        )
        self.scorers = [Link(name) for name in setup.scorers]
        self.store = Link(setup.versions)
        self.cache = VersionCache(setup.cache)
        self.writing: dict[str, asyncio.Task[None]] = {}
        self.accepted: set[str] = set()  # whose round has not begun
        self.sampling, self.delivering = (Patience(setup.request_timeout_seconds, PATIENCE) for _ in range(2))
        self.failures: list[GroupFailure] = []
        self.digests: dict[tuple[Module, int], str] = {}
        self.needed: Counter[Adapter] = Counter()  # by calls that are being carried out
        self.loading = asyncio.Lock()
        self.guests = Guests(setup.chat_slots)
        self.watching: asyncio.Task[None] | None = None
        self.delivered_total = 0
        self.synced = dict.fromkeys(("syncs_total", "sync_seconds_total", "sync_bytes_total"), 0.0)

    async def start(self) -> float:
        """Bring the engine up, unless it is; a restarted controller finds it running (rule 10). Returns the seconds that it took.

        Raises:
            InputError: this machine does not have the base model.
            TimeoutError: it took longer than ``resources.sampler.start_timeout_seconds``.
        """
        began = time.monotonic()
        if self.engine.info is not None:
            return 0.0
        await asyncio.to_thread(require_policy, self.setup.engine.model, revision=self.setup.engine.revision)
        try:
            await asyncio.wait_for(self.engine.start(), self.setup.start_timeout_seconds)
        except TimeoutError as error:
            raise TimeoutError(
                f"{self.setup.name}: vLLM did not start within {self.setup.start_timeout_seconds:g} s "
                "(resources.sampler.start_timeout_seconds)"
            ) from error
        self.log.info("vLLM is up: %r", self.engine.info)
        self.watching = asyncio.create_task(self._watch_engine())
        return time.monotonic() - began

    async def load(self, version: int, module: Module = "fast") -> LoadProof:
        """Fetch a module's version, load it, and measure its canary texts. What it shows is judged elsewhere."""
        self._require_started()
        began = time.monotonic()
        manifest: VersionManifest = await self.store.call("manifest", module, version)
        with self._needed([(module, version)]):
            await self._ensure_loaded(manifest, began)
            measured = await self._guarded(
                self.engine.text_logprobs([text.token_ids for text in manifest.canary], version, module)
            )
            return LoadProof(
                sampler=self.setup.name,
                module=module,
                version=version,
                digest=self.digests[module, version],
                measured=tuple(tuple(text) for text in measured),
                seconds=time.monotonic() - began,
            )

    async def _ensure_loaded(self, manifest: VersionManifest, began: float) -> None:
        """Load a version unless it is; where every place is taken, once the requests that name old versions have finished.

        Raises:
            NoPlaceLeft: they do not finish.
        """
        module, version = manifest.module, manifest.version
        while True:
            async with self.loading:  # an evaluation may ask for the version that is just being loaded
                if (module, version) not in self.digests:
                    await self._make_room(version)
                    files = await self._adapter_files(manifest)
                    try:
                        digest = await self._guarded(self.engine.load_version(manifest, files, module))
                    except NoPlaceLeft:
                        if time.monotonic() > began + PLACE_SECONDS:
                            raise
                    else:
                        self.digests[module, version] = digest
                        self.synced["syncs_total"] += 1
                        self.synced["sync_seconds_total"] += time.monotonic() - began
                if (module, version) in self.digests:
                    self.guests.remove((module, version))  # the job needs it now, whoever loaded it
                    return
            await asyncio.sleep(PLACE_PAUSE_SECONDS)

    async def forget(self, version: int, module: Module = "fast") -> None:
        """Unload a version whose proof failed, once nothing names it, so that it can be loaded again."""
        async with self.loading:
            if (module, version) in self.digests:
                await self._unload((module, version))

    async def write(self, tickets: Sequence[Ticket]) -> None:
        """Begin to write these groups. A ticket that is being written already is not written twice."""
        self._require_started()
        known = self.accepted | self.writing.keys()
        fresh = [ticket for ticket in tickets if ticket.group_id not in known]
        if not self.setup.in_order:
            self._begin(fresh)
            return
        accepted = {ticket.group_id for ticket in fresh}
        # in flight from here on: nobody may take them for lost while the engine is being held
        self.accepted |= accepted
        try:
            await self._guarded(self._begin_in_order(fresh))
        finally:
            self.accepted -= accepted

    async def answer(
        self, items: Sequence[EvaluationItem], version: int, reference: int | None
    ) -> list[EvaluationAnswer]:
        """Answer held-out prompts once each under ``version``, sampling as in training.

        Args:
            items: what to answer.
            version: any published version; it is loaded when it is not there.
            reference: version whose log-probabilities of the answers are reported; None for the bare base.
        """
        self._require_started()
        adapters: list[Adapter] = [("fast", needed) for needed in (version, reference) if needed is not None]
        with self._needed(adapters):
            for _, needed in adapters:
                if ("fast", needed) not in self.digests:
                    await self.load(needed)
                self.guests.remove(("fast", needed))  # were it loaded for chat, it could go in the middle of this
            answers = await asyncio.gather(
                *(
                    self._generate(
                        f"evaluation-{version}-{number}-{item.seed}",
                        item.prompt_token_ids,
                        Share(module="fast", version=version, answers=1),
                        item.seed,
                    )
                    for number, item in enumerate(items)
                )
            )
            texts = [(*item.prompt_token_ids, *group[0].token_ids) for item, group in zip(items, answers, strict=True)]
            references = await self._guarded(self.engine.text_logprobs(texts, reference))
            return [
                EvaluationAnswer(
                    prompt=item.prompt,
                    answer=self._record(group[0], "fast", version),
                    reference_logprobs=tuple(logprobs[len(logprobs) - len(group[0].token_ids) :]),
                )
                for item, group, logprobs in zip(items, answers, references, strict=True)
            ]

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatBegun | ChatPiece]:
        """Answer a person: first that it has begun, then the answers piece by piece. A version that is not loaded is loaded.

        It takes no more than chat's share of this sampler, and never holds up what the job asks for (rules 6 and 8).

        Raises:
            ChatBusy: chat's share is taken.
            InputError: the prompt leaves no room for an answer.
            MissingVersionError: there is no such version.
            TimeoutError: it took longer than ``resources.sampler.request_timeout_seconds``.
        """
        if self.engine.info is None:
            raise ChatBusy(f"{self.setup.name} is starting; try again")
        adapter = None if request.version is None else (request.module, request.version)
        limit = self.setup.request_timeout_seconds
        try:
            with self.guests.request(adapter):
                async with asyncio.timeout(limit):
                    digest = None if adapter is None else await self._guest_digest(adapter)
                    self.log.info("%s: chat begins", request.id, extra={"request_id": request.request_id})
                    yield ChatBegun(sampler=self.setup.name, adapter_digest=digest)
                    with self.activity.busy():
                        async with aclosing(self.engine.stream(request)) as pieces:
                            async for piece in pieces:
                                yield piece
        except EngineDied:
            self._die()
        except TimeoutError as error:
            reason = f"the answer was not complete within {limit:g} s (resources.sampler.request_timeout_seconds)"
            raise TimeoutError(str(error) or reason) from error

    async def status(self) -> SamplerStatus:
        """What is in flight, and what failed since the last call. A failure whose report is lost leaves a group that nobody
        holds, which the controller grants again."""
        failures, self.failures = self.failures, []
        return SamplerStatus(
            sampler=self.setup.name,
            in_flight=tuple(self.accepted | self.writing.keys()),
            failures=tuple(failures),
            metrics={**self.engine.metrics(), **self.synced, "groups_delivered_total": float(self.delivered_total)},
        )

    async def abandon(self) -> None:
        """Stop writing; nothing that is in flight is delivered any more."""
        tasks = list(self.writing.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def stop(self) -> None:
        """Abandon what is in flight and close the engine."""
        if self.watching is not None:
            self.watching.cancel()
        await self.abandon()
        await self.engine.close()

    async def _begin_in_order(self, tickets: Sequence[Ticket]) -> None:
        await self.engine.hold()
        try:
            self._begin(tickets)
            await self.engine.enqueued(len(tickets) * self.setup.sampling.answers)
        finally:
            await self.engine.release()

    def _begin(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            task = asyncio.create_task(self._write(ticket), name=ticket.group_id)
            self.writing[ticket.group_id] = task
            task.add_done_callback(self._written)

    async def _write(self, ticket: Ticket) -> None:
        stage = Stage.SAMPLER
        try:
            answers = await self.sampling.wait(self._answers(ticket))
            group = ResponseGroup(
                group_id=ticket.group_id,
                round=ticket.round,
                index=ticket.index,
                version=ticket.version,
                prompt=ticket.prompt,
                prompt_token_ids=ticket.prompt_token_ids,
                answers=answers,
            )
            stage = Stage.SCORER
            await self.delivering.wait(self._deliver(group))
            self.delivered_total += 1
        except asyncio.CancelledError:
            raise
        except TimeoutError as error:
            self._fail(ticket, stage, str(error) or "TimeoutError")
        except Exception as error:  # whatever it was, it is reported with the group, and the controller decides
            self.log.exception("group %s failed", ticket.group_id, extra={"group_id": ticket.group_id})
            self._fail(ticket, stage, f"{type(error).__name__}: {error}")

    def _written(self, task: asyncio.Task[None]) -> None:
        self.writing.pop(task.get_name(), None)

    def _fail(self, ticket: Ticket, stage: Stage, reason: str) -> None:
        self.failures.append(GroupFailure(group_id=ticket.group_id, attempt=ticket.attempt, stage=stage, reason=reason))

    async def _deliver(self, group: ResponseGroup) -> None:
        """Hand a group to its scorer, which returns when the queue has stored it; wait for a scorer that is being restarted."""
        scorer = self.scorers[group.index % len(self.scorers)]
        while True:
            try:
                await scorer.call("score", group, timeout_seconds=math.inf)  # whoever calls this has the patience
                return
            except (WorkerDied, WorkerUnavailable):
                await asyncio.sleep(DELIVERY_PAUSE_SECONDS)

    async def _answers(self, ticket: Ticket) -> tuple[Answer, ...]:
        """A ticket's K answers, in the order of its shares, all at the same time. Answer k has the seed ``ticket.seed + k``."""
        with self._needed([(share.module, share.version) for share in ticket.shares]):
            firsts = accumulate((share.answers for share in ticket.shares), initial=0)
            written = await asyncio.gather(
                *(
                    self._generate(
                        f"{ticket.group_id}-{ticket.attempt}-{first}",
                        ticket.prompt_token_ids,
                        share,
                        ticket.seed + first,
                    )
                    for share, first in zip(ticket.shares, firsts, strict=False)
                )
            )
            return tuple(
                self._record(answer, share.module, share.version)
                for share, answers in zip(ticket.shares, written, strict=True)
                for answer in answers
            )

    async def _generate(
        self, request_id: str, prompt_token_ids: Sequence[int], share: Share, seed: int
    ) -> list[GeneratedAnswer]:
        return await self._guarded(
            self.engine.generate(
                request_id=request_id,
                prompt_token_ids=prompt_token_ids,
                version=share.version,
                module=share.module,
                sampling=self.parameters,
                seed=seed,
                answers=share.answers,
            )
        )

    async def _guarded(self, work: Awaitable[T]) -> T:
        try:
            with self.activity.busy():
                return await work
        except EngineDied:
            self._die()

    def _require_started(self) -> None:
        if self.engine.info is None:
            raise WorkerUnavailable(f"{self.setup.name} is starting")

    async def _watch_engine(self) -> None:
        """An engine may die while nobody asks anything of it."""
        await self.engine.wait_dead()
        self._die()

    def _die(self) -> NoReturn:
        """An actor whose engine is dead would fail every call for ever; its death is what the controller understands."""
        self.log.exception("the engine died, and this sampler with it")
        logging.shutdown()
        os._exit(1)

    def _record(self, answer: GeneratedAnswer, module: Module, version: int) -> Answer:
        return Answer(
            text=answer.text,
            token_ids=tuple(answer.token_ids),
            logprobs=tuple(answer.logprobs),
            finish_reason=answer.finish_reason,
            source=AnswerSource.POLICY,
            module=module,
            version=version,
            adapter_digest=self.digests[module, version],
            sampling=self.parameters,
            seed=answer.seed,
            sampler=self.setup.name,
        )

    async def _guest_digest(self, adapter: Adapter) -> str:
        """The digest of a version that a running request names; it is loaded where it is not, in place of the longest unused guest."""
        module, version = adapter
        async with self.loading:
            if adapter not in self.digests:
                manifest: VersionManifest = await self.store.call("manifest", module, version)
                files = await self._adapter_files(manifest)
                if (old := self.guests.to_unload()) is not None:
                    self.guests.remove(old)
                    await self._unload(old)
                self.digests[adapter] = await self._guarded(self.engine.load_version(manifest, files, module))
                self.guests.add(adapter)
            return self.digests[adapter]

    @contextmanager
    def _needed(self, adapters: Iterable[Adapter]) -> Iterator[None]:
        """Keep these versions loaded meanwhile: between the steps of a call no request names them."""
        mine = Counter(adapters)
        self.needed += mine
        try:
            yield
        finally:
            self.needed -= mine

    async def _adapter_files(self, manifest: VersionManifest) -> dict[str, bytes]:
        """A version's adapter from this machine's cache, or from the store; digest-checked either way (rule 13)."""
        missing, files = self.cache.look(manifest, ADAPTER_FILES)
        if missing:
            fetched = await self.store.call("files", manifest.module, manifest.version, missing)
            self.synced["sync_bytes_total"] += sum(len(content) for content in fetched.values())
            files |= self.cache.keep(manifest, fetched, missing)
        return files

    async def _make_room(self, version: int) -> None:
        """Unload versions that are neither among the newest, nor the opponent, nor needed by a call or named by a running request."""
        newest = max([version, *(known for _, known in self.digests)])  # an evaluation may ask for an older one
        for module, old in sorted(self.digests):
            opponent = module == "fast" and old == self.setup.sampling.fixed_opponent
            if (module, old) in self.guests or self.guests.named((module, old)) or self.needed[module, old]:
                continue
            if old <= newest - self.setup.keep_versions and not opponent and self.engine.in_flight(old, module) == 0:
                await self._unload((module, old))

    async def _unload(self, adapter: Adapter) -> None:
        module, version = adapter
        digest = self.digests.pop(adapter)  # first, so that nobody takes it for loaded while it goes
        try:
            await self._guarded(self.engine.unload_version(version, module))
        except VersionInUse:
            self.digests[adapter] = digest
            raise
