"""SPPO: self-play preference optimisation (arXiv 2405.00675)."""

from __future__ import annotations

import torch
from torch import Tensor

from learner.objectives.base import BatchStatistics, Evaluation, Objective
from learner.objectives.batch import PreferenceBatch
from learner.objectives.parameters import ObjectiveParameters, SppoParameters
from learner.objectives.registry import register


@register("sppo")
class Sppo(Objective):
    """Squared loss on the log-ratio to the previous policy, eq. 4.7:

        (log pi(y|x) / pi_t(y|x) - (P(y beats pi_t | x) - baseline) / beta) ^ 2,    beta = 1 / eta

    summed or averaged over a prompt's answers. The paper sums two; the released code averages them. ``estimate`` says
    what stands for P: `soft` the mean over all K answers, `pair` the mean over the other answers kept (the released
    `sppo_single`), `hard` 1 for the best, 0 for the worst, and evenly spaced between them (eq. 4.12). Defaults: eta =
    1000, baseline 1/2.

    An answer can be regressed alone, so a prompt with one answer left counts under `soft`; the others compare answers
    kept.
    """

    def __init__(self, parameters: ObjectiveParameters) -> None:
        super().__init__(parameters)
        assert isinstance(parameters, SppoParameters)
        self.options = parameters
        extra = {"soft": {"win_probabilities"}, "pair": {"pair_logits"}, "hard": set()}[parameters.estimate]
        self.requires = frozenset({"reference_logps"} | extra)

    def usable(self, batch: PreferenceBatch) -> Tensor:
        """``[B]`` bool: examples with an answer (`soft`) or with two to compare."""
        return batch.present.sum(dim=1) >= (1 if self.options.estimate == "soft" else 2)

    def win_estimates(self, batch: PreferenceBatch) -> Tensor:
        """``[B, R]``: what the objective takes as the answer's probability to win."""
        if self.options.estimate == "soft":
            return batch.read("win_probabilities", fill=0.5)
        present = batch.present
        others = (present.sum(dim=1, keepdim=True) - 1).clamp(min=1)
        if self.options.estimate == "hard":
            rank = present.cumsum(dim=1) - 1
            return 1 - rank.to(batch.policy_logps.dtype) / others
        logits = batch.read("pair_logits")
        if self.options.probabilities != "raw":
            logits = (logits - logits.transpose(1, 2)) / 2
        pairs = present[:, :, None] & present[:, None, :]
        pairs = pairs & ~torch.eye(pairs.shape[1], dtype=torch.bool, device=pairs.device)
        return torch.where(pairs, torch.sigmoid(logits), 0.0).sum(dim=2) / others

    def evaluate(self, batch: PreferenceBatch, stats: BatchStatistics) -> Evaluation:
        """Squared distances to the targets."""
        present = batch.present
        targets = (self.win_estimates(batch) - self.options.baseline) / self.options.beta
        squares = torch.where(present, (self.log_ratios(batch) - targets) ** 2, 0.0)
        losses = squares.sum(dim=1)
        if self.options.reduction == "mean":
            losses = losses / present.sum(dim=1).clamp(min=1)
        return Evaluation(losses, self.preference_metrics(batch))
