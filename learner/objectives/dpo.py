"""DPO: direct preference optimisation (arXiv 2305.18290), with label smoothing, its robust form and an NLL term."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from learner.objectives.base import BatchStatistics, PairObjective
from learner.objectives.batch import PreferenceBatch
from learner.objectives.parameters import DpoParameters, ObjectiveParameters
from learner.objectives.registry import register


@register("dpo")
class Dpo(PairObjective):
    """``-log sigma(beta D)`` with D the difference of the log-ratios (eq. 7). Default beta 0.1.

    * ``label_smoothing`` e: ``-(1 - e) log sigma(beta D) - e log sigma(-beta D)`` (cDPO);
    * ``robust``: ``(-(1 - e) log sigma(beta D) + e log sigma(-beta D)) / (1 - 2 e)`` (arXiv 2403.00409), unbiased when
    a share e of
      the labels is flipped; can be negative;
    * ``length_normalized``: each log-ratio is divided by its answer's tokens;
    * ``nll_weight`` w: adds w times the chosen answer's mean token NLL (arXiv 2404.19733).
    """

    def __init__(self, parameters: ObjectiveParameters) -> None:
        super().__init__(parameters)
        assert isinstance(parameters, DpoParameters)
        self.options = parameters
        needs_lengths = parameters.length_normalized or parameters.nll_weight > 0
        self.requires = frozenset({"reference_logps"} | ({"lengths"} if needs_lengths else set()))

    def _evaluate(self, batch: PreferenceBatch, stats: BatchStatistics) -> tuple[Tensor, dict[str, Tensor]]:
        options = self.options
        ratios = self.log_ratios(batch)
        if options.length_normalized:
            ratios = ratios / batch.read("lengths").clamp(min=1)
        chosen, rejected = self.pair(ratios)
        logits = options.beta * (chosen - rejected)
        right, wrong = logsigmoid(logits), logsigmoid(-logits)
        e = options.label_smoothing
        losses = (-(1 - e) * right + e * wrong) / (1 - 2 * e) if options.robust else -(1 - e) * right - e * wrong
        if options.nll_weight > 0:
            nll = -(batch.read("policy_logps") / batch.read("lengths").clamp(min=1))[:, 0]
            losses = losses + options.nll_weight * nll
        return losses, self.preference_metrics(batch)
