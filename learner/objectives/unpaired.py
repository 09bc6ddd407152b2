"""Objectives that look at each answer of a pair alone: KTO on pairs, BCO, APO and NCA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from learner.objectives.base import BatchStatistics, Evaluation, Objective
from learner.objectives.batch import PreferenceBatch
from learner.objectives.pairwise import PairObjective, lead, pair
from learner.objectives.parameters import (
    ApoDownParameters,
    ApoZeroParameters,
    BcoParameters,
    KtoPairParameters,
    NcaParameters,
    ObjectiveParameters,
)
from learner.objectives.registry import register


@dataclass(frozen=True)
class KtoStatistics(BatchStatistics):
    """The batch's mean log-ratios of both sides, at least 0, and the loss's slope in each, where it has one."""

    chosen_mean: float
    rejected_mean: float
    chosen_slope: float
    rejected_slope: float


@register("kto-pair")
class KtoPair(Objective):
    """``(1 - sigma(beta (a - z_l)) + 1 - sigma(beta (z_w - b))) / 2`` (arXiv 2402.01306, on pairs). Default beta 0.1.

    a and b are the chosen and rejected log-ratios, z_w and z_l their means over the batch, at least 0: each side is
    judged against the other's. The mean is over both halves, as in trainers that concatenate them. Without
    ``detach_kl`` the gradient also flows through z_w and z_l, as in SPPO's published code.
    """

    needs_margins = True

    def __init__(self, parameters: ObjectiveParameters) -> None:
        super().__init__(parameters)
        assert isinstance(parameters, KtoPairParameters)
        self.options = parameters

    def margins(self, batch: PreferenceBatch) -> Tensor:
        """``[B, 2]`` detached: both log-ratios."""
        return self.log_ratios(batch).detach()

    def prepare(self, margins: Tensor) -> KtoStatistics:
        """Mean log-ratios of the batch, and how much the summed loss falls or rises with them."""
        chosen, rejected = pair(margins.double())
        count, beta = len(margins), self.options.beta
        if not count:
            return KtoStatistics(0, 0.0, 0.0, 0.0, 0.0)
        chosen_mean, rejected_mean = max(0.0, float(chosen.mean())), max(0.0, float(rejected.mean()))
        slope = [0.0, 0.0]
        if not self.options.detach_kl:
            against_chosen = torch.sigmoid(beta * (chosen_mean - rejected))
            against_rejected = torch.sigmoid(beta * (chosen - rejected_mean))
            if chosen.mean() > 0:
                slope[0] = float((-beta * against_chosen * (1 - against_chosen)).sum()) / 2
            if rejected.mean() > 0:
                slope[1] = float((beta * against_rejected * (1 - against_rejected)).sum()) / 2
        return KtoStatistics(count, chosen_mean, rejected_mean, slope[0] / count, slope[1] / count)

    def evaluate(self, batch: PreferenceBatch, stats: BatchStatistics) -> Evaluation:
        """Both halves' losses."""
        assert isinstance(stats, KtoStatistics)
        beta = self.options.beta
        chosen, rejected = pair(self.log_ratios(batch))
        chosen_losses = torch.sigmoid(-beta * (chosen - stats.rejected_mean))
        rejected_losses = torch.sigmoid(-beta * (stats.chosen_mean - rejected))
        losses = (chosen_losses + rejected_losses) / 2
        # adds nothing to the value, and the slope in the means to the gradient
        through = stats.chosen_slope * (chosen - chosen.detach()) + stats.rejected_slope * (
            rejected - rejected.detach()
        )
        metrics = self.preference_metrics(batch) | {"chosen_loss": chosen_losses, "rejected_loss": rejected_losses}
        return Evaluation(losses, metrics, terms=losses + through)


@dataclass(frozen=True)
class RewardStatistics(BatchStatistics):
    """The running mean reward of the batches before."""

    mean_reward: float


@register("bco")
class Bco(Objective):
    """``-log sigma(beta a - delta) - log sigma(-(beta b - delta))`` (arXiv 2404.04656). Defaults: beta 0.1, momentum 0.9.

    delta is the running mean of the rewards beta a and beta b over the batches before this one, from 0; trainers that
    leave it out keep it at 0.
    """

    needs_margins = True

    def __init__(self, parameters: ObjectiveParameters) -> None:
        super().__init__(parameters)
        assert isinstance(parameters, BcoParameters)
        self.options = parameters
        self.mean_reward = 0.0

    def margins(self, batch: PreferenceBatch) -> Tensor:
        """``[B, 2]`` detached: both log-ratios."""
        return self.log_ratios(batch).detach()

    def prepare(self, margins: Tensor) -> RewardStatistics:
        """Hold the mean reward for the batch, then let the batch into it (not in evaluation)."""
        stats = RewardStatistics(len(margins), self.mean_reward)
        if self.training and len(margins):
            reward = float((self.options.beta * margins.double()).mean())
            self.mean_reward = self.options.momentum * self.mean_reward + (1 - self.options.momentum) * reward
        return stats

    def evaluate(self, batch: PreferenceBatch, stats: BatchStatistics) -> Evaluation:
        """Both answers' losses, added."""
        assert isinstance(stats, RewardStatistics)
        chosen, rejected = pair(self.options.beta * self.log_ratios(batch))
        losses = -logsigmoid(chosen - stats.mean_reward) - logsigmoid(-(rejected - stats.mean_reward))
        mean = torch.full_like(losses, stats.mean_reward)
        return Evaluation(losses, self.preference_metrics(batch) | {"mean_reward": mean})

    def state_dict(self) -> dict[str, Any]:
        """The running mean reward."""
        return {"mean_reward": self.mean_reward}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        super().load_state_dict(state)
        self.mean_reward = float(state["mean_reward"])


@register("apo-zero")
class ApoZero(PairObjective):
    """``1 - sigma(beta a) + sigma(beta b)`` (arXiv 2408.06266). Default beta 0.1.

    Raises the chosen answer and lowers the rejected one, for data better than the policy.
    """

    def __init__(self, parameters: ObjectiveParameters) -> None:
        super().__init__(parameters)
        assert isinstance(parameters, ApoZeroParameters)
        self.beta = parameters.beta

    def losses(self, batch: PreferenceBatch) -> Tensor:
        """``[B]``."""
        chosen, rejected = pair(self.beta * self.log_ratios(batch))
        return torch.sigmoid(-chosen) + torch.sigmoid(rejected)


@register("apo-down")
class ApoDown(PairObjective):
    """``sigma(beta a) + 1 - sigma(beta D)`` (arXiv 2408.06266). Default beta 0.1.

    Lowers both answers, the rejected one more, for policies better than their data.
    """

    def __init__(self, parameters: ObjectiveParameters) -> None:
        super().__init__(parameters)
        assert isinstance(parameters, ApoDownParameters)
        self.beta = parameters.beta

    def losses(self, batch: PreferenceBatch) -> Tensor:
        """``[B]``."""
        ratios = self.beta * self.log_ratios(batch)
        return torch.sigmoid(pair(ratios)[0]) + torch.sigmoid(-lead(ratios))


@register("nca")
class Nca(PairObjective):
    """``-log sigma(r_w) - (log sigma(-r_w) + log sigma(-r_l)) / 2`` with r = beta log-ratio (arXiv 2402.05369).

    Default beta 0.1. The middle term keeps the chosen answer's likelihood from falling, and from rising without bound.
    """

    def __init__(self, parameters: ObjectiveParameters) -> None:
        super().__init__(parameters)
        assert isinstance(parameters, NcaParameters)
        self.beta = parameters.beta

    def losses(self, batch: PreferenceBatch) -> Tensor:
        """``[B]``."""
        chosen, rejected = pair(self.beta * self.log_ratios(batch))
        return -logsigmoid(chosen) - (logsigmoid(-chosen) + logsigmoid(-rejected)) / 2
