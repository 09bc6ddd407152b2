"""MallowsPO: preferences count for more on prompts on which the reference is sure."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from learner.objectives.batch import PreferenceBatch
from learner.objectives.pairwise import MarginObjective, lead
from learner.objectives.parameters import MallowsParameters, ObjectiveParameters
from learner.objectives.registry import register

LEAST_DISPERSION = 1e-6
LARGEST_SCALE = 5.0
"""Cap on the scale of prompts whose dispersion is very low."""
LARGEST_PHI = 1 - 1e-3
"""Kendall's link with phi this near 1 is one half all the same."""
JUMP_WIDTH = 0.05
"""Kendall's link jumps at 0; it is linear within this distance of it."""


@register("mallows")
class Mallows(MarginObjective):
    """MallowsPO (arXiv 2405.14953). Defaults: beta 0.1, phi* 0.29 (``neg_log_dispersion_mean``).

    The dispersion h in (0, 1] is the reference's mean entropy over both answers' tokens, in units of log V (the batch's
    ``mean_entropy``). With s = -phi* log h, at most 5:

    * ``theta``: ``-log sigma(beta s D)``; the theory's factor 2 is within phi*;
    * ``ipo``: ``(s D - 1 / (2 beta))^2``;
    * ``phi``: ``-log g(beta D)`` with Kendall's link at phi = h: ``g(s) = q(s)`` for s > 0 and ``1 - q(-s)`` below,
      ``q(u) = (u + 1) / (1 - phi^(u+1)) - u / (1 - phi^u)``. g jumps at 0, where no gradient would be defined; within
      0.05 of it a straight line stands for it.
    """

    def __init__(self, parameters: ObjectiveParameters) -> None:
        super().__init__(parameters)
        assert isinstance(parameters, MallowsParameters)
        self.options = parameters
        self.beta = parameters.beta
        self.requires |= {"mean_entropy"}

    def dispersion(self, batch: PreferenceBatch) -> Tensor:
        """``[B]``: h, the mean over both answers."""
        return batch.read("mean_entropy").mean(dim=1).clamp(LEAST_DISPERSION, 1 - LEAST_DISPERSION)

    def scale(self, batch: PreferenceBatch) -> Tensor:
        """``[B]``: s."""
        return (-self.options.neg_log_dispersion_mean * self.dispersion(batch).log()).clamp(max=LARGEST_SCALE)

    def margin(self, batch: PreferenceBatch) -> Tensor:
        """``[B]``: difference of log-ratios, scaled but for Kendall's link."""
        margin = lead(self.log_ratios(batch))
        return margin if self.options.form == "phi" else self.scale(batch) * margin

    def link(self, margin: Tensor) -> Tensor:
        """``[B]``: the loss of a scaled margin."""
        if self.options.form == "ipo":
            return (margin - 1 / (2 * self.beta)) ** 2
        return -logsigmoid(self.beta * margin)

    def losses(self, batch: PreferenceBatch) -> Tensor:
        """``[B]``: the link of the margin."""
        if self.options.form != "phi":
            return super().losses(batch)
        return -kendall_log_link(self.beta * self.margin(batch), self.dispersion(batch))

    def margin_losses(self, margins: Tensor) -> Tensor | None:
        """``[N]``, or None for Kendall's link, which needs each prompt's dispersion."""
        return None if self.options.form == "phi" else super().margin_losses(margins)

    def metrics(self, batch: PreferenceBatch) -> dict[str, Tensor]:
        """Also the dispersion."""
        return super().metrics(batch) | {"dispersion": self.dispersion(batch)}


def kendall_log_link(scores: Tensor, phi: Tensor) -> Tensor:
    """``log g(s)``, ``[B]``: log-probability that the better of two items whose ranks differ by s comes first.

    The marginal of a Mallows model under Kendall's tau with dispersion phi, continued to real s. Computed in float64
    and from ``1 - q``, since q itself is 1 in floating point for large s.
    """
    s, phi = scores.double(), phi.double().clamp(LEAST_DISPERSION, LARGEST_PHI)
    far = s.abs() >= JUMP_WIDTH
    outside = _log_tail(torch.where(far, s.abs(), JUMP_WIDTH), phi)
    straight = torch.where(far, 0.0, s) / JUMP_WIDTH
    edge = 0.5 - _log_tail(torch.full_like(s, JUMP_WIDTH), phi).exp()
    inside = torch.log(0.5 + edge * straight)
    return torch.where(far, torch.where(s > 0, torch.log(-torch.expm1(outside)), outside), inside).to(scores.dtype)


def _log_tail(u: Tensor, phi: Tensor) -> Tensor:
    """``log(1 - q(u))`` for u > 0: ``u log phi + log(u / (1 - phi^u) - (u + 1) phi / (1 - phi^(u+1)))``."""
    log_phi = phi.log()
    bracket = u / -torch.expm1(u * log_phi) - (u + 1) * phi / -torch.expm1((u + 1) * log_phi)
    return u * log_phi + bracket.log()
