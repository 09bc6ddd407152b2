"""vLLM's processes: started, watched, spoken to and stopped. The engine's versions and answers are in ``engine.py``.

Nothing here waits for a dead process: ``alive`` ends every wait when vLLM's processes are gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import psutil

from learner.errors import InputError
from workers.sampler import environment
from workers.sampler.errors import EngineDied, SamplerError
from workers.sampler.settings import EngineConfig, EngineInfo, batch_tokens, engine_arguments

T = TypeVar("T")

DEATH_POLL_SECONDS = 0.2
DEATH_MESSAGE = "the sampler's engine process died; see its log for the reason"


class Backend:
    """One ``AsyncLLM``. ``start`` once, ``close`` once, on one event loop."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.engine: Any = None
        self.processes: set[psutil.Process] = set()
        self._closed = False
        self._death: asyncio.Task[None] | None = None
        self._enqueueing = asyncio.Lock()

    async def start(self) -> None:
        """Import vLLM and start its processes. Cancelling it kills those that were started so far.

        Raises:
            InputError: the settings do not fit the installed vLLM.
        """
        environment.prepare(gpus=self.config.gpus, threads=self.config.threads, cache_dir=self.config.cache_dir)
        before = _descendants()
        thread = ThreadPoolExecutor(1, thread_name_prefix="sampler-start")
        building = asyncio.get_running_loop().run_in_executor(thread, self._build)
        try:
            self.engine = await asyncio.shield(building)
            self._death = asyncio.create_task(self._watch(), name="sampler-death")
            await self.alive(self.engine.collective_rpc("sparring_prepare"))
            await self.alive(self.engine.get_supported_tasks())
        except asyncio.CancelledError:
            self._closed = True
            building.add_done_callback(_shut_down_built)
            _kill(_descendants() - before)
            raise
        finally:
            thread.shutdown(wait=False)
        self.processes = _descendants() - before

    async def close(self) -> None:
        """Stop vLLM's processes. Safe to call twice, and after they died."""
        self._closed = True
        if self.engine is None:
            return
        if self._death is not None:
            await self._death  # every call in progress ends with it
        engine, self.engine = self.engine, None
        if engine.output_handler is not None:
            engine.output_handler.cancel()  # or it logs the end that is meant as a failure
        await asyncio.to_thread(engine.shutdown)
        engine.shutdown = _nothing  # its __del__ calls it again at the interpreter's end, and complains

    @property
    def dead(self) -> bool:
        """Whether it can answer no more."""
        return self._closed or (self.engine is not None and bool(self.engine.errored))

    async def _watch(self) -> None:
        """One watch for all calls: ends when vLLM is dead."""
        while not self.dead:
            await asyncio.sleep(DEATH_POLL_SECONDS)

    async def alive(self, work: Awaitable[T]) -> T:
        """Await ``work``, but not beyond vLLM's death: a call to a dead process would wait for ever.

        Raises:
            EngineDied: vLLM's processes are gone.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        task = asyncio.ensure_future(work)
        if self._death is None:
            raise EngineDied("the sampler's engine is not running; start it first")
        try:
            await asyncio.wait({task, self._death}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise EngineDied(DEATH_MESSAGE)
            return task.result()
        except EngineDeadError as error:
            raise EngineDied(DEATH_MESSAGE) from error
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=DEATH_POLL_SECONDS)  # so that vLLM hears of the abort first

    async def final_output(
        self, request_id: str, token_ids: list[int], params: Any, lora: Any, on_enqueued: Callable[[], None]
    ) -> Any:
        """Hand a request to vLLM and wait for its answers, which come together.

        The order in which calls begin is the order in which vLLM gets them. Cancelling it aborts the request.

        Raises:
            InputError: vLLM refuses the request.
        """
        queue = await self._enqueue(request_id, token_ids, params, lora)
        on_enqueued()
        try:
            output = queue.get_nowait() or await queue.get()
        except asyncio.CancelledError:
            await self.engine.abort(queue.request_id, internal=True)
            raise
        finally:
            queue.close()
        if not output.finished:
            raise SamplerError(f"request {request_id}: vLLM gave a part of the answers where all were asked for")
        return output

    async def outputs(self, request_id: str, token_ids: list[int], params: Any, lora: Any) -> AsyncGenerator[Any]:
        """Hand a request to vLLM and give its outputs as they come, what came meanwhile in one. Closing it early aborts the request.

        Raises:
            InputError: vLLM refuses the request.
            EngineDied: vLLM's processes are gone.
        """
        queue = await self.alive(self._enqueue(request_id, token_ids, params, lora))
        finished = False
        try:
            while not finished:
                output = queue.get_nowait() or await self.alive(queue.get())
                finished = bool(output.finished)
                yield output
        finally:
            queue.close()
            if not finished and not self.dead:
                await self.engine.abort(queue.request_id, internal=True)

    async def _enqueue(self, request_id: str, token_ids: list[int], params: Any, lora: Any) -> Any:
        from vllm.exceptions import VLLMValidationError
        from vllm.inputs.engine import tokens_input

        try:
            async with self._enqueueing:
                return await self.engine.add_request(request_id, tokens_input(token_ids), params, lora_request=lora)
        except VLLMValidationError as error:
            raise InputError(f"request {request_id}: {error}") from error

    def describe(self) -> EngineInfo:
        """What vLLM says of the model that it serves."""
        import vllm

        model = self.engine.model_config
        return EngineInfo(
            vllm_version=vllm.__version__,
            dtype=str(model.dtype).removeprefix("torch."),
            max_model_len=model.max_model_len,
            vocabulary=model.get_vocab_size(),
            stop_token_ids=self._stop_token_ids(),
            process_ids=tuple(sorted(process.pid for process in self.processes)),
        )

    def _stop_token_ids(self) -> tuple[int, ...]:
        """Every EOS id that the tokenizer, the generation config or the model's own config names."""
        model = self.engine.model_config
        found: set[int] = set()
        for value in (
            self.engine.get_tokenizer().eos_token_id,
            model.try_get_generation_config().get("eos_token_id"),
            getattr(model.hf_text_config, "eos_token_id", None),
        ):
            if value is not None:
                found.update([value] if isinstance(value, int) else value)
        return tuple(sorted(found))

    def _build(self) -> Any:
        """Start vLLM. Blocks; runs in a thread."""
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        on_cpu = bool(current_platform.is_cpu())
        arguments = AsyncEngineArgs(**engine_arguments(self.config, on_cpu=on_cpu))
        if on_cpu:
            _look_at_models_here()
            context = self.config.max_model_len or arguments.create_model_config().max_model_len
            arguments.max_num_batched_tokens = batch_tokens(self.config, context)
        return AsyncLLM.from_engine_args(arguments)


def _look_at_models_here() -> None:
    """Have vLLM look at a model's class in this process. It would start another for that, lest a GPU be initialised in this one, and there is
    none; importing vLLM once more costs ten seconds of a processor, at the first use of each class on a machine."""
    from vllm.model_executor.models import registry

    assert callable(registry._run_in_subprocess), "this version of vLLM looks at models in another way"
    registry._run_in_subprocess = lambda look: look()


def _nothing(timeout: float | None = None) -> None:
    pass


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
