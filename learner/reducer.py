"""The gradient reducer: what stands between backward and step (rule 12), with one rank too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from learner.aggregation import coordinate_median, flag_aggregate
from learner.ranks import Ranks


class GradientReducer(Protocol):
    """Turns each rank's gradient into the one that all ranks step with."""

    def reduce(self, parameters: Sequence[nn.Parameter], active: int, share: float) -> None:
        """Replace ``.grad`` of the parameters, which are the same ones in the same order on every rank.

        Args:
            parameters: of one adapter.
            active: ranks that had examples; the first ones.
            share: of the batch's records that this rank had; 0 where it had no examples.

        Raises:
            RankLost: another rank is gone or silent.
        """


class MeanReducer:
    """The mean over the optimizer batch's examples.

    Each rank's loss is already divided by the global count, so the ranks' gradients add up to the mean.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def reduce(self, parameters: Sequence[nn.Parameter], active: int, share: float) -> None:
        """Sum the gradients over ranks, as one vector, in place."""
        gradients = _gradients(parameters)
        if self._ranks.size == 1:
            return
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        self._ranks.sum(flat)
        _put(flat, gradients)


class RobustReducer:
    """What a rule makes of the ranks' gradients, some of which may be wrong. With one rank the gradient stays as it is.

    A rank's gradient is its share of the mean: its records' sum over the global count. Divided by its share of the records
    it is an estimate of the mean itself, as long as the others' whatever the shares are, so that a rule gets vectors that
    it can compare, and gives equal ones back. Ranks without examples take no part. Where an objective leaves records out (beta-DPO's filter),
    shares are those before.
    """

    def __init__(self, ranks: Ranks, rule: Callable[[Tensor], Tensor]) -> None:
        """``rule`` makes ``[n]`` of ``[p, n]``."""
        self._ranks, self._rule = ranks, rule

    def reduce(self, parameters: Sequence[nn.Parameter], active: int, share: float) -> None:
        """Apply the rule to the gradients as vectors, on rank 0, and take its result."""
        gradients = _gradients(parameters)
        if self._ranks.size == 1:
            return
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients]) / (share or 1.0)
        _put(self._ranks.combine(flat, lambda vectors: self._rule(vectors[:active])), gradients)


def build_reducer(kind: Literal["mean", "median", "flag"], ranks: Ranks) -> GradientReducer:
    """The reducer of this name."""
    if kind == "mean":
        return MeanReducer(ranks)
    return RobustReducer(ranks, coordinate_median if kind == "median" else flag_aggregate)


def _gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Every parameter's gradient; zeros where it has none."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _put(flat: Tensor, gradients: Sequence[Tensor]) -> None:
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
