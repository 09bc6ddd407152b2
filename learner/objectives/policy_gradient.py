"""Nash-MD: a policy gradient with the preference as reward."""

from __future__ import annotations

import torch
from torch import Tensor

from learner.objectives.base import BatchStatistics, Evaluation, Objective
from learner.objectives.batch import PreferenceBatch
from learner.objectives.pairwise import pair
from learner.objectives.parameters import NashMdParameters, ObjectiveParameters
from learner.objectives.registry import register


@register("nash-md")
class NashMd(Objective):
    """``beta sum_t sg(log pi_t - log ref_t) log pi_t - (P(y beats y') - 1/2) log pi(y)`` (arXiv 2312.00886, section 7).

    y, the first answer, is the policy's; y' comes from the geometric mixture of policy and reference, with the
    reference's share ``mixture``; P is the scorer's probability, position bias averaged out: below 1/2 where the policy's own
    answer loses, which is then made less likely. A batch without ``token_kl_products`` has each answer as a single action.
    Defaults: beta 0.1, mixture 0.5.
    """

    def __init__(self, parameters: ObjectiveParameters) -> None:
        super().__init__(parameters)
        assert isinstance(parameters, NashMdParameters)
        self.options = parameters
        self.requires |= {"pair_logits", "token_kl_products"}

    def check(self, batch: PreferenceBatch) -> None:
        """Everything but the products over tokens, which may be absent."""
        for name in sorted(self.requires - {"token_kl_products"}):
            batch.read(name)

    def evaluate(self, batch: PreferenceBatch, stats: BatchStatistics) -> Evaluation:
        """The surrogate whose gradient is the policy gradient."""
        own, _ = pair(batch.read("policy_logps"))
        if batch.token_kl_products is None:
            products = self.log_ratios(batch)[:, 0].detach() * own
        else:
            products = batch.read("token_kl_products")[:, 0]
        logits = batch.read("pair_logits")
        wins = torch.sigmoid((logits[:, 0, 1] - logits[:, 1, 0]) / 2)
        losses: Tensor = self.options.beta * products - (wins - 0.5) * own
        return Evaluation(losses, self.preference_metrics(batch) | {"win_probability": wins})
