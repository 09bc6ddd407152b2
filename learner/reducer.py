"""The gradient reducer: what stands between backward and step (rule 12), with one rank too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn


class GradientReducer(Protocol):
    """Turns each rank's gradient into the one that all ranks step with."""

    def reduce(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace ``.grad`` of the parameters, which are the same ones in the same order on every rank."""


class MeanReducer:
    """The mean over the optimizer batch's examples.

    Each rank's loss is already divided by the global count, so the ranks' gradients add up to the mean.
    """

    def __init__(self, all_reduce_sum: Callable[[Tensor], None] | None = None) -> None:
        """``all_reduce_sum`` replaces a vector by its sum over ranks; None with one rank."""
        self._all_reduce_sum = all_reduce_sum

    def reduce(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum the gradients over ranks, as one vector, in place."""
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self._all_reduce_sum is None:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        self._all_reduce_sum(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
