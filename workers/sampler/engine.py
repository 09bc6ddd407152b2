"""One vLLM engine that writes answers under named policy versions (rules 4, 5, 6, 8 and 10).

The only module that knows vLLM's interfaces; ``extension.py`` is its arm inside vLLM's worker process. Nothing here knows tickets, Ray
or the scorer.

Start and stop: ``start`` once, ``close`` once; all coroutines run on the event loop that called ``start``. When vLLM's process dies,
every call in progress raises ``EngineDied`` and ``wait_dead`` returns; the owner must then exit.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from learner.errors import InputError
from learner.records import ADAPTER_FILES, FinishReason, Module, SamplingParameters, VersionManifest
from workers.sampler import environment
from workers.sampler.errors import AdapterRejected, DigestMismatch, EngineDied, SamplerError
from workers.sampler.limits import LORA_RANKS, SERVED_MODULES
from workers.sampler.slots import AdapterSlots

logger = logging.getLogger(__name__)

T = TypeVar("T")

MIN_BATCH_TOKENS = 16384
"""Least token budget of one scheduler step on the CPU backend, where a prompt must fit into one step whole."""

DEATH_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class EngineConfig:
    """What an engine is started with. ``gpus`` 0 means vLLM's CPU backend."""

    model: str
    revision: str | None = None
    dtype: str = "auto"
    max_model_len: int | None = None
    lora_rank: int = 16
    lora_slots: int = 2
    cpu_lora_slots: int = 4
    max_running_requests: int = 256
    threads: int = 1
    kv_cache_gib: float = 1.0
    gpu_memory_utilization: float = 0.85
    tensor_parallel_size: int = 1
    enforce_eager: bool = True
    seed: int = 0
    cache_dir: Path | None = None
    deterministic: bool = False
    gpus: float = 0.0
    worker_extension: str = "workers.sampler.extension.AdapterLoader"


@dataclass(frozen=True)
class EngineInfo:
    """What a started engine says about itself."""

    vllm_version: str
    dtype: str
    max_model_len: int
    vocabulary: int
    stop_token_ids: tuple[int, ...]
    start_seconds: float
    process_ids: tuple[int, ...]


@dataclass(frozen=True)
class GeneratedAnswer:
    """One answer. ``token_ids`` include the EOS token once where ``finish_reason`` is ``stop``; ``logprobs`` are raw, one per token."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    seed: int


class SamplerEngine:
    """Owner of one ``AsyncLLM`` and of the table of versions that it holds."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.slots = AdapterSlots(config.cpu_lora_slots)
        self.info: EngineInfo | None = None
        self._engine: Any = None
        self._tokenizer: Any = None
        self._closed = False
        self._secret = uuid.uuid4().hex
        self._loading = asyncio.Lock()
        self._counters = dict.fromkeys(
            ("sample_tokens_total", "sample_answers_total", "prompt_tokens_total", "adapter_loads_total", "adapter_load_seconds_total"),
            0.0,
        )
        self._running = 0

    # ---- life -------------------------------------------------------------------------------------------------------------------

    async def start(self) -> EngineInfo:
        """Import vLLM, start its processes and answer one token, so that no first request pays for compilation.

        Cancelling it (``asyncio.wait_for``) kills the processes that were started so far.

        Raises:
            InputError: vLLM refuses the model or the settings.
        """
        started = time.monotonic()
        environment.prepare(gpus=self.config.gpus, threads=self.config.threads, cache_dir=self.config.cache_dir)
        before = _descendants()
        loop = asyncio.get_running_loop()
        with_thread = ThreadPoolExecutor(1, thread_name_prefix="sampler-start")
        building = loop.run_in_executor(with_thread, self._build)
        try:
            self._engine = await asyncio.shield(building)
            await self._alive(self._engine.collective_rpc("sparring_prepare"))
            await self._warm_up()
        except asyncio.CancelledError:
            self._closed = True
            building.add_done_callback(_shut_down_built)
            _kill(_descendants() - before)
            raise
        finally:
            with_thread.shutdown(wait=False)
        self.info = self._describe(time.monotonic() - started, _descendants() - before)
        return self.info

    async def close(self) -> None:
        """Stop the engine and its processes. Safe to call twice, and after the engine died."""
        self._closed = True
        if self._engine is None:
            return
        engine, self._engine = self._engine, None
        await asyncio.to_thread(engine.shutdown)

    async def wait_dead(self) -> None:
        """Return when the engine's processes are gone, or ``close`` was called."""
        while not self.dead:
            await asyncio.sleep(DEATH_POLL_SECONDS)

    @property
    def dead(self) -> bool:
        """Whether the engine can answer no more."""
        return self._closed or (self._engine is not None and bool(self._engine.errored))

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
        async with self._loading:
            started = time.monotonic()
            slot = self.slots.reserve(module, manifest.version, manifest.name)
            loaded = False
            try:
                content = {name: files[name] for name in ADAPTER_FILES}
                replies: list[dict[str, str]] = await self._alive(
                    self._engine.collective_rpc("sparring_load_adapter", args=(slot.name, slot.lora_id, manifest.digest, content))
                )
                self._check_replies(manifest, replies)
                loaded = True
            finally:
                if not loaded:
                    self.slots.drop(module, manifest.version)
                    if not self.dead:
                        # a rank may hold what another refused, and a cancelled load may still take effect
                        await self._alive(self._engine.remove_lora(slot.lora_id))
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
        async with self._loading:
            slot = self.slots.removable(module, version)
            self.slots.drop(module, version)  # before the engine's reply, so that no request can name it any more
            await self._alive(self._engine.remove_lora(slot.lora_id))

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
        version: int,
        sampling: SamplingParameters,
        seed: int,
        answers: int,
        module: Module = "fast",
    ) -> list[GeneratedAnswer]:
        """Write ``answers`` answers to one prompt under one version; they leave together. Answer k is drawn with seed ``seed + k``.

        Raises:
            VersionNotLoaded: the version is not loaded (it never was, or it was unloaded).
            InputError: the prompt leaves no room for an answer.
            EngineDied: the engine's process is gone.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        info = self._started()
        if len(prompt_token_ids) >= info.max_model_len:
            raise InputError(
                f"a prompt of {len(prompt_token_ids)} tokens leaves no room for an answer in a context of {info.max_model_len}; "
                "shorten it, or raise policy.max_context_tokens"
            )
        params = SamplingParams(
            n=answers,
            seed=seed,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            stop_token_ids=list(info.stop_token_ids),
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        output = await self._run(request_id, prompt_token_ids, params, version, module)
        generated = [self._answer(completion, seed) for completion in output.outputs]
        self._counters["sample_answers_total"] += len(generated)
        self._counters["sample_tokens_total"] += sum(len(answer.token_ids) for answer in generated)
        self._counters["prompt_tokens_total"] += len(prompt_token_ids)
        return generated

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

        info = self._started()
        for text in texts:
            if not 2 <= len(text) < info.max_model_len:
                raise InputError(f"a text to be measured must have 2 to {info.max_model_len - 1} tokens, not {len(text)}")
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
        """Keep new requests waiting and forget the prefix cache, so that a round can be enqueued in a fixed order (rule 8)."""
        self._started()
        await self._alive(self._engine.pause_generation(mode="keep", clear_cache=True))

    async def release(self) -> None:
        """Let the requests that ``hold`` kept begin, all together."""
        self._started()
        await self._alive(self._engine.resume_generation())

    def metrics(self) -> dict[str, float]:
        """Counters since the start, and what runs now."""
        return {**self._counters, "requests_running": float(self._running), "versions_loaded": float(len(self.slots))}

    # ---- inside -----------------------------------------------------------------------------------------------------------------

    def _build(self) -> Any:
        """Start vLLM. Blocks; runs in a thread."""
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        config = self.config
        on_cpu = current_platform.is_cpu()
        if on_cpu != (config.gpus == 0):
            kind, wanted = ("CPU", "0") if on_cpu else ("GPU", "1 or more")
            raise InputError(
                f"resources.sampler.gpus: {config.gpus:g} does not fit this installation's vLLM, which is the {kind} one; "
                f"set it to {wanted}, or install the other set of requirements"
            )
        rank = next((ceiling for ceiling in LORA_RANKS if ceiling >= config.lora_rank), None)
        if rank is None:
            raise InputError(f"adapters.rank: vLLM serves ranks up to {LORA_RANKS[-1]}, not {config.lora_rank}")
        arguments: dict[str, Any] = {
            "model": config.model,
            "revision": config.revision,
            "tokenizer_revision": config.revision,
            "dtype": ("float32" if on_cpu else "bfloat16") if config.dtype == "auto" else config.dtype,
            "max_model_len": config.max_model_len,
            "enable_lora": True,
            "max_lora_rank": rank,
            "max_loras": config.lora_slots,
            "max_cpu_loras": config.cpu_lora_slots,
            "lora_target_modules": sorted(SERVED_MODULES),
            "max_num_seqs": config.max_running_requests,
            "tensor_parallel_size": config.tensor_parallel_size,
            # inside a Ray actor vLLM would else hand its ranks to Ray
            "distributed_executor_backend": "mp" if on_cpu or config.tensor_parallel_size > 1 else "uni",
            "enforce_eager": config.enforce_eager,
            "seed": config.seed,
            "worker_extension_cls": config.worker_extension,
            "logprobs_mode": "raw_logprobs",
            "disable_log_stats": True,
            "limit_mm_per_prompt": {"image": 0, "video": 0, "audio": 0},
        }
        if config.deterministic:
            # whether a prompt's beginning is found in the cache depends on what came before
            arguments["enable_prefix_caching"] = False
        if on_cpu:
            arguments["kv_cache_memory_bytes"] = int(config.kv_cache_gib * (1 << 30))
            # A seeded request whose prompt is computed in chunks kills the CPU engine ("CPU Generator does not use offset").
            arguments["enable_chunked_prefill"] = False
        else:
            arguments["gpu_memory_utilization"] = config.gpu_memory_utilization
        engine_args = AsyncEngineArgs(**arguments)
        if on_cpu:
            context = config.max_model_len or engine_args.create_model_config().max_model_len
            engine_args.max_num_batched_tokens = max(MIN_BATCH_TOKENS, context, config.max_running_requests)
        return AsyncLLM.from_engine_args(engine_args)

    async def _warm_up(self) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            n=2, seed=0, max_tokens=2, logprobs=0, detokenize=False, ignore_eos=True, output_kind=RequestOutputKind.FINAL_ONLY
        )
        await self._run("warm-up", [0, 0], params, None, "fast")

    def _describe(self, seconds: float, processes: set[psutil.Process]) -> EngineInfo:
        import vllm

        model = self._engine.model_config
        self._tokenizer = self._engine.get_tokenizer()
        return EngineInfo(
            vllm_version=vllm.__version__,
            dtype=str(model.dtype).removeprefix("torch."),
            max_model_len=model.max_model_len,
            vocabulary=model.get_vocab_size(),
            stop_token_ids=_stop_token_ids(model, self._tokenizer),
            start_seconds=seconds,
            process_ids=tuple(sorted(process.pid for process in processes)),
        )

    async def _run(self, request_id: str, token_ids: Sequence[int], params: Any, version: int | None, module: Module) -> Any:
        """The final output of one request, under a version or the bare base."""
        from vllm import TokensPrompt
        from vllm.lora.request import LoRARequest

        used = nullcontext() if version is None else self.slots.use(module, version)
        with used as slot:
            lora = None
            if slot is not None:
                # The path is in vLLM's prefix-cache key, must be absolute, and names nothing: an evicted adapter cannot be read again.
                path = f"/nonexistent/sparring-{self._secret}/{slot.lora_id}"
                lora = LoRARequest(lora_name=slot.name, lora_int_id=slot.lora_id, lora_path=path)
            self._running += 1
            try:
                return await self._alive(self._last_output(request_id, TokensPrompt(prompt_token_ids=list(token_ids)), params, lora))
            finally:
                self._running -= 1

    async def _last_output(self, request_id: str, prompt: Any, params: Any, lora: Any) -> Any:
        output = None
        async for output in self._engine.generate(prompt, params, request_id, lora_request=lora):
            pass
        if output is None or not output.finished:
            raise SamplerError(f"request {request_id}: vLLM ended it without an output")
        return output

    def _answer(self, completion: Any, seed: int) -> GeneratedAnswer:
        token_ids = tuple(completion.token_ids)
        try:
            finish = FinishReason(completion.finish_reason)
        except ValueError as error:
            raise SamplerError(f"vLLM ended an answer with {completion.finish_reason!r}, which is neither stop nor length") from error
        return GeneratedAnswer(
            text=self._tokenizer.decode(token_ids, skip_special_tokens=True),
            token_ids=token_ids,
            logprobs=tuple(float(place[token].logprob) for place, token in zip(completion.logprobs, token_ids, strict=True)),
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
        if self._closed or self.info is None:
            raise EngineDied("the sampler's engine is not running; start it first")
        return self.info

    async def _alive(self, work: Awaitable[T]) -> T:
        """Await ``work``, but not beyond the engine's death: calls to a dead engine's process would wait for ever."""
        from vllm.v1.engine.exceptions import EngineDeadError

        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=DEATH_POLL_SECONDS)
                if self.dead and not task.done():
                    raise EngineDied("the sampler's engine process died; see its log for the reason")
            return task.result()
        except EngineDeadError as error:
            raise EngineDied("the sampler's engine process died; see its log for the reason") from error
        finally:
            if not task.done():
                task.cancel()


def _stop_token_ids(model_config: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every EOS id that the tokenizer, the generation config or the model's own config names."""
    found: set[int] = set()
    generation = model_config.try_get_generation_config()
    text_config = model_config.hf_text_config
    for value in (tokenizer.eos_token_id, generation.get("eos_token_id"), getattr(text_config, "eos_token_id", None)):
        if value is not None:
            found.update([value] if isinstance(value, int) else value)
    return tuple(sorted(found))


def _descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _kill(processes: set[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def _shut_down_built(building: asyncio.Future[Any]) -> None:
    """The start was given up, but its thread may still have brought an engine up."""
    if not building.cancelled() and building.exception() is None:
        building.result().shutdown()
