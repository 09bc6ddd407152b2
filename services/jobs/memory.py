"""An estimate of the memory that a job's workers take, from shapes alone. Good to tell 6 GB from 60, not 6 from 7."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from learner.references import resolve_reference
from services.jobs.model_files import ModelFiles
from services.jobs.spec import JobSpec
from workers.sampler.limits import LORA_RANKS

PROCESS_BYTES = {"sampler": 1_500_000_000, "scorer": 700_000_000, "learner": 700_000_000}
"""Python and its libraries, as measured on a CPU machine; a sampler is two processes."""

Place = Literal["main memory", "GPU"]


@dataclass(frozen=True)
class MemoryItem:
    """One part of one worker's memory. ``size`` is None where nothing is known before the model is fetched."""

    worker: str
    part: str
    place: Place
    size: int | None
    count: int = 1


@dataclass(frozen=True)
class MemoryEstimate:
    """All parts; sizes in bytes."""

    items: tuple[MemoryItem, ...]

    def total(self, place: Place) -> int:
        """Bytes of what is known."""
        return sum((item.size or 0) * item.count for item in self.items if item.place == place)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Parts that are not in the totals."""
        return tuple(f"{item.worker}: {item.part}" for item in self.items if item.size is None)


def estimate_memory(spec: JobSpec, model: ModelFiles | None, scorer_bytes: int | None) -> MemoryEstimate:
    """Estimate what the workers take.

    Args:
        model: the policy's files; None before they are fetched from the hub.
        scorer_bytes: size of the scorer's weights on disk; 0 for a function; None before they are fetched.
    """
    sampling = (*_sampler(spec, model), *_scorer(spec, scorer_bytes)) if spec.samples else ()
    return MemoryEstimate((*sampling, *_learner(spec, model)))


def element_bytes(spec: JobSpec, gpus: float) -> int:
    """Bytes of one weight of the policy, on a GPU or on the CPU."""
    dtype = spec.policy.dtype
    if dtype == "auto":
        dtype = "bfloat16" if gpus > 0 else "float32"
    return 4 if dtype == "float32" else 2


def adapter_parameters(spec: JobSpec, model: ModelFiles, rank: int) -> int | None:
    """Weights of one adapter: rank times inputs plus outputs of each adapted layer."""
    if not model.linear_layers:
        return None
    wanted = spec.adapters.target_modules
    chosen = [
        sum(shape)
        for name, shape in model.linear_layers.items()
        if wanted == "all-linear" or name.rsplit(".", 1)[-1] in wanted
    ]
    return rank * sum(chosen)


def _sampler(spec: JobSpec, model: ModelFiles | None) -> list[MemoryItem]:
    config = spec.resources.sampler
    place: Place = "GPU" if config.gpus > 0 else "main memory"
    width = element_bytes(spec, config.gpus)
    slots = config.lora_slots or spec.live_adapters
    cpu_slots = config.cpu_lora_slots or 2 * slots
    weights = cache = adapters = None
    if model is not None:
        weights = None if model.parameters is None else model.parameters * width
        rank = next((rank for rank in LORA_RANKS if rank >= spec.most_rank), LORA_RANKS[-1])
        one = adapter_parameters(spec, model, rank)
        adapters = None if one is None else one * width
        if (
            model.layers
            and model.key_value_heads
            and model.head_size
            and (spec.policy.max_context_tokens or model.context_tokens)
        ):
            context = min(filter(None, (spec.policy.max_context_tokens, model.context_tokens)))
            cache = 2 * model.layers * model.key_value_heads * model.head_size * width * context
    if place == "main memory":
        cache_item = MemoryItem("sampler", "key-value cache", place, int(config.kv_cache_gib * (1 << 30)), config.count)
    else:
        cache_item = MemoryItem("sampler", "key-value cache, at least", place, cache, config.count)
    return [
        MemoryItem("sampler", "weights", place, weights, config.count),
        cache_item,
        MemoryItem(
            "sampler", f"{slots} adapters in use", place, None if adapters is None else adapters * slots, config.count
        ),
        MemoryItem(
            "sampler",
            f"{cpu_slots} adapters kept",
            "main memory",
            None if adapters is None else adapters * cpu_slots,
            config.count,
        ),
        MemoryItem("sampler", "process", "main memory", PROCESS_BYTES["sampler"], config.count),
    ]


def _scorer(spec: JobSpec, scorer_bytes: int | None) -> list[MemoryItem]:
    place: Place = "GPU" if spec.resources.scorer.gpus > 0 else "main memory"
    return [
        MemoryItem("scorer", "weights", place, scorer_bytes),
        MemoryItem("scorer", "process", "main memory", PROCESS_BYTES["scorer"]),
    ]


def _learner(spec: JobSpec, model: ModelFiles | None) -> list[MemoryItem]:
    config = spec.resources.learner
    place: Place = "GPU" if config.gpus > 0 else "main memory"
    width = element_bytes(spec, config.gpus)
    weights = adapter = activations = logits = None
    if model is not None:
        weights = None if model.parameters is None else model.parameters * width
        moments = 2 if spec.optimizer.kind == "adamw" else 1
        one = adapter_parameters(spec, model, spec.adapters.rank)
        # float32: the weights, their gradient, the optimizer's moments, and frozen copies for the reference
        adapter = None if one is None else one * 4 * (2 + moments + _reference_copies(spec))
        activations = _activations(spec, model, width)
        if model.vocabulary:
            # the logits, their float32 copy's log-softmax and its gradient
            logits = config.logit_chunk_tokens * model.vocabulary * 4 * 3
    return [
        MemoryItem("learner", "weights", place, weights, config.ranks),
        MemoryItem("learner", "adapter, gradient, optimizer, references", place, adapter, config.ranks),
        MemoryItem("learner", "activations of a micro-batch", place, activations, config.ranks),
        MemoryItem("learner", "logits of a chunk", place, logits, config.ranks),
        MemoryItem("learner", "process", "main memory", PROCESS_BYTES["learner"], config.ranks),
    ]


def _reference_copies(spec: JobSpec) -> int:
    reference = resolve_reference(spec.objective, spec.schedule)
    if reference == "behaviour":
        return spec.schedule.max_staleness + 1
    return 1 if reference == "round" or spec.policy.adapter is not None else 0


def _activations(spec: JobSpec, model: ModelFiles, width: int) -> int | None:
    """Stored for the backward pass: with checkpointing the layers' inputs, otherwise also what lies between them."""
    hidden, layers, inner = model.hidden_size, model.layers, model.number("intermediate_size")
    if not (hidden and layers):
        return None
    per_layer = hidden if spec.resources.learner.gradient_checkpointing else 10 * hidden + 4 * (inner or 4 * hidden)
    return math.ceil(spec.resources.learner.micro_batch_tokens * layers * per_layer * width)
