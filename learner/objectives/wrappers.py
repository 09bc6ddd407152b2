"""Objectives that go round a pairwise one: beta-DPO, Dr. DPO, WPO, and the chasing of fast and slow modules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from learner.objectives.base import BatchStatistics, Evaluation, Objective
from learner.objectives.batch import PreferenceBatch
from learner.objectives.pairwise import PairObjective, lead
from learner.objectives.parameters import (
    BetaDpoParameters,
    ChaseParameters,
    DrDpoParameters,
    ObjectiveParameters,
    WpoParameters,
    WrapperParameters,
)
from learner.objectives.registry import build_objective, register
from learner.objectives.running import RunningMoments
from learner.seeds import derive_seed

LEAST_BETA = 1e-3
LARGEST_LOG_WEIGHT = 80.0


class Wrapper(Objective):
    """An objective round another one, which it asks for margins, losses and state."""

    def __init__(self, parameters: ObjectiveParameters) -> None:
        super().__init__(parameters)
        assert isinstance(parameters, WrapperParameters)
        self.inner = build_objective(parameters.inner)
        self.requires = self.inner.requires
        self.needs_margins = self.inner.needs_margins

    @property
    def pairwise(self) -> PairObjective:
        """The objective inside, where it is a plain pairwise one."""
        assert isinstance(self.inner, PairObjective)
        return self.inner

    def check(self, batch: PreferenceBatch) -> None:
        """What is read here, and what the objective inside reads."""
        self.inner.check(batch)
        for name in sorted(self.requires - self.inner.requires):
            batch.read(name)

    def prepare(self, margins: Tensor) -> BatchStatistics:
        """As the objective inside."""
        return self.inner.prepare(margins)

    def margins(self, batch: PreferenceBatch) -> Tensor:
        """As the objective inside."""
        return self.inner.margins(batch)

    def train(self) -> None:
        """Let running statistics move again, inside too."""
        super().train()
        self.inner.train()

    def eval(self) -> None:
        """Freeze running statistics, inside too."""
        super().eval()
        self.inner.eval()

    def state_dict(self) -> dict[str, Any]:
        """As the objective inside."""
        return self.inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As the objective inside."""
        self.inner.load_state_dict(state)


@dataclass(frozen=True)
class BetaStatistics(BatchStatistics):
    """The batch's beta, its margins, and which pairs are kept; ``count`` counts those."""

    beta: float
    margins: Tensor
    kept: Tensor


@register("beta-dpo")
class BetaDpo(Wrapper):
    """beta-DPO (arXiv 2407.08639): a beta for each batch, and outliers left out. Defaults: alpha 0.6, filter share 0.2.

    With A the pairs' margins (not times beta) and M, S their running mean and deviation (momentum 0.9, from 0, the batch
    included): ``floor((1 - filter_share) N)`` pairs are drawn without replacement with weights
    ``exp(-((A - M) / S)^2 / 2)``; ``beta = beta_0 (1 + alpha (mean of the drawn A - M))``, at least 1e-3, without a
    gradient; the loss is the mean over the drawn pairs. Nothing is left out while S is 0, nor in evaluation. The draw
    follows from the step's number.
    """

    def __init__(self, parameters: ObjectiveParameters) -> None:
        super().__init__(parameters)
        assert isinstance(parameters, BetaDpoParameters)
        self.options = parameters
        self.needs_margins = True
        self.moments = RunningMoments(parameters.momentum, parameters.bias_correction)
        self.beta = self.pairwise.beta

    def keep_weights(self, margins: Tensor) -> Tensor:
        """``[N]``: how likely each pair is to be drawn, up to a constant."""
        return torch.exp(-(((margins - self.moments.mean) / self.moments.deviation) ** 2) / 2)

    def _draw(self, margins: Tensor) -> Tensor:
        """``[N]`` bool: the pairs that are kept."""
        count = max(1, math.floor(len(margins) * (1 - self.options.filter_share) + 1e-9))
        if not self.training or count >= len(margins) or self.moments.deviation <= RunningMoments.LEAST_DEVIATION:
            return torch.ones(len(margins), dtype=torch.bool)
        generator = torch.Generator().manual_seed(derive_seed("beta-dpo", self.moments.steps))
        drawn = torch.multinomial(self.keep_weights(margins) + 1e-12, count, generator=generator)
        return torch.zeros(len(margins), dtype=torch.bool).scatter(0, drawn, True)

    def prepare(self, margins: Tensor) -> BetaStatistics:
        """Move the running statistics (not in evaluation), draw the pairs, and set the batch's beta."""
        margins = margins.detach().double().cpu()
        if self.training:
            self.moments.update(margins)
        kept = self._draw(margins)
        beta = self.beta
        if kept.any():
            lead_over_mean = float(margins[kept].mean()) - self.moments.mean
            beta = max(LEAST_BETA, self.beta * (1 + self.options.alpha * lead_over_mean))
        return BetaStatistics(int(kept.sum()), beta, margins, kept)

    def evaluate(self, batch: PreferenceBatch, stats: BatchStatistics) -> Evaluation:
        """The losses inside under the batch's beta."""
        assert isinstance(stats, BetaStatistics)
        self.pairwise.beta = stats.beta
        try:
            losses = self.pairwise.losses(batch)
        finally:
            self.pairwise.beta = self.beta
        constant = torch.ones_like(losses)
        left_out = 1 - stats.count / max(1, len(stats.kept))
        metrics = self.pairwise.metrics(batch) | {"beta": stats.beta * constant, "filtered_share": left_out * constant}
        return Evaluation(losses, metrics, kept=self._kept(batch, stats))

    def _kept(self, batch: PreferenceBatch, stats: BetaStatistics) -> Tensor:
        """``[B]`` bool. Where a part does not know its places, pairs are found again by their margins."""
        if not len(stats.kept):
            return torch.zeros(len(batch.policy_logps), dtype=torch.bool, device=batch.policy_logps.device)
        if batch.positions is None:
            margins = self.margins(batch).double().cpu()
            places = (margins[:, None] - stats.margins[None, :]).abs().argmin(dim=1)
        else:
            places = batch.positions.cpu().clamp(min=0)
        return stats.kept[places].to(batch.policy_logps.device)

    def state_dict(self) -> dict[str, Any]:
        """Running mean, deviation and steps."""
        return self.moments.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        Objective.load_state_dict(self, state)
        self.moments.load_state_dict(state)


@dataclass(frozen=True)
class RobustStatistics(BatchStatistics):
    """The whole batch's loss, and the logarithm of the sum that its weights are divided by."""

    loss: float
    log_sum: float
    effective_share: float


@register("dr-dpo")
class DrDpo(Wrapper):
    """``-b' log(mean over the batch of exp(-l / b'))`` round losses l (arXiv 2407.07880, eq. 11). Default b' 1.

    A mean with weights ``softmax(-l / b')``: pairs with a large loss, which may be mislabelled, count for less. Towards
    infinite b' it is the plain mean, towards 0 the smallest loss. The batch is the whole optimizer batch, however it is
    split (the published code took micro-batches). ``effective_share``: the share of pairs that would weigh as much if
    all weighed the same.
    """

    def __init__(self, parameters: ObjectiveParameters) -> None:
        super().__init__(parameters)
        assert isinstance(parameters, DrDpoParameters)
        self.beta_prime = parameters.beta_prime
        self.needs_margins = True

    def margins(self, batch: PreferenceBatch) -> Tensor:
        """``[B]`` detached: the margins inside, or the losses where those are more than functions of margins."""
        margins = self.pairwise.margins(batch)
        return margins if self.pairwise.margin_losses(margins) is not None else self.pairwise.losses(batch).detach()

    def prepare(self, margins: Tensor) -> RobustStatistics:
        """The loss of the whole batch."""
        losses = self.pairwise.margin_losses(margins.detach())
        losses = (margins.detach() if losses is None else losses).double()
        if not len(losses):
            return RobustStatistics(0, 0.0, 0.0, 0.0)
        log_weights = -losses / self.beta_prime
        log_sum = float(torch.logsumexp(log_weights, 0))
        share = math.exp(2 * log_sum - float(torch.logsumexp(2 * log_weights, 0))) / len(losses)
        loss = -self.beta_prime * (log_sum - math.log(len(losses)))
        return RobustStatistics(len(losses), loss, log_sum, share)

    def evaluate(self, batch: PreferenceBatch, stats: BatchStatistics) -> Evaluation:
        """Terms with the batch's loss as value and the weighted losses' gradient."""
        assert isinstance(stats, RobustStatistics)
        losses = self.pairwise.losses(batch)
        weights = stats.count * torch.exp(-losses.detach() / self.beta_prime - stats.log_sum)
        terms = stats.loss + weights * (losses - losses.detach())
        share = torch.full_like(losses, stats.effective_share)
        return Evaluation(losses, self.pairwise.metrics(batch) | {"effective_share": share}, terms=terms)


@register("wpo")
class Wpo(Wrapper):
    """Losses weighted by ``min(1, exp(m_w + m_l))``, without a gradient (arXiv 2406.11827, eq. 6).

    m is the mean over the answer's tokens of ``log p_t - log sum_v p_v^2`` under the policy: answers that the policy
    would not write itself count for less. Without ``clamp`` the weight may exceed 1.
    """

    def __init__(self, parameters: ObjectiveParameters) -> None:
        super().__init__(parameters)
        assert isinstance(parameters, WpoParameters)
        self.clamp = parameters.clamp
        self.requires = self.inner.requires | {"squared_probability_logs"}

    def evaluate(self, batch: PreferenceBatch, stats: BatchStatistics) -> Evaluation:
        """Weighted losses."""
        log_weights = batch.read("squared_probability_logs").sum(dim=1)
        over = log_weights > 0
        weights = log_weights.clamp(max=0.0 if self.clamp else LARGEST_LOG_WEIGHT).exp()
        metrics = self.pairwise.metrics(batch) | {"weight": weights, "clipped_share": over.to(weights.dtype)}
        return Evaluation(weights * self.pairwise.losses(batch), metrics)


@register("chase")
class Chase(Wrapper):
    """OFS-DPO's losses of two modules (arXiv 2406.05534, eq. 3 to 6; the details are reconstructed). Default alpha 0.1.

    With h a module's difference of log-probabilities, own and other, ``L_FS = -log sigma(beta (h_fast - h_slow))``, its
    argument clamped to ``margin_clamp``, beta that of the loss inside (0.1 where it scales means over tokens), and no gradient
    to the other module:

    * the fast module's loss is the loss inside plus ``alpha L_FS``;
    * the slow module's, `reported`, is the loss inside minus ``alpha L_FS``, which has no lower bound; `bounded` adds
      ``-alpha log sigma(-beta (h_fast - h_slow))`` instead, which pulls the same way.

    :attr:`role` says which module the policy's log-probabilities are of.
    """

    def __init__(self, parameters: ObjectiveParameters) -> None:
        super().__init__(parameters)
        assert isinstance(parameters, ChaseParameters)
        self.options = parameters
        self.role: Literal["fast", "slow"] = "fast"
        self.beta = parameters.summed_beta
        self.requires = self.inner.requires | {"other_logps"}

    def evaluate(self, batch: PreferenceBatch, stats: BatchStatistics) -> Evaluation:
        """The loss inside and the chasing term."""
        found = self.inner.evaluate(batch, stats)
        ahead = lead(batch.read("policy_logps") - batch.read("other_logps"))
        fast_ahead = ahead if self.role == "fast" else -ahead
        bound = self.options.margin_clamp
        logits = (self.beta * fast_ahead).clamp(-bound, bound)
        if self.role == "fast":
            term = -logsigmoid(logits)
        elif self.options.slow_term == "reported":
            term = logsigmoid(logits)
        else:
            term = -logsigmoid(-logits)
        term = self.options.alpha * term
        metrics = found.metrics | {"inner_loss": found.losses.detach(), "fast_lead": fast_ahead}
        terms = None if found.terms is None else found.terms + term
        return replace(found, losses=found.losses + term, metrics=metrics, terms=terms)
