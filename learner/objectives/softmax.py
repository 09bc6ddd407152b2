"""S-DPO: the best answer against all others at once."""

from __future__ import annotations

import torch
from torch import Tensor

from learner.objectives.base import BatchStatistics, Evaluation, Objective
from learner.objectives.batch import PreferenceBatch
from learner.objectives.parameters import ObjectiveParameters, SDpoParameters
from learner.objectives.registry import register


@register("s-dpo")
class SDpo(Objective):
    """``log(1 + sum_j exp(beta (b_j - a)))`` with N rejected log-ratios b_j (arXiv 2406.09215, eq. 12). Default beta 1.

    Minus the log-softmax of the chosen answer among beta times all log-ratios; N = 1 is DPO. The chosen answer is the
    first; missing answers take no part. ``accuracy`` counts a chosen answer that leads all others.
    """

    def __init__(self, parameters: ObjectiveParameters) -> None:
        super().__init__(parameters)
        assert isinstance(parameters, SDpoParameters)
        self.beta = parameters.beta

    def usable(self, batch: PreferenceBatch) -> Tensor:
        """``[B]`` bool: the chosen answer is there, and another one."""
        return super().usable(batch) & batch.present[:, 0]

    def evaluate(self, batch: PreferenceBatch, stats: BatchStatistics) -> Evaluation:
        """Minus the log-softmax."""
        ratios, present = self.log_ratios(batch), batch.present
        leads = torch.where(present[:, 1:], self.beta * (ratios[:, 1:] - ratios[:, :1]), -torch.inf)
        losses = torch.logsumexp(torch.cat([torch.zeros_like(ratios[:, :1]), leads], dim=1), dim=1)
        metrics = self.preference_metrics(batch)
        return Evaluation(losses, metrics | {"accuracy": (leads < 0).all(dim=1).to(ratios.dtype)})
