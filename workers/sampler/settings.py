"""What a sampler engine is started with, what it says of itself and what it answers; and how that reads in vLLM's own words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learner.errors import InputError
from learner.records import FinishReason
from workers.sampler.limits import LORA_RANKS, SERVED_MODULES

MIN_BATCH_TOKENS = 16384
"""Least token budget of one scheduler step on the CPU backend, where a prompt must fit into one step whole."""

ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""The model runs in the engine's own process. By its short name, `uni`, vLLM's CPU backend would put a process of its own in its place,
which imports vLLM once more, to pin threads to cores; ours are not pinned."""


@dataclass(frozen=True)
class EngineConfig:
    """What an engine is started with. ``gpus`` 0 means vLLM's CPU backend.

    Attributes:
        lora_rank: highest rank of the adapters that will be loaded.
        lora_slots: adapters that may be served in one step.
        cpu_lora_slots: adapters that may be loaded; the bound of ``load_version``.
        threads: OpenMP threads on the CPU backend.
        kv_cache_gib: key-value cache on the CPU backend, in GiB.
        deterministic: compute every prompt from its beginning, whatever was computed before.
        worker_extension: class that loads adapters inside vLLM's worker; a test may put a dishonest one in its place.
    """

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
    process_ids: tuple[int, ...]
    start_seconds: float = 0.0


@dataclass(frozen=True)
class GeneratedAnswer:
    """One answer.

    ``token_ids`` include the EOS token once where ``finish_reason`` is ``stop``; ``logprobs`` are raw, one per token, in nats;
    ``text`` is without special tokens.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    seed: int


def engine_arguments(config: EngineConfig, *, on_cpu: bool) -> dict[str, Any]:
    """Keyword arguments of vLLM's ``AsyncEngineArgs``, but for ``max_num_batched_tokens`` (see ``batch_tokens``).

    Args:
        config: the engine's settings.
        on_cpu: whether the installed vLLM is the CPU one.

    Raises:
        InputError: the settings do not fit the installed vLLM.
    """
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
        "lora_target_modules": sorted(SERVED_MODULES),
        "max_lora_rank": rank,
        "max_loras": config.lora_slots,
        "max_cpu_loras": config.cpu_lora_slots,
        "max_num_seqs": config.max_running_requests,
        "tensor_parallel_size": config.tensor_parallel_size,
        # inside a Ray actor vLLM would else hand its ranks to Ray
        "distributed_executor_backend": "mp" if config.tensor_parallel_size > 1 else ONE_PROCESS,
        "enforce_eager": config.enforce_eager,
        "seed": config.seed,
        "worker_extension_cls": config.worker_extension,
        "logprobs_mode": "raw_logprobs",
        "disable_log_stats": False,  # counted, and read by vllm_metrics.py; nothing logs them
        "limit_mm_per_prompt": {"image": 0, "video": 0, "audio": 0},
        # whether a prompt's beginning is found in the cache depends on what came before
        "enable_prefix_caching": not config.deterministic,
    }
    if on_cpu:
        arguments["kv_cache_memory_bytes"] = int(config.kv_cache_gib * (1 << 30))
        # A seeded request whose prompt is computed in chunks kills the CPU engine («CPU Generator does not use offset»).
        arguments["enable_chunked_prefill"] = False
    else:
        arguments["gpu_memory_utilization"] = config.gpu_memory_utilization
    return arguments


def batch_tokens(config: EngineConfig, context: int) -> int:
    """Token budget of one step on the CPU backend: whole prompts of ``context`` tokens fit, and every running request has a place."""
    return max(MIN_BATCH_TOKENS, context, config.max_running_requests)
