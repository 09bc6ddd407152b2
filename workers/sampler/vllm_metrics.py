"""vLLM's own metrics, under its own names, so that dashboards made for vLLM read them too.

vLLM registers them with prometheus-client in the process that owns the engine's client; no port is opened for them.
"""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry

GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")

COUNTERS = (
    "vllm:prompt_tokens",
    "vllm:generation_tokens",
    "vllm:prefix_cache_queries",
    "vllm:prefix_cache_hits",
    "vllm:num_preemptions",
    "vllm:request_success",
)
"""As families; their samples end in ``_total``."""

SUMMED = (
    "vllm:time_to_first_token_seconds",
    "vllm:e2e_request_latency_seconds",
    "vllm:request_queue_time_seconds",
)
"""Histograms of which the sum and the count are told."""

SAMPLES = frozenset(
    [
        *GAUGES,
        *(f"{name}_total" for name in COUNTERS),
        *(f"{name}_{part}" for name in SUMMED for part in ("sum", "count")),
    ]
)
"""Names of what is told."""


def vllm_metrics(registry: CollectorRegistry = REGISTRY) -> dict[str, float]:
    """The newest values, summed over vLLM's own labels (its engines, reasons to finish). Empty before an engine has started."""
    found: dict[str, float] = {}
    for family in registry.restricted_registry(sorted(SAMPLES)).collect():
        for sample in family.samples:
            if sample.name in SAMPLES:
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found
