"""Objectives on mean token log-probabilities: SimPO, and AlphaDPO whose target margin moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import logsigmoid

from learner.objectives.base import BatchStatistics, Evaluation, Objective
from learner.objectives.batch import PreferenceBatch
from learner.objectives.pairwise import MarginObjective, chosen_nll, lead, per_token
from learner.objectives.parameters import AlphaDpoParameters, ObjectiveParameters, SimpoParameters
from learner.objectives.registry import register
from learner.objectives.running import RunningMoments


@register("simpo")
class Simpo(MarginObjective):
    """``-log sigma(beta (lp_w / len_w - lp_l / len_l - gamma / beta))`` (arXiv 2405.14734, eq. 6); no reference.

    Defaults: beta 2.0, gamma / beta 0.25 (``gamma_beta_ratio``; elsewhere the parameter may be gamma itself). Label
    smoothing as in DPO; ``nll_weight`` adds the chosen answer's mean token NLL.
    """

    def __init__(self, parameters: ObjectiveParameters) -> None:
        super().__init__(parameters)
        assert isinstance(parameters, SimpoParameters)
        self.options = parameters
        self.beta = parameters.beta
        self.requires = frozenset({"lengths"})

    def margin(self, batch: PreferenceBatch) -> Tensor:
        """``[B]``: difference of mean token log-probabilities."""
        return lead(per_token(batch.read("policy_logps"), batch))

    def link(self, margin: Tensor) -> Tensor:
        """``[B]``: smoothed negative log-sigmoid of what exceeds the target margin."""
        e, logits = self.options.label_smoothing, self.beta * (margin - self.options.gamma_beta_ratio)
        return -(1 - e) * logsigmoid(logits) - e * logsigmoid(-logits)

    def losses(self, batch: PreferenceBatch) -> Tensor:
        """``[B]``: the link of the margin, and the NLL term."""
        losses = super().losses(batch)
        return losses + self.options.nll_weight * chosen_nll(batch) if self.options.nll_weight > 0 else losses

    def margin_losses(self, margins: Tensor) -> Tensor | None:
        """``[N]``, or None with an NLL term."""
        return None if self.options.nll_weight > 0 else super().margin_losses(margins)

    def metrics(self, batch: PreferenceBatch) -> dict[str, Tensor]:
        """Margin and accuracy are of mean token log-probabilities; there is no log-ratio."""
        margin = self.margins(batch)
        return {"margin": margin, "accuracy": (margin > 0).to(margin.dtype)}


@dataclass(frozen=True)
class GapStatistics(BatchStatistics):
    """Running mean and deviation of the gap, the batch already in them."""

    mean: float
    deviation: float


@register("alpha-dpo")
class AlphaDpo(Objective):
    """``-log sigma(beta (Pi - M))``, ``M = sg(gamma / beta + alpha (Pi - R - mean) / deviation)`` (arXiv 2410.10148).

    Pi and R are the policy's and the reference's differences of mean token log-probabilities (of sums without
    ``length_normalized``); mean and deviation of Pi - R run over batches with ``momentum``, from 0, the batch itself
    included. Only Pi carries a gradient. alpha = 0 is SimPO. Defaults: beta 2.5, gamma / beta 0.25, alpha 0.05.
    """

    needs_margins = True

    def __init__(self, parameters: ObjectiveParameters) -> None:
        super().__init__(parameters)
        assert isinstance(parameters, AlphaDpoParameters)
        self.options = parameters
        if parameters.length_normalized:
            self.requires |= {"lengths"}
        self.moments = RunningMoments(parameters.momentum)

    def _lead(self, batch: PreferenceBatch, field: str) -> Tensor:
        values = batch.read(field)
        return lead(per_token(values, batch) if self.options.length_normalized else values)

    def margins(self, batch: PreferenceBatch) -> Tensor:
        """``[B]`` detached: Pi - R."""
        return (self._lead(batch, "policy_logps") - self._lead(batch, "reference_logps")).detach()

    def prepare(self, margins: Tensor) -> GapStatistics:
        """Move the running statistics (not in evaluation) and hold them for the batch."""
        if self.training:
            self.moments.update(margins)
        return GapStatistics(len(margins), self.moments.mean, self.moments.deviation)

    def evaluate(self, batch: PreferenceBatch, stats: BatchStatistics) -> Evaluation:
        """The loss against the moving margin."""
        assert isinstance(stats, GapStatistics)
        gap = self.margins(batch) - stats.mean
        # without a deviation there is nothing to standardise by: as at the start, where policy and reference agree
        scale = 1 / stats.deviation if stats.deviation > RunningMoments.LEAST_DEVIATION else 0.0
        margin = self.options.gamma_beta_ratio + self.options.alpha * scale * gap
        losses = -logsigmoid(self.options.beta * (self._lead(batch, "policy_logps") - margin))
        return Evaluation(losses, self.preference_metrics(batch) | {"target_margin": margin})

    def state_dict(self) -> dict[str, Any]:
        """Running mean and deviation."""
        return self.moments.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        super().load_state_dict(state)
        self.moments.load_state_dict(state)
