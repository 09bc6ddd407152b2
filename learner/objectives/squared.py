"""Links that stop pushing: IPO's squared distance and the hinge."""

from __future__ import annotations

import torch
from torch import Tensor

from learner.objectives.batch import PreferenceBatch
from learner.objectives.pairwise import MarginObjective, lead, per_token
from learner.objectives.parameters import HingeParameters, IpoParameters, ObjectiveParameters
from learner.objectives.registry import register


@register("ipo")
class Ipo(MarginObjective):
    """``(D - 1 / (2 tau))^2`` with D the difference of the log-ratios (arXiv 2310.12036, eq. 17). Default tau 0.1.

    The paper sums over tokens. With ``length_normalized`` each log-ratio is a mean over its answer's tokens, as popular
    trainers have it: the same target is then enormous, so raise tau.
    """

    def __init__(self, parameters: ObjectiveParameters) -> None:
        super().__init__(parameters)
        assert isinstance(parameters, IpoParameters)
        self.options = parameters
        self.beta = parameters.tau
        if parameters.length_normalized:
            self.requires |= {"lengths"}

    def margin(self, batch: PreferenceBatch) -> Tensor:
        """``[B]``: difference of log-ratios."""
        ratios = self.log_ratios(batch)
        return lead(per_token(ratios, batch) if self.options.length_normalized else ratios)

    def link(self, margin: Tensor) -> Tensor:
        """``[B]``: squared distance to the target."""
        return (margin - 1 / (2 * self.options.tau)) ** 2


@register("hinge")
class Hinge(MarginObjective):
    """``max(0, 1 - beta D)`` (SLiC, arXiv 2305.10425, against a reference as in arXiv 2309.06657). Default beta 0.1.

    No gradient once beta D reaches 1, where the loss has its kink.
    """

    def __init__(self, parameters: ObjectiveParameters) -> None:
        super().__init__(parameters)
        assert isinstance(parameters, HingeParameters)
        self.beta = parameters.beta

    def margin(self, batch: PreferenceBatch) -> Tensor:
        """``[B]``: difference of log-ratios."""
        return lead(self.log_ratios(batch))

    def link(self, margin: Tensor) -> Tensor:
        """``[B]``: what is missing to 1."""
        return torch.relu(1 - self.beta * margin)
