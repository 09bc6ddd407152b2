"""One vLLM engine that writes answers under named policy versions (rules 4, 5, 6, 8 and 10).

Nothing here knows tickets, Ray or the scorer; ``backend.py`` holds vLLM's processes, ``extension.py`` is the arm inside its worker.

Start and stop: ``start`` once, ``close`` once; all coroutines run on the event loop that called ``start``. When vLLM's process dies,
every call in progress raises ``EngineDied`` and ``wait_dead`` returns; the owner must then exit.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from learner.errors import InputError
from learner.records import ADAPTER_FILES, FinishReason, Module, SamplingParameters, VersionManifest
from workers.chat import ChatPiece, ChatRequest
from workers.sampler.backend import DEATH_MESSAGE, DEATH_POLL_SECONDS, Backend
from workers.sampler.errors import AdapterRejected, DigestMismatch, EngineDied, SamplerError
from workers.sampler.pieces import chat_piece
from workers.sampler.settings import EngineConfig, EngineInfo, GeneratedAnswer
from workers.sampler.slots import AdapterSlots
from workers.sampler.vllm_metrics import vllm_metrics

__all__ = ["EngineConfig", "EngineInfo", "GeneratedAnswer", "SamplerEngine"]


class SamplerEngine:
    """Owner of one ``AsyncLLM`` and of the table of versions that it holds."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.backend = Backend(config)
        self.slots = AdapterSlots(config.cpu_lora_slots)
        self.info: EngineInfo | None = None
        self._secret = uuid.uuid4().hex
        self._settled = 0
        self._holds = 0
        self._due = 0
        self._loading = asyncio.Lock()
        self._counters = dict.fromkeys(
            (
                "sample_tokens_total",
                "sample_answers_total",
                "prompt_tokens_total",
                "adapter_loads_total",
                "adapter_load_seconds_total",
            ),
            0.0,
        )
        self._running = 0

    # ---- life -------------------------------------------------------------------------------------------------------------------

    async def start(self) -> EngineInfo:
        """Start vLLM and answer one token, so that no first request pays for compilation.

        Cancelling it (``asyncio.wait_for``) kills the processes that were started so far.

        Raises:
            InputError: vLLM refuses the settings.
        """
        started = time.monotonic()
        await self.backend.start()
        self.info = self.backend.describe()
        await self._warm_up()
        self.info = replace(self.info, start_seconds=time.monotonic() - started)
        return self.info

    async def close(self) -> None:
        """Stop the engine and its processes. Safe to call twice, and after the engine died."""
        await self.backend.close()

    async def wait_dead(self) -> None:
        """Return when the engine's processes are gone, or ``close`` was called."""
        while not self.dead:
            await asyncio.sleep(DEATH_POLL_SECONDS)

    @property
    def dead(self) -> bool:
        """Whether the engine can answer no more."""
        return self.backend.dead

    # ---- versions ---------------------------------------------------------------------------------------------------------------

    async def load_version(self, manifest: VersionManifest, files: Mapping[str, bytes], module: Module = "fast") -> str:
        """Load a version's adapter from its bytes, and return the digest that the loading process computed (rule 4).

        Args:
            manifest: the version's manifest; its name becomes the adapter's name, its digest is what the bytes must have.
            files: file name to content; the adapter's two files are read, others ignored.

        Raises:
            DigestMismatch: the bytes differ from the manifest. Nothing was loaded.
            AdapterRejected: vLLM refuses the adapter (its rank, DoRA, bias, modules it does not wrap), or there is no place left.
        """
        missing = [name for name in ADAPTER_FILES if name not in files]
        if missing:
            raise AdapterRejected(f"{manifest.name}: the version lacks {', '.join(missing)}")
        if manifest.rank > self.config.lora_rank:
            raise AdapterRejected(
                f"{manifest.name}: adapter rank {manifest.rank} is more than this sampler's {self.config.lora_rank}; "
                "restart the job with adapters.rank at least as high"
            )
        self._started()
        async with self._loading:
            started = time.monotonic()
            slot = self.slots.reserve(module, manifest.version, manifest.name)
            loaded = False
            try:
                content = {name: files[name] for name in ADAPTER_FILES}
                replies: list[dict[str, str]] = await self.backend.alive(
                    self.backend.engine.collective_rpc(
                        "sparring_load_adapter", args=(slot.name, slot.lora_id, manifest.digest, content)
                    )
                )
                self._check_replies(manifest, replies)
                loaded = True
            finally:
                if not loaded:
                    self.slots.drop(module, manifest.version)
                    if not self.dead:
                        # a rank may hold what another refused, and a cancelled load may still take effect
                        await self.backend.alive(self.backend.engine.remove_lora(slot.lora_id))
            digest = replies[0]["digest"]
            self.slots.ready(module, manifest.version, digest)
            self._counters["adapter_loads_total"] += 1
            self._counters["adapter_load_seconds_total"] += time.monotonic() - started
            return digest

    async def unload_version(self, version: int, module: Module = "fast") -> None:
        """Free a version.

        Raises:
            VersionNotLoaded: it is not loaded.
            VersionInUse: a running request names it.
        """
        self._started()
        async with self._loading:
            slot = self.slots.removable(module, version)
            self.slots.drop(module, version)  # before the engine's reply, so that no request can name it any more
            await self.backend.alive(self.backend.engine.remove_lora(slot.lora_id))

    def loaded_versions(self, module: Module = "fast") -> dict[int, str]:
        """Version to adapter digest, of the versions that requests may name."""
        return self.slots.versions(module)

    def in_flight(self, version: int, module: Module = "fast") -> int:
        """How many running requests name this version."""
        return self.slots.running(module, version)

    # ---- requests ---------------------------------------------------------------------------------------------------------------

    async def generate(
        self,
        *,
        request_id: str,
        prompt_token_ids: Sequence[int],
        version: int | None,
        sampling: SamplingParameters,
        seed: int,
        answers: int,
        module: Module = "fast",
    ) -> list[GeneratedAnswer]:
        """Write ``answers`` answers to one prompt under one version, or under the bare base (``None``); they leave together. Answer k is drawn
        with seed ``seed + k``.

        Raises:
            VersionNotLoaded: the version is not loaded (it never was, or it was unloaded).
            InputError: the prompt leaves no room for an answer.
            EngineDied: the engine's process is gone.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            n=answers,
            seed=seed,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            stop_token_ids=list(self._started().stop_token_ids),
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        settled = False

        def settle() -> None:
            """This call's answers wait in vLLM's queue, or never will."""
            nonlocal settled
            self._settled += 0 if settled else answers
            settled = True

        try:
            output = await self._run(request_id, prompt_token_ids, params, version, module, settle)
        finally:
            settle()
        generated = [self._answer(completion, seed) for completion in output.outputs]
        self._counters["sample_answers_total"] += len(generated)
        self._counters["sample_tokens_total"] += sum(len(answer.token_ids) for answer in generated)
        self._counters["prompt_tokens_total"] += len(prompt_token_ids)
        return generated

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ChatPiece]:
        """Write the answers of a request piece by piece. Closing it early ends the request.

        A character goes out when all its bytes are written; one that the answer's end cuts off does not.

        Raises:
            VersionNotLoaded, InputError, EngineDied: as ``generate``.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = request.sampling
        params = SamplingParams(
            n=request.answers,
            seed=request.seed,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            stop=list(request.stop),
            stop_token_ids=list(self._started().stop_token_ids),
            logprobs=request.logprobs,
            output_kind=RequestOutputKind.DELTA,
        )
        token_ids = list(request.prompt_token_ids)
        with self._under(token_ids, request.version, request.module) as lora:
            async with aclosing(self.backend.outputs(request.id, token_ids, params, lora)) as outputs:
                async for output in outputs:
                    for completion in output.outputs:
                        yield chat_piece(completion, request.logprobs)

    async def text_logprobs(
        self, texts: Sequence[Sequence[int]], version: int | None, module: Module = "fast"
    ) -> list[list[float]]:
        """Log-probabilities of each text's tokens from the second on, in nats, under a version, or under the bare base (``None``).

        Raises:
            VersionNotLoaded, EngineDied: as ``generate``.
            InputError: a text has fewer than two tokens, or fills the whole context.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        for text in texts:
            if len(text) < 2:
                raise InputError(f"a text to be measured must have at least 2 tokens, not {len(text)}")
        params = SamplingParams(
            max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )
        outputs = await asyncio.gather(
            *(self._run(f"text-{uuid.uuid4().hex}", text, params, version, module) for text in texts)
        )
        return [
            [float(output.prompt_logprobs[place][text[place]].logprob) for place in range(1, len(text))]
            for text, output in zip(texts, outputs, strict=True)
        ]

    async def hold(self) -> None:
        """Keep new requests waiting, so that a round can be enqueued in a fixed order (rule 8); what runs goes on afterwards. An engine that
        keeps prefixes forgets them, for which it also begins what runs anew.

        ``hold``, begin the calls of ``generate`` in order, ``enqueued``, ``release``. Holds nest.
        """
        self._started()
        if self._holds == 0:
            self._due = self._settled
        self._holds += 1
        await self.backend.alive(
            self.backend.engine.pause_generation(mode="keep", clear_cache=not self.config.deterministic)
        )

    async def enqueued(self, answers: int, timeout_seconds: float = 120) -> None:
        """Wait until so many more answers of ``generate`` wait in vLLM's queue since ``hold``, or were refused.

        Raises:
            TimeoutError: they did not arrive there; the calls were never begun, or were cancelled.
        """
        self._due += answers
        limit = time.monotonic() + timeout_seconds
        while self._settled < self._due:
            if self.dead:
                raise EngineDied(DEATH_MESSAGE)
            if time.monotonic() > limit:
                raise TimeoutError(
                    f"{self._due - self._settled} answers did not reach the sampler's queue within {timeout_seconds:g} s "
                    "(timeout_seconds of SamplerEngine.enqueued)"
                )
            await asyncio.sleep(0.001)

    async def release(self) -> None:
        """Let the requests that ``hold`` kept begin, all together."""
        self._started()
        self._holds = max(0, self._holds - 1)
        if self._holds == 0:
            await self.backend.alive(self.backend.engine.resume_generation())

    def metrics(self) -> dict[str, float]:
        """Counters since the start, what runs now, and vLLM's own metrics under their own names."""
        ours = {"requests_running": float(self._running), "versions_loaded": float(len(self.slots))}
        return {**self._counters, **ours, **vllm_metrics()}

    # ---- inside -----------------------------------------------------------------------------------------------------------------

    async def _warm_up(self) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            n=2,
            seed=0,
            max_tokens=2,
            logprobs=0,
            detokenize=False,
            ignore_eos=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        await self._run("warm-up", [0, 0], params, None, "fast")

    async def _run(
        self,
        request_id: str,
        token_ids: Sequence[int],
        params: Any,
        version: int | None,
        module: Module,
        on_enqueued: Callable[[], None] = lambda: None,
    ) -> Any:
        """The final output of one request, under a version or the bare base."""
        with self._under(token_ids, version, module) as lora:
            return await self.backend.alive(
                self.backend.final_output(request_id, list(token_ids), params, lora, on_enqueued)
            )

    @contextmanager
    def _under(self, token_ids: Sequence[int], version: int | None, module: Module) -> Iterator[Any]:
        """Hold a version for the length of a request, as vLLM's request for its adapter; None for the bare base."""
        from vllm.lora.request import LoRARequest

        context = self._started().max_model_len
        if len(token_ids) >= context:
            raise InputError(
                f"{len(token_ids)} tokens leave no room in a context of {context}; shorten the prompt, "
                "or raise policy.max_context_tokens"
            )
        used = nullcontext() if version is None else self.slots.use(module, version)
        with used as slot:
            lora = None
            if slot is not None:
                # vLLM's prefix cache is keyed by name and path. The path names nothing: an evicted adapter cannot be read again.
                path = f"/nonexistent/sparring-{self._secret}/{slot.lora_id}"
                lora = LoRARequest(lora_name=slot.name, lora_int_id=slot.lora_id, lora_path=path)
            self._running += 1
            try:
                yield lora
            finally:
                self._running -= 1

    def _answer(self, completion: Any, seed: int) -> GeneratedAnswer:
        token_ids = tuple(completion.token_ids)
        try:
            finish = FinishReason(completion.finish_reason)
        except ValueError as error:
            raise SamplerError(
                f"vLLM ended an answer with {completion.finish_reason!r}, which is neither stop nor length"
            ) from error
        return GeneratedAnswer(
            text=self.backend.engine.get_tokenizer().decode(token_ids, skip_special_tokens=True),
            token_ids=token_ids,
            logprobs=tuple(
                float(place[token].logprob) for place, token in zip(completion.logprobs, token_ids, strict=True)
            ),
            finish_reason=finish,
            seed=seed + completion.index,
        )

    def _check_replies(self, manifest: VersionManifest, replies: Sequence[Mapping[str, str]]) -> None:
        """Every rank must have read the manifest's bytes, and loaded them."""
        for reply in replies:
            if reply["digest"] != manifest.digest:
                raise DigestMismatch(manifest.name, manifest.digest, reply["digest"])
            if reply["error"]:
                raise AdapterRejected(f"{manifest.name}: vLLM refuses the adapter: {reply['error']}")

    def _started(self) -> EngineInfo:
        if self.info is None or self.backend.engine is None:
            raise EngineDied("the sampler's engine is not running; start it first")
        return self.info
