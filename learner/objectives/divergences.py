"""Other divergences than DPO's reverse KL: f-DPO, token-level DPO and EXO."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from learner.objectives.batch import PreferenceBatch
from learner.objectives.pairwise import MarginObjective, lead, pair
from learner.objectives.parameters import ExoParameters, FDpoParameters, ObjectiveParameters, TdpoParameters
from learner.objectives.registry import register

LARGEST_EXPONENT = 40.0
"""Log-ratios are bounded by this before exp, which stays finite in float32, as does the sum of squares that a gradient's norm
is made of; beyond it there is no gradient."""


@register("f-dpo")
class FDpo(MarginObjective):
    """``-log sigma(beta (f'(u_w) - f'(u_l)))`` with u the likelihood ratio (arXiv 2309.16240, eq. 11). Default beta 0.1.

    With r = log u, up to constants: reverse KL f' = r (DPO); forward KL ``-exp(-r)``; JS ``log sigma(r)``; alpha
    ``-exp(-alpha r) / alpha``, which is reverse KL towards alpha = 0 and forward KL at 1. ``alpha_convention:
    complement`` takes 1 - alpha, as some trainers do.
    """

    def __init__(self, parameters: ObjectiveParameters) -> None:
        super().__init__(parameters)
        assert isinstance(parameters, FDpoParameters)
        self.divergence = parameters.divergence
        self.alpha = parameters.alpha if parameters.alpha_convention == "paper" else 1 - parameters.alpha
        self.beta = parameters.beta

    def slope(self, ratios: Tensor) -> Tensor:
        """f' of exp(log-ratio), up to a constant."""
        if self.divergence == "reverse-kl":
            return ratios
        if self.divergence == "js":
            return logsigmoid(ratios)
        alpha = 1.0 if self.divergence == "forward-kl" else self.alpha
        return -torch.expm1((-alpha * ratios).clamp(max=LARGEST_EXPONENT)) / alpha

    def margin(self, batch: PreferenceBatch) -> Tensor:
        """``[B]``: difference of the slopes."""
        return lead(self.slope(self.log_ratios(batch)))

    def link(self, margin: Tensor) -> Tensor:
        """``[B]``: negative log-sigmoid."""
        return -logsigmoid(self.beta * margin)


@register("tdpo")
class Tdpo(MarginObjective):
    """``-log sigma(beta (D - difference of sequential KLs))`` (arXiv 2404.11999, eq. 16 and 18). Default beta 0.1.

    KL(y) is the forward KL of reference to policy over the whole vocabulary, summed over the answer's positions.
    Version 1: ``D - (KL(y_l) - KL(y_w))`` with gradients through both; version 2: ``D - alpha (KL(y_l) - sg(KL(y_w)))``,
    alpha 0.5. The authors suggest version 1 at low learning rates and version 2 at higher ones.
    """

    def __init__(self, parameters: ObjectiveParameters) -> None:
        super().__init__(parameters)
        assert isinstance(parameters, TdpoParameters)
        self.options = parameters
        self.beta = parameters.beta
        self.requires |= {"token_kl"}

    def margin(self, batch: PreferenceBatch) -> Tensor:
        """``[B]``: difference of log-ratios less that of the KLs."""
        chosen_kl, rejected_kl = pair(batch.read("token_kl"))
        if self.options.version == 1:
            return lead(self.log_ratios(batch)) - (rejected_kl - chosen_kl)
        return lead(self.log_ratios(batch)) - self.options.alpha * (rejected_kl - chosen_kl.detach())

    def link(self, margin: Tensor) -> Tensor:
        """``[B]``: negative log-sigmoid."""
        return -logsigmoid(self.beta * margin)

    def metrics(self, batch: PreferenceBatch) -> dict[str, Tensor]:
        """Also both answers' KL to the reference over their positions, in nats."""
        chosen_kl, rejected_kl = pair(batch.read("token_kl"))
        return super().metrics(batch) | {"chosen_token_kl": chosen_kl, "rejected_token_kl": rejected_kl}


@register("exo")
class Exo(MarginObjective):
    """Reverse KL between ``q = sigma(beta D)`` and the smoothed preference (arXiv 2402.00856, eq. 17). Default beta 0.1.

    ``q (log q - log(1 - e)) + (1 - q) (log(1 - q) - log e)`` with e = ``label_smoothing`` 0.001.
    """

    def __init__(self, parameters: ObjectiveParameters) -> None:
        super().__init__(parameters)
        assert isinstance(parameters, ExoParameters)
        self.beta, self.smoothing = parameters.beta, parameters.label_smoothing

    def margin(self, batch: PreferenceBatch) -> Tensor:
        """``[B]``: difference of log-ratios."""
        return lead(self.log_ratios(batch))

    def link(self, margin: Tensor) -> Tensor:
        """``[B]``: the divergence."""
        right, wrong = logsigmoid(self.beta * margin), logsigmoid(-self.beta * margin)
        return right.exp() * (right - math.log1p(-self.smoothing)) + wrong.exp() * (wrong - math.log(self.smoothing))
