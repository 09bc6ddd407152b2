"""DPO and what differs from it by a term: label smoothing, a robust form, an NLL term, R-DPO's lengths, ODPO's offset, XPO's bonus."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from learner.objectives.base import BatchStatistics, Evaluation, Objective
from learner.objectives.batch import PreferenceBatch
from learner.objectives.pairwise import MarginObjective, chosen_nll, lead, pair, per_token
from learner.objectives.parameters import (
    DpoParameters,
    ObjectiveParameters,
    OdpoParameters,
    RDpoParameters,
    XpoParameters,
)
from learner.objectives.registry import register

LEAST_GAP = 1e-6
"""Scorer's gaps below this count as this much, where their logarithm is taken."""


@register("dpo")
class Dpo(MarginObjective):
    """``-log sigma(beta D)`` with D the difference of the log-ratios (arXiv 2305.18290, eq. 7). Default beta 0.1.

    * ``label_smoothing`` e: ``-(1 - e) log sigma(beta D) - e log sigma(-beta D)`` (conservative DPO);
    * ``robust``: ``(-(1 - e) log sigma(beta D) + e log sigma(-beta D)) / (1 - 2 e)`` (arXiv 2403.00409), unbiased when
      a share e of the labels is flipped; can be negative;
    * ``length_normalized``: each log-ratio is divided by its answer's tokens;
    * ``nll_weight`` w: adds w times the chosen answer's mean token NLL (iterative RPO, arXiv 2404.19733).
    """

    def __init__(self, parameters: ObjectiveParameters) -> None:
        super().__init__(parameters)
        assert isinstance(parameters, DpoParameters)
        self.options = parameters
        self.beta = parameters.beta
        if parameters.length_normalized or parameters.nll_weight > 0:
            self.requires |= {"lengths"}

    def margin(self, batch: PreferenceBatch) -> Tensor:
        """``[B]``: difference of log-ratios."""
        ratios = self.log_ratios(batch)
        return lead(per_token(ratios, batch) if self.options.length_normalized else ratios)

    def link(self, margin: Tensor) -> Tensor:
        """``[B]``: smoothed or robust negative log-sigmoid."""
        e, logits = self.options.label_smoothing, self.beta * margin
        right, wrong = logsigmoid(logits), logsigmoid(-logits)
        if self.options.robust:
            return (-(1 - e) * right + e * wrong) / (1 - 2 * e)
        return -(1 - e) * right - e * wrong

    def losses(self, batch: PreferenceBatch) -> Tensor:
        """``[B]``: the link of the margin, and the NLL term."""
        losses = super().losses(batch)
        return losses + self.options.nll_weight * chosen_nll(batch) if self.options.nll_weight > 0 else losses

    def margin_losses(self, margins: Tensor) -> Tensor | None:
        """``[N]``, or None with an NLL term."""
        return None if self.options.nll_weight > 0 else super().margin_losses(margins)


@register("r-dpo")
class RDpo(MarginObjective):
    """``-log sigma(beta D + alpha (len_w - len_l))`` (arXiv 2403.19159, eq. 9). Defaults: beta 0.1, alpha 0.01.

    The sign is the authors': a chosen answer that is longer starts with a smaller loss, so it is pushed less, and length
    is learned less. ``len`` counts tokens.
    """

    def __init__(self, parameters: ObjectiveParameters) -> None:
        super().__init__(parameters)
        assert isinstance(parameters, RDpoParameters)
        self.alpha, self.beta = parameters.alpha, parameters.beta
        self.requires |= {"lengths"}

    def margin(self, batch: PreferenceBatch) -> Tensor:
        """``[B]``: log-ratios' difference, and the lengths' in units of 1 / beta."""
        return lead(self.log_ratios(batch)) + self.alpha / self.beta * lead(batch.read("lengths"))

    def link(self, margin: Tensor) -> Tensor:
        """``[B]``: negative log-sigmoid."""
        return -logsigmoid(self.beta * margin)


@register("odpo")
class Odpo(MarginObjective):
    """``-log sigma(beta D - alpha f(gap))`` (arXiv 2402.10571, eq. 8). Defaults: beta 0.1, alpha 1, f = log.

    The gap is the scorer's logit that the chosen answer beats the rejected one, position bias averaged out (or the
    difference of ``scores`` where a batch has no logits). f = log is the paper's, for scores on a positive scale: a gap
    under 1 gives a negative offset, and one under 1e-6 counts as 1e-6. `identity` and `log1p` are variants.
    """

    def __init__(self, parameters: ObjectiveParameters) -> None:
        super().__init__(parameters)
        assert isinstance(parameters, OdpoParameters)
        self.options = parameters
        self.beta = parameters.beta
        self.requires |= {"pair_logits"}

    def check(self, batch: PreferenceBatch) -> None:
        """Logits, or scores in their place."""
        batch.read("reference_logps")
        self.gap(batch)

    def gap(self, batch: PreferenceBatch) -> Tensor:
        """``[B]``: the scorer's gap, as a logit."""
        if batch.pair_logits is None and batch.scores is not None:
            return lead(batch.read("scores"))
        logits = batch.read("pair_logits")
        return (logits[:, 0, -1] - logits[:, -1, 0]) / 2

    def offset(self, batch: PreferenceBatch) -> Tensor:
        """``[B]``: what beta times the margin must exceed."""
        gap = self.gap(batch)
        if self.options.offset == "log":
            gap = gap.clamp(min=LEAST_GAP).log()
        elif self.options.offset == "log1p":
            gap = gap.clamp(min=0).log1p()
        return self.options.alpha * gap

    def margin(self, batch: PreferenceBatch) -> Tensor:
        """``[B]``: log-ratios' difference less the offset in units of 1 / beta."""
        return lead(self.log_ratios(batch)) - self.offset(batch) / self.beta

    def link(self, margin: Tensor) -> Tensor:
        """``[B]``: negative log-sigmoid."""
        return -logsigmoid(self.beta * margin)

    def metrics(self, batch: PreferenceBatch) -> dict[str, Tensor]:
        """Also the offset."""
        return super().metrics(batch) | {"offset": self.offset(batch)}


@register("xpo")
class Xpo(Objective):
    """``-log sigma(beta D) + alpha log pi(y~)`` with y~ the reference's own answer (arXiv 2405.21046, alg. 1).

    The second term is the bonus for exploring: it lowers what the reference would write. Defaults: beta 0.1, alpha 5e-6.
    A pair without an answer of the reference's has no bonus, and one with two of them, as in the first round, has both;
    a batch that does not say who wrote what has the reference's answer last.
    """

    def __init__(self, parameters: ObjectiveParameters) -> None:
        super().__init__(parameters)
        assert isinstance(parameters, XpoParameters)
        self.options = parameters

    def evaluate(self, batch: PreferenceBatch, stats: BatchStatistics) -> Evaluation:
        """DPO's loss and the bonus."""
        losses = -logsigmoid(self.options.beta * lead(self.log_ratios(batch)))
        if batch.from_opponent is None:
            theirs = torch.zeros_like(batch.policy_logps)
            theirs[:, -1] = 1
        else:
            theirs = batch.read("from_opponent")
        bonus = torch.stack(pair(theirs * batch.read("policy_logps"))).sum(0)
        return Evaluation(losses + self.options.alpha * bonus, self.preference_metrics(batch))
