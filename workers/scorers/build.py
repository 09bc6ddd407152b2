"""From a configuration to a scorer."""

from __future__ import annotations

from typing import Literal

from workers.config import AnyScorer, FunctionScorer, PairRMScorer
from workers.scorers.base import PreferenceScorer


def build_scorer(
    config: AnyScorer,
    *,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int | None = None,
    batch_tokens: int = 16384,
) -> PreferenceScorer:
    """Build a preference scorer. Only the kind that is asked for is imported; a function needs no torch.

    Args:
        config: which scorer.
        device: where a model computes.
        threads: torch threads of this process; None leaves them as they are.
        batch_tokens: most tokens of one forward pass, padding included.

    Raises:
        InputError: the scorer cannot be had as configured.
    """
    if isinstance(config, FunctionScorer):
        from workers.scorers.function import FunctionPreferenceScorer

        return FunctionPreferenceScorer(config)

    import torch

    from workers.scorers.device import resolve_device

    if threads is not None:
        torch.set_num_threads(threads)
    where = resolve_device(device, field="resources.scorer.device")
    if isinstance(config, PairRMScorer):
        from workers.scorers.pairrm import PairRMPreferenceScorer

        return PairRMPreferenceScorer(config, device=where, batch_tokens=batch_tokens)
    from workers.scorers.reward_model import RewardModelPreferenceScorer

    return RewardModelPreferenceScorer(config, device=where, batch_tokens=batch_tokens)
